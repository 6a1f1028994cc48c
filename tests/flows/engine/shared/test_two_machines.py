"""Two machines with one store on an S3 server (moto): nothing is computed twice, nothing half is used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.engine.artifact_store import MANIFEST, Store
from flows.engine.shared.shared_store import SharedStore
from tests.flows.engine.shared.shared_stores import machine, moto_server
from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config

pytestmark = pytest.mark.service
URL = "s3://bucket/team/store"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with moto_server(tmp_path_factory.mktemp("moto")) as environment:
        yield environment


@pytest.fixture
def url(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return f"{URL}/{tmp_path.name}"


def end(process: subprocess.Popen[str]) -> tuple[dict[str, bool], str]:
    """Which stages a machine found in the store, and what it said."""
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return json.loads(out), said


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what a machine says until a line has the text."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for stage in TOY_STAGES
        for path in (folder / stage).rglob("*")
        if path.is_file()
    }


def test_both_at_once_compute_each_stage_once(url: str, s3: dict[str, str], tmp_path: Path) -> None:
    toy_config(tmp_path)
    (tmp_path / "network.txt").write_text("")
    (tmp_path / "build-context").write_text("linger 2 never")
    processes = [machine(tmp_path, name, url, environment=s3, term=5) for name in ("one", "two")]
    (first, said_first), (second, said_second) = (end(process) for process in processes)
    assert sorted(log(toy_config(tmp_path))) == sorted(TOY_STAGES), "each once, on one of the two"
    assert {stage: first[stage] + second[stage] for stage in TOY_STAGES} == dict.fromkeys(TOY_STAGES, 1)
    host = os.uname().nodename
    assert f"waiting for {host} (process " in said_first + said_second
    assert tree(tmp_path / "one") == tree(tmp_path / "two"), "the same bytes, manifests too"

    # A third machine fetches all; what a machine has made stays where its folder is removed.
    third, said = end(machine(tmp_path, "three", url, environment=s3))
    assert all(third.values()) and "fetching" in said
    assert tree(tmp_path / "three") == tree(tmp_path / "one")
    assert "test-secret-of-nobody" not in "".join((said_first, said_second, said))
    store = SharedStore(tmp_path / "four", url)
    for name in store.remote.stamps(""):
        assert b"test-secret-of-nobody" not in (store.remote.read(name) or b"")
    # No lease and no lock file stays.
    assert not store.remote.stamps("leases")
    assert not store.incomplete()


@pytest.mark.parametrize(
    "before",
    ["manifests/convert-model", pytest.param("manifests/finetune-structure", marks=pytest.mark.slow)],
)
def test_killed_in_mid_upload_the_other_goes_on(
    url: str, s3: dict[str, str], tmp_path: Path, before: str
) -> None:
    config = toy_config(tmp_path)
    stage = before.partition("/")[2]
    killed = machine(tmp_path, "one", url, environment={**s3, "HANG_BEFORE": before})
    wait_for(killed, "hangs")
    other = machine(tmp_path, "two", url, environment=s3)
    said = wait_for(other, f"{stage}: waiting for {os.uname().nodename} (process {killed.pid})")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done, rest = end(other)
    assert "no sign of life" in said + rest
    # What was not whole in the shared store was made again, the rest was not.
    order = list(TOY_STAGES)
    assert done == {name: order.index(name) < order.index(stage) for name in order}
    assert log(config).count(stage) == 2
    store = SharedStore(tmp_path / "three", url)
    assert not store.incomplete()
    # The killed machine comes back: its artifact is there already, and nothing runs.
    back, _ = end(machine(tmp_path, "one", url, environment=s3))
    assert all(back.values())
    # Its own manifest of the stage has other times than that of the other machine, and the same outputs.
    one, two = (tree(tmp_path / name) for name in ("one", "two"))
    assert {path for path in one if one[path] != two[path]} <= {
        path for path in one if path.startswith(stage) and path.endswith(MANIFEST)
    }
    assert Store(tmp_path / "one").check(stage, next((tmp_path / "one" / stage).iterdir()).name).whole
