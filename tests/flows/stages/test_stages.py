"""Each stage's order for its child, and what is made of the child's answer; the children are stand-ins
here.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.children.run_child import ChildFailed
from flows.commands.print_pipeline import print_scores
from flows.configuration.schema import PipelineConfig
from flows.engine.run_stage import execute_stage
from flows.engine.stage import StageContext
from flows.stages import STAGES, evaluate, export, finetune
from flows.stages.evaluate import EVALUATE
from flows.stages.finetune import train_spec
from jora_core.base.errors import InputError
from jora_core.base.record_columns import RECORD_COLUMNS, arrow_schema
from jora_core.specs.answers import PredictSpec
from jora_core.specs.lora import ADAPTER_FILES
from jora_core.specs.model_files import ExportSpec
from retrieval.build.record_files import RANKING_COLUMNS
from retrieval.evaluation.threads.link_rows import LINK_COLUMNS
from tests.flows.conftest import Project

AUTHORS = ("Ann", "Bob", "Cid")
THREADS = 8
MEASURES = ("target@1", "reply@1", "joint", "p(reply|target)")


def context_for(project: Project, stage: str, config: PipelineConfig) -> StageContext:
    """A context whose upstream artifacts are empty folders beside the project."""
    upstream = {item.stage: project.folder / "up" / item.stage for item in STAGES[stage].upstream(config)}
    for folder in (*upstream.values(), project.folder / "out"):
        folder.mkdir(parents=True, exist_ok=True)
    manifests: Mapping[str, Any] = {
        name: {
            "key": name[0] * 64,
            "config": {"seed": 0},
            "inputs": {"corpus": {"path": "/home/somebody/corpus", "sha256": "0" * 64}},
            "code": {"a.py": "1" * 64},
            "outputs": {"metrics.json": {"sha256": "2" * 64}},
        }
        for name in upstream
    }
    return StageContext(
        config=config,
        key="k" * 64,
        output_dir=project.folder / "out",
        work_dir=project.folder / "work",
        cache_dir=project.folder / "cache",
        upstream=upstream,
        manifests=manifests,
    )


def test_first_phase_starts_and_second_goes_on(project: Project) -> None:
    config = project.config("phases.0.lora.r=4", "seed=3", "mesh.tensor=2", "phases.1.checkpoint_every=5")
    first = train_spec(context_for(project, "finetune-structure", config), "finetune-structure")
    second = train_spec(context_for(project, "finetune-task", config), "finetune-task")
    assert first.adapter is None
    assert second.adapter == project.folder / "up" / "finetune-structure"
    assert (first.lora.r, second.lora.r) == (4, 4)
    assert (first.data.tasks, second.data.tasks) == (["tables", "qa"], ["threads"])
    assert first.data.records == project.folder / "up" / "build-context" / "records.parquet"
    assert (second.seed, second.mesh.tensor, second.checkpoint_every) == (3, 2, 5)
    assert second.checkpoint_dir == project.folder / "work" / "checkpoints", "survives the artifact's folder"


def test_out_of_memory_halves_the_microbatch_and_is_recorded(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = project.config("phases.0.tokens_per_batch=1000", "phases.0.max_seq_len=200")
    context = context_for(project, "finetune-structure", config)
    context.work_dir.mkdir()
    tried: list[tuple[int, int]] = []
    fits, tail = 300, "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"

    def child(module: str, spec: Any, work_dir: Path) -> dict[str, Any]:
        tried.append((spec.data.tokens_per_batch, spec.gradient_accumulation_steps))
        if tried[-1][0] > fits:
            raise ChildFailed("ran out of memory", 1, tail)
        return {"loss": 1.0}

    monkeypatch.setattr(finetune, "run_child", child)
    done = finetune.train_phase(context, "finetune-structure")
    assert tried == [(1000, 1), (500, 2), (250, 4)]
    assert done["microbatch"] == {"tokens_per_batch": 250, "gradient_accumulation_steps": 4}
    assert caplog.text.count("out of memory") == 2
    finetune.train_phase(context, "finetune-structure")
    assert tried[3:] == [(250, 4)], "the next attempt, and its checkpoint, are of the size that fitted"
    # A damaged note is not read: the phase finds the size again, and writes it anew.
    (context.work_dir / "microbatch.json").write_text('{"tokens_per_batch": 25')
    finetune.train_phase(context, "finetune-structure")
    assert tried[4:] == [(1000, 1), (500, 2), (250, 4)]
    assert caplog.text.count("damaged, or without its digest") == 1
    finetune.train_phase(context, "finetune-structure")
    assert tried[7:] == [(250, 4)] and caplog.text.count("damaged, or without its digest") == 1
    fits = 100
    with pytest.raises(ChildFailed):
        finetune.train_phase(context, "finetune-structure")
    assert tried[-1] == (200, 5), "one row, of at least as many tokens a step"
    tail = "ValueError: something else"
    with pytest.raises(ChildFailed):
        finetune.train_phase(context, "finetune-structure")
    assert tried[-2:] == [(200, 5), (200, 5)], "other failures are not tried again here"


def test_every_training_setting_of_the_configuration_reaches_the_order(project: Project) -> None:
    """A setting that is shown in the form but reaches no order would be a lie."""
    changes: dict[str, Any] = {
        "max_seq_len": 99,
        "tokens_per_batch": 999,
        "gradient_accumulation_steps": 3,
        "max_records": 7,
        "sharing": "off",
        "remat": "full",
        "curriculum": "length",
        "validation_share": 0.25,
        "evaluate_every": 3,
        "early_stopping_patience": 4,
        "early_stopping_min_delta": 0.125,
        "keep_best": True,
        "neftune_noise_alpha": 5.0,
        "alpaca_mix": 0.3,
        "alpaca_path": str(project.folder / "alpaca.json"),
        "report_to": ["tensorboard"],
        "checkpoint_every": 11,
        "max_steps": 13,
        "tasks": ["qa"],
        "keep_state": False,
        "init_adapter": str(project.folder / "mine"),
        "lora": {"r": 5},
        "optim": {"learning_rate": 0.5},
    }
    fields = set(type(project.config().phases[0]).model_fields)
    # A training to continue must be in the store; tests/flows/stages/test_continue_from.py.
    assert fields - set(changes) == {"stage", "n_epochs", "continue_from"}

    def order() -> dict[str, Any]:
        config = project.config()
        spec = train_spec(context_for(project, "finetune-structure", config), "finetune-structure")
        dump = spec.model_dump(mode="json")
        return {**dump, **dump.pop("data")}

    before = order()
    del project.raw["phases"][1]
    for name, value in changes.items():
        project.raw["phases"][0][name] = value
        own = {"init_adapter": "adapter"}.get(name, name)
        assert order()[own] != before[own], name
    del project.raw["phases"][0]["max_steps"]
    project.raw["phases"][0]["n_epochs"] = 2
    assert (order()["max_steps"], order()["n_epochs"]) == (None, 2)


def records_and_rankings() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Held-out and training records: in each thread Cid answers Ann's first post; a table question beside."""
    records: list[dict[str, Any]] = []
    rankings: list[dict[str, Any]] = []
    for number in range(THREADS):
        for split in ("train", "test"):
            name, thread = f"{split}-{number}", f"thread-{split}-{number}"
            posts = [f"{name}-p{post}" for post in range(2)]
            records.append(
                _row(
                    RECORD_COLUMNS,
                    id=name,
                    task="threads",
                    split=split,
                    context_id=thread,
                    context_ids=posts,
                    choices=["#1 Ann", "#2 Bob"],
                    gold=["#1 Ann"],
                    output="#1 Ann",
                )
            )
            rankings.append(
                _row(
                    RANKING_COLUMNS,
                    id=name,
                    task="threads",
                    split=split,
                    context_id=thread,
                    candidate_ids=posts,
                    candidate_authors=["Ann", "Bob"],
                    gold_ids=posts[:1],
                    gold_authors=["Ann"],
                    bm25=posts[::-1],
                    opening_id=posts[0],
                    opening_author="Ann",
                )
            )
        records.append(_row(RECORD_COLUMNS, id=f"table-{number}", task="tables", split="test", gold=["3"]))
    return records, rankings


def links_of(rankings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The links of the held-out threads: Ann starts, Bob answers her, and so does Cid, the asked one."""
    rows = []
    for ranking in rankings:
        for number, (parent, asked) in enumerate(((0, False), (0, False), (0, True))):
            about = {name: ranking[name] for name in ("task", "split", "context_id")}
            rules = {"previous_post": [max(0, number - 1)], "previous_other_author": [max(0, number - 1)]}
            name = ranking["id"] if asked else ""
            rows.append(
                _row(LINK_COLUMNS, **about, **rules, id=name, number=number, parents=[parent], asked=asked)
                | {"addressed_then_previous": [number]}
            )
    return [row for row in rows if row["split"] == "test"]


def _row(columns: Mapping[str, str], **values: Any) -> dict[str, Any]:
    """A row with these columns; what is not given is empty."""
    empty: dict[str, Any] = {"str": "", "bool": False, "int": 0, "list": [], "ints": []}
    return {**{name: empty[kind] for name, kind in columns.items()}, **values}


def _evaluation(
    project: Project, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[dict[str, Any], list[dict[str, Any]], list[PredictSpec]]:
    """Run the stage with a child whose base answers wrongly, phase 1 half rightly, both phases rightly."""
    # The threads alone, unless a test says otherwise.
    config = project.config("evaluate.tables_max_records=0", "evaluate.qa_max_records=0", *overrides)
    context = context_for(project, "evaluate", config)
    records, rankings = records_and_rankings()
    for name, columns, rows in (
        ("records", RECORD_COLUMNS, records),
        ("rankings", RANKING_COLUMNS, rankings),
        ("links", LINK_COLUMNS, links_of(rankings)),
    ):
        path = context.upstream["build-context"] / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(columns)), path)
    specs: list[PredictSpec] = []

    def child(module: str, spec: PredictSpec, workdir: Path, **_: Any) -> dict[str, Any]:
        assert module == "predict"
        specs.append(spec)
        rows = []
        for number, record in enumerate(pq.read_table(spec.records).to_pylist()):
            right = {"base": False, "phase1": number % 2 == 0, "both_phases": True}
            for system in spec.systems:
                good, bad = ("3", "4") if record["task"] == "tables" else ("#1 Ann", "#2 Bob")
                said = good if right.get(system, True) else bad
                choice = "" if spec.mode == "generate" else said
                text = bad if spec.mode == "both" else said
                rows.append(
                    {
                        "id": record["id"],
                        "system": system,
                        "choice": choice,
                        "choice_logprob": -1.0,
                        "text": text,
                    }
                )
        pq.write_table(pa.Table.from_pylist(rows), workdir / "predictions.parquet")
        return {"peak_memory_bytes": 100 + len(specs)}

    monkeypatch.setattr(evaluate, "run_child", child)
    metrics = EVALUATE.run(context)
    assert metrics.get("peak_memory_bytes", 100) == 100 + len(specs)
    scores = json.loads((context.output_dir / "metrics.json").read_text())
    return scores, pq.read_table(context.output_dir / "predictions.parquet").to_pylist(), specs


def test_answers_of_unchanged_systems_are_not_computed_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("evaluate.tables_max_records=2",)
    first = _evaluation(project, monkeypatch, *wanted)
    (project.folder / "up" / "finetune-task" / "adapter_model.safetensors").write_bytes(b"trained again")
    second = _evaluation(project, monkeypatch, *wanted)
    assert first[:2] == second[:2]
    assert [(spec.task, list(spec.systems)) for spec in first[2]] == [
        (task, ["base", "phase1", "both_phases"]) for task in ("threads", "tables")
    ]
    assert [(spec.task, list(spec.systems)) for spec in second[2]] == [
        (task, ["both_phases"]) for task in ("threads", "tables")
    ]
    # Other drawn records of one task: the other task's answers stay.
    (changed,) = _evaluation(project, monkeypatch, "evaluate.tables_max_records=1")[2]
    assert (changed.task, list(changed.systems)) == ("tables", ["base", "phase1", "both_phases"])
    # Damaged files are noticed, and their systems are answered again.
    files = sorted((project.folder / "cache" / "answers").glob("*.parquet"))
    assert len(files) == 11
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    third = _evaluation(project, monkeypatch, *wanted)
    assert third[:2] == first[:2] and [len(spec.systems) for spec in third[2]] == [3, 3]
    assert not _evaluation(project, monkeypatch, *wanted)[2]


def test_chosen_systems_and_links(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project.folder / "mine"
    folder.mkdir()
    for name in ADAPTER_FILES:
        (folder / name).write_text("{}")
    chosen = "evaluate.systems=[both_phases,previous_post,shuffled,before=./mine]"
    scores, predictions, specs = _evaluation(project, monkeypatch, chosen)
    assert list(scores["systems"]) == ["previous_post", "both_phases", "before", "shuffled"]
    trained = project.folder / "up" / "finetune-task"
    assert [spec.systems for spec in specs] == [
        {"both_phases": trained, "before": folder},
        {"shuffled": trained},
    ]
    assert {row["system"] for row in predictions} == {"both_phases", "before", "shuffled"}
    # The records here have no text, so nothing could be put into another order.
    assert scores["unchanged_prompts"] == {"threads": {"shuffled": THREADS}}
    links = scores["links"]
    assert list(links["systems"]) == ["previous_post"] and links["logs"] == THREADS
    # Ann's start and Bob's answer to her are right, Cid's answer to Bob is not.
    assert links["systems"]["previous_post"]["link_f1"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    written = pq.read_table(project.folder / "out" / "links.parquet").to_pylist()
    assert {row["system"] for row in written} == {"annotated", "previous_post"}
    assert len(written) == 2 * 3 * THREADS
    config = project.config(chosen)
    assert list(EVALUATE.inputs(config)) == [f"systems/before/{name}" for name in ADAPTER_FILES]
    settings = json.dumps(EVALUATE.settings(config))
    assert "before" in settings and str(project.folder) not in settings
    assert not EVALUATE.inputs(project.config())


def test_evaluation_of_all_systems_and_baselines(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, predictions, specs = _evaluation(project, monkeypatch)
    assert list(scores["systems"]) == [
        "random",
        "opening_post",
        "previous_post",
        "bm25",
        "base",
        "phase1",
        "both_phases",
    ]
    reply = {name: values["reply@1"] for name, values in scores["systems"].items()}
    both = reply["both_phases"]
    # All are right, but a few records do not prove that all others would be.
    assert (both["value"], both["high"], both["n"]) == (1.0, 1.0, THREADS) and 0.3 < both["low"] < 1
    assert reply["phase1"]["value"] == 0.5 and reply["phase1"]["low"] < 0.5 < reply["phase1"]["high"]
    assert (reply["base"]["value"], reply["opening_post"]["value"], reply["bm25"]["value"]) == (0.0, 1.0, 0.0)
    assert set(scores["systems"]["base"]) == {*MEASURES, "p(reply|not target)"}
    (spec,) = specs
    assert spec.systems == {
        "base": None,
        "phase1": project.folder / "up" / "finetune-structure",
        "both_phases": project.folder / "up" / "finetune-task",
    }
    assert {row["id"] for row in pq.read_table(spec.records).to_pylist()} == {
        f"test-{n}" for n in range(THREADS)
    }
    assert len(predictions) == 3 * THREADS
    assert set(predictions[0]) == {
        "id",
        "task",
        "system",
        "choice",
        "choice_logprob",
        "choice_logprobs",
        "text",
        "normalised_choice",
    }


def test_choices_for_a_character_are_scored_too(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sums are never right, the quotients of every other record: the wrong author's name is short."""

    def child(module: str, spec: PredictSpec, workdir: Path) -> dict[str, Any]:
        rows = []
        for number, record in enumerate(pq.read_table(spec.records).to_pylist()):
            # Six characters against four: -1.2 and -1.0 in sum, -0.2 and -0.25 for a character.
            logprobs = [-1.2, -1.0] if number % 2 else [-1.0, -0.6]
            for system in spec.systems:
                best = record["choices"][logprobs.index(max(logprobs))]
                row = {"id": record["id"], "system": system, "choice": best, "choice_logprob": max(logprobs)}
                rows.append(row | {"choice_logprobs": logprobs, "text": ""})
        pq.write_table(pa.Table.from_pylist(rows), workdir / "predictions.parquet")
        return {}

    config = project.config("evaluate.tables_max_records=0", "evaluate.qa_max_records=0")
    context = context_for(project, "evaluate", config)
    records, rankings = records_and_rankings()
    for row in records:
        row["choices"] = ["#1 Ann", "#2 B"]
    for name, columns, rows in (
        ("records", RECORD_COLUMNS, records),
        ("rankings", RANKING_COLUMNS, rankings),
        ("links", LINK_COLUMNS, links_of(rankings)),
    ):
        path = context.upstream["build-context"] / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(columns)), path)
    monkeypatch.setattr(evaluate, "run_child", child)
    EVALUATE.run(context)
    scores = json.loads((context.output_dir / "metrics.json").read_text())
    both = scores["systems"]["both_phases"]
    assert (both["reply@1"]["value"], both["normalised_reply@1"]["value"]) == (0.0, 0.5)
    assert both["normalised_target@1"]["value"] == 0.5 and both["normalised_reply@1"]["n"] == THREADS
    assert "normalised_reply@1" not in scores["systems"]["bm25"], "a baseline has no log-likelihoods"
    kept = pq.read_table(context.output_dir / "predictions.parquet").to_pylist()
    assert [row["normalised_choice"] for row in kept[:2]] == ["#2 B", "#1 Ann"]
    values = pq.read_table(context.output_dir / "record_values.parquet").to_pylist()
    found = [row["value"] for row in values if row["measure"] == "normalised_reply@1"]
    assert len(found) == 3 * THREADS and sum(found) == 1.5 * THREADS
    print_scores(scores)
    assert "normalised_reply@1" in capsys.readouterr().out


def test_free_writing_is_reported_beside_the_choice(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, _, _ = _evaluation(project, monkeypatch, "evaluate.mode=both")
    assert scores["answers"] == "choice"
    assert scores["systems"]["both_phases"]["reply@1"]["value"] == 1.0
    assert list(scores["generated"]["systems"]) == ["base", "phase1", "both_phases"]
    assert scores["generated"]["systems"]["both_phases"]["reply@1"]["value"] == 0.0


def test_tables_join_the_same_systems(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, predictions, specs = _evaluation(
        project,
        monkeypatch,
        "evaluate.tables_max_records=4",
        "evaluate.mode=generate",
        "evaluate.max_records=3",
    )
    assert [(spec.task, spec.mode) for spec in specs] == [("threads", "generate"), ("tables", "generate")]
    both = scores["systems"]["both_phases"]
    assert (both["reply@1"]["n"], both["denotation_accuracy"]["n"]) == (3, 4)
    assert both["denotation_accuracy"]["value"] == 1.0
    assert "denotation_accuracy" not in scores["systems"]["bm25"]
    assert {row["task"] for row in predictions} == {"threads", "tables"}


def test_chosen_records_depend_on_the_seed_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*overrides: str) -> list[str]:
        _, rows, _ = _evaluation(project, monkeypatch, "evaluate.max_records=4", *overrides)
        return [row["id"] for row in rows if row["system"] == "base"]

    assert chosen() == chosen()
    assert any(chosen() != chosen(f"seed={seed}") for seed in (1, 2, 3))


def test_nothing_to_evaluate(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="evaluate: nothing to score"):
        _evaluation(project, monkeypatch, "evaluate.max_records=0")
    with pytest.raises(InputError, match=r"evaluate: qa has no held-out records; raise context\.test_share"):
        _evaluation(project, monkeypatch, "evaluate.max_records=0", "evaluate.qa_max_records=3")


def test_export_merges_the_last_adapter_and_tells_the_origin(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[ExportSpec] = []
    config = project.config("export.verify=false")
    context = context_for(project, "export", config)
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    drawn = {"threads": {"records": 10, "of_records": 10, "contexts": 9, "of_contexts": 9}}
    metrics = {"systems": {"both_phases": {"reply@1": score, "slices": {}}}, "drawn": drawn}
    (context.upstream["evaluate"] / "metrics.json").write_text(json.dumps(metrics))

    def child(module: str, spec: ExportSpec, workdir: Path, **_: Any) -> dict[str, Any]:
        specs.append(spec)
        return {"module": module, "files": {"model/config.json": "f" * 64}}

    monkeypatch.setattr(export, "run_child", child)
    STAGES["export"].run(context)
    (spec,) = specs
    assert spec.adapter == project.folder / "up" / "finetune-task"
    assert spec.measures == {"both_phases": {"reply@1": score}} and spec.system == "both_phases"
    assert "threads: only 9 contexts, so the interval is not to be trusted" in spec.measure_warnings[0]
    assert set(spec.lineage["stages"]) == {
        "build-context",
        "convert-model",
        "finetune-structure",
        "finetune-task",
        "evaluate",
    }
    assert spec.lineage["stages"]["evaluate"]["key"] == "e" * 64
    assert "/home/somebody" not in json.dumps(spec.lineage), "an exported model names no path of the machine"


def test_manifest_says_where_an_artifact_comes_from(project: Project) -> None:
    config = project.config()
    for name in ("build-context", "convert-model", "finetune-structure"):
        execute_stage(name, config, project.store, project.registry)
    manifest = json.loads((project.artifact("finetune-structure") / "manifest.json").read_text())
    assert manifest["stage"] == "finetune-structure"
    assert manifest["config"]["phases"]["0"]["optim"]["learning_rate"] == 1e-4
    assert manifest["upstream"]["build-context"]["key"] == project.artifact("build-context").name
    assert manifest["metrics"] == {"loss": 1.0}
    assert manifest["started"] < manifest["ended"]
    assert manifest["environment"]["jax"]
    inputs = json.loads((project.artifact("build-context") / "manifest.json").read_text())["inputs"]
    assert inputs["threads/threads.ndjson"]["path"] == "threads.ndjson"


@pytest.mark.parametrize("error", [InputError("a broken line"), RuntimeError("a crash")])
@pytest.mark.parametrize("trained", [False, True])
def test_failed_stage_leaves_no_artifact(project: Project, error: Exception, trained: bool) -> None:
    def fail(context: StageContext) -> dict[str, Any]:
        folder = context.work_dir / "checkpoints" if trained else context.work_dir
        folder.mkdir(parents=True)
        (folder / "state").write_text("state")
        (context.output_dir / "half").write_text("half")
        raise error

    runs: Callable[[StageContext], dict[str, Any]] = project.registry["build-context"].run
    project.registry["build-context"] = replace(project.registry["build-context"], run=fail)
    config = project.config()
    with pytest.raises(type(error), match=str(error)):
        execute_stage("build-context", config, project.store, project.registry)
    kept = [
        path.name
        for path in (project.folder / "runs").rglob("*")
        if path.is_file() and ".locks" not in path.parts
    ]
    # A wrong input leaves nothing, unless training had begun: that goes on from its checkpoint.
    assert kept == (["state"] if trained or not isinstance(error, InputError) else [])
    project.registry["build-context"] = replace(project.registry["build-context"], run=runs)
    done = execute_stage("build-context", config, project.store, project.registry)
    assert not done.cached and not list((project.folder / "runs" / ".work").rglob("state"))


def test_full_disk_inside_a_stage_is_one_line(project: Project) -> None:
    def fail(context: StageContext) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    project.registry["build-context"] = replace(project.registry["build-context"], run=fail)
    with pytest.raises(
        InputError, match=r"cannot write to store .*: no space left on device; free some space"
    ):
        execute_stage("build-context", project.config(), project.store, project.registry)
