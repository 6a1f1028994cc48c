"""Several training seeds: an artifact for each, one summary, and nothing that is trained twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.print_pipeline import print_seeds
from flows.configuration.requirements import require
from flows.engine.run_stage import run_stages
from flows.engine.stage import StageContext, stages_of
from flows.housekeeping.collect import collect
from flows.housekeeping.stored_runs import Name, read_contents
from flows.lineage.chain import follow
from flows.report.facts import RunFacts
from flows.report.statistics_sections import seeds as seed_blocks
from flows.stages import compare_seeds
from flows.stages.evaluate import RECORD_VALUES
from jora_core.base.errors import InputError
from tests.flows.conftest import Project
from tests.flows.damage import damage

RECORDS, CONTEXTS = 60, 20
# Right answers of the tuned model with each seed; the base model is right on the first ten records.
RIGHT = {0: 30, 1: 36, 2: 33}


def evaluation(runs: list[str]) -> Callable[[StageContext], dict[str, Any]]:
    """A stand-in of the evaluation, with record values that depend on the training's seed alone."""

    def run(context: StageContext) -> dict[str, Any]:
        runs.append(f"evaluate {context.config.training_seed}")
        systems = {"base": 10, "phase1": 20, "both_phases": RIGHT[context.config.training_seed]}
        rows = [
            {
                "task": "threads",
                "id": f"r{index}",
                "context_id": f"c{index % CONTEXTS}",
                "system": system,
                "measure": "reply@1",
                "value": float(index < right),
            }
            for system, right in systems.items()
            for index in range(RECORDS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), context.output_dir / RECORD_VALUES)
        for name in ("metrics.json", "predictions.parquet"):
            (context.output_dir / name).write_text("{}")
        return {}

    return run


@pytest.fixture
def seeded(project: Project) -> Project:
    project.raw["seeds"] = [0, 1, 2]
    registry = project.registry
    registry["evaluate"] = replace(registry["evaluate"], run=evaluation(project.runs))
    registry["compare-seeds"] = replace(registry["compare-seeds"], run=compare_seeds.COMPARE_SEEDS.run)
    return project


def run(project: Project, *overrides: str) -> dict[str, Any]:
    config = project.config(*overrides)
    names = [stage.name for stage in stages_of(config, project.registry) if stage.name != "export"]
    done = run_stages(names, config, project.store, project.registry)
    (path,) = [Path(item.path) for item in done if item.stage == "compare-seeds"]
    return json.loads((path / compare_seeds.SUMMARY).read_text())


def test_each_seed_is_trained_once_and_the_summary_holds_both_sources(seeded: Project) -> None:
    found = run(seeded)
    trained = ["finetune-structure", "finetune-task"]
    assert seeded.runs == [
        "build-context", "convert-model", *trained, "evaluate 0", *trained, "evaluate 1", *trained,
        "evaluate 2",
    ]  # fmt: skip
    for stage in (*trained, "evaluate"):
        assert len([path for path in (seeded.folder / "runs" / stage).iterdir() if path.is_dir()]) == 3
    assert found["seeds"] == [0, 1, 2] and len(set(found["evaluations"].values())) == 3
    scores = found["tasks"]["threads"]["reply@1"]
    tuned, base = (scores["systems"][name] for name in ("both_phases", "base"))
    shares = [RIGHT[seed] / RECORDS for seed in (0, 1, 2)]
    assert tuned["by_seed"] == pytest.approx(shares, abs=1e-6)
    assert tuned["value"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert tuned["spread"] == pytest.approx(np.std(shares, ddof=1), abs=1e-6)
    assert (base["by_seed"], base["spread"]) == ([round(10 / 60, 6)] * 3, 0.0)
    rows = {row["other"]: row for row in scores["comparisons"]}
    assert list(rows) == ["base", "phase1"] and all(row["one"] == "both_phases" for row in rows.values())
    assert rows["base"]["verdict"] == "better"
    assert rows["base"]["value"] == pytest.approx(np.mean(shares) - 10 / 60, abs=1e-6)


def test_terminal_and_report_show_each_seed(
    seeded: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = run(seeded)
    capsys.readouterr()
    print_seeds(found)
    lines = capsys.readouterr().out.splitlines()
    assert "seed 0" in lines[0] and "both_phases is" in lines[0]
    base, last = (next(line for line in lines if line.startswith(name)) for name in ("base", "both_phases"))
    assert "0.500" in last and "0.600" in last and "0.550" in last and "0.050" in last
    assert "better by 38.3 ±" in base
    (tmp_path / "seeds.json").write_text(json.dumps(found))
    blocks = str(seed_blocks(RunFacts(seeded.config(), {"compare-seeds": tmp_path}, {})))
    assert "with the seeds 0, 1, 2" in blocks and "50.0 %, 60.0 %, 55.0 %" in blocks
    assert "better by 38.3 ±" in blocks


def test_what_was_trained_with_one_seed_is_taken_from_the_store(seeded: Project) -> None:
    run(seeded)
    seeded.runs.clear()
    # Another order of the same seeds: another model would be exported, and nothing is trained.
    run(seeded, "seeds=[2, 0, 1]")
    assert seeded.runs == []
    # Without the list, the first seed's training is that of the seed alone.
    config = seeded.config("seeds=[]")
    names = [stage.name for stage in stages_of(config, seeded.registry) if stage.name != "export"]
    assert "compare-seeds" not in names
    assert all(item.cached for item in run_stages(names, config, seeded.store, seeded.registry))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("seeds=[1, 1]",), "seeds has 1 twice"),
        (("seeds=[-1]",), "seeds.0"),
        (("seeds=[0, 1]", "phases.finetune-task.continue_from=abc"), "goes on with one training"),
    ],
)
def test_wrong_seeds_are_refused(project: Project, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        require(project.config(*overrides), "pipeline.yaml")
    assert "\n" not in str(refused.value)


def artifacts(project: Project) -> set[Name]:
    return set(read_contents(project.store).artifacts)


def test_a_clean_up_keeps_the_artifacts_of_all_seeds(seeded: Project) -> None:
    """Another run follows, whose seeds are removed by the next clean-up and not before."""
    run(seeded)
    kept = artifacts(seeded)
    assert len(kept) == 12
    (only,) = read_contents(seeded.store).runs
    assert only.artifacts == kept, "the other seeds belong to the run, and are no runs of their own"
    assert not collect(seeded.store, keep=1).artifacts
    run(seeded, "phases.1.optim.learning_rate=2e-4")
    newest = artifacts(seeded) - kept
    assert len(newest) == 7  # one training and one evaluation for each seed, and the summary
    removal = collect(seeded.store, keep=1)
    assert len(removal.artifacts) == 7 and artifacts(seeded) >= newest
    seeded.runs.clear()
    run(seeded, "phases.1.optim.learning_rate=2e-4")
    assert seeded.runs == []
    # Every artifact of the seeds is verified from the summary on.
    (summary,) = [path for path in (seeded.folder / "runs" / "compare-seeds").iterdir() if path.is_dir()]
    chain = follow(summary)
    assert len(chain.links) == 12 and not chain.findings
    assert chain.manifests["evaluate"]["upstream"]["finetune-task"]["key"] in {key for _, key in newest}
    other = next(link for link in chain.links if link.manifest["stage"] == "evaluate")
    assert other.name != ("evaluate", chain.manifests["evaluate"]["key"]) and other.folder is not None
    damage(other.folder / RECORD_VALUES, "flip", seed=0)
    (finding,) = follow(summary).findings
    assert finding.state == "damaged" and RECORD_VALUES in finding.what


def test_a_clean_up_keeps_what_a_killed_run_has_trained(
    seeded: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other seeds' artifacts are newer than the run itself, and no record names them."""

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_seeds, "_summary", killed)
    with pytest.raises(KeyboardInterrupt):
        run(seeded)
    made = artifacts(seeded)
    (only,) = read_contents(seeded.store).runs
    assert only.record.result == "stopped" and only.artifacts == made and len(made) == 11
    # As a kill leaves the record: begun, and never ended.
    record = replace(only.record, ended="", result="running")
    seeded.store.write_document(".runs", f"{record.id}.json", json.dumps(asdict(record)).encode())
    (only,) = read_contents(seeded.store).runs
    assert only.record.result == "killed" and only.artifacts == made
    assert not collect(seeded.store, keep=1).artifacts
