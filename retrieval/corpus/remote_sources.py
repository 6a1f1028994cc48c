"""Sources that are given by URL. They are downloaded once and then read like local files.

Any file system of fsspec works (`s3://`, `gs://`, `https://`, …). The files that a URL names are listed, and
each is fetched into a cache folder. From then on the path of that copy takes the place of the URL. The name
of the copy is made of the properties of the remote file (size, time, etag). So a changed file is fetched
again, and an unchanged file is not. The key of a build uses the digest of the bytes, as for every input.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from jora_core.base.atomic_files import atomic_folder
from jora_core.base.digests import text_digest
from jora_core.base.errors import InputError

# At least two letters before the colon, so that a Windows drive (`C:`) is no scheme. `::` chains file
# systems, as in `zip::https://…`.
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)(::|://)")
_WEB = re.compile(r"https?://")
_ENDING = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|xlsx|parquet|arrow|txt|md|html?|pdf|docx|epub|xml|zip|tar|tgz|mbox|log)"
    r"(\.(gz|bz2|xz|zst))?$",
    re.IGNORECASE,
)
_GLOB = re.compile(r"[*?\[]")
#: The name of a model of the Hugging Face hub: `OWNER/NAME`, or `OWNER/NAME@REVISION`. A path with more
#: parts, or that begins like a path, is none.
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?$")
# OWNER/NAME, revision, path within the data set.
_HUB_DATA = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^/]+))?(/.*)?$")
#: Packages of the most common file systems; for others the error of fsspec names the package.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}


def is_url(text: str) -> bool:
    """Return whether a source is a URL: a text that begins with the scheme of a file system."""
    return _URL.match(text) is not None


def is_path(text: str) -> bool:
    """Return whether a text that may be a name is a path: has a separator, or begins with . or ~."""
    return os.sep in text or text.startswith((".", "~"))


def with_home(text: str, field: str) -> Path:
    """Return a path whose `~` or `~user` at its beginning is the home directory.

    Args:
        text: the path.
        field: the setting that holds the path, for errors.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.split("/")[0]
        raise InputError(
            f"{field}: {user!r:.80} has no home directory; write the path in full, or ./{user:.80} for a "
            "file of that name"
        ) from error


def cache_folder() -> Path:
    """Return the folder of the downloaded copies.

    It is `$JORA_CACHE/inputs`, else `$XDG_CACHE_HOME/jora`, else `~/.cache/jora`.
    """
    own = os.environ.get("JORA_CACHE")
    if own:
        return with_home(own, "JORA_CACHE") / "inputs"
    cache = with_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    return cache / "jora" / "inputs"


def local_copy(url: str, field: str, suffixes: Sequence[str] = ()) -> str:
    """Download the files of a URL into the cache, unless they are already there.

    Args:
        url: file, folder or glob on any file system of fsspec.
        field: the setting that holds the URL, for errors.
        suffixes: endings of the files that are fetched from a folder; empty: all files.

    Returns:
        The path (file, folder or glob) of the copy.

    Raises:
        InputError: there is no such file system, its package is missing, nothing is there, or the transfer
            failed.
    """
    hub = _HUB_DATA.match(url)
    if hub:
        cached = _cached_data(hub, field)
        if cached is not None:
            return cached
    # Here, because most sources are local and need no fsspec.
    from fsspec.core import url_to_fs

    scheme = url.partition(":")[0].lower()
    try:
        system, path = url_to_fs(url)
        if scheme in ("file", "local"):  # no copy is needed
            return path
        root, found, rest = _listed(system, path, suffixes)
        if not found:
            kinds = f" ending in {', '.join(suffixes)}" if suffixes else ""
            raise InputError(f"{field}: {url} holds no files{kinds}; correct the address")
        return _fetch(system, url, root, found, rest)
    except InputError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        how = f"pip install {package}" if package else str(error)
        raise InputError(f"{field}: {url} needs a package that is not installed; {how}") from error
    except Exception as error:  # every file system has errors of its own (credentials, network, addresses)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        how = "correct the address or the access rights"
        if hub:
            how = (
                f"fetch it with `hf download --repo-type dataset {hub[1]}` where there is a network, or {how}"
            )
        raise InputError(f"{field}: {url} cannot be read ({reason:.300}); {how}") from error


def hub_cache() -> Path:
    """Return the folder in which the libraries of Hugging Face keep what they fetched.

    It is `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    """
    # Read at each call: the library itself reads the variables once, when it is imported.
    own = os.environ.get("HF_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return with_home(own, "HF_HUB_CACHE") if own else with_home(str(home), "HF_HOME") / "hub"


def cached_snapshot(name: str, kind: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository of the Hugging Face hub in the local cache; None if it is not there.

    Args:
        name: `OWNER/NAME`.
        kind: "model" or "dataset".
        revision: branch, tag or commit; None for the main branch as it was when it was fetched.
    """
    folder = hub_cache() / f"{kind}s--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    found = folder / "snapshots" / commit if commit else None
    return found if found is not None and found.is_dir() else None


def _cached_data(hub: re.Match[str], field: str) -> str | None:
    """Return the path of a data set's files in the hub's cache, as an own tree; None if it is not there.

    The cache links into a folder beside, and links out of a source are not followed, so the tree is one of
    copies
    (hard links where the file system has them).
    """
    name, revision, rest = hub[1], hub[2], (hub[3] or "").strip("/")
    snapshot = cached_snapshot(name, "dataset", revision)
    if snapshot is None:
        return None
    folder = cache_folder() / "trees" / f"hub-{snapshot.name[:40]}" / _safe(name).replace("/", "--")
    for path in sorted(snapshot.rglob("*")):
        target = folder / path.relative_to(snapshot)
        if not path.is_file() or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        making = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        _link(path.resolve(), making)
        making.replace(target)
    if rest and not _GLOB.search(rest) and not (folder / rest).exists():
        raise InputError(
            f"{field}: {rest} is not in the cached copy of {name}; fetch it with `hf download --repo-type "
            f"dataset {name} {rest}`"
        )
    return str(folder / rest) if rest else str(folder)


def _listed(system: Any, path: str, suffixes: Sequence[str]) -> tuple[str, dict[str, str], str]:
    """Return (root, remote path by path below the root, the rest of the source below the root).

    The last is a file name or a pattern, and "" if the source is a folder.
    """
    if _WEB.match(path) and system.isfile(path):
        return urlsplit(path).path.rpartition("/")[0], {(name := web_name(path)): path}, name
    glob = None if _WEB.match(path) else _GLOB.search(path)  # a web address may hold question marks
    if glob is not None:
        # Names are counted from the folder above the first wildcard, so they stay the same when more files
        # match.
        root = path[: path.rindex("/", 0, glob.start())] if "/" in path[: glob.start()] else ""
        names = [name for name in system.glob(path) if system.isfile(name)]
        rest = path[len(root) :].lstrip("/")
    elif system.isfile(path):
        root, _, rest = path.rpartition("/")
        names = [path]
    else:
        root, rest = path.rstrip("/"), ""
        names = [
            name for name in system.find(path) if not suffixes or name.lower().endswith((*suffixes, ".zip"))
        ]
    return root, {name[len(root) :].lstrip("/"): name for name in sorted(names)}, rest


def web_name(address: str) -> str:
    """Return the name of the copy of a file of the web: that of its path, without the query.

    The query and the user may be credentials, and names of files are written down in many places. Only the
    ending of a file name in the query is taken, as in `download?file=a.csv`, because the ending decides how
    the file is read.
    """
    parts = urlsplit(address)
    name = unquote(parts.path).rpartition("/")[2] or "download"
    if _ENDING.search(name):
        return name
    found = [_ENDING.search(value) for _, value in parse_qsl(parts.query)]
    return name + next((match[0] for match in found if match), "")


def _fetch(system: Any, url: str, root: str, found: dict[str, str], rest: str) -> str:
    """Copy the files that are not in the cache yet, and link them under their names into one folder."""
    cache = cache_folder()
    stamps = {name: _stamp(system, url, remote) for name, remote in found.items()}
    # A tree of links for each state of the source. Files that did not change are shared between the trees.
    tree = text_digest(repr(sorted(stamps.items())))[:16]
    # Of a web address, not its user, who may have a password, and not its query.
    last = root.partition("?")[0].rpartition("/")[2].rpartition("@")[2]
    folder = cache / "trees" / tree / (_safe(last) or "root")
    if not folder.is_dir():
        with atomic_folder(folder.parent) as making:
            for name, remote in found.items():
                target = making / folder.name / _safe(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(_blob(system, cache, remote, stamps[name]), target)
    return str(folder / _safe(rest)) if rest else str(folder)


def _stamp(system: Any, url: str, remote: str) -> str:
    """Return a digest of the properties of a remote file. The digest changes when the file changes."""
    # Everything that `info` has, because file systems name the same things differently (`etag`, `mtime`,
    # `md5Hash`).
    state = sorted((key, str(value)) for key, value in system.info(remote).items())
    text = f"{url.partition('://')[0]}\0{remote}\0{state}"
    return text_digest(text)


def _blob(system: Any, cache: Path, remote: str, stamp: str) -> Path:
    """Return the cached file of a stamp. Fetch the file first if the cache lacks it."""
    blob = cache / "files" / stamp
    if not blob.is_file():
        blob.parent.mkdir(parents=True, exist_ok=True)
        making = blob.with_name(f".{stamp}.{uuid.uuid4().hex}")
        try:
            system.get_file(remote, str(making))
            # Renamed when complete: a transfer that breaks off leaves no half of a file under the stamp.
            making.replace(blob)
        finally:
            making.unlink(missing_ok=True)
    return blob


def _link(blob: Path, target: Path) -> None:
    try:
        # A hard link takes no space, and stays valid if the files folder is cleared.
        os.link(blob, target)
    except OSError:  # a file system without links
        shutil.copyfile(blob, target)


def _safe(name: str) -> str:
    """Return a remote path without the parts that could lead out of its folder."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
