"""Choose and remove the artifacts that no kept run needs."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flows.engine.artifact_store import Store
from flows.engine.run_records import no_run_in_progress, remove_record
from flows.housekeeping.stored_runs import Name, StoreContents, StoredRun, read_contents, with_upstream
from jora_core.base.errors import InputError

KEEP = 5  # runs of each project that are kept by default
EXPORT = "export"
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Removal:
    """What a clean-up removes and keeps.

    Attributes:
        artifacts: artifacts to remove, by stage and key.
        runs: runs whose records are removed.
        kept: runs that stay.
        bytes: size of the artifacts to remove.
    """

    artifacts: tuple[Name, ...]
    runs: tuple[StoredRun, ...]
    kept: tuple[StoredRun, ...]
    bytes: int


def parse_age(text: str) -> timedelta:
    """Return a time span such as `30d`, `12h` or `2w`.

    Raises:
        InputError: the text is no time span.
    """
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InputError(f"--older-than {text!r}: expected a number and s, m, h, d or w, such as 30d")
    try:
        return timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        raise InputError(f"--older-than {text!r}: the time is too long; give a shorter one") from None


def choose(
    contents: StoreContents,
    keep: int | None = None,
    older_than: timedelta | None = None,
    needed: Collection[Name] = (),
    now: datetime | None = None,
) -> Removal:
    """Choose what a clean-up would remove.

    A run is kept if it is pinned, in progress, among the newest of its project, or newer than the age. Runs
    with the same artifacts count once. Where a number is kept, the newest run of each project that exported a
    model stays too: gates compare with it, and without it the next model would pass them unseen. An artifact
    is kept if a kept run selected it, or if a kept artifact was made from it.

    Args:
        contents: the store's artifacts and runs.
        keep: number of the newest runs of each project that are kept. With None, `older_than` alone decides,
            or 5 runs are kept if that is None too.
        older_than: runs that ended within this time are kept.
        needed: further artifacts to keep, with what they were made from.
        now: time of the clean-up; None takes the clock.
    """
    newest = KEEP if keep is None and older_than is None else keep or 0
    limit = None if older_than is None else (now or datetime.now(UTC)) - older_than
    kept: list[StoredRun] = []
    dropped: list[StoredRun] = []
    counted: dict[str, list[frozenset[Name]]] = {}
    exported: set[str] = set()
    for run in contents.runs:
        seen = counted.setdefault(run.record.project, [])
        if run.artifacts and run.artifacts not in seen:
            seen.append(run.artifacts)
        # A run without artifacts is only a line in the list: it stays beside the runs of its time.
        among = bool(run.artifacts) and seen.index(run.artifacts) < newest
        among = among or (not run.artifacts and len(seen) < newest)
        if newest and run.artifacts and run.record.finished(EXPORT) and run.record.project not in exported:
            exported.add(run.record.project)
            among = True
        young = limit is not None and _time(run.ended) > limit
        if run.pinned or run.record.result == "running" or among or young:
            kept.append(run)
        else:
            dropped.append(run)
    names = with_upstream([*needed, *(name for run in kept for name in run.artifacts)], contents.artifacts)
    removed = tuple(sorted(set(contents.artifacts) - names))
    return Removal(removed, tuple(dropped), tuple(kept), contents.size(removed))


def collect(
    store: Store,
    keep: int | None = None,
    older_than: timedelta | None = None,
    needed: Collection[Name] = (),
) -> Removal:
    """Remove what no kept run needs; return what was removed.

    Args:
        store: the artifact store.
        keep: see `choose`.
        older_than: see `choose`.
        needed: see `choose`.

    Raises:
        InputError: a run is in progress, or the store cannot be written.
    """
    with no_run_in_progress(store):
        # Read under the lock: a run may have ended since the caller looked.
        contents = read_contents(store)
        removal = choose(contents, keep, older_than, needed)
        for stage, key in removal.artifacts:
            store.remove(stage, key)
        kept = {name for run in removal.kept for name in run.record.keys.items()}
        for run in removal.runs:
            for name in set(run.record.keys.items()) - kept:
                # Checkpoints of an unfinished stage of this run.
                store.finish_work(*name)
            remove_record(store, run.record.id)
        store.remove_leftovers()
    return removal


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
