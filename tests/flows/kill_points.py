"""Kill `jora run` with -9 at ten points, whole process tree, and hold what comes of it against a run left
alone: `python tests/flows/kill_points.py [CONFIG] [--folder runs/kill-points]` (Linux; takes two runs of
CONFIG and ten starts).

One store takes all ten kills in turn; every start must go on from what the one before left. Prints a line a
point and ends with 1 if a finished stage ran again, a process outlived its kill, training began anew, or the
last adapter differs in one bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 1800


def steps(store: Path, stage: str) -> int:
    """Training steps of a stage that is being made."""
    logs = list(store.glob(f".tmp/{stage}-*/metrics.jsonl"))
    return len(logs[0].read_bytes().splitlines()) if logs else 0


def making(stage: str, seconds: float = 0.0) -> Callable[[Path, float], bool]:
    """True once a stage has been in the making for some seconds."""
    seen: list[float] = []

    def reached(store: Path, _: float) -> bool:
        if not seen and list(store.glob(f".tmp/{stage}-*")):
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= seconds

    return reached


def trained(stage: str, share: float, total: int) -> Callable[[Path, float], bool]:
    """True once a phase has taken a share of its steps."""
    return lambda store, _: steps(store, stage) >= max(1, round(share * total))


def tree(pid: int) -> list[int]:
    """A process and all that it started, in whatever session."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue.extend(parents.get(found[-1], []))
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that still run."""
    left = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        left += [pid] if state != "Z" else []
    return left


def start(config: Path, store: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.cli", "run", str(config), "--set", f"store={store}"]
    with log.open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)


def adapter(store: Path) -> str:
    """Digest of the last phase's adapter."""
    (path,) = store.glob("finetune-task/*/adapter_model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finished(store: Path) -> set[str]:
    return {path.parent.as_posix() for path in store.glob("*/*/manifest.json")}


def main(config: Path, folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole, killed = folder / "whole", folder / "killed"
    begun = time.monotonic()
    if start(config, whole, folder / "whole.log").wait(TIMEOUT_SECONDS) != 0:
        print(f"the run left alone failed, see {folder / 'whole.log'}")
        return 1
    print(f"left alone: {time.monotonic() - begun:.0f} s, adapter {adapter(whole)[:12]}", flush=True)
    phases = {phase["stage"]: phase["max_steps"] for phase in yaml.safe_load(config.read_text())["phases"]}
    points: list[tuple[str, Callable[[Path, float], bool]]] = [
        ("2 seconds after the start", lambda _, seconds: seconds > 2),
        ("making records", making("build-context")),
        ("making records, 4 s in", making("build-context", 4)),
        ("reading the base model", making("convert-model")),
        ("phase 1, first half", trained("finetune-structure", 0.4, phases["finetune-structure"])),
        ("phase 2, begun", trained("finetune-task", 0.2, phases["finetune-task"])),
        ("phase 2, second half", trained("finetune-task", 0.7, phases["finetune-task"])),
        ("evaluating", making("evaluate", 3)),
        ("evaluating, 10 s in", making("evaluate", 10)),
        ("exporting", making("export", 1)),
    ]
    faults = 0
    for name, reached in points:
        before, begun = finished(killed), time.monotonic()
        process = start(config, killed, folder / "killed.log")
        while not reached(killed, time.monotonic() - begun):
            if process.poll() is not None or time.monotonic() - begun > TIMEOUT_SECONDS:
                print(f"{name}: the run ended before this point with status {process.poll()}")
                break
            time.sleep(0.02)
        pids = tree(process.pid)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        time.sleep(1)
        orphans, lost = alive(pids), before - finished(killed)
        done = steps(killed, "finetune-structure"), steps(killed, "finetune-task")
        print(
            f"killed {name}: {len(pids)} processes after {time.monotonic() - begun:.0f} s, steps {done}, "
            f"{len(finished(killed))} stages finished, {len(orphans)} orphans, {len(lost)} stages lost",
            flush=True,
        )
        faults += len(orphans) + len(lost)
    begun = time.monotonic()
    status = start(config, killed, folder / "killed.log").wait(TIMEOUT_SECONDS)
    resumed = (folder / "killed.log").read_text(errors="replace").count("resum")
    left = [p for part in (".tmp", ".work") for p in (killed / part).rglob("*") if p.is_file()]
    same = status == 0 and adapter(killed) == adapter(whole)
    print(
        f"last start: status {status} after {time.monotonic() - begun:.0f} s, {len(left)} files left over, "
        f"training resumed {resumed} times in all, adapter {'equal' if same else 'DIFFERENT'}"
    )
    return int(bool(faults or left or not same))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "flows" / "configs" / "sample.yaml")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "kill-points")
    args = parser.parse_args()
    sys.exit(main(args.config.resolve(), args.folder.resolve()))
