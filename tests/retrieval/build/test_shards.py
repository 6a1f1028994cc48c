"""A build in shards: the same bytes whoever builds them, and after a kill at any point."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from jora_core.base.errors import InputError
from retrieval.build import shards
from retrieval.build.build import build_record_files, merge_prepared
from retrieval.build.shards import build_numbered, cut, prepare, shard_done, shard_paths
from retrieval.corpus.id_index import IdIndex
from retrieval.corpus.mapped_items import BATCH, ItemSink, item_schema, write_items
from retrieval.evaluation import merge_reports
from retrieval.evaluation.task_report import TaskReport
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, TablesTask, ThreadsTask

FILES = ("records.parquet", "rankings.parquet", "links.parquet", "metrics.json")


@pytest.fixture
def config(
    tmp_path: Path, threads_file: Path, tables_folder: Path, qa_files: tuple[Path, Path], tiny_embedder: Path
) -> ContextConfig:
    """All tasks and legs over the small corpora, cut into shards of thirteen records."""
    return ContextConfig(
        seed=1,
        test_share=0.3,
        embedder=str(tiny_embedder),
        tables=TablesTask(source=str(tables_folder), n_contexts=3, oracle_share=0.5),
        threads=ThreadsTask(
            source=str(threads_file), n_contexts=3, legs=["mention", "recency", "dense", "bm25"]
        ),
        qa=QaTask(source=str(qa_files[0]), questions=str(qa_files[1]), oracle_share=0.7),
        workers=1,
        shard_records=13,
    )


@pytest.fixture
def light(config: ContextConfig) -> ContextConfig:
    """The same without dense legs, whose libraries take seconds to import."""
    assert config.threads is not None and config.qa is not None
    threads = config.threads.model_copy(update={"legs": ["mention", "recency", "bm25"]})
    return config.model_copy(
        update={"threads": threads, "qa": config.qa.model_copy(update={"legs": ["bm25"]}), "embedder": None}
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of what a build leaves; nothing else may lie there."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_threads_and_any_cut_give_the_same_bytes(config: ContextConfig, tmp_path: Path) -> None:
    build_record_files(config, tmp_path / "one")
    expected = contents(tmp_path / "one")
    for name, changes in {
        "threads": {"workers": 3},
        "whole": {"shard_records": 4096},
        "odd": {"workers": 2, "shard_records": 7},
    }.items():
        build_record_files(config.model_copy(update=changes), tmp_path / name)
        assert contents(tmp_path / name) == expected, name


@pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="Dask (extra scale) is not installed"
)
def test_dask_gives_the_same_bytes(config: ContextConfig, tmp_path: Path) -> None:
    build_record_files(config, tmp_path / "one")
    dask = config.model_copy(update={"backend": "dask", "workers": 2})
    told: list[tuple[str, int, int]] = []
    build_record_files(dask, tmp_path / "dask", lambda *step: told.append(step))
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")
    last = {step: (done, total) for step, done, total in told}
    assert all(last[f"{task}: records"][0] == last[f"{task}: records"][1] > 0 for task in ("tables", "qa"))


def test_steps_in_other_processes_give_the_same_bytes(config: ContextConfig, tmp_path: Path) -> None:
    build_record_files(config, tmp_path / "one")
    work = tmp_path / "work"
    prepared = prepare(config, work, lambda *_: None)
    assert [s.number for s in prepared.shards] == list(range(len(prepared.shards))) and len(
        prepared.shards
    ) > 6
    with pytest.raises(RuntimeError, match="shard 0 was not built to its end"):
        merge_prepared(config, work, tmp_path / "steps")
    for shard in reversed(prepared.shards):
        assert build_numbered(config, work, shard.number) == shard.high - shard.low
    merge_prepared(config, work, tmp_path / "steps")
    assert contents(tmp_path / "steps") == contents(tmp_path / "one")
    assert not work.exists()


def test_finished_shards_are_found_again_unless_something_changed(
    config: ContextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    whole = shards.TaskReport.add_record

    def counted(report: TaskReport, record: dict[str, object], *more: object) -> None:
        built.append(1)
        whole(report, record, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskReport, "add_record", counted)
    work = tmp_path / "work"
    prepared = prepare(config, work, lambda *_: None)
    for shard in prepared.shards:
        build_numbered(config, work, shard.number)
    n = len(built)
    assert n > 0
    # Wherever a shard's file was damaged, that shard alone is built again.
    paths = shard_paths(work, prepared.shards[2])
    paths["records"].write_bytes(paths["records"].read_bytes()[:-1])
    assert not shard_done(work, prepared.shards[2]) and shard_done(work, prepared.shards[1])
    build_record_files(config, tmp_path / "out", work_dir=work)
    assert 0 < len(built) - n <= 13
    # Another configuration finds nothing of use.
    prepare(config, work, lambda *_: None)
    build_numbered(config, work, 0)
    other = config.model_copy(update={"seed": 2})
    assert prepare(other, work, lambda *_: None).key != prepared.key
    assert not shard_done(work, prepared.shards[0])


def test_damage_of_prepared_files_is_noticed_and_mended_once(
    light: ContextConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One flipped bit, a truncation or a removal of any prepared file: prepared anew, with the same bytes."""
    work = tmp_path / "work"
    prepared = prepare(light, work, lambda *_: None)
    assert len(prepared.files) > 20 and shards.PREPARED not in prepared.files
    good = {name: (work / name).read_bytes() for name in prepared.files}
    draw = np.random.default_rng(3)
    # An empty file cannot be flipped or cut.
    names = [name for name in sorted(good) if good[name]]
    for turn, name in enumerate([*draw.choice(names, 5, replace=False), shards.PREPARED]):
        path = work / str(name)
        data = bytearray(path.read_bytes())
        if turn % 3 == 0:
            data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
            path.write_bytes(data)
        elif turn % 3 == 1:
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
        caplog.clear()
        assert prepare(light, work, lambda *_: None) == prepared
        assert {file: (work / file).read_bytes() for file in good} == good
        said = [record.getMessage() for record in caplog.records if "prepared again" in record.getMessage()]
        # Without its description, the folder is one that was never prepared.
        assert len(said) == (str(name) != shards.PREPARED) and all(str(name) in line for line in said)
        caplog.clear()
        assert prepare(light, work, lambda *_: None) == prepared and not caplog.records, "once"


def test_a_build_killed_anywhere_leaves_nothing_and_goes_on_to_the_same_bytes(
    light: ContextConfig, tmp_path: Path
) -> None:
    build_record_files(light, tmp_path / "one")
    expected = contents(tmp_path / "one")
    (tmp_path / "config.json").write_text(light.model_dump_json())
    # The child kills itself at the n-th time that it makes a file's name known, or removes one.
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from retrieval.build.build import build_record_files\n"
        "from retrieval.settings.context import ContextConfig\n"
        "left = [int(sys.argv[2])]\n"
        "def tied(call):\n"
        "    def run(*a, **k):\n"
        "        left[0] -= 1\n"
        "        if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return call(*a, **k)\n"
        "    return run\n"
        "Path.replace, Path.unlink = tied(Path.replace), tied(Path.unlink)\n"
        "config = ContextConfig.model_validate_json(Path(sys.argv[1], 'config.json').read_text())\n"
        "build_record_files(config, Path(sys.argv[1], 'killed'))\n"
    )
    out = tmp_path / "killed"
    kills = 0
    for point in (0, 4, 11, 23, 31, 47, 59, 10**6):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(point)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == -signal.SIGKILL:
            kills += 1
            present = {path.name for path in out.iterdir()} & set(FILES) if out.exists() else set()
            # What has its name is whole; metrics come last.
            assert all((out / name).read_bytes() == expected[name] for name in present)
            assert "metrics.json" not in present
        else:
            assert done.returncode == 0, done.stderr
    assert kills >= 4
    assert contents(out) == expected


def test_a_build_killed_by_the_clock_goes_on(light: ContextConfig, tmp_path: Path) -> None:
    build_record_files(light, tmp_path / "one")
    (tmp_path / "config.json").write_text(light.model_dump_json())
    code = (
        "import sys\nfrom pathlib import Path\nfrom retrieval.build.build import build_record_files\n"
        "from retrieval.settings.context import ContextConfig\n"
        "config = ContextConfig.model_validate_json(Path(sys.argv[1], 'config.json').read_text())\n"
        "build_record_files(config, Path(sys.argv[1], 'killed'), lambda *s: print(*s, flush=True))\n"
    )
    for step in ("threads: index", "threads: records"):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(step):
                break
        time.sleep(0.02)
        child.kill()
        child.wait()
        child.stdout.close()
    build_record_files(light, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "one")


def test_two_builds_do_not_share_a_folder(light: ContextConfig, tmp_path: Path) -> None:
    def again(*_: object) -> None:
        with pytest.raises(InputError, match="another build is writing there"):
            build_record_files(light, tmp_path / "out")

    build_record_files(light, tmp_path / "out", again)
    contents(tmp_path / "out")


def test_wrong_input_leaves_nothing(config: ContextConfig, tmp_path: Path) -> None:
    assert config.qa is not None
    Path(config.qa.questions).write_text(
        '{"id": "q", "document_id": "absent", "question": "?", "answers": ["a"]}\n'
    )
    with pytest.raises(InputError, match="absent"):
        build_record_files(config, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_dask_that_is_not_there_is_said_in_one_line(
    config: ContextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"context\.backend is dask, .*jora-raft\[scale\]"):
        build_record_files(config.model_copy(update={"backend": "dask"}), tmp_path / "out")
    with pytest.raises(ValueError, match="backend is not dask"):
        ContextConfig.model_validate(config.model_dump() | {"dask_address": "tcp://x:1"})


def test_the_cut_follows_from_the_number_of_records_alone() -> None:
    shards_of = cut({"tables": 10, "threads": 0, "qa": 1000}, 4)
    assert [(s.task, s.low, s.high) for s in shards_of[:4]] == [
        ("tables", 0, 4), ("tables", 4, 8), ("tables", 8, 10), ("qa", 0, 16),
    ]  # fmt: skip
    assert len(shards_of) == 3 + 63 and shards_of[-1].high == 1000
    assert cut({"qa": 100_000}, 4096)[-1].number == 24


@dataclass(frozen=True)
class Thing:
    id: str
    number: int
    share: float | None
    words: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    span: tuple[int, int] | None
    yes: bool


def things(n: int) -> list[Thing]:
    return [
        Thing(f"t{i}", i, None if i % 3 else i / 7, ("é",) * (i % 4), (("a", "b"),) * (i % 3),
              None if i % 2 else (i, i + 1), i % 2 == 0)
        for i in range(n)
    ]  # fmt: skip


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    made = things(2 * BATCH + 5)
    items = write_items(tmp_path / "things.arrow", Thing, made)
    assert len(items) == len(made) and list(items) == made
    for place in (0, 1, BATCH - 1, BATCH, len(made) - 1):
        assert items[place] == made[place]
        assert items.value("words", place) == made[place].words
    assert list(items.run(BATCH - 2, BATCH + 3)) == made[BATCH - 2 : BATCH + 3]
    assert items.numbers("number").tolist() == list(range(len(made)))
    assert list(write_items(tmp_path / "none.arrow", Thing, [])) == []
    with pytest.raises(IndexError):
        items[len(made)]
    with pytest.raises(TypeError, match="field x"):
        item_schema(dataclass(type("Odd", (), {"__annotations__": {"x": complex}})))
    with pytest.raises(ZeroDivisionError), ItemSink(tmp_path / "half.arrow", Thing) as sink:
        sink.add(made[0])
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.arrow", "things.arrow"]


def test_ids_are_found_also_where_hashes_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = write_items(tmp_path / "things.arrow", Thing, things(500))
    for name in ("real", "meeting"):
        if name == "meeting":
            monkeypatch.setattr("retrieval.corpus.id_index._id_hash", lambda key: len(key))
        index = IdIndex.build(tmp_path / name, items)
        assert all(index[f"t{i}"] == i for i in range(500))
        assert "t500" not in index and "other" not in index and index.find("") == -1
    twice = write_items(tmp_path / "twice.arrow", Thing, [*things(40), *things(3)[::-1]])
    assert IdIndex.build(tmp_path / "t", twice)["t2"] == 2, "the first of two rows with the same id"


@dataclass
class Part:
    count: int = 0
    names: set[str] = field(default_factory=set)
    ranks: dict[str, list[int]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    kind: str = "a"


def test_reports_join_in_parts_as_in_one() -> None:
    one = Part(2, {"x"}, {"a": [1]}, Counter(u=1))
    two = Part(3, {"y"}, {"a": [2], "b": [3]}, Counter(u=2, v=1))
    joined = merge_reports.join(
        merge_reports.load(Part, merge_reports.dump(one)), merge_reports.load(Part, merge_reports.dump(two))
    )
    assert joined == Part(5, {"x", "y"}, {"a": [1, 2], "b": [3]}, Counter(u=3, v=1))
    with pytest.raises(ValueError, match="cannot join 'a' and 'b'"):
        merge_reports.join(Part(), Part(kind="b"))
    with pytest.raises(TypeError):
        merge_reports.join(Part(), one.ranks)  # type: ignore[type-var]
    report = TaskReport()
    report.add_ranking("test", "bm25", np.array([2, 1]), np.array([1]))
    assert merge_reports.load(TaskReport, merge_reports.dump(report)) == report


@pytest.mark.parametrize("content", ["[]", "{}", '{"records": 1}', "7", "\xff"])
def test_a_shard_with_broken_digests_is_built_again(
    light: ContextConfig, tmp_path: Path, content: str
) -> None:
    work = tmp_path / "work"
    prepared = prepare(light, work, lambda *_: None)
    build_numbered(light, work, 0)
    assert shard_done(work, prepared.shards[0])
    shard_paths(work, prepared.shards[0])["done"].write_bytes(content.encode("latin-1"))
    assert not shard_done(work, prepared.shards[0])
    build_numbered(light, work, 0)
    assert shard_done(work, prepared.shards[0])
