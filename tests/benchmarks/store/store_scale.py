"""Measure `jora plan`, `runs`, `why` and `gc` on a store of thousands of artifacts, and on an empty one.

    python tests/benchmarks/store/store_scale.py                      # 10,000 artifacts
    python tests/benchmarks/store/store_scale.py --artifacts 2000 --rounds 3 --json out.json

The artifacts are small, but their manifests have the settings, inputs, code and upstream of the sample's own
stages. Each night of the made-up history changes one or two of them: a setting, an input file, the code of
the package. Each command is a process of its own, as a user would start it. The commands take turns, so
that a disturbance of the machine meets all of them. `plan, indexed` is what a user sees from the second
command on; `plan, first` builds the index of manifests.
"""

from __future__ import annotations

import argparse
import copy
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, machine, print_table, write_result

SEED = 5


def write_store(root: Path, artifacts: int, identities: Mapping[str, Any]) -> None:
    """Write a store with the history of a pipeline that ran each night.

    Args:
        root: folder of the store, which must not exist.
        artifacts: number of artifacts.
        identities: stage name to the parts of its key now.
    """
    from flows.engine.artifact_store import MANIFEST, render_manifest
    from flows.engine.run_records import RECORDS
    from jora_core.base.atomic_files import write_json
    from jora_core.base.digests import json_digest, text_digest

    draw = random.Random(SEED)
    begin = datetime(2020, 1, 1, 2, tzinfo=UTC)
    records = root / RECORDS
    code = {name: dict(identity.code) for name, identity in identities.items()}
    for night in range(artifacts // len(identities)):
        keys: dict[str, str] = {}
        if night % 50 == 0:  # an update of the package
            for digests in code.values():
                digests[draw.choice(sorted(digests))] = text_digest(f"{night}")
        for number, (stage, identity) in enumerate(identities.items()):
            ended = begin + timedelta(days=night, minutes=5 * number)
            config = _changed(dict(identity.config), draw)
            inputs = {
                name: {
                    "path": identity.paths[name],
                    "sha256": text_digest(f"{name} {night}") if draw.random() < 0.3 else digest,
                }
                for name, digest in identity.inputs.items()
            }
            upstream = {
                other: {
                    "key": keys[other],
                    "digest": text_digest(keys[other]),
                    "reads": ["*"],
                    "parts": {
                        part: text_digest(f"{part} {night}")
                        for part in identity.upstream_parts.get(other, {})
                    },
                }
                for other in identity.upstream
            }
            key = keys[stage] = json_digest([stage, night, config])
            manifest = {
                "format": 1,
                "stage": stage,
                "key": key,
                "version": identity.version,
                "project": identity.project,
                "config": config,
                "inputs": inputs,
                "upstream": upstream,
                "parts": {},
                "code": code[stage],
                "metrics": {"loss": draw.random(), "steps": list(range(200))},
                "outputs": {"out.bin": {"sha256": text_digest(key), "size": draw.randrange(10**9)}},
                "started": (ended - timedelta(minutes=4)).isoformat(),
                "ended": ended.isoformat(),
                "seconds": 240.0,
                "environment": {"python": "3.11"},
            }
            folder = root / stage / key
            folder.mkdir(parents=True)
            (folder / "out.bin").write_bytes(b"")
            (folder / MANIFEST).write_bytes(render_manifest(manifest))
        started = begin + timedelta(days=night)
        identifier = f"{started:%Y%m%d-%H%M%S}-{night % 65536:04x}"
        write_json(
            records / f"{identifier}.json",
            {
                "id": identifier,
                "project": next(iter(identities.values())).project,
                "config": "",
                "started": started.isoformat(),
                "ended": (started + timedelta(minutes=30)).isoformat(),
                "result": "completed",
                "message": "",
                "keys": keys,
                "stages": [{"stage": stage, "cached": False, "seconds": 240.0} for stage in keys],
            },
        )


def _changed(config: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return settings with one or two numbers changed."""
    from flows.engine.manifest_index import flatten

    made = copy.deepcopy(dict(config))
    numbers = [name for name, value in flatten(made) if isinstance(value, int | float) and value is not True]
    for name in draw.sample(numbers, min(len(numbers), draw.choice((1, 1, 2)))):
        *parents, last = name.split(".")
        place: Any = made
        for parent in parents:
            place = place[parent]
        place[last] = draw.randrange(1, 1000)
    return made


def measure(artifacts: int, rounds: int) -> list[dict[str, Any]]:
    """Return seconds of each command, as the median and the greatest of `rounds`."""
    from flows.configuration.load import load_config
    from flows.engine.keys import identify
    from flows.stages import STAGES

    sample = ROOT / "flows" / "configs" / "sample.yaml"
    with tempfile.TemporaryDirectory() as folder:
        large, none = Path(folder) / "large", Path(folder) / "none"
        write_store(large, artifacts, identify(load_config(sample), STAGES))
        index = large / ".cache"
        commands = {
            "plan, empty store": (none, ["plan"]),
            "plan, first": (large, ["plan"]),
            "plan, indexed": (large, ["plan"]),
            "why finetune-task": (large, ["why", "finetune-task"]),
            "runs": (large, ["runs"]),
            "gc --dry-run": (large, ["gc", "--dry-run"]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, (store, words) in commands.items():
                if name == "plan, first":
                    shutil.rmtree(index, ignore_errors=True)
                begun = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "flows.cli", *words, str(sample), "--set", f"store={store}"],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                seconds[name].append(time.perf_counter() - begun)
                if done.returncode:
                    raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stderr}")
    return [
        {"command": name, "median": round(statistics.median(found), 3), "most": round(max(found), 3)}
        for name, found in seconds.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=int, default=10_000, help="artifacts in the store")
    parser.add_argument("--rounds", type=int, default=5, help="times that each command runs")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args(argv)
    results = measure(options.artifacts, options.rounds)
    print_table(
        [
            {"command": row["command"], "median s": f"{row['median']:.2f}", "most s": f"{row['most']:.2f}"}
            for row in results
        ]
    )
    settings = {"artifacts": options.artifacts, "rounds": options.rounds}
    write_result(options.json, machine(), settings, results, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
