"""Nothing leaves the machine: a whole run, temporary server included, with every other address refused."""

from __future__ import annotations

import os
import pty
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.orchestration.prefect_server import QUIET
from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config

ROOT = Path(__file__).resolve().parents[3]
# Prefect sends nothing from a CI machine: the run must look like a person's.
CI_VARIABLES = (
    "CI",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "JENKINS_URL",
    "BUILDKITE",
    "TF_BUILD",
    "CI_NAME",
    "DRONE",
)
pytest_plugins = ["tests.flows.prefect_session"]


def attempts_of_a_run(folder: Path, prefect_home: Path, linger: int, **changes: str) -> str:
    """Run the toy pipeline on a terminal as a new user; return a line for each attempt to leave."""
    toy_config(folder)
    # The server's first heartbeat comes seconds after its start, on some machines later than one waits.
    (folder / "evaluate").write_text(f"linger {linger} prefect.io")
    # A copy of the session's database saves the migrations; the home beside it is empty, as a new user's is.
    database = folder / "database"
    with sqlite3.connect(prefect_home / "prefect.db") as source, sqlite3.connect(database) as copy:
        source.backup(copy)
    shutil.copyfile(ROOT / "tests" / "flows" / "toy_site.py", folder / "sitecustomize.py")
    network = folder / "network.txt"
    network.touch()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name not in QUIET and name not in CI_VARIABLES
    }
    environment = {
        **kept,
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "TOY_ROOT": str(ROOT),
        "TOY_NETWORK_LOG": str(network),
        **changes,
    }
    master, slave = pty.openpty()
    shown: list[bytes] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.flows.toy_pipeline", str(folder)],
        cwd=ROOT,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    reader = threading.Thread(target=_read_all, args=(master, shown))
    reader.start()
    status = process.wait(280)
    reader.join()
    os.close(master)
    config = toy_config(folder)
    assert status == 0 and sorted(log(config)) == sorted(TOY_STAGES), b"".join(shown).decode()
    return network.read_text()


def _read_all(descriptor: int, into: list[bytes]) -> None:
    while True:
        try:
            into.append(os.read(descriptor, 65536))
        except OSError:
            return


@pytest.mark.usefixtures("prefect_url")
def test_a_run_stays_on_this_machine(tmp_path: Path, prefect_home: Path) -> None:
    assert attempts_of_a_run(tmp_path / "quiet", prefect_home, linger=5) == ""


@pytest.mark.usefixtures("prefect_url")
def test_the_trap_catches_what_is_switched_off(tmp_path: Path, prefect_home: Path) -> None:
    """The same run with Prefect's defaults: at least one of its two services is seen trying."""
    loud = attempts_of_a_run(
        tmp_path / "loud", prefect_home, 15, DO_NOT_TRACK="0", PREFECT_SERVER_ANALYTICS_ENABLED="true"
    )
    assert "sens-o-matic.prefect.io" in loud or "amplitude.com" in loud
