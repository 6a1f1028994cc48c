"""Submit valid runs while the processors are kept busy by other work, and count how they end:
`python tests/flows/submissions.py [--runs 50] [--busy 2] [--folder runs/submissions]`.

Each run changes the seed of the last, so each has work to do. Ends with 1 unless all runs are Completed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BUSY = "while True: sum(range(10000))"


def main(runs: int, busy: int, folder: Path) -> int:
    """Submit the runs, print one line for each and a summary; return the exit status."""
    from prefect.client.orchestration import SyncPrefectClient

    from tests.flows.orchestration.serving.small_project import serving

    shutil.rmtree(folder, ignore_errors=True)
    workers = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    ends: Counter[str] = Counter()
    try:
        with serving(folder) as project, SyncPrefectClient(project.api_url) as client:
            deployment = client.read_deployment_by_name("raft-pipeline/raft-pipeline")
            made = [
                client.create_flow_run_from_deployment(
                    deployment.id, parameters={"changes": [f"seed={seed}"], "stages": "only build-context"}
                )
                for seed in range(runs)
            ]
            for number, run in enumerate(made, start=1):
                begun = time.monotonic()
                while not (state := client.read_flow_run(run.id).state).is_final():
                    time.sleep(1)
                ends[state.name] += 1
                seconds = time.monotonic() - begun
                print(f"{number} of {runs}: {state.name}, {seconds:.0f} s {state.message or ''}", flush=True)
    finally:
        for worker in workers:
            worker.kill()
    print(f"{dict(ends)}, {busy} busy processes on {os.cpu_count()} cores")
    return 0 if ends == {"Completed": runs} else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "submissions")
    args = parser.parse_args()
    sys.exit(main(args.runs, args.busy, args.folder.resolve()))
