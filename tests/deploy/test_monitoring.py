"""Dashboard, alerts and scrape jobs name metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.monitoring.store_metrics import StoreMetrics
from jora_core.training.prometheus import COUNTERS, GAUGES

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
TRAINING = {name for _, name, _ in GAUGES} | {f"{name}_total" for _, name, _ in COUNTERS}
TRAINING |= {"jora_train_steps", "jora_train_last_step_timestamp_seconds"}


def expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    return found + [rule["expr"] for rule in rules]


def test_every_metric_exists(tmp_path: Path) -> None:
    store = {family.name for family in StoreMetrics(tmp_path).collect()}
    named = set(re.findall(r"\bjora_\w+", " ".join(expressions())))
    assert named <= TRAINING | store
    assert {"jora_train_loss", "jora_artifact_bytes"} <= named
    jobs = {
        job["job_name"]
        for job in yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    }
    assert set(re.findall(r'job="([\w-]+)"', " ".join(expressions()))) <= jobs


def test_panels_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", ["alerts.yaml", "prometheus.yaml"])
def test_promtool_accepts_them(name: str, tmp_path: Path) -> None:
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed (Debian package prometheus)")
    for path in MONITORING.glob("*.yaml"):
        # The path of the password is one of the Prometheus server.
        text = path.read_text().replace("/etc/prometheus/secrets/api_password", str(tmp_path / "password"))
        (tmp_path / path.name).write_text(text)
    (tmp_path / "password").write_text("x")
    command = [promtool, "check", "rules" if name == "alerts.yaml" else "config", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
