"""An index of the manifests of one stage, so that a store of thousands of artifacts is not read whole.

The index has what a comparison of keys and a list of runs need. It is a file in the store's cache folder, and
safe to delete. Each row has time and size of its manifest file. A row whose file has others, and a file
without a row, are read again, so the index equals the manifests at every use. It is written when many
manifests had to be read, and read only if its digest is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import write_bytes
from jora_core.base.digests import json_digest
from jora_core.base.errors import InputError

MANIFEST = "manifest.json"
# With fewer manifests to read, reading them takes less time than writing the index.
WORTH_WRITING = 64
_FORMAT = 2
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IndexRow:
    """What the index has of one artifact.

    Attributes:
        key: name of the artifact's folder.
        stamp: times of change, and size in bytes, of the manifest file.
        regular: whether the manifest has all fields; else only `ended` is meant.
        ended: ISO 8601, in UTC; empty for a file that is no manifest.
        started: ISO 8601, in UTC.
        seconds: time that the stage took.
        stage: name of the stage, as the manifest says it.
        project: name of the project; None in a manifest of an earlier version.
        size: bytes of all files.
        version: version of the stage.
        code: digest of the digests of the source files.
        config: places of the flattened settings in `StageIndex.settings`.
        inputs: places of the input files in `StageIndex.files`.
        upstream: the manifest's own `upstream`.
        also_read: stage and key of further artifacts that it was made from: those that it notes, and what
            the paths of its input files look like.
    """

    key: str
    stamp: tuple[int, int, int]
    regular: bool = False
    ended: str = ""
    started: str = ""
    seconds: float = 0.0
    stage: str = ""
    project: str | None = None
    size: int = 0
    version: int = 0
    code: str = ""
    config: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    upstream: Mapping[str, Any] = None  # type: ignore[assignment] - always given
    also_read: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class StageIndex:
    """The manifests of one stage in one folder.

    Attributes:
        folder: folder whose folders are the artifacts.
        rows: one for each manifest that is a JSON object with the field `ended`, in no order.
        settings: every setting with its value that a manifest has, by place.
        files: name and SHA-256 of every input file that a manifest has, by place.
    """

    folder: Path
    rows: Sequence[IndexRow]
    settings: Sequence[tuple[str, Any]]
    files: Sequence[tuple[str, str]]

    def read(self, row: IndexRow) -> dict[str, Any] | None:
        """Return the manifest of a row; None if it cannot be read any more. Its seal is not checked."""
        return _load(self.folder / row.key / MANIFEST)


class _Interned:
    """Pairs of a name and a value by place, each pair once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        self.pairs = list(pairs)
        # Filled at the first question: most uses add nothing.
        self._places: dict[Any, int] = {}

    def place(self, pair: tuple[str, Any]) -> int:
        if not self._places:
            self._places = {_hashable(known): place for place, known in enumerate(self.pairs)}
        place = self._places.setdefault(_hashable(pair), len(self.pairs))
        if place == len(self.pairs):
            self.pairs.append(pair)
        return place


def _hashable(pair: tuple[str, Any]) -> Any:
    name, value = pair
    # With the type, because 1 equals True; a list by its text.
    return (name, type(value), json.dumps(value) if isinstance(value, list | dict) else value)


def read_index(folder: Path, file: Path) -> StageIndex:
    """Return the index of the artifacts in a folder, equal to what the manifests hold now.

    Args:
        folder: folder of one stage, which need not exist.
        file: file of the index, which is read, and written if many manifests were read.
    """
    settings, files, known = _read_file(file)
    rows: list[IndexRow] = []
    fresh = 0
    for name, stamp in _stamps(folder):
        row = known.get(name)
        if row is None or row.stamp != stamp:
            row = _row(name, stamp, _load(folder / name / MANIFEST), settings, files)
            fresh += 1
        rows.append(row)
    if fresh >= WORTH_WRITING:
        # A store that may only be read: the manifests are read each time.
        with suppress(OSError, InputError):
            _write_file(file, settings, files, rows)
    return StageIndex(folder, [row for row in rows if row.ended], settings.pairs, files.pairs)


def flatten(value: Any, prefix: str = "") -> Sequence[tuple[str, Any]]:
    """Return the values of nested mappings by dotted key."""
    # An empty mapping is a value of its own; flattened it would vanish, and with it the change.
    if isinstance(value, Mapping) and value:
        return [
            pair
            for name, child in value.items()
            for pair in flatten(child, f"{prefix}.{name}" if prefix else name)
        ]
    return [(prefix, value)]


def _stamps(folder: Path) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the names of the folders with a manifest, and times and size of each manifest."""
    found: list[tuple[str, tuple[int, int, int]]] = []
    try:
        names = os.listdir(folder)  # noqa: PTH208 - ten thousand paths take longer than their `stat`
    except OSError:
        return found
    for name in names:
        with suppress(OSError):
            state = os.stat(f"{folder}/{name}/{MANIFEST}")  # noqa: PTH116
            found.append((name, (state.st_mtime_ns, state.st_ctime_ns, state.st_size)))
    return found


def _load(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _row(
    name: str,
    stamp: tuple[int, int, int],
    manifest: Mapping[str, Any] | None,
    settings: _Interned,
    files: _Interned,
) -> IndexRow:
    ended = manifest.get("ended") if manifest else None
    if manifest is None or not isinstance(ended, str):
        return IndexRow(name, stamp, upstream={})
    # A manifest of another format, or a damaged one, has a row without details.
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        for item in manifest["upstream"].values():
            # Who compares reads these fields as mappings.
            if not isinstance(item.get("parts", {}), dict) or not isinstance(item["key"], str):
                raise TypeError
        code, config = manifest["code"], manifest["config"]
        texts = [manifest["stage"], manifest["started"], manifest.get("project") or ""]
        if not (isinstance(code, dict) and isinstance(config, dict) and all(map(_is_text, texts))):
            raise TypeError
        # All paths are asked for: a comparison names those of removed files.
        inputs = [(item["path"], (label, item["sha256"])) for label, item in manifest["inputs"].items()]
        return IndexRow(
            key=name,
            stamp=stamp,
            regular=True,
            ended=ended,
            started=manifest["started"],
            seconds=float(manifest["seconds"]),
            stage=manifest["stage"],
            project=manifest.get("project"),
            size=sum(output["size"] for output in manifest["outputs"].values()),
            version=manifest["version"],
            code=json_digest(code),
            config=tuple(settings.place(pair) for pair in dict(flatten(config)).items()),
            inputs=tuple(files.place(pair) for _, pair in inputs),
            upstream=manifest["upstream"],
            also_read=_also_read(manifest),
        )
    return IndexRow(name, stamp, ended=ended, upstream={})


def _also_read(manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what a manifest names besides its upstream artifacts; the artifacts need not exist."""
    found = [(str(stage), str(key)) for stage, key in manifest.get("also_read", ())]
    for item in manifest["inputs"].values():
        # An adapter of this store that is evaluated or trained on, or a model that was exported into it. Its
        # path may be relative, masked, or of another machine, but has the folders STAGE/KEY.
        parts = item["path"].split("/")
        found += [(stage, key) for stage, key in pairwise(parts) if _KEY.fullmatch(key)]
    return tuple(dict.fromkeys(found))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _read_file(file: Path) -> tuple[_Interned, _Interned, dict[str, IndexRow]]:
    try:
        digest, _, body = file.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError
        found = json.loads(body)
        if found["format"] != _FORMAT:
            raise ValueError
    except (OSError, ValueError, KeyError):
        # Missing, of another format, or damaged: all manifests are read.
        return _Interned([]), _Interned([]), {}
    names = found["fields"]
    rows = (dict(zip(names, values, strict=True)) for values in found["rows"])
    known = {
        row["key"]: IndexRow(
            **{
                **row,
                **{name: tuple(row[name]) for name in ("stamp", "config", "inputs")},
                "also_read": tuple(tuple(name) for name in row["also_read"]),
            },
        )
        for row in rows
    }
    return (
        _Interned([tuple(pair) for pair in found["settings"]]),
        _Interned([tuple(pair) for pair in found["files"]]),
        known,
    )


def _write_file(file: Path, settings: _Interned, files: _Interned, rows: Sequence[IndexRow]) -> None:
    fields = list(IndexRow.__dataclass_fields__)
    body = json.dumps(
        {
            "format": _FORMAT,
            "fields": fields,
            "settings": settings.pairs,
            "files": files.pairs,
            "rows": [list(asdict(row).values()) for row in rows],
        },
        separators=(",", ":"),
    ).encode()
    write_bytes(file, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
