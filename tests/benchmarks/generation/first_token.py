"""Seconds from `jora generate` to the first text of its answer: without and with compiled programs.

    python tests/benchmarks/generation/first_token.py                       # SmolLM2 135M
    python tests/benchmarks/generation/first_token.py --repeats 5 --json out.json

Each call is a process of its own, as a user starts it; the time ends with the first character on its standard
output. The first call of a pair finds an empty cache of compiled programs, the second one what the first has
left. The model is fetched once (`jora fetch`), and its file is read once before, so the disk is no part of
it. Other work on the machine is: run it on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from flows.commands.models.fetch import fetch_model  # noqa: E402
from flows.configuration.fetched_models import MODELS  # noqa: E402

PROMPT = "What is the capital of France?"


def seconds_to_first_text(model: str, folder: Path, cache: Path) -> tuple[float, float]:
    """Return the seconds to the first text and to the end of a call.

    Args:
        model: name that `jora fetch` knows.
        folder: working directory, without a configuration.
        cache: folder of what the call keeps.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JORA_CACHE": str(cache)}
    command = [sys.executable, "-m", "flows.cli", "generate", "-i", PROMPT, "--model", model]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.stdout.read()
    if process.wait() or not first:
        raise SystemExit(f"error: `jora generate` ended with status {process.returncode}")
    return seconds, time.perf_counter() - began


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    given = parser.parse_args()
    home = fetch_model(given.model).parent
    for path in (home / "hf").rglob("*"):
        if path.is_file():
            path.read_bytes()
    calls: dict[str, list[float]] = {"first call": [], "second call": []}
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as name:
            cache = Path(name) / "cache"
            (cache / "models").mkdir(parents=True)
            (cache / "models" / given.model).symlink_to(home)
            for seconds in calls.values():
                seconds.append(seconds_to_first_text(given.model, Path(name), cache)[0])
            shutil.rmtree(cache)
    for call, seconds in calls.items():
        every = ", ".join(f"{each:.2f}" for each in seconds)
        print(f"{call:12} {statistics.median(seconds):6.2f} s to the first text ({every})")
    if given.json:
        result: dict[str, Any] = {
            "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
            "settings": {"model": given.model, "repeats": given.repeats},
            "results": [{"call": call, "seconds": seconds} for call, seconds in calls.items()],
            "ratios": {},
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
