"""Measure what Prefect adds to a full run: `jora run` against a running server, and the same without it:
`python -m tests.flows.orchestration.measure_overhead [--pairs 3] [--folder build/overhead]`.

The two take turns (A B A B) on a small project, each with a store of its own, and force all stages. The first
pair fills the caches and is not counted. Prints wall time and processor time of each run, with all its child
processes, and the medians of the differences.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from flows.configuration.load import load_config
from flows.engine.artifact_store import Store
from flows.engine.run_stage import run_stages
from flows.engine.stage import stages_of
from flows.stages import STAGES
from tests.flows.orchestration.serving.small_project import serving

ROOT = Path(__file__).resolve().parents[3]


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return its wall time and processor time in seconds.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.monotonic()
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    # Not `process.wait`, because this one also returns the processor time of its child processes.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; see {folder / 'log.txt'}")
    return time.monotonic() - begun, usage.ru_utime + usage.ru_stime


def without_prefect(config: Path, changes: list[str]) -> None:
    """Run all stages one after the other in this process."""
    settings = load_config(config, changes)
    names = [stage.name for stage in stages_of(settings, STAGES)]
    run_stages(names, settings, Store(settings.store), STAGES, force=True)


def main(pairs: int, folder: Path) -> None:
    """Run the pairs, and print a line for each and the medians."""
    shutil.rmtree(folder, ignore_errors=True)
    differences: list[tuple[float, float]] = []
    with serving(folder) as project:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment = {**kept, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": project.api_url}
        environment["PREFECT_HOME"] = str(folder / "client")
        for pair in range(pairs + 1):
            found = []
            for name, words in (
                ("without", ["-m", "tests.flows.orchestration.measure_overhead", "--alone"]),
                ("with", ["-m", "flows.cli", "run", "small.yaml", "--force"]),
            ):
                store = ["--set", f"store={folder / name}"]
                found.append(timed([sys.executable, *words, *store], folder, environment))
            note = " (fills the caches)" if pair == 0 else ""
            print(
                f"without Prefect {found[0][0]:.1f} s, {found[0][1]:.1f} s of processor; "
                f"with {found[1][0]:.1f} s, {found[1][1]:.1f} s{note}; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            if pair:
                differences.append((found[1][0] - found[0][0], found[1][1] - found[0][1]))
    wall, processor = (statistics.median(values) for values in zip(*differences, strict=True))
    print(json.dumps({"pairs": pairs, "wall_s": round(wall, 1), "processor_s": round(processor, 1)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "overhead")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        without_prefect(Path("small.yaml"), args.set)
    else:
        main(args.pairs, args.folder.resolve())
