"""The files of a shared store, on any file system of fsspec, with errors of one line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.engine.errors import StageFailed
from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_variables, mask

# Names what a file system without conditional writes needs between a claim and the look at who else claims.
SETTLE_SECONDS = 2.0
PROBES = "probes"
_MARKER = "store.json"
_MARKER_TEXT = b'{"format": 1, "kind": "jora store"}\n'
_EXTRAS = {"s3": "pip install 'jora-raft[s3]'", "s3a": "pip install 'jora-raft[s3]'"}
_EXTRAS |= {"gs": "pip install gcsfs", "gcs": "pip install gcsfs", "abfs": "pip install adlfs"}
# Names of errors that no repetition mends.
_DENIED = ("NoCredentials", "AccessDenied", "Forbidden", "PermissionError", "InvalidAccessKey", "Signature")


class RemoteFiles:
    """The files below a URL. Nothing is opened before the first use.

    Attributes:
        url: the URL as the configuration has it, with references in place of secrets.
        requests: number of requests so far, by kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: dict[str, int] = {}
        self._opened: tuple[Any, str] | None = None
        self._exclusive: bool | None = None

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if there is none."""
        system, root = self._system("read")
        with self._errors(f"read {name}"):
            try:
                return system.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the content of small files by name, several at a time; missing ones are left out."""
        if not names:
            return {}
        system, root = self._system("read", len(names))
        with self._errors(f"read {names[0]}"):
            found = system.cat([f"{root}/{name}" for name in names], on_error="return")
        # A single path gives its content alone; several give a mapping of full names.
        rows = found if isinstance(found, dict) else {f"{root}/{names[0]}": found}
        by_name = {path.removeprefix(f"{root}/"): data for path, data in rows.items()}
        for name, data in by_name.items():
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                with self._errors(f"read {name}"):
                    raise data
        return {name: data for name, data in by_name.items() if isinstance(data, bytes)}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, in place of one that may be there."""
        system, root = self._system("write")
        with self._errors(f"write {name}"):
            system.pipe_file(f"{root}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one; return whether it was written.

        On a file system without conditional writes (see `exclusive`) two callers may both be told True.
        """
        system, root = self._system("write")
        with self._errors(f"write {name}"):
            try:
                return self._create(system, f"{root}/{name}", data)
            except FileExistsError:
                return False

    @property
    def exclusive(self) -> bool:
        """Whether `create` lets one of several callers win; found out once by a try."""
        if self._exclusive is None:
            from fsspec.spec import AbstractFileSystem

            system, _ = self._system()
            # fsspec's own version looks first and writes then. Asynchronous file systems have another, and
            # memory is one process.
            plain = type(system).pipe_file is AbstractFileSystem.pipe_file
            plain = plain and not (self._local or system.async_impl)
            self._exclusive = not plain and not (
                self.create(_MARKER, _MARKER_TEXT) and self.create(_MARKER, _MARKER_TEXT)
            )
        return self._exclusive

    def settle(self) -> None:
        """Wait until a claim of another machine must be visible, where `create` is not exclusive."""
        if not self.exclusive:
            time.sleep(SETTLE_SECONDS)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to the store."""
        system, root = self._system("write")
        with self._errors(f"write {name}"):
            system.put_file(str(path), f"{root}/{name}")

    def download(self, name: str, path: Path) -> bool:
        """Copy a file of the store to a local path; return False if there is none."""
        system, root = self._system("read")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors(f"read {name}"):
            try:
                system.get_file(f"{root}/{name}", str(path))
            except FileNotFoundError:
                return False
        return True

    def stamps(self, folder: str) -> dict[str, str]:
        """Return the files below a folder, by name below it, each with a text that changes with the file."""
        return {
            name: str([info.get(field) for field in _STAMP]) for name, info in self._found(folder).items()
        }

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of the files below a folder, by name below it."""
        return {name: int(info["size"] or 0) for name, info in self._found(folder).items()}

    def remove(self, *names: str) -> None:
        """Remove files; those that are gone already are no error."""
        system, root = self._system()
        for name in names:
            self.requests["remove"] = self.requests.get("remove", 0) + 1
            with self._errors(f"remove {name}"):
                try:
                    system.rm_file(f"{root}/{name}")
                except FileNotFoundError:
                    pass

    def _found(self, folder: str) -> dict[str, Mapping[str, Any]]:
        system, root = self._system("list")
        with self._errors(f"list {folder}"):
            system.invalidate_cache()
            try:
                found: Mapping[str, Any] = system.find(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        start = f"{root}/{folder}/"
        return {path.removeprefix(start): info for path, info in found.items() if path.startswith(start)}

    @property
    def _local(self) -> bool:
        return "file" in self._protocols

    @property
    def _protocols(self) -> tuple[str, ...]:
        system, _ = self._system()
        found = system.protocol
        return (found,) if isinstance(found, str) else tuple(found)

    def _create(self, system: Any, path: str, data: bytes) -> bool:
        if self._local:
            # `pipe_file` of the local file system looks first and writes then.
            with system.open(path, "xb") as file:
                file.write(data)
            return True
        try:
            system.pipe_file(path, data, mode="create")
        except TypeError:
            # A file system that does not know `mode`.
            system.pipe_file(path, data)
        except OSError as error:
            # Two writes at one moment: S3 answers one of them with a conflict in place of a failed condition.
            if "ConditionalRequestConflict" in str(error) or "PreconditionFailed" in str(error):
                return False
            raise
        return True

    def _system(self, kind: str | None = None, count: int = 1) -> tuple[Any, str]:
        if kind:
            self.requests[kind] = self.requests.get(kind, 0) + count
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> tuple[Any, str]:
        # Here, because most stores are local folders and need no fsspec.
        from fsspec.core import url_to_fs

        scheme = self.url.partition(":")[0].lower()

        def missing(name: str) -> InputError:
            return InputError(f"store {self.url}: environment variable {name} is not set; set it")

        # Without listings from a cache: another machine writes too.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": scheme != "memory"}
        if scheme in ("file", "local"):
            options["auto_mkdir"] = True
        try:
            system, root = url_to_fs(expand_variables(self.url, missing), **options)
        except ImportError as error:
            how = _EXTRAS.get(scheme, str(error))
            raise InputError(
                f"store {mask(self.url)} needs a package that is not installed; {how}"
            ) from error
        except ValueError as error:
            raise InputError(
                f"store {mask(self.url)}: {error}; give a folder, or a URL such as s3://bucket/path"
            ) from None
        return system, root.rstrip("/")

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn the errors of a file system, each of which has its own, into one line."""
        try:
            yield
        except (InputError, StageFailed, FileExistsError):
            raise
        except Exception as error:
            reason = mask(f"{type(error).__name__}: {error}".splitlines()[0][:300])
            where = f"store {mask(self.url)}: cannot {action}"
            # A missing bucket is not there after a repetition either.
            if isinstance(error, FileNotFoundError) or any(word in reason for word in _DENIED):
                raise InputError(
                    f"{where} ({reason}); correct the address, the credentials or the rights"
                ) from error
            raise StageFailed(f"{where} ({reason}); run again when the store answers") from error


# Of `info`, as file systems name them; what changes when a file is written again.
_STAMP = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created", "size")
