"""Sources by URL: downloaded once, kept by content, read like any other file.

Any fsspec file system serves (`s3://`, `gs://`, `https://`, …). What a URL names is listed, each file is
fetched into a cache folder, and the path of that copy stands for the URL from there on. The copy is named by
what the file system says of the files (size, time, etag), so that a changed file is fetched anew and an
unchanged one never; what decides a build is the digest of the bytes, as for every input.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)(::|://)")
_GLOB = re.compile(r"[*?\[]")
#: Packages of the file systems that come up most; fsspec names the others itself.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}


def is_url(text: str) -> bool:
    """Whether a source names a file system by its scheme."""
    return _URL.match(text) is not None


def cache_folder() -> Path:
    """Where copies lie: `$JORA_CACHE`, else `$XDG_CACHE_HOME/jora`, else `~/.cache/jora`."""
    own = os.environ.get("JORA_CACHE")
    if own:
        return Path(own).expanduser() / "inputs"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jora" / "inputs"


def local_copy(url: str, field: str, suffixes: Sequence[str] = ()) -> str:
    """The path (file, folder or glob) of a copy of what a URL names; files in folders only with `suffixes`.

    Raises:
        InputError: no such file system, its package is missing, nothing is there, or the transfer failed.
    """
    from fsspec.core import url_to_fs

    scheme = url.partition(":")[0].lower()
    try:
        system, path = url_to_fs(url)
        if scheme in ("file", "local"):
            return path
        root, found, rest = _listed(system, path, suffixes)
        if not found:
            kinds = f" ending in {', '.join(suffixes)}" if suffixes else ""
            raise InputError(f"{field}: {url} holds no files{kinds}; mend the address")
        return _fetch(system, url, root, found, rest)
    except InputError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        how = f"pip install {package}" if package else str(error)
        raise InputError(f"{field}: {url} needs a package that is not installed; {how}") from error
    except Exception as error:  # every file system has errors of its own (credentials, network, addresses)
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{field}: {url} cannot be read ({reason:.300}); mend the address or access"
        ) from error


def _listed(system: Any, path: str, suffixes: Sequence[str]) -> tuple[str, dict[str, str], str]:
    """(root, remote path by path below the root, what of the source lies below the root).

    The last is a file's name or a pattern, and "" where the source is a folder.
    """
    glob = None if path.startswith("http") else _GLOB.search(path)  # a web address may hold question marks
    if glob is not None:
        root = path[: path.rindex("/", 0, glob.start())] if "/" in path[: glob.start()] else ""
        names = [name for name in system.glob(path) if system.isfile(name)]
        rest = path[len(root) :].lstrip("/")
    elif system.isfile(path):
        root, _, rest = path.rpartition("/")
        names = [path]
    else:
        root, rest = path.rstrip("/"), ""
        names = [name for name in system.find(path) if not suffixes or name.endswith(tuple(suffixes))]
    return root, {name[len(root) :].lstrip("/"): name for name in sorted(names)}, rest


def _fetch(system: Any, url: str, root: str, found: dict[str, str], rest: str) -> str:
    """Copies the files that are not in the cache yet, and links them under their names into one folder."""
    cache = cache_folder()
    stamps = {name: _stamp(system, url, remote) for name, remote in found.items()}
    whole = hashlib.sha256(repr(sorted(stamps.items())).encode()).hexdigest()[:16]
    folder = cache / "trees" / whole / (_safe(root.rpartition("/")[2]) or "root")
    if not folder.is_dir():
        making = cache / "trees" / f".{uuid.uuid4().hex}"
        try:
            for name, remote in found.items():
                target = making / folder.name / _safe(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(_blob(system, cache, remote, stamps[name]), target)
            folder.parent.parent.mkdir(parents=True, exist_ok=True)
            try:
                making.rename(folder.parent)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return str(folder / _safe(rest)) if rest else str(folder)


def _stamp(system: Any, url: str, remote: str) -> str:
    """What the file system says of a file's present state."""
    state = sorted((key, str(value)) for key, value in system.info(remote).items())
    text = f"{url.partition('://')[0]}\0{remote}\0{state}"
    return hashlib.sha256(text.encode()).hexdigest()


def _blob(system: Any, cache: Path, remote: str, stamp: str) -> Path:
    blob = cache / "files" / stamp
    if not blob.is_file():
        blob.parent.mkdir(parents=True, exist_ok=True)
        making = blob.with_name(f".{stamp}.{uuid.uuid4().hex}")
        try:
            system.get_file(remote, str(making))
            making.replace(blob)
        finally:
            making.unlink(missing_ok=True)
    return blob


def _link(blob: Path, target: Path) -> None:
    try:
        os.link(blob, target)
    except OSError:  # a file system without links
        shutil.copyfile(blob, target)


def _safe(name: str) -> str:
    """A remote path that stays below its folder."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
