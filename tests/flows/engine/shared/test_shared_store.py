"""A shared store in one process: what is fetched, copied, verified, replaced, listed and removed."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from flows.engine.artifact_store import MANIFEST, Check
from flows.engine.errors import StageFailed
from flows.engine.plan import make_plan
from flows.engine.run_records import read_records, recorded_run
from flows.engine.run_stage import run_stages
from flows.engine.shared import leases
from flows.engine.shared.remote_files import RemoteFiles
from flows.engine.shared.shared_store import SharedStore, open_store
from flows.housekeeping.collect import collect
from flows.housekeeping.stored_runs import pin, read_contents, unpin
from jora_core.base.errors import InputError
from tests.flows.changes import ALL
from tests.flows.conftest import Project

TERM = 0.4


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/shared"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://team/store"


def machine(project: Project, url: str, name: str) -> SharedStore:
    return SharedStore(project.folder / name, url, TERM)


def run(project: Project, store: SharedStore, *overrides: str, force: bool = False) -> list[str]:
    """Run the pipeline; return the stages that were computed."""
    project.runs.clear()
    run_stages(ALL, project.config(*overrides), store, project.registry, force=force)
    return list(project.runs)


def damage(store: SharedStore, name: str) -> None:
    data = bytearray(store.remote.read(name) or b"")
    data[len(data) // 2] ^= 1
    store.remote.write(name, bytes(data))


def file_of(store: SharedStore, stage: str, name: str) -> str:
    (found,) = [path for path in store.remote.stamps(f"files/{stage}") if path.endswith(name)]
    return f"files/{stage}/{found}"


def test_what_one_machine_made_the_other_fetches(project: Project, url: str) -> None:
    one, two = machine(project, url, "one"), machine(project, url, "two")
    assert [line.action for line in make_plan(project.config(), two, project.registry)] == ["run"] * len(ALL)
    assert run(project, one) == list(ALL)
    lines = make_plan(project.config(), two, project.registry)
    assert {line.action for line in lines} == {"cached"} and not (two.root / ALL[0]).exists()
    assert run(project, two) == []
    for line in lines:
        assert Check(
            manifest=json.loads((one.path(line.name, line.key) / MANIFEST).read_text())
        ) == two.check(line.name, line.key)
    # The reason names what changed since the nearest artifact, which a third machine has not seen.
    three = machine(project, url, "three")
    plan = make_plan(project.config("evaluate.bootstrap_samples=500"), three, project.registry)
    assert plan[4].reason == "config changed: evaluate.bootstrap_samples 2000 → 500"
    assert not three.remote.stamps("leases")
    assert not list((three.root / "evaluate").glob("*")), "a plan fetches manifests only"


@pytest.mark.parametrize("file", ["adapter_model.safetensors", MANIFEST])
def test_damage_in_the_shared_store_is_found_and_replaced(project: Project, url: str, file: str) -> None:
    one, two = machine(project, url, "one"), machine(project, url, "two")
    run(project, one)
    key = next((one.root / "finetune-task").iterdir()).name
    name = f"manifests/finetune-task/{key}.json" if file == MANIFEST else file_of(one, "finetune-task", file)
    damage(one, name)
    # As the stages are deterministic, those after it stay.
    assert run(project, two) == ["finetune-task"]
    three = machine(project, url, "three")
    assert run(project, three) == [] and not three.incomplete()
    # A file that is gone.
    three.remote.remove(file_of(one, "evaluate", "metrics.json"))
    assert len(three.incomplete()) == 1
    assert run(project, machine(project, url, "four")) == ["evaluate"]
    assert not three.incomplete()


def test_damage_here_is_mended_from_the_shared_store(project: Project, url: str) -> None:
    one = machine(project, url, "one")
    run(project, one)
    (path,) = (one.root / "evaluate").glob("*/metrics.json")
    good = path.read_bytes()
    path.write_bytes(b"x")
    assert run(project, one) == [] and path.read_bytes() == good
    # What the shared store has lost, a machine that has it brings back.
    key = path.parent.name
    one.remote.remove(f"manifests/evaluate/{key}.json")
    assert run(project, one) == []
    assert run(project, machine(project, url, "two")) == []


def test_forced_run_replaces_and_the_shared_store_counts(project: Project, url: str) -> None:
    one, two = machine(project, url, "one"), machine(project, url, "two")
    run(project, one)
    run(project, two)
    stage = project.registry["convert-model"]

    def other_bits(context):
        metrics = stage.run(context)
        (context.output_dir / "model.json").write_text("other hardware")
        return metrics

    project.registry["convert-model"] = replace(stage, run=other_bits)
    run_stages(["convert-model"], project.config(), two, project.registry, force=True)
    folders = {name.split("/")[1] for name in two.remote.stamps("files/convert-model")}
    assert len(folders) == 1, "the files of the replaced one are gone"
    # Both machines go on from the same bits, so nothing is computed twice.
    assert run(project, one) == ["finetune-structure", "finetune-task", "evaluate", "export"]
    assert (one.root / "convert-model" / two.path("convert-model", _key(two)).name / "model.json").read_text()
    assert run(project, two) == []


def _key(store: SharedStore) -> str:
    return next((store.root / "convert-model").iterdir()).name


def test_half_upload_is_invisible_and_removed(project: Project, url: str) -> None:
    one, two = machine(project, url, "one"), machine(project, url, "two")
    project.config()
    write = RemoteFiles.write

    def away(self: RemoteFiles, name: str, data: bytes) -> None:
        if name.startswith("manifests/finetune-task"):
            raise StageFailed("the network is away")
        write(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFiles, "write", away)
        with pytest.raises(StageFailed, match="the network is away"):
            run(project, one)
    assert one.remote.stamps("files/finetune-task") and not one.remote.stamps("manifests/finetune-task")
    assert two.remove_leftovers() > 0 and not one.remote.stamps("files/finetune-task")
    # The artifact is whole where it was made: it is copied and not made again.
    assert run(project, one) == ["evaluate", "export"]
    assert run(project, two) == []


def test_runs_pins_and_clean_up_over_machines(project: Project, url: str) -> None:
    one, two = machine(project, url, "one"), machine(project, url, "two")
    for rate in ("1e-4", "2e-4"):
        run(project, one, f"phases.1.optim.learning_rate={rate}")
    run(project, two, "phases.1.optim.learning_rate=3e-4")
    contents = read_contents(two)
    assert contents == read_contents(one)
    assert [len(row.computed) for row in contents.runs] == [3, 3, 6]
    pin(one, contents.runs[-1].record.id)
    assert read_contents(two).runs[-1].pinned
    # Refused while a run is in progress elsewhere, which `runs` shows too.
    with recorded_run(one, project.config(), {}) as running:
        assert read_records(two)[0].result == "running" and read_records(two)[0].id == running.record.id
        with pytest.raises(InputError, match=rf"a run is in progress on .*\({running.record.id}\)"):
            collect(two, keep=1)
    removal = collect(two, keep=1)
    assert len(removal.artifacts) == 3
    assert len(read_contents(two).artifacts) == 9 and not two.incomplete()
    # Copies in the other machine's folder go with a clean-up there.
    assert len(read_contents(one).artifacts) == 12
    assert set(collect(one, keep=1).artifacts) == set(removal.artifacts)
    assert len(read_contents(one).artifacts) == 9
    assert set(one.remote.sizes("files")) == set(two.remote.sizes("files"))
    assert unpin(two, contents.runs[-1].record.id) and not unpin(one, contents.runs[-1].record.id)
    # A run of a machine that died does not hinder for longer than the term.
    lease = leases.Lease(one.remote, "runs/20260101-000000-dead", TERM)
    lease.take(None)
    lease._ended.set()
    time.sleep(TERM)
    collect(two, keep=0)
    assert not read_contents(two).artifacts and not two.remote.stamps("files")


def test_requests_of_a_run(project: Project, url: str) -> None:
    """The numbers of docs/operations.md, for a pipeline of six stages; renewals of leases not counted."""
    for name, most, computed in (("one", 160, list(ALL)), ("one", 60, []), ("two", 100, [])):
        store = SharedStore(project.folder / name, url, 1000)
        assert run(project, store) == computed
        assert 0 < sum(store.remote.requests.values()) <= most
        assert (store.root / "export").is_dir()


def test_no_run_begins_during_a_clean_up(project: Project, url: str) -> None:
    one, two = machine(project, url, "one"), machine(project, url, "two")
    one.root.mkdir()
    with two.alone(), pytest.raises(InputError, match=r"`jora gc` of .* is removing artifacts"):
        run(project, one)
    assert run(project, one)


def holders(url: str, workers: int, term: float, seconds: float) -> list[int]:
    """How many hold the lease at the moment at which each of several workers has got it."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with leases.hold(RemoteFiles(url), "keys/k", term):
            inside.append(number)
            most.append(len(inside))
            time.sleep(seconds)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return most


def test_leases_are_exclusive(url: str) -> None:
    """Of many that want a lease, one at a time has it; nobody is forgotten."""
    assert holders(url, workers=6, term=TERM, seconds=0.02) == [1] * 6
    assert not RemoteFiles(url).stamps("leases")


def test_lease_of_a_dead_owner_is_taken_over_and_the_owner_notices(url: str) -> None:
    remote = RemoteFiles(url)
    dead = leases.Lease(remote, "keys/k", TERM)
    dead.take(None)
    dead._ended.set()  # it stops to renew, as a machine that sleeps
    waited: list[str] = []
    begun = time.monotonic()
    with leases.hold(remote, "keys/k", TERM, waited.append) as lease:
        assert time.monotonic() - begun >= TERM and len(waited) == 1
        time.sleep(TERM)
        assert lease.check() and not dead.check() and dead.lost
    dead.give_back()
    assert not remote.stamps("leases")


def test_store_without_conditional_writes_settles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two writers may both be told that they won, each waits and looks who did."""
    monkeypatch.setattr("flows.engine.shared.remote_files.SETTLE_SECONDS", 0.3)
    remote = RemoteFiles(f"file://{tmp_path}/shared")
    monkeypatch.setattr(
        RemoteFiles, "_create", lambda self, system, path, data: not system.pipe_file(path, data)
    )
    assert not remote.exclusive
    assert holders(remote.url, workers=3, term=2, seconds=0.05) == [1] * 3


def test_errors_are_one_line(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"environment variable NOWHERE is not set"):
        project.config("store=s3://${NOWHERE}/x")
    monkeypatch.setenv("BUCKET", "planted-secret-1")
    config = project.config("store=memory://${BUCKET}/x")
    store = open_store(config)
    assert isinstance(store, SharedStore) and store.remote.url == "memory://${BUCKET}/x"
    assert store.root == tmp_path / "runs"
    assert "planted-secret-1" not in config.model_dump_json()

    def broken(*arguments: object, **options: object) -> bytes:
        raise ConnectionError("planted-secret-1 does not answer\nand more")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    with pytest.raises(StageFailed) as failed:
        store.check("evaluate", "0" * 64)
    assert str(failed.value) == (
        f"store memory://${{BUCKET}}/x: cannot read manifests/evaluate/{'0' * 64}.json (ConnectionError: "
        "${BUCKET} does not answer); run again when the store answers"
    )
    with pytest.raises(InputError, match=r"store nonsense://x: Protocol not known: nonsense; give a folder"):
        SharedStore(tmp_path, "nonsense://x").check("evaluate", "0" * 64)
