"""Kill flow, trainer, worker, server or all of them with SIGKILL at random points, over SQLite and Postgres:
`python -m tests.flows.kill_matrix [--points 60] [--folder build/kill-matrix] [--seed 0] [--database NAME]`
(Linux; about two minutes a point).

Each point submits a run of a small project to `jora serve`, kills one process (or the whole tree) at a random
moment of the run, and waits for its end. What does not go on by itself gets one manual restart: `jora serve`
is started again after the server or the whole tree was killed, the run is submitted again after its process
was killed. Then the point is compared with a run that was left alone. A line is added to `points.json` in the
folder after each point, so a script that was stopped goes on where it was. The last lines are the table of
docs/reliability.md. Ends with 1 if a run was not Completed, a process stayed, or the adapter is another one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from deploy.native.stack import CannotStart, database
from flows.engine.artifact_store import Store
from flows.orchestration.prefect_server import free_port
from flows.stages import STAGES
from jora_core.base.digests import file_digest
from tests.flows.orchestration.serving.small_project import START_SECONDS, write_project

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("flow", "trainer", "worker", "server", "whole tree")
DATABASES = ("SQLite", "Postgres")
MARK = "JORA_KILL_MATRIX"
RUN_SECONDS = 1200  # of one run, on a machine that also runs other work
ORPHAN_SECONDS = 20.0  # a child polls its parent every second; a busy machine takes longer
STEPS = 30


@dataclass(frozen=True)
class Point:
    """One kill.

    Attributes:
        number: number of the point.
        database: of the Prefect server.
        target: what is killed.
        share: moment of the kill, as a share of the run's time (of the training's for the trainer).
        whole: whether the run begins with the corpora; else with the training.
    """

    number: int
    database: str
    target: str
    share: float
    whole: bool


@dataclass
class Outcome:
    """What came of a point; all counts must be 0.

    Attributes:
        state: state of the run at its end.
        restart: "automatic", or what was done by hand.
        killed_at: seconds after the start of the run.
        seconds: from the kill to the end.
        orphans: processes that outlived what they belong to.
        slots: slots of concurrency limits that are still taken, and runs that still count as running.
        half: artifacts that are not whole, and temporary folders that are left.
        equal: whether the adapter is that of the run left alone.
    """

    point: Point
    state: str = ""
    restart: str = "automatic"
    killed_at: float = 0.0
    seconds: float = 0.0
    orphans: list[str] = field(default_factory=list)
    slots: int = 0
    half: list[str] = field(default_factory=list)
    equal: bool = False

    @property
    def good(self) -> bool:
        """Whether the run came to the same end without leaving anything."""
        return self.state == "Completed" and self.equal and not (self.orphans or self.slots or self.half)


def points(count: int, seed: int) -> list[Point]:
    """Return the points: all targets in turn, ten for each database in turn, at random moments."""
    rng = random.Random(seed)
    return [
        Point(
            number,
            DATABASES[number // (2 * len(TARGETS)) % len(DATABASES)],
            TARGETS[number % len(TARGETS)],
            round(rng.uniform(0.02, 0.95), 3),
            rng.random() < 0.3,
        )
        for number in range(count)
    ]


def processes() -> dict[int, tuple[int, str]]:
    """Return (parent, command line) of the living processes of this script's servers, by id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z" and MARK.encode() in (entry / "environ").read_bytes():
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                found[int(entry.name)] = (int(parent), words)
        except (OSError, ValueError):
            continue
    return found


def tree(root: int) -> list[int]:
    """Return a process and all that it started, in whatever session; the top first."""
    alive = processes()
    found = [root]
    for pid in found:
        found += [child for child, (parent, _) in alive.items() if parent == pid]
    return found


def find(target: str, serve: int) -> int | None:
    """Return the process to kill, if it runs now.

    Args:
        target: one of `TARGETS`.
        serve: id of the process of `jora serve`.
    """
    if target == "whole tree":
        return serve
    alive = processes()
    words = {
        "flow": "prefect.engine",
        "trainer": "jora_core.commands.train",
        "worker": "flows.orchestration.serving.worker",
        "server": "prefect server start",
    }[target]
    mine = [pid for pid in tree(serve) if words in alive.get(pid, (0, ""))[1]]
    # Not the supervisor, whose command line holds that of its child.
    return next((pid for pid in mine if "flows.children.supervisor" not in alive[pid][1]), None)


class Served:
    """`jora serve` of a small project, which is started again when it was killed."""

    def __init__(self, folder: Path, database_url: str | None) -> None:
        """Write the project.

        Args:
            folder: folder of the project, its store and Prefect's home; made if it does not exist.
            database_url: connection URL of the server's database; None for SQLite.
        """
        self.folder = folder
        self.store = Store(folder / "runs")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        if not folder.exists():
            path = write_project(folder)
            config = yaml.safe_load(path.read_text())
            config["phases"][0] |= {"max_steps": STEPS, "checkpoint_every": 5}
            config["retries"] = {"delay_seconds": 1, "jitter": 0}
            path.write_text(yaml.safe_dump(config, sort_keys=False))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = {
            **kept,
            MARK: str(folder),
            "PREFECT_HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            **({"PREFECT_API_DATABASE_CONNECTION_URL": database_url} if database_url else {}),
        }

    @property
    def log(self) -> Path:
        """What `jora serve` and its runs print."""
        return self.folder / "serve.log"

    def start(self) -> None:
        """Start `jora serve` and wait until it is ready."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "flows.cli", "serve", "small.yaml", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while b"Ctrl-C ends" not in self.log.read_bytes()[begin:]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"jora serve did not start; see {self.log}")
            time.sleep(0.5)

    @property
    def pid(self) -> int:
        """Id of the process."""
        assert self.process is not None
        return self.process.pid

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """End the process in order."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(120)
            finally:
                self.process.kill()

    @cached_property
    def client(self) -> Any:
        """A client of the server; one for all calls, because each new one reads the certificates."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(f"http://127.0.0.1:{self.port}/api").__enter__()

    def submit(self) -> Any:
        """Submit a run of all stages; return its id."""
        deployment = self.client.read_deployment_by_name("raft-pipeline/raft-pipeline")
        return self.client.create_flow_run_from_deployment(deployment.id).id

    def state(self, run: Any) -> Any:
        """Return the state of a run; None while the server does not answer."""
        try:
            return self.client.read_flow_run(run).state
        # Of httpx, of Prefect, of a server that has just begun: all of them mean that it is asked too early.
        except Exception:
            return None

    def clear(self, whole: bool) -> None:
        """Remove artifacts, so that a run has work to do; the caches stay.

        Args:
            whole: also those of the first stages.
        """
        kept = () if whole else ("build-context", "convert-model")
        for name in (*STAGES, ".tmp", ".work", ".prefect"):
            if name not in kept:
                shutil.rmtree(self.store.root / name, ignore_errors=True)


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """Return the first true value of a condition; None after some seconds without."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.5)
    return found


def adapter(store: Store) -> str | None:
    """Return the digest of the adapter, if there is one."""
    found = list(store.root.glob("finetune-structure/*/adapter_model.safetensors"))
    return file_digest(found[0]) if found else None


@dataclass(frozen=True)
class Alone:
    """Runs left alone.

    Attributes:
        whole: seconds of a run from the corpora on.
        later: seconds of a run from the training on.
        training: seconds of the training.
        adapter: digest of the adapter.
    """

    whole: float
    later: float
    training: float
    adapter: str


def run_alone(served: Served) -> Alone:
    """Run the project twice without a kill, from the corpora and from the training on."""
    seconds, training = {}, 0.0
    for whole in (True, False):
        served.clear(whole)
        run, begun, trainer = served.submit(), 0.0, [0.0, 0.0]
        while (state := served.state(run)) is None or not state.is_final():
            if not begun and state is not None and state.is_running():
                begun = time.monotonic()
            if find("trainer", served.pid):
                trainer = [trainer[0] or time.monotonic(), time.monotonic()]
            time.sleep(0.2)
        if state.name != "Completed":
            raise RuntimeError(f"the run left alone: {state.name}, {state.message}; see {served.log}")
        seconds[whole], training = time.monotonic() - begun, trainer[1] - trainer[0]
    return Alone(seconds[True], seconds[False], training, adapter(served.store) or "")


def kill_once(served: Served, point: Point, alone: Alone) -> Outcome | None:
    """Submit a run, kill the target at its moment, and wait for the end; None if the run ended before.

    Raises:
        RuntimeError: the process to kill was not found, although the run goes on.
    """
    outcome = Outcome(point)
    served.clear(point.whole)
    run = served.submit()

    def running() -> bool:
        state = served.state(run)
        return state is not None and (state.is_running() or state.is_final())

    wait_for(running, RUN_SECONDS)
    begun = time.monotonic()
    if point.target == "trainer":
        wait_for(lambda: find("trainer", served.pid) or not served.state(run).is_running(), RUN_SECONDS)
        time.sleep(point.share * alone.training)
    else:
        time.sleep(point.share * (alone.whole if point.whole else alone.later))
    victim = find(point.target, served.pid)
    state = served.state(run)
    if state is not None and state.is_final():
        return None
    if victim is None:
        if point.target == "trainer":
            return None  # the training ended before
        raise RuntimeError(f"{point}: no such process")
    # The server's own death ends all of `jora serve`.
    belong = tree(victim) if point.target != "server" else tree(served.pid)
    for pid in belong if point.target == "whole tree" else [victim]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    killed = time.monotonic()
    outcome.killed_at = round(killed - begun, 1)
    if point.target in ("server", "whole tree"):
        wait_for(served.ended, ORPHAN_SECONDS * 6)
        outcome.orphans = left(belong)
        outcome.restart = "jora serve"
        served.start()
    else:
        outcome.orphans = left(belong)

    def final() -> Any:
        state = served.state(run)
        return state if state is not None and state.is_final() else None

    state = wait_for(final, RUN_SECONDS)
    if state is not None and state.name != "Completed" and outcome.restart == "automatic":
        outcome.restart = f"submitted again ({state.name})"
        run = served.submit()
        state = wait_for(final, RUN_SECONDS)
    outcome.state = state.name if state is not None else "no end"
    outcome.seconds = round(time.monotonic() - killed, 1)
    outcome.slots = slots(served)
    outcome.half = half_artifacts(served.store)
    outcome.equal = adapter(served.store) == alone.adapter
    return outcome


def left(pids: list[int]) -> list[str]:
    """Return the command lines of those processes that outlive a kill by some seconds."""
    wait_for(lambda: not set(pids) & processes().keys(), ORPHAN_SECONDS)
    return [words[:200] for pid, (_, words) in processes().items() if pid in pids]


def slots(served: Served) -> int:
    """Return the number of slots that are taken and of runs that count as running, though nothing runs."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    busy = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    chosen = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=busy)))
    limits = served.client.read_global_concurrency_limits(limit=200, offset=0)
    parents = [run for run in served.client.read_flow_runs(flow_run_filter=chosen) if run.deployment_id]
    return sum(limit.active_slots for limit in limits) + len(parents)


def half_artifacts(store: Store) -> list[str]:
    """Return the artifacts that are not whole, and the temporary folders that are left."""
    found = [str(path) for path in (store.root / ".tmp").glob("*")]
    for stage in STAGES:
        for path in (store.root / stage).glob("*"):
            if not store.check(stage, path.name).whole:
                found.append(str(path))
    return found


def table(outcomes: list[Outcome]) -> str:
    """Return the Markdown table of docs/reliability.md."""
    lines = [
        "| Database | Killed | Kills | Completed | by itself | orphans | slots | half artifacts "
        "| other adapter |",
        "|---|---|" + "---:|" * 7,
    ]

    def row(name: str, target: str, some: list[Outcome]) -> str:
        cells = [
            len(some),
            sum(item.state == "Completed" for item in some),
            sum(item.restart == "automatic" for item in some),
            sum(len(item.orphans) for item in some),
            sum(item.slots for item in some),
            sum(len(item.half) for item in some),
            sum(not item.equal for item in some),
        ]
        return f"| {name} | {target} | {' | '.join(map(str, cells))} |"

    for name in DATABASES:
        for target in TARGETS:
            some = [item for item in outcomes if (item.point.database, item.point.target) == (name, target)]
            if some:
                lines.append(row(name, target, some))
    return "\n".join([*lines, row("all", "", outcomes)])


@contextmanager
def serving(name: str, folder: Path) -> Iterator[Served]:
    """Serve the project over one database during the block."""
    with ExitStack() as stack:
        url = stack.enter_context(database(folder / "database")) if name == "Postgres" else None
        served = Served(folder / name.lower(), url)
        # A fresh start finds nothing to resume of an earlier start of the script.
        shutil.rmtree(served.folder / "home", ignore_errors=True)
        try:
            served.start()
            yield served
        finally:
            served.stop()


def main(count: int, folder: Path, seed: int, names: Collection[str]) -> list[Outcome]:
    """Kill at the points that have no outcome yet; return all outcomes.

    Args:
        count: number of points, over all databases.
        folder: folder of the projects, the databases and `points.json`.
        seed: decides moments and kinds of runs.
        names: the databases whose points run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "points.json"
    raw = json.loads(path.read_text()) if path.exists() else []
    outcomes = [Outcome(**{**item, "point": Point(**item["point"])}) for item in raw]
    done = {item.point.number for item in outcomes}
    waiting = [point for point in points(count, seed) if point.number not in done and point.database in names]
    while waiting:
        name = waiting[0].database
        with serving(name, folder) as served:
            # Once for both databases and all starts of the script: the adapter must be the same.
            noted = folder / "alone.json"
            if not noted.exists():
                noted.write_text(json.dumps(asdict(run_alone(served))))
            alone = Alone(**json.loads(noted.read_text()))
            print(f"{name}: left alone {alone}", flush=True)
            while waiting and waiting[0].database == name:
                point = waiting.pop(0)
                outcome = kill_once(served, point, alone)
                if outcome is None:
                    # It ran faster than the run left alone.
                    print(f"{point}: the run ended before its moment; again, earlier", flush=True)
                    waiting.insert(0, Point(**{**asdict(point), "share": round(point.share * 0.6, 3)}))
                    continue
                outcomes.append(outcome)
                path.write_text(json.dumps([asdict(item) for item in outcomes], indent=1))
                print(f"{'good' if outcome.good else 'FAULT'} {asdict(outcome)}", flush=True)
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "kill-matrix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=DATABASES, help="only the points over this one")
    parser.add_argument("--table", action="store_true", help="only print the table of the points so far")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all servers end with the script
    names = [args.database] if args.database else DATABASES
    try:
        found = main(0 if args.table else args.points, args.folder.resolve(), args.seed, names)
    except CannotStart as error:
        sys.exit(f"error: {error}")
    print(table(found))
    sys.exit(not all(item.good for item in found))
