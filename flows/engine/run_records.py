"""Records of runs: when, of which configuration, which artifacts, and how the run ended.

A record is one JSON file, `<store>/.runs/<id>.json`, written when a run begins and again when it ends. A run
holds a lock of its own, so a record without an end whose lock is free belongs to a killed run. All runs also
share one lock of the store, which a clean-up takes alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from jora_core.base.errors import InputError
from jora_core.base.secrets import mask

RECORDS = ".runs"
Result = Literal["running", "completed", "failed", "stopped", "killed"]
_MOST_MESSAGE = 300  # characters


@dataclass(frozen=True)
class RunRecord:
    """One run of the pipeline, or of a part of it.

    Attributes:
        id: time of the start in UTC, and four random digits.
        project: name of the project, from the configuration.
        config: path of the configuration's file; empty for a run from a web form.
        started: ISO 8601, in UTC.
        ended: ISO 8601, in UTC; empty while the run lasts.
        result: how the run ended. A killed run is found by its free lock.
        message: first line of the error of a failed run.
        keys: stage name to key, of all stages that the run selected.
        stages: for each finished stage `stage`, `cached` and `seconds`.
        place: which folder of a shared store the run worked in; empty for a store of one folder.
        started_by: what has started the run, as `started_by` names it; empty in records of earlier versions.
        root: folder that the configuration's paths are relative to; empty in records of earlier versions.
    """

    id: str
    project: str
    config: str
    started: str
    ended: str = ""
    result: Result = "running"
    message: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()
    place: str = ""
    started_by: str = ""
    root: str = ""

    def finished(self, stage: str) -> bool:
        """Return whether the run has finished a stage, by computing it or by finding it in the store."""
        return any(row["stage"] == stage for row in self.stages)


# A context variable, so that runs in two threads of one process do not see each other's.
_STARTER: ContextVar[str] = ContextVar("starter", default="")


@contextmanager
def started_by(what: str) -> Iterator[None]:
    """Name what starts the runs of the block, for their records, such as `jora run --from evaluate`."""
    token = _STARTER.set(what)
    try:
        yield
    finally:
        _STARTER.reset(token)


def _starter() -> str:
    """Return what starts a run: as `started_by` has named it, else the command line of this process."""
    if named := _STARTER.get():
        return named
    name = Path(sys.argv[0]).name
    if name in ("jora", "cli.py"):
        return shlex.join(["jora", *sys.argv[1:]])
    return f"program {name}" if name else "a program"


class RunRecorder:
    """The record of the run that this process makes.

    Attributes:
        record: what is known so far.
    """

    def __init__(self, store: Store, record: RunRecord) -> None:
        self.record = record
        self._store = store
        self._locks: list[int] = []
        self._told = ExitStack()
        self._withdrawn = False

    def begin(self) -> None:
        """Take the locks of the run and write its record, unless this is done already.

        Raises:
            InputError: a clean-up of the store is in progress.
        """
        if self._locks:
            return
        folder = self._store.root / ".locks"
        # A store that cannot be written: the stage that writes to it says so.
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._locks.append(_locked(folder / "store", fcntl.LOCK_SH))
            except BlockingIOError:
                raise InputError(
                    f"store {self._store.root}: `jora gc` is removing artifacts; run again when it has ended"
                ) from None
            self._locks.append(_locked(self._lock, fcntl.LOCK_EX))
            self._told.enter_context(self._store.run_in_progress(self.record.id))
            _write(self._store, self.record)

    def finished(self, reference: ArtifactRef) -> None:
        """Note a finished stage."""
        row = {"stage": reference.stage, "cached": reference.cached, "seconds": reference.seconds}
        self.record = replace(
            self.record,
            stages=[*self.record.stages, row],
            keys={**self.record.keys, reference.stage: reference.key},
        )

    def end(self, result: Result, message: str = "") -> None:
        """Write how the run ended, and free its locks."""
        ended = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.record = replace(self.record, ended=ended, result=result, message=message[:_MOST_MESSAGE])
        # A run that was refused before it began leaves nothing.
        if self._locks:
            if not self._withdrawn:
                _write(self._store, self.record)
            self._lock.unlink(missing_ok=True)
        self._told.close()
        for descriptor in self._locks:
            os.close(descriptor)  # frees the lock
        self._locks = []

    def withdraw(self) -> None:
        """Remove the record: the input was refused before any stage had finished."""
        self._withdrawn = True
        if self._locks:
            remove_record(self._store, self.record.id)

    @property
    def _lock(self) -> Path:
        return self._store.root / ".locks" / f"run-{self.record.id}"


@contextmanager
def recorded_run(store: Store, config: PipelineConfig, keys: Mapping[str, str]) -> Iterator[RunRecorder]:
    """Record a run during the block.

    In a store that does not exist yet, the record begins with `RunRecorder.begin`, because a refused run
    creates no folder.

    Args:
        store: the artifact store.
        config: configuration of the run.
        keys: stage name to key, of the selected stages.

    Raises:
        InputError: a clean-up of the store is in progress.
    """
    begun = datetime.now(UTC)
    recorder = RunRecorder(
        store,
        RunRecord(
            id=f"{begun:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            project=config.project,
            config=_config_file(config),
            started=begun.isoformat(timespec="milliseconds"),
            keys=dict(keys),
            place=store.place,
            started_by=mask(_starter()),
            root=mask(config.root),
        ),
    )
    if store.exists:
        recorder.begin()
    result: Result = "completed"
    message = ""
    try:
        yield recorder
    except Exception as error:
        result, message = "failed", (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, InputError) and not recorder.record.stages:
            recorder.withdraw()
        raise
    except BaseException:
        # KeyboardInterrupt and SystemExit: by Ctrl-C, by a signal, or by a cancel in the web UI.
        result = "stopped"
        raise
    finally:
        recorder.end(result, message)


def _config_file(config: PipelineConfig) -> str:
    file = config.source.file if config.source else ""
    return str(Path(file).resolve()) if file else ""


def read_records(store: Store) -> list[RunRecord]:
    """Return the records of a store, the newest first. A file that is not a record is left out."""
    found: list[RunRecord] = []
    elsewhere: set[str] | None = None
    for data in store.documents(RECORDS).values():
        with suppress(ValueError, TypeError):
            record = RunRecord(**json.loads(data))
            if record.result == "running":
                if record.place == store.place:
                    running = _is_locked(store.root / ".locks" / f"run-{record.id}")
                else:
                    elsewhere = store.runs_elsewhere() if elsewhere is None else elsewhere
                    running = record.id in elsewhere
                record = record if running else replace(record, result="killed")
            found.append(record)
    return sorted(found, key=lambda record: (record.started, record.id), reverse=True)


def remove_record(store: Store, run: str) -> None:
    """Remove the record of a run."""
    store.remove_document(RECORDS, f"{run}.json")


@contextmanager
def no_run_in_progress(store: Store) -> Iterator[None]:
    """Take the store's lock alone for the block, so that no run begins in it.

    Raises:
        InputError: a run is in progress, or the store cannot be written.
    """
    folder = store.root / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder / "store", fcntl.LOCK_EX)
    except BlockingIOError:
        names = [record.id for record in read_records(store) if record.result == "running"]
        which = f" ({', '.join(names)})" if names else ""
        raise InputError(
            f"store {store.root}: a run is in progress{which}; try again when it has ended"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write to store {store.root}: {reason}; give this user the right") from None
    try:
        with store.alone():
            yield
    finally:
        os.close(descriptor)


def _locked(path: Path, kind: int) -> int:
    """Open a lock file and take its lock without waiting; return the descriptor."""
    # O_CLOEXEC: a child that inherited the descriptor would keep the lock after the end of this process.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _write(store: Store, record: RunRecord) -> None:
    # A record is for information: a full disk must not end a run whose artifacts are complete.
    with suppress(OSError, InputError):
        text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
        store.write_document(RECORDS, f"{record.id}.json", f"{text}\n".encode())
