"""Notice that the source files of a configuration have changed, once they have stopped growing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jora_core.base.digests import file_digests, sealed_path, whole
from jora_core.base.errors import InputError

Files = Mapping[str, Path]
_Stamps = Mapping[str, tuple[str, int, int]]


@dataclass(frozen=True)
class KnownFiles:
    """What the last look has found.

    Attributes:
        stamps: path, size in bytes and time of change in nanoseconds of each file, by its name.
        digests: SHA-256 of each file, by its name.
    """

    stamps: _Stamps = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def read_known(path: Path) -> KnownFiles | None:
    """Read what an earlier look has written; None if no look has.

    A damaged file counts as a look that found no file, so all files are new. A run too many finds nothing
    to do; a change that is missed would stay unnoticed.
    """
    if not path.exists() and not path.with_name(f"{path.name}.sha256").exists():
        return None
    if not whole(path):
        return KnownFiles()
    found = json.loads(path.read_bytes())
    return KnownFiles({name: tuple(stamp) for name, stamp in found["stamps"].items()}, found["digests"])


def write_known(path: Path, known: KnownFiles) -> None:
    """Write what a look has found, for the next one.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"stamps": known.stamps, "digests": known.digests}
    with sealed_path(path) as temporary:
        temporary.write_text(json.dumps(content, sort_keys=True, indent=1))


@dataclass(frozen=True)
class Changes:
    """Names of the source files that are new, have other content, or are gone."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def in_words(self) -> str:
        """Return one line such as `1 new (a.md), 2 changed (b.md, c.md)`."""
        parts = [("new", self.added), ("changed", self.changed), ("gone", self.removed)]
        return ", ".join(f"{len(names)} {word} ({_some(names)})" for word, names in parts if names)


class Watch:
    """The state of a watch over source files.

    Sizes and times are looked at first. Only files whose size or time differs are read, so a file that was
    touched but not changed is no change. Files that still change are left alone until they have been the same
    for `settle` seconds, so a burst of changes is one change.
    """

    def __init__(
        self,
        files: Callable[[], Files],
        settle: float,
        clock: Callable[[], float] = time.monotonic,
        known: KnownFiles | None = None,
    ) -> None:
        """Read all files once, or start from what an earlier watch has found.

        Args:
            files: returns the source files by name.
            settle: seconds without a change after which files count as complete.
            clock: returns the current time in seconds.
            known: what an earlier watch has found.

        Raises:
            InputError: a source is missing.
        """
        self._files = files
        self._settle = settle
        self._clock = clock
        if known is None:
            found = files()
            digests = file_digests(list(found.values()))
            known = KnownFiles(_stamps(found), dict(zip(found, digests, strict=True)))
        self._stamps = known.stamps
        self._digests = dict(known.digests)
        self._seen = self._stamps
        self._since = clock()

    @property
    def known(self) -> KnownFiles:
        """What the last complete look has found."""
        return KnownFiles(self._stamps, self._digests)

    @property
    def waiting(self) -> bool:
        """Whether the files look changed, but have not been the same for long enough."""
        return self._seen != self._stamps

    def poll(self) -> Changes | None:
        """Look at the files; return their changes when they have stopped growing, else None."""
        try:
            found = self._files()
            stamps = _stamps(found)
        except (InputError, OSError):
            # A folder that is being replaced. It is looked at again.
            self._seen, self._since = {}, self._clock()
            return None
        if stamps != self._seen:
            self._seen, self._since = stamps, self._clock()
        if stamps == self._stamps or self._clock() - self._since < self._settle:
            return None
        fresh = [name for name in found if stamps[name] != self._stamps.get(name)]
        try:
            digests = dict(zip(fresh, file_digests([found[name] for name in fresh]), strict=True))
            # A file that grew while it was read is not complete.
            if _stamps(found) != stamps:
                return None
        except OSError:
            return None
        changes = Changes(
            added=tuple(sorted(name for name in fresh if name not in self._digests)),
            changed=tuple(
                sorted(name for name in fresh if self._digests.get(name, digests[name]) != digests[name])
            ),
            removed=tuple(sorted(set(self._digests) - set(found))),
        )
        self._stamps = stamps
        self._digests = {name: digests.get(name) or self._digests[name] for name in found}
        return changes or None


def _stamps(files: Files) -> _Stamps:
    """Return path, size and time of change of each file."""
    found = {}
    for name, path in files.items():
        status = path.stat()
        # The path is part of it: the copy of a URL has another path when the remote file changes.
        found[name] = (str(path), status.st_size, status.st_mtime_ns)
    return found


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
