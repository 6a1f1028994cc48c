"""The artifact store, which holds immutable folders `<store>/<stage>/<key>/`, each with a `manifest.json`.

An artifact is written under a temporary name, fsynced and renamed, so a reader sees the whole artifact or
none. The SHA-256 of every file is checked at every use, which finds a changed byte even if size and time of
the file are unchanged. The manifest contains a digest of itself. Only one process at a time works on a key.
The process holds a lock (`fcntl.flock`), which the kernel frees at any end of the process. The store keeps
its own files in folders beside the stages:

    .locks/   one empty file for each key   .tmp/    artifacts being written
    .work/    checkpoints and specs         .cache/  compiled programs
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.engine.errors import StageFailed, one_line_os_errors
from flows.engine.manifest_index import MANIFEST, StageIndex, read_index
from jora_core.base.atomic_files import fsync, fsync_tree, write_bytes
from jora_core.base.digests import file_digests, json_digest
from jora_core.base.errors import InputError
from jora_core.base.secrets import mask

ABANDONED_SECONDS = 14 * 24 * 3600  # age at which the checkpoints of an unfinished key are removed

Manifest = dict[str, Any]


class ArtifactRef(BaseModel):
    """A reference to a stage's artifact, which is all that stages and tasks pass to one another."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    stage: str = Field(title="Stage", description="Name of the stage")
    key: str = Field(title="Key", description="SHA-256 of everything that decides its content")
    path: str = Field(title="Folder", description="Absolute path of the artifact")
    cached: bool = Field(title="Cached", description="Whether it was there already")
    seconds: float = Field(title="Seconds", description="Wall time of this call")
    reason: str = Field("", title="Reason", description="Why it ran; empty if cached")


@dataclass(frozen=True)
class Check:
    """The result of verifying an artifact.

    Attributes:
        manifest: the manifest of a whole artifact; None for a damaged or missing artifact.
        damage: what is damaged; None for a whole or missing artifact.
    """

    manifest: Manifest | None = None
    damage: str | None = None

    @property
    def whole(self) -> bool:
        """Whether every file of the artifact exists and has the same bytes as when it was written."""
        return self.manifest is not None


class Store:
    """The artifacts below one folder.

    The constructor creates no folder. The first write creates it.
    """

    def __init__(self, root: Path | str) -> None:
        # Absolute, because Dask workers and child processes have other working directories.
        self.root = Path(root).resolve()
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"store {self.root} is a file; choose a folder with --set store=FOLDER")

    @property
    def place(self) -> str:
        """Name of this folder among those of a shared store; empty for a store of one folder."""
        return ""

    @property
    def exists(self) -> bool:
        """Whether there is a store already."""
        return self.root.is_dir()

    @property
    def cache_dir(self) -> Path:
        """Folder of compiled programs, token ids and embeddings for all runs; safe to delete."""
        return self.root / ".cache"

    def path(self, stage: str, key: str) -> Path:
        """Return the folder of an artifact, which need not exist."""
        return self.root / stage / key

    def work_dir(self, stage: str, key: str) -> Path:
        """Return the work folder of a key, whose checkpoints survive the kill of a run."""
        return self.root / ".work" / stage / key

    def check(self, stage: str, key: str) -> Check:
        """Verify the manifest of an artifact and the SHA-256 of its files."""
        return check_folder(self.path(stage, key), (stage, key))

    def indexes(self, stage: str) -> list[StageIndex]:
        """Return what is known of the artifacts of a stage, without a check of seals and files."""
        return [read_index(self.root / stage, self.cache_dir / "manifests" / f"{stage}.json")]

    def stages(self) -> list[str]:
        """Return the names of the stages that have artifacts."""
        # The store's own folders begin with a dot.
        return [path.name for path in self._folders("") if not path.name.startswith(".")]

    def fetch(self, stage: str, key: str) -> None:
        """Bring the artifact of a shared store into this folder, if that store has it."""

    def share(self, stage: str, key: str, *, computed: bool) -> None:
        """Bring an artifact of this folder into the shared store, if that store lacks it.

        Args:
            stage: name of the stage.
            key: key of the artifact.
            computed: whether this process has just made it and holds its lock.
        """

    def documents(self, folder: str) -> dict[str, bytes]:
        """Return the small files of one of the store's own folders, by name."""
        found: dict[str, bytes] = {}
        place = self.root / folder
        for path in place.iterdir() if place.is_dir() else ():
            with suppress(OSError):
                # Temporary files begin with a dot.
                if not path.name.startswith("."):
                    found[path.name] = path.read_bytes()
        return found

    def write_document(self, folder: str, name: str, data: bytes) -> None:
        """Write a small file into one of the store's own folders.

        Args:
            folder: the store's own folder, such as `runs`.
            name: name of the file.
            data: its content.

        Raises:
            InputError: the store cannot be written.
        """
        write_bytes(self.root / folder / name, data)

    def remove_document(self, folder: str, name: str) -> bool:
        """Remove a small file of one of the store's own folders; return whether there was one."""
        try:
            (self.root / folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def run_in_progress(self, run: str) -> AbstractContextManager[None]:
        """Tell the machines of a shared store during the block that a run is in progress."""
        return nullcontext()

    def runs_elsewhere(self) -> set[str]:
        """Return the runs that other machines of a shared store have in progress."""
        return set()

    def alone(self) -> AbstractContextManager[None]:
        """Keep the machines of a shared store from beginning a run during the block.

        Raises:
            InputError: a run is in progress on another machine.
        """
        return nullcontext()

    def remove(self, stage: str, key: str) -> None:
        """Remove an artifact so that at any moment it is whole or gone.

        Raises:
            InputError: the store cannot be written.
        """
        waste = self.root / ".tmp" / f"{stage}-{key}.old"
        waste.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(waste, ignore_errors=True)
        try:
            # A kill after the rename leaves a folder in `.tmp`, which the next run sweeps.
            self.path(stage, key).rename(waste)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(
                f"cannot remove {self.path(stage, key)}: {reason}; give this user the right"
            ) from None
        shutil.rmtree(waste, ignore_errors=True)

    def remove_leftovers(self) -> int:
        """Remove the files of a shared store that belong to no artifact; return their number."""
        return 0

    @contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the lock of a key during the block; wait first if another process holds the lock.

        Args:
            stage: name of the stage.
            key: key of the artifact.
            on_wait: called once with who holds the lock, if it is not free.

        Raises:
            InputError: the store cannot be written.
        """
        with one_line_os_errors("write to store", self.root):
            # The lock file stays after use. Were it removed, a process that waits on the old file and one
            # that opens a new file would both hold the lock.
            descriptor = self._open_lock(f"{stage}-{key}")
        try:
            try:
                # First without waiting, to find out whether a wait is necessary.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait:
                    on_wait("another run")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # frees the lock

    def begin(self, stage: str, key: str) -> Path:
        """Create the empty temporary folder of a new artifact; the caller holds the lock of the key.

        Raises:
            InputError: the store cannot be written.
        """
        folder = self._temporary(stage, key)
        with one_line_os_errors("write to store", self.root):
            _remove(folder)  # its writer held the lock that we hold now, so it has ended
            folder.mkdir(parents=True)
        return folder

    def commit(self, stage: str, key: str, manifest: Mapping[str, Any]) -> Path:
        """Turn the filled temporary folder of a key into its artifact.

        Args:
            stage: name of the stage.
            key: key of the artifact; the caller holds its lock.
            manifest: content of the manifest without `outputs` and `seal`, which are added here.

        Returns:
            The artifact's folder.

        Raises:
            InputError: the disk is full or the store cannot be written. The temporary folder is removed.
            StageFailed: the stage wrote no file.
        """
        folder = self._temporary(stage, key)
        final = self.path(stage, key)
        try:
            names = sorted(_files(folder))
            if not names:
                raise StageFailed(f"{stage} wrote nothing")
            with one_line_os_errors("write artifact", final):
                digests = file_digests([folder / name for name in names])
                outputs = {
                    name: {"sha256": digest, "size": (folder / name).stat().st_size}
                    for name, digest in zip(names, digests, strict=True)
                }
                # Metrics may have a path or URL with a value from the environment. Names of our own source
                # files have none, and must stay: `/data` may be such a value, and `jora_core/data` exists.
                public = json.loads(mask(json.dumps(manifest, ensure_ascii=False)))
                public |= {"code": dict(manifest["code"])} if "code" in manifest else {}
                (folder / MANIFEST).write_bytes(render_manifest({**public, "outputs": outputs}))
                self._install(folder, final)
        # Also for KeyboardInterrupt: a stopped run leaves no half artifact.
        except BaseException:
            self.abandon(stage, key)
            raise
        return final

    @staticmethod
    def _install(folder: Path, final: Path) -> None:
        """Turn a filled folder with its manifest into an artifact."""
        # Before the rename: file systems may write a rename to disk before the data of the
        # renamed files, and a power failure would leave an artifact of empty files.
        fsync_tree(folder)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            # `rename` replaces empty folders only, so the old artifact moves away first. A kill
            # between the two renames leaves no artifact, which the next run makes again, and
            # never half of one.
            old = folder.with_name(f"{folder.name}.old")
            _remove(old)
            final.rename(old)
            folder.rename(final)
            _remove(old)
        else:
            folder.rename(final)
        # The rename itself is an entry of the parent folder.
        fsync(final.parent)

    def abandon(self, stage: str, key: str) -> None:
        """Remove the temporary folder of a key; never raises."""
        # This runs while another exception is raised, which the error of a failed removal must not replace.
        # `sweep` tries again.
        shutil.rmtree(self._temporary(stage, key), ignore_errors=True)

    def finish_work(self, stage: str, key: str) -> None:
        """Remove the work folder of a key whose artifact is finished or whose run left no checkpoint."""
        shutil.rmtree(self.work_dir(stage, key), ignore_errors=True)

    def sweep(self) -> None:
        """Remove the temporary folders of killed runs, and work folders without a change for two weeks."""
        for folder in self._folders(".tmp"):
            self._remove_if_free(folder, folder.name.removesuffix(".old"))
        for stage in self._folders(".work"):
            for folder in self._folders(f".work/{stage.name}"):
                # Checkpoints have the size of optimizer and adapter, and each changed setting has a key,
                # so a work folder, of its own.
                if time.time() - _newest_change(folder) > ABANDONED_SECONDS:
                    self._remove_if_free(folder, f"{stage.name}-{folder.name}")

    def _open_lock(self, name: str) -> int:
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        # O_CLOEXEC: a child that inherited the descriptor would keep the lock after the death of this
        # process. Mode 0o666: several users may share a store; their umask decides.
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _folders(self, name: str) -> list[Path]:
        folder = self.root / name
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def _remove_if_free(self, folder: Path, name: str) -> None:
        """Remove `folder` unless a running process holds the lock called `name`."""
        try:
            descriptor = self._open_lock(name)
        except OSError:
            return  # a store that we may only read
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The lock is held during the removal: a run that starts now waits, and then finds no
            # folder.
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)

    def _temporary(self, stage: str, key: str) -> Path:
        # Inside the store, because a rename is atomic only within one file system; and not below the
        # stage, where every folder is an artifact.
        return self.root / ".tmp" / f"{stage}-{key}"


def check_folder(folder: Path, expected: tuple[str, str] | None = None) -> Check:
    """Verify the manifest of an artifact, wherever its folder lies, and the SHA-256 of its files.

    Args:
        folder: folder of the artifact.
        expected: the stage and key that it must be of; None for any.
    """
    if not folder.is_dir():
        return Check()
    manifest = read_manifest(folder / MANIFEST)
    # A folder that was renamed or copied by hand has a valid manifest, but of another stage or key than its
    # name says.
    if manifest is None or expected not in (None, (manifest["stage"], manifest["key"])):
        return Check(damage=MANIFEST)
    outputs = manifest["outputs"]
    present = _files(folder)
    # Names first: a missing or an additional file is found without reading a byte.
    for name in sorted(set(outputs) | present):
        if name not in present or name not in outputs:
            return Check(damage=name)
    names = sorted(outputs)
    try:
        digests = file_digests([folder / name for name in names])
    except OSError as error:
        # A disk error in one file is damage of one artifact, which the stage can make again; it must
        # not end `jora plan`.
        unreadable = Path(error.filename or folder).relative_to(folder).as_posix()
        return Check(damage=f"{unreadable} ({(error.strerror or 'unreadable').lower()})")
    for name, digest in zip(names, digests, strict=True):
        if digest != outputs[name]["sha256"]:
            return Check(damage=name)
    return Check(manifest=manifest)


def render_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return the one valid text of a manifest, which is sorted JSON with a digest of the rest as `seal`."""
    body = {name: value for name, value in manifest.items() if name != "seal"}
    text = json.dumps({**body, "seal": json_digest(body)}, sort_keys=True, indent=1, ensure_ascii=False)
    return f"{text}\n".encode()


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; return None for a missing file or one that differs from the written bytes."""
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        # Comparing the whole text finds more than the seal alone: duplicate keys, other number formats, a
        # changed end of line.
        return manifest if render_manifest(manifest) == data else None
    except (OSError, ValueError, AttributeError):
        return None


def is_sealed(manifest: Manifest) -> bool:
    """Return whether the digest in a manifest is that of its content."""
    return manifest.get("seal") == json_digest({k: v for k, v in manifest.items() if k != "seal"})


def _files(folder: Path) -> set[str]:
    """Return the relative paths of all files and links in an artifact, without the manifest."""
    names = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        # A link to a folder counts as a file: its target may lie outside and change without notice.
        if path.is_symlink() or not path.is_dir()
    }
    return names - {MANIFEST}


def _newest_change(folder: Path) -> float:
    """Return the time of the last change in `folder`, in seconds since 1970.

    A folder that changes during the call has the current time.
    """
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        # A file that vanishes between listing and `stat` means that a process works there now.
        return time.time()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
