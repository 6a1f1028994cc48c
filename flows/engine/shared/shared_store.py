"""A store behind a URL, with a local folder before it, for several machines.

Stages always read and write the local folder. Before a stage runs, its artifact and those that it reads are
fetched from the shared store; after it has run, its artifact is copied there, the manifest last. So an
artifact is in the shared store whole or not at all. Every fetched file is compared with its digest. A lease
(:mod:`flows.engine.shared.leases`) lets one machine at a time work on a key. The files are

    manifests/STAGE/KEY.json        files/STAGE/KEY/CONTENT/…    CONTENT is a digest of the outputs' digests
    leases/NAME/GENERATION          runs/*.json  pins/*.json     store.json

Two uploads of one key with other bits, as from other hardware, have folders of their own, and the manifest
names one of them. Where the two stores differ, the shared one counts.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Check, Manifest, Store, render_manifest
from flows.engine.errors import StageFailed, one_line_os_errors
from flows.engine.manifest_index import MANIFEST, StageIndex, read_index
from flows.engine.shared import leases
from flows.engine.shared.remote_files import RemoteFiles
from jora_core.base.atomic_files import write_bytes
from jora_core.base.digests import file_digest, json_digest, text_digest
from jora_core.base.errors import InputError
from jora_core.base.secrets import mask
from retrieval.corpus.remote_sources import is_url

# The commands ask for the list of manifests for each stage, at about the same moment.
_LISTING_SECONDS = 5.0
# Folders of the local store to those of the shared store.
_DOCUMENTS = {".runs": "runs", ".pins": "pins"}

logger = logging.getLogger("jora.store")
Name = tuple[str, str]


def open_store(config: PipelineConfig) -> Store:
    """Return the store of a configuration: a folder, or a URL with a folder before it."""
    if not is_url(config.store):
        return Store(config.store)
    return SharedStore(config.store_cache, config.store, config.retries.lease_seconds)


class SharedStore(Store):
    """A store that several machines share.

    Attributes:
        remote: the files behind the URL.
    """

    def __init__(self, cache: Path | str, url: str, lease_seconds: float = leases.TERM_SECONDS) -> None:
        super().__init__(cache)
        self.remote = RemoteFiles(url)
        self._term = lease_seconds
        self._held: dict[Name, leases.Lease] = {}
        self._damaged: dict[Name, str] = {}
        self._listed = -_LISTING_SECONDS
        # One folder may be before several shared stores, one after the other.
        self._mirror = self.root / ".shared" / text_digest(mask(url))[:12]

    @property
    def place(self) -> str:
        """Name of this folder among those of the shared store."""
        return f"{socket.gethostname()}:{self.root}"

    @property
    def exists(self) -> bool:
        """Whether there is a store already; the shared one counts as there."""
        return True

    def check(self, stage: str, key: str) -> Check:
        """Verify the local artifact; without a whole one, read the manifest of the shared store.

        The files of the shared store are verified when they are fetched.
        """
        found = super().check(stage, key)
        if found.whole:
            return found
        manifest = self._manifest(stage, key)
        if damage := self._damaged.get((stage, key)):
            return Check(damage=f"{damage} in the shared store")
        return Check(manifest=manifest) if manifest else found

    def stages(self) -> list[str]:
        """Return the names of the stages that have artifacts, here or in the shared store."""
        self._listed = -_LISTING_SECONDS  # once for all that the caller then asks for
        self._update_mirror()
        there = [path.name for path in self._mirror.iterdir()] if self._mirror.is_dir() else []
        return sorted({*super().stages(), *(name for name in there if not name.startswith("."))})

    def indexes(self, stage: str) -> list[StageIndex]:
        """Return what is known of the artifacts of a stage, here and in the shared store."""
        self._update_mirror()
        file = self._mirror / ".index" / f"{stage}.json"
        return [read_index(self._mirror / stage, file), *super().indexes(stage)]

    @contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the local lock and the lease of a key during the block; wait first while another has them.

        Args:
            stage: name of the stage.
            key: key of the artifact.
            on_wait: called once with who holds it, if it is not free.
        """
        with (
            super().lock(stage, key, on_wait),
            leases.hold(self.remote, f"keys/{stage}-{key}", self._term, on_wait) as lease,
        ):
            self._held[stage, key] = lease
            try:
                yield
            finally:
                del self._held[stage, key]

    def fetch(self, stage: str, key: str) -> None:
        """Bring the artifact of the shared store into the local folder, unless it is there already.

        A damaged one is noted: it then counts as damaged until it is made again.
        """
        manifest = self._manifest(stage, key)
        if manifest is None:
            return
        local = super().check(stage, key).manifest
        if local is not None and local["outputs"] == manifest["outputs"]:
            return
        # Under the lock of the key, unless this process holds it already: a second lock of one file would
        # wait for the first.
        held = (stage, key) in self._held
        with nullcontext() if held else Store.lock(self, stage, key):
            damage = self._download(stage, key, manifest)
            if damage:
                # Perhaps replaced while it was read: another machine was forced to make it again.
                again = self._manifest(stage, key)
                damage = self._download(stage, key, again) if again and again != manifest else damage
        if damage:
            self._note_damage(stage, key, damage)

    def share(self, stage: str, key: str, *, computed: bool) -> None:
        """Copy a local artifact into the shared store, if that lacks it or this process has just made it.

        Args:
            stage: name of the stage.
            key: key of the artifact.
            computed: whether this process has just made it and holds its lock.

        Raises:
            StageFailed: the shared store does not answer. The artifact stays in the local folder, and the
                next run copies it.
        """
        present = self._manifest(stage, key) is not None
        damaged = (stage, key) in self._damaged
        if computed:
            if present and not self._held[stage, key].check():
                logger.warning("%s %s: made elsewhere meanwhile; that artifact counts", stage, key[:8])
                self.fetch(stage, key)
                return
            self._upload(stage, key)
        elif damaged or not present:
            with self.lock(stage, key):
                # Another machine may have done it during a wait.
                if damaged or self._manifest(stage, key) is None:
                    self._upload(stage, key)

    def documents(self, folder: str) -> dict[str, bytes]:
        """Return the small files of one of the shared store's own folders, by name."""
        if folder not in _DOCUMENTS:
            return super().documents(folder)
        local = super().documents(folder)
        names = self.remote.stamps(_DOCUMENTS[folder])
        # The record of a run that has ended does not change any more.
        final = {name: data for name, data in local.items() if name in names and _has_ended(data)}
        missing = [f"{_DOCUMENTS[folder]}/{name}" for name in names if name not in final]
        found = self.remote.read_many(missing)
        fetched = {path.partition("/")[2]: data for path, data in found.items()}
        with suppress(InputError):  # a cache; a folder that may only be read has none
            for name, data in fetched.items():
                if data != local.get(name) and _has_ended(data):
                    super().write_document(folder, name, data)
        return {**final, **fetched}

    def write_document(self, folder: str, name: str, data: bytes) -> None:
        """Write a small file into one of the store's own folders, here and in the shared store.

        The record of a run is for information: if the shared store does not answer, a line says so.

        Args:
            folder: the store's own folder, such as `runs`.
            name: name of the file.
            data: its content.
        """
        super().write_document(folder, name, data)
        try:
            self.remote.write(f"{_DOCUMENTS[folder]}/{name}", data)
        except (StageFailed, InputError) as error:
            if folder != ".runs":
                raise
            logger.warning("the record of this run is in %s only: %s", self.root, error)

    def remove_document(self, folder: str, name: str) -> bool:
        """Remove a small file here and in the shared store; return whether there was one."""
        there = self.remote.read(f"{_DOCUMENTS[folder]}/{name}") is not None
        self.remote.remove(f"{_DOCUMENTS[folder]}/{name}")
        super().remove_document(folder, name)
        return there

    @contextmanager
    def run_in_progress(self, run: str) -> Iterator[None]:
        """Tell the other machines during the block that a run is in progress.

        Raises:
            InputError: another machine is removing artifacts.
        """
        with leases.hold(self.remote, f"runs/{run}", self._term):
            # After the own lease is there: of two that begin at one moment, at least one sees the other.
            if leases.held(self.remote, "clean-up"):
                for who in leases.alive(self.remote, "clean-up", self._term).values():
                    raise InputError(
                        f"store {mask(self.remote.url)}: `jora gc` of {who} is removing artifacts; run again "
                        "when it has ended"
                    )
            yield

    def runs_elsewhere(self) -> set[str]:
        """Return the runs whose lease is there; that of a dead machine is there until the next clean-up."""
        return set(leases.held(self.remote, "runs"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all machines from beginning a run during the block.

        Raises:
            InputError: a run or another clean-up is in progress.
        """

        def refuse(who: str) -> None:
            raise InputError(f"store {mask(self.remote.url)}: `jora gc` of {who} is in progress")

        with leases.hold(self.remote, "clean-up/store", self._term, refuse):
            # After the own lease, as above.
            for run, who in sorted(leases.alive(self.remote, "runs", self._term).items()):
                raise InputError(
                    f"store {mask(self.remote.url)}: a run is in progress on {who} ({run}); try again when "
                    "it has ended"
                )
            yield

    def remove(self, stage: str, key: str) -> None:
        """Remove an artifact here and in the shared store, there the manifest first."""
        self.remote.remove(f"manifests/{stage}/{key}.json")
        folder = f"files/{stage}/{key}"
        self.remote.remove(*(f"{folder}/{name}" for name in self.remote.stamps(folder)))
        if self.path(stage, key).exists():
            super().remove(stage, key)
        shutil.rmtree(self._mirror / stage / key, ignore_errors=True)

    def remove_leftovers(self) -> int:
        """Remove the files of the shared store that belong to no manifest, from uploads that broke off."""
        known = {name.removesuffix(".json") for name in self.remote.stamps("manifests")}
        lost = [name for name in self.remote.stamps("files") if "/".join(name.split("/")[:2]) not in known]
        self.remote.remove(*(f"files/{name}" for name in lost))
        if lost:
            logger.warning("%d files of uploads that broke off removed", len(lost))
        return len(lost)

    def incomplete(self) -> list[str]:
        """Return the files of the shared store that are missing or have another size than written."""
        self._listed = -_LISTING_SECONDS
        self._update_mirror()
        sizes = self.remote.sizes("files")
        found = []
        for path in sorted(self._mirror.glob(f"*/*/{MANIFEST}")):
            manifest = _valid(path.read_bytes(), path.parent.parent.name, path.parent.name)
            if manifest is None:
                found.append(f"manifests/{path.parent.parent.name}/{path.parent.name}.json")
                continue
            folder = _content_folder(manifest).removeprefix("files/")
            found += [
                f"files/{folder}/{name}"
                for name, output in manifest["outputs"].items()
                if sizes.get(f"{folder}/{name}") != output["size"]
            ]
        return found

    def _manifest(self, stage: str, key: str) -> Manifest | None:
        """Return the valid manifest of the shared store; note a damaged one."""
        data = self.remote.read(f"manifests/{stage}/{key}.json")
        if data is None:
            self._damaged.pop((stage, key), None)
            return None
        manifest = _valid(data, stage, key)
        if manifest is None:
            self._note_damage(stage, key, MANIFEST)
        return manifest

    def _note_damage(self, stage: str, key: str, file: str) -> None:
        if self._damaged.get((stage, key)) != file:
            logger.warning(
                "%s %s: %s is damaged in the shared store; it will be replaced", stage, key[:8], file
            )
        self._damaged[stage, key] = file

    def _download(self, stage: str, key: str, manifest: Manifest) -> str | None:
        """Make the local artifact from that of the shared store; return a file that is damaged there."""
        size = sum(output["size"] for output in manifest["outputs"].values())
        logger.info("%s %s: fetching %.1f MB from the shared store", stage, key[:8], size / 1e6)
        folder = self.begin(stage, key)
        try:
            with one_line_os_errors("write artifact", self.path(stage, key)):
                for name, output in sorted(manifest["outputs"].items()):
                    # A name from outside must not lead out of the folder.
                    target = (folder / name).resolve()
                    if not target.is_relative_to(folder.resolve()):
                        return name
                    there = self.remote.download(f"{_content_folder(manifest)}/{name}", target)
                    if not there or file_digest(target) != output["sha256"]:
                        return name
                (folder / MANIFEST).write_bytes(render_manifest(manifest))
                self._install(folder, self.path(stage, key))
        finally:
            self.abandon(stage, key)
        self._damaged.pop((stage, key), None)
        return None

    def _upload(self, stage: str, key: str) -> None:
        """Copy the local artifact to the shared store, its manifest last; the caller holds the lock."""
        folder = self.path(stage, key)
        data = (folder / MANIFEST).read_bytes()
        manifest: Manifest = json.loads(data)
        content = _content_folder(manifest)
        size = sum(output["size"] for output in manifest["outputs"].values())
        logger.info("%s %s: copying %.1f MB to the shared store", stage, key[:8], size / 1e6)
        for name in sorted(manifest["outputs"]):
            self.remote.upload(folder / name, f"{content}/{name}")
        self.remote.write(f"manifests/{stage}/{key}.json", data)
        self._damaged.pop((stage, key), None)
        # Of an earlier upload that broke off, or of an artifact that this one replaces.
        place = f"files/{stage}/{key}"
        old = [name for name in self.remote.stamps(place) if not f"{place}/{name}".startswith(f"{content}/")]
        self.remote.remove(*(f"{place}/{name}" for name in old))

    def _update_mirror(self) -> None:
        """Bring the local copies of the shared store's manifests up to date, for lists and comparisons."""
        if time.monotonic() - self._listed < _LISTING_SECONDS:
            return
        stamps = self.remote.stamps("manifests")
        file = self._mirror / ".listing.json"
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            known = json.loads(file.read_bytes())
        names = {name: self._mirror / name.removesuffix(".json") / MANIFEST for name in stamps}
        fresh = [
            name for name, path in names.items() if known.get(name) != stamps[name] or not path.is_file()
        ]
        found = self.remote.read_many([f"manifests/{name}" for name in fresh])
        for path, data in found.items():
            write_bytes(names[path.removeprefix("manifests/")], data)
        for name in known.keys() - stamps.keys():
            shutil.rmtree(self._mirror / name.removesuffix(".json"), ignore_errors=True)
        if fresh or known.keys() - stamps.keys():
            write_bytes(file, json.dumps(stamps).encode())
        self._listed = time.monotonic()


def _content_folder(manifest: Manifest) -> str:
    content = json_digest({name: output["sha256"] for name, output in manifest["outputs"].items()})
    return f"files/{manifest['stage']}/{manifest['key']}/{content[:16]}"


def _valid(data: bytes, stage: str, key: str) -> Manifest | None:
    """Return a manifest with the bytes that were written for this stage and key, else None."""
    try:
        manifest = json.loads(data)
        whole = render_manifest(manifest) == data and (manifest["stage"], manifest["key"]) == (stage, key)
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return manifest if whole else None


def _has_ended(data: bytes) -> bool:
    try:
        return bool(json.loads(data).get("ended"))
    except (ValueError, AttributeError):
        return False
