"""An export is read by transformers and peft and computes what base plus adapter computed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.commands.export import export
from jora_core.parameters.trees import Adapter
from jora_core.specs.lora import LoraSpec
from jora_core.specs.model_files import ExportSpec
from jora_core.weights.adapter_folder import save_adapter
from jora_core.weights.tensor_store import TensorStore


@pytest.fixture(scope="module")
def base(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a generation config and a config field of its own, both to be kept."""
    folder = Path(shutil.copytree(tiny_weights, tmp_path_factory.mktemp("base") / "model"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": [1, 7], "house_field": "kept"}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7], "bos_token_id": 0}')
    return folder


@pytest.fixture(scope="module")
def adapter(
    base: Path, random_adapter: Callable[..., Adapter], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    spec = LoraSpec.model_validate(
        {"r": 4, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    )
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(random_adapter(ModelConfig.from_hf(base), spec), folder, spec, "base")
    return folder


def order(base: Path, adapter: Path, output: Path, **changes: Any) -> ExportSpec:
    fields = {"model": str(base), "adapter": str(adapter), "output_dir": str(output), **changes}
    return ExportSpec.model_validate(fields)


def test_transformers_and_peft_agree_with_the_export(base: Path, adapter: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = export(order(base, adapter, tmp_path, lineage={"data": "abc123"}))
    assert result["largest_logit_difference"] < 1e-4
    reference = TensorStore.of_file(tmp_path / "reference.safetensors")
    tokens, logits = reference.read("tokens"), reference.read("logits")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
    for model in (merged, tuned.eval()):
        with torch.no_grad():
            got = model(torch.from_numpy(tokens).long()).logits.numpy()
        np.testing.assert_allclose(got, logits, atol=1e-3)
    # Tied stays tied, EOS and everything else stays the base's own.
    assert "lm_head.weight" not in TensorStore.of_model(tmp_path / "model").names()
    assert merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert fields == json.loads((base / "config.json").read_text())
    assert (tmp_path / "model" / "generation_config.json").read_bytes() == (
        base / "generation_config.json"
    ).read_bytes()
    text = "lamp river copper"
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "model", base))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_card_and_result_name_every_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    result = export(order(base, adapter, tmp_path, lineage={"data": "abc123"}, verify=False))
    card = (tmp_path / "README.md").read_text()
    assert '"data": "abc123"' in card
    assert "rank 4, alpha 2" in card
    assert "a Llama decoder of\n2 layers and hidden width 32" in card
    for name, digest in result["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
        assert f"| `{name}` | `{digest}` |" in card
    assert {"model/model.safetensors", "model/tokenizer.json", "adapter/adapter_config.json"} <= set(
        result["files"]
    )
    assert not (tmp_path / "reference.safetensors").exists()
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_card_has_measures_and_licences(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\nlicense: not this\n")
    (folder / "LICENSE").write_text("the terms")
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 12}
    fields: dict[str, Any] = {
        "measures": {
            "base": {"reply@1": score},
            "phase1": {"reply@1": score | {"value": None, "n": 0}},
            "bm25": {"recall": score},
        },
        "system": "phase1",
        "measure_warnings": ["Held-out records of qa: only 9 contexts."],
        "data_licenses": {"threads": "CC-BY-4.0"},
        "verify": False,
        "formats": ["hf"],
    }
    export(order(folder, adapter, tmp_path / "out", **fields))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and 'license: "apache-2.0"\n---' in card
    assert "| base | 0.500 [0.250, 0.750] | 12 |" in card and "| phase1 | - | 0 |" in card
    assert "| System | recall | n |" in card and "This model is `phase1`" in card
    assert "before fine-tuning.\n\nHeld-out records of qa: only 9 contexts.\n\n| System" in card
    assert "- This model: apache-2.0" in card and "- Data, threads: CC-BY-4.0" in card
    assert "- Base model: apache-2.0 (`model/LICENSE`)" in card
    export(order(base, adapter, tmp_path / "plain", license="mit", verify=False, formats=["hf"]))
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "- This model: mit" in card and "- Base model: not stated in its folder" in card
    assert "- Data: not stated" in card and "## Measures" not in card


def test_bfloat16(base: Path, adapter: Path, tmp_path: Path) -> None:
    result = export(order(base, adapter, tmp_path, dtype="bfloat16"))
    assert TensorStore.of_model(tmp_path / "model").dtype("model.norm.weight") == "bfloat16"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert 0 < result["largest_logit_difference"] < 0.5


def test_a_wrong_merge_is_noticed(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "jora_core.weights.merge_adapters.merged_tensor", lambda weight, pairs, scales: weight
    )
    with pytest.raises(RuntimeError, match="differ from base plus adapter"):
        export(order(base, adapter, tmp_path))


def test_refused_inputs(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapter folder"):
        export(order(base, tmp_path / "nowhere", tmp_path / "out"))
    with pytest.raises(InputError, match="model folder"):
        export(order(tmp_path / "nowhere", adapter, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
