"""docs/operations.md against the files that it describes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DEPLOY = ROOT / "deploy"


def commands() -> list[str]:
    blocks = re.findall(r"^[ ]*```bash\n(.*?)^[ ]*```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [line.split("   #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_named_files_exist() -> None:
    named = set(re.findall(r"\b(?:deploy|tests|docs)/[\w./-]*\w", PAGE))
    made = {"deploy/compose/secrets", "deploy/compose/secrets/api_auth"}
    missing = {name for name in named - made if not (ROOT / name).exists()}
    assert not {name for name in missing if not list(ROOT.glob(f"{name}*"))}


def test_named_ports_and_pools_are_those_of_the_files() -> None:
    files = "".join(
        path.read_text() for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".json"
    )
    for port in ("4200", "8080", "4201", "4202", "4203"):
        assert port in PAGE and port in files
    for pool in ("jora-cpu", "jora-gpu", "jora-slurm"):
        assert pool in PAGE and pool in files


def test_units_in_commands_exist() -> None:
    units = {
        re.sub(r"@.*", "@", word) for line in commands() if "systemctl" in line for word in line.split()[4:]
    }
    assert units and all((DEPLOY / "systemd" / f"{unit}.service").exists() for unit in units)


def test_compose_profiles_and_services_exist() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    lines = [line for line in commands() if line.startswith("docker compose")]
    profiles = {name for line in lines for name in re.findall(r"--profile (\w+)", line)}
    assert profiles == {name for item in compose["services"].values() for name in item.get("profiles", [])}
    assert {re.findall(r"exec -T (\w+)", line)[0] for line in lines if " exec " in line} <= set(
        compose["services"]
    )


def test_retention_is_that_of_the_settings() -> None:
    assert "PREFECT_EVENTS_RETENTION_PERIOD=7d" in (DEPLOY / "settings" / "server.env").read_text()
    from flows.engine.artifact_store import ABANDONED_SECONDS

    assert ABANDONED_SECONDS == 14 * 24 * 3600 and "14 days without a change" in PAGE


@pytest.mark.parametrize("module", ["flows.monitoring.store_metrics", "flows.orchestration.work_pool"])
def test_python_commands_have_known_options(module: str) -> None:
    lines = [line for line in commands() if line.startswith(f"python -m {module}")]
    assert lines
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    for line in lines:
        options = [word for word in shlex.split(line)[3:] if word.startswith("--")]
        assert options and all(option in done.stdout for option in options), line
