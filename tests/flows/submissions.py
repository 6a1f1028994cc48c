"""Submit valid runs of all stages while the processors are kept busy by other work, and count how they end:
`python -m tests.flows.submissions [--runs 50] [--busy 2] [--folder build/submissions]`.

Each run changes the seed, so every stage but `convert-model` has work to do. All runs are submitted at once,
as many users would. The ends stand in `ends.json` of the folder, so a script that was stopped goes on where
it was; `--again` starts anew. Ends with 1 unless all runs are Completed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.guards.splits import split_of
from tests.flows.orchestration.serving.small_project import PRICES, TEST_SHARE, serving

ROOT = Path(__file__).resolve().parents[2]
BUSY = "while True: sum(range(10000))"
Ends = dict[str, dict[str, Any]]


def valid_seeds() -> Iterator[int]:
    """Yield the seeds by which both splits have documents; evaluation refuses others."""
    for seed in itertools.count():
        if len({split_of(seed, f"{name}.md", TEST_SHARE) for name in PRICES}) == 2:
            yield seed


def main(runs: int, busy: int, folder: Path) -> int:
    """Submit the runs, print one line for each and a summary; return the exit status.

    Args:
        runs: number of runs in all, with those of an earlier start.
        busy: number of processes that do other work meanwhile.
        folder: folder of the ends; the served project is made anew in it.
    """
    from prefect.client.orchestration import SyncPrefectClient

    folder.mkdir(parents=True, exist_ok=True)
    ends: Ends = json.loads((folder / "ends.json").read_text()) if (folder / "ends.json").exists() else {}
    shutil.rmtree(folder / "project", ignore_errors=True)
    workers = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        with serving(folder / "project") as project, SyncPrefectClient(project.api_url) as client:
            deployment = client.read_deployment_by_name("raft-pipeline/raft-pipeline")
            made = {
                seed: client.create_flow_run_from_deployment(
                    deployment.id, parameters={"changes": [f"seed={seed}"]}
                )
                for seed in itertools.islice(valid_seeds(), runs)
                if str(seed) not in ends
            }
            for seed, run in made.items():
                while not (found := client.read_flow_run(run.id)).state.is_final():
                    time.sleep(2)
                ends[str(seed)] = {
                    "state": found.state.name,
                    "message": found.state.message,
                    "seconds": round(found.total_run_time.total_seconds(), 1),
                }
                (folder / "ends.json").write_text(json.dumps(ends, indent=1))
                print(f"{len(ends)} of {runs}: {ends[str(seed)]}", flush=True)
    finally:
        for worker in workers:
            worker.kill()
    states = Counter(end["state"] for end in ends.values())
    seconds = sorted(end["seconds"] for end in ends.values())
    print(
        f"{dict(states)}; {seconds[0]:.0f} to {seconds[-1]:.0f} s a run, "
        f"median {seconds[len(seconds) // 2]:.0f} s; {busy} busy processes on {os.cpu_count()} cores"
    )
    return 0 if states == {"Completed": runs} else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "submissions")
    parser.add_argument("--again", action="store_true", help="forget the ends of an earlier start")
    args = parser.parse_args()
    if args.again:
        shutil.rmtree(args.folder, ignore_errors=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all servers end with the script
    sys.exit(main(args.runs, args.busy, args.folder.resolve()))
