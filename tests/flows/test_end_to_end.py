"""All six stages for real, as small as they can be: the sample's first threads, a random model, a few
steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from flows.config import SAMPLE_CONFIG, PipelineConfig, load_config
from flows.plan import make_plan
from flows.runner import ArtifactRef, execute_stage, run_pipeline
from flows.store import Store

DATA = SAMPLE_CONFIG.parents[2] / "data"
WIDTH, HIDDEN, LAYERS, HEADS = 32, 64, 1, 2
THREADS = 24

Finished = tuple[PipelineConfig, Store, list[ArtifactRef]]


def write_model(folder: Path) -> None:
    """A random Llama of one layer with the sample's tokenizer."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DATA / "tiny-llama" / name).read_bytes())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    size = len(vocabulary["model"]["vocab"])
    size = max(size, 1 + max((token["id"] for token in vocabulary["added_tokens"]), default=0))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (size, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{name}mlp.{part}_proj.weight": (HIDDEN, WIDTH) for part in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{name}{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    rng = np.random.default_rng(0)
    tensors = {
        name: (np.ones(shape) if len(shape) == 1 else rng.normal(0, 0.1, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    """A finished run."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_model(folder / "model")
    lines = (DATA / "sample" / "threads.ndjson").read_text().splitlines()[:THREADS]
    (folder / "threads.ndjson").write_text("\n".join(lines) + "\n")
    sizes: dict[str, Any] = {
        "max_steps": 2,
        "max_seq_len": 512,
        "tokens_per_batch": 1024,
        "checkpoint_every": 1,
    }
    raw = {
        "model": {"path": "model"},
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
            "bootstrap_samples": 50,
            "max_seq_len": 512,
            "tokens_per_batch": 2048,
        },
        "store": str(folder / "runs"),
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(raw))
    config = load_config(folder / "pipeline.yaml")
    store = Store(config.store)
    yield config, store, run_pipeline(config, store)


def test_all_stages_run_and_are_current(finished: Finished) -> None:
    config, store, references = finished
    assert [reference.stage for reference in references] == [
        "build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate", "export",
    ]  # fmt: skip
    assert not any(reference.cached for reference in references)
    assert {line.action for line in make_plan(config, store)} == {"cached"}
    left = [path for part in (".tmp", ".work") for path in (store.root / part).rglob("*") if path.is_file()]
    assert left == []


def test_evaluation_has_its_form(finished: Finished) -> None:
    scores = json.loads((Path(finished[2][4].path) / "metrics.json").read_text())
    assert list(scores["systems"]) == [
        "random", "opening_post", "previous_post", "bm25", "base", "phase1", "both_phases",
    ]  # fmt: skip
    for values in scores["systems"].values():
        assert set(values) == {"target@1", "reply@1", "joint", "p(reply|target)"}
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


def test_forced_training_gives_the_same_bytes(
    finished: Finished,
) -> None:
    """What lets the plan say that nothing after a repeated stage runs."""
    config, store, references = finished
    adapter = Path(references[3].path) / "adapter_model.safetensors"
    before = adapter.read_bytes()
    again = execute_stage("finetune-task", config, store, force=True)
    assert not again.cached and adapter.read_bytes() == before
    assert {line.action for line in make_plan(config, store)} == {"cached"}
