"""All six stages for real, as small as they can be: the sample's first threads, its model, a few steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.commands.planning.sharing_counts import sharing_of_phases
from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.plan import make_plan, select
from flows.engine.run_stage import execute_stage, run_stages
from flows.lineage.chain import follow
from flows.lineage.taught_rows import taught, taught_rows
from flows.stages import STAGES
from tests.flows.damage import damage

DATA = SAMPLE_CONFIG.parents[2] / "data"
MODEL = DATA / "tiny-llama"
THREADS = 24
MEASURES = ("target@1", "reply@1", "joint", "p(reply|target)")

Finished = tuple[PipelineConfig, Store, list[ArtifactRef]]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    """A finished run."""
    folder = tmp_path_factory.mktemp("pipeline")
    lines = (DATA / "sample" / "threads.ndjson").read_text().splitlines()[:THREADS]
    (folder / "threads.ndjson").write_text("\n".join(lines) + "\n")
    sizes: dict[str, Any] = {
        "max_steps": 2,
        "max_seq_len": 512,
        "tokens_per_batch": 1024,
        "checkpoint_every": 1,
    }
    raw = {
        "model": {"path": str(MODEL)},
        "context": {
            "threads": {"source": "threads.ndjson", "legs": ["bm25", "recency"], "n_contexts": 4},
            "tables": {"source": str(DATA / "sample" / "tables"), "max_records": 20, "max_test_records": 5},
        },
        "phases": [
            {"stage": "finetune-structure", "tasks": ["tables"], **sizes},
            {"stage": "finetune-task", "tasks": ["threads"], **sizes},
        ],
        "evaluate": {
            "max_records": 12,
            "tables_max_records": 0,
            "bootstrap_samples": 50,
            "max_seq_len": 512,
            "tokens_per_batch": 2048,
        },
        "store": str(folder / "runs"),
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(raw))
    config = load_config(folder / "pipeline.yaml")
    store = Store(config.store)
    yield config, store, run_stages(select(config, STAGES), config, store, STAGES)


def test_all_stages_run_and_are_current(finished: Finished) -> None:
    config, store, references = finished
    assert [reference.stage for reference in references] == [
        "build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate", "export",
    ]  # fmt: skip
    assert not any(reference.cached for reference in references)
    assert {line.action for line in make_plan(config, store, STAGES)} == {"cached"}
    left = [path for part in (".tmp", ".work") for path in (store.root / part).rglob("*") if path.is_file()]
    assert left == []


def test_the_plan_counts_what_training_counted(finished: Finished) -> None:
    """A finished phase from its artifact, one that would run from its records: they agree."""
    config, store, _ = finished
    done = sharing_of_phases(config, store, STAGES, make_plan(config, store, STAGES), print)
    assert list(done) == ["finetune-structure", "finetune-task"]
    assert done["finetune-structure"]["factor"] > 1.2, "tables are asked several questions"
    phases = [
        phase.model_copy(update={"optim": phase.optim.model_copy(update={"learning_rate": 3e-4})})
        for phase in config.phases
    ]
    changed = config.model_copy(update={"phases": phases})
    counted = sharing_of_phases(changed, store, STAGES, make_plan(changed, store, STAGES), print)
    for stage, counts in done.items():
        assert {name: counted[stage][name] for name in counts} == counts
        assert counted[stage]["fullest"]["seq_len"] in counted[stage]["row_lengths"]
    other = config.model_copy(update={"context": config.context.model_copy(update={"test_share": 0.35})})
    unknown = sharing_of_phases(other, store, STAGES, make_plan(other, store, STAGES), print)
    assert all("not built yet" in counts["unknown"] for counts in unknown.values())


def test_evaluation_has_its_form(finished: Finished) -> None:
    scores = json.loads((Path(finished[2][4].path) / "metrics.json").read_text())
    assert list(scores["systems"]) == [
        "random", "opening_post", "previous_post", "previous_other_author", "addressed_then_previous", "bm25",
        "fused", "base", "phase1", "both_phases",
    ]  # fmt: skip
    for name, values in scores["systems"].items():
        # Rules and rankings have no log-likelihoods.
        chosen = name in ("base", "phase1", "both_phases")
        extra = {"normalised_reply@1", "normalised_target@1"} if chosen else set()
        assert set(values) == {*MEASURES, "p(reply|not target)"} | extra
        assert values["reply@1"]["low"] <= values["reply@1"]["value"] <= values["reply@1"]["high"]
        assert values["reply@1"]["n"] == 12


def test_export_was_held_against_other_libraries(
    finished: Finished,
) -> None:
    folder = Path(finished[2][5].path)
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    assert metrics["transformers_largest_difference"] < 1e-3
    assert metrics["peft_largest_difference"] < 1e-3
    assert {path.name for path in folder.iterdir()} >= {"model", "adapter", "README.md", "manifest.json"}
    assert not (folder / "reference.safetensors").exists()
    assert finished[2][3].key in (folder / "README.md").read_text(), "the card names the adapter's key"


def test_lineage_reaches_the_rows(finished: Finished) -> None:
    folders = {reference.stage: Path(reference.path) for reference in finished[2]}
    chain = follow(folders["export"] / "adapter")
    assert not chain.findings and [link.folder for link in chain.links][-1] == folders["export"]
    found = taught(chain)
    assert not found.notes
    for phase in ("finetune-structure", "finetune-task"):
        steps = map(json.loads, (folders[phase] / "metrics.jsonl").read_text().splitlines())
        rows = [one for one in found.sources if one.phase == phase]
        assert sum(one.times for one in rows) == sum(step["records"] for step in steps)
        assert all(0 <= one.rows <= one.records <= one.offered for one in rows)
    threads = [row for row in taught_rows(chain) if row.task == "threads"]
    assert threads and {row.source for row in threads} == {"threads.ndjson"}
    for path in (
        folders["export"] / "model" / "model.safetensors",
        folders["build-context"] / "rankings.parquet",
        folders["finetune-task"] / "trained_records.parquet",
    ):
        damage(path, "flip", seed=1)
        (finding,) = follow(folders["export"]).findings
        assert finding.state == "damaged" and finding.what.endswith(path.name)
        damage(path, "flip", seed=1)
    assert not follow(folders["export"]).findings
    card = (folders["export"] / "README.md").read_text()
    assert "| both_phases | " in card and "- Base model: " in card


def test_forced_training_gives_the_same_bytes(
    finished: Finished,
) -> None:
    """What lets the plan say that nothing after a repeated stage runs."""
    config, store, references = finished
    adapter = Path(references[3].path) / "adapter_model.safetensors"
    before = adapter.read_bytes()
    again = execute_stage("finetune-task", config, store, STAGES, force=True)
    assert not again.cached and adapter.read_bytes() == before
    assert {line.action for line in make_plan(config, store, STAGES)} == {"cached"}


def test_the_export_writes_what_we_write(finished: Finished) -> None:
    """Twenty prompts of the sample, greedily: ours with the adapter, transformers merged, peft."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import pyarrow.parquet as pq
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jora_core.architecture.model_config import ModelConfig
    from jora_core.generation.generate import GenerationSettings, generate
    from jora_core.specs.common import ALPACA_SHORT
    from jora_core.weights.adapter_folder import load_adapter
    from jora_core.weights.load_params import load_params

    context, exported = (Path(finished[2][index].path) for index in (0, 5))
    rows = pq.read_table(context / "records.parquet", columns=["instruction", "input"]).to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    texts = [ALPACA_SHORT.format(**row) for row in rows[:: len(rows) // 20][:20]]
    texts = [f"{tokenizer.bos_token}{text}" for text in texts]
    prompts = tokenizer(texts, add_special_tokens=False).input_ids
    assert len(prompts) == 20

    config = ModelConfig.from_hf(MODEL)
    ours = generate(
        load_params(MODEL, config),
        config,
        [np.asarray(prompt, np.int32) for prompt in prompts],
        GenerationSettings(eos_ids=(tokenizer.eos_token_id,), max_new_tokens=24),
        adapter=load_adapter(exported / "adapter", config)[0],
    )
    merged = AutoModelForCausalLM.from_pretrained(exported / "model", dtype=torch.float32).eval()
    tuned = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    models: list[Any] = [merged, peft.PeftModel.from_pretrained(tuned, str(exported / "adapter")).eval()]
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        for model in models:
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
                )
            said = [token for token in out[0, len(prompt) :].tolist() if token != tokenizer.eos_token_id]
            assert said == answer.tolist()
