"""Prometheus metrics of an artifact store: ``python -m flows.monitoring.store_metrics STORE --port 4203``.

It reads the manifests at each request, so its values are right also after a restart, and for artifacts that
other machines wrote. One process for each store is enough. It is not the worker's own endpoint, because each
run is a process of its own, whose counters end with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.engine.artifact_store import MANIFEST, read_manifest
from flows.stages import STAGES
from jora_core.base.errors import InputError


class StoreMetrics(Collector):
    """The artifacts of a store as gauges, with one label, the stage."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, read from the manifests now."""
        names = {
            "jora_artifacts": "Whole artifacts, by their manifests",
            "jora_artifact_bytes": "Size of their files",
            "jora_artifacts_unreadable": "Folders whose manifest is missing or damaged",
            "jora_stage_seconds": "Time that the newest artifact took",
            "jora_stage_last_success_timestamp_seconds": "Unix time at which the newest artifact was ready",
        }
        gauges = {name: GaugeMetricFamily(name, text, labels=["stage"]) for name, text in names.items()}
        scores = GaugeMetricFamily(
            "jora_evaluation", "Scores of the newest evaluation", labels=["system", "measure"]
        )
        for stage in STAGES:
            found, unreadable = self._manifests(stage)
            gauges["jora_artifacts"].add_metric([stage], len(found))
            gauges["jora_artifacts_unreadable"].add_metric([stage], unreadable)
            sizes = [output["size"] for manifest in found for output in manifest["outputs"].values()]
            gauges["jora_artifact_bytes"].add_metric([stage], sum(sizes))
            if found:
                newest = max(found, key=lambda manifest: manifest["ended"])
                gauges["jora_stage_seconds"].add_metric([stage], newest["seconds"])
                ended = datetime.fromisoformat(newest["ended"]).timestamp()
                gauges["jora_stage_last_success_timestamp_seconds"].add_metric([stage], ended)
                _add_scores(scores, newest["metrics"].get("systems", {}))
        yield from gauges.values()
        yield scores

    def _manifests(self, stage: str) -> tuple[list[dict[str, Any]], int]:
        """Return the manifests of a stage, and the number of folders without a readable one."""
        folder = self._root / stage
        paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        read = [read_manifest(path / MANIFEST) for path in paths]
        found = [manifest for manifest in read if manifest is not None]
        return found, len(read) - len(found)


def _add_scores(gauge: GaugeMetricFamily, systems: Any) -> None:
    for system, measures in systems.items() if isinstance(systems, dict) else ():
        for measure, score in measures.items() if isinstance(measures, dict) else ():
            value = score.get("value") if isinstance(score, dict) else score
            if isinstance(value, int | float):
                gauge.add_metric([system, measure], value)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the metrics of a store, or print them once; return the exit status."""
    parser = argparse.ArgumentParser(prog="flows.monitoring.store_metrics", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of the artifacts")
    parser.add_argument("--port", type=int, help="port to serve on; without one, print the metrics and end")
    parser.add_argument("--address", default="127.0.0.1", help="address to serve on; default: 127.0.0.1")
    options = parser.parse_args(argv)
    try:
        if not options.store.is_dir():
            raise InputError(f"no store at {options.store}; name the folder that the setting `store` names")
        registry = CollectorRegistry()
        registry.register(StoreMetrics(options.store))
        if options.port is None:
            print(generate_latest(registry).decode(), end="")
            return 0
        try:
            _, thread = start_http_server(options.port, addr=options.address, registry=registry)
        except OSError as error:
            raise InputError(
                f"port {options.port} cannot be opened: {error.strerror or error}; choose another with --port"
            ) from None
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"metrics of {options.store} at http://{options.address}:{options.port}/metrics", flush=True)
    try:
        thread.join()
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
