"""Which layers a choice of targets means, against peft's own matching, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections
from jora_core.architecture.tensor_names import PROJECTIONS, TENSORS
from jora_core.base.errors import InputError
from jora_core.specs.adapter_targets import resolve_targets
from jora_core.specs.lora import LoraSpec

LAYERS = 12
LLAMA = ModelConfig(96, 32, 48, LAYERS, 4, 2, 8)
TARGETS = model_projections(LLAMA)


def modules() -> list[str]:
    return [f"model.layers.{i}.{module}" for i in range(LAYERS) for module in TARGETS.values()]


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        (["v_proj", "q_proj"], None, ["q_proj", "v_proj"]),
        (["self_attn.o_proj", "nothing"], None, ["o_proj"]),
        (modules(), None, list(TARGETS)),
        ("all-linear", None, list(TARGETS)),
        ("All-Linear", ["q_proj", "mlp.up_proj"], ["k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
        (r".*\.(q|v)_proj", None, ["q_proj", "v_proj"]),
        (r".*self_attn.*", r".*\.[kv]_proj", ["q_proj", "o_proj"]),
        (r"model\.layers\.\d+\.mlp\.(gate|down)_proj", None, ["gate_proj", "down_proj"]),
    ],
)
def test_targets_mean_what_peft_makes_of_them(targets: Any, exclude: Any, expected: list[str]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    assert list(resolve_targets(targets, LLAMA, exclude)) == expected
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return  # peft expands it on a model; test_peft.py has that case
    settings = LoraConfig(target_modules=targets, exclude_modules=exclude)
    theirs = {m.rsplit(".", 1)[1] for m in modules() if bool(check_target_module_exists(settings, m))}
    assert theirs == set(expected)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (r"model\.layers\.(1|2|5)\..*\.q_proj", "picks q_proj in layers 1-2, 5 alone, of 12"),
        (r"model\.layers\.\d\..*", "picks q_proj in layers 0-9 alone, of 12"),
        (["model.layers.0.self_attn.q_proj"], "picks q_proj in layers 0 alone"),
        (["q_proj", "lm_head"], "picks lm_head, which cannot have an adapter"),
        (r".*(embed_tokens|q_proj)", "picks model.embed_tokens, which cannot have an adapter"),
        (["query_key_value"], "query_key_value matches no projection of the model"),
        ("q_proj", "one name goes into a list: [q_proj]"),
        (".*(q_proj", "is no regular expression"),
    ],
)
def test_refused_targets_are_named(targets: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_targets(targets, LLAMA)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], "target_modules is empty"),
        (["q_prj"], "target_modules names 'q_prj'; expected some of q_proj"),
        ("q_prj", "matches no projection of any model"),
        ("v_proj", "one name goes into a list: [v_proj]"),
        ("(", "is no regular expression"),
        (7, "expected a list of names or one pattern, found int"),
        ([7], "expected a list of names or one pattern"),
    ],
)
def test_an_order_refuses_what_fits_no_model(targets: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LoraSpec.model_validate({"target_modules": targets})
    assert said in str(caught.value)
    assert caught.value.error_count() == 1


def test_both_forms_survive_json() -> None:
    for targets in ["all-linear", r".*\.(q|v)_proj", ["q_proj", "down_proj"]]:
        spec = LoraSpec.model_validate({"target_modules": targets, "use_rslora": True})
        assert LoraSpec.model_validate_json(json.dumps(spec.model_dump(mode="json"))) == spec


def test_names_agree_with_the_table_of_weights() -> None:
    table = {row.field: row.module for row in TENSORS if row.field.endswith("_proj")}
    assert table == PROJECTIONS


def test_fused_projections_have_names_of_their_own() -> None:
    fused = ModelConfig(96, 32, 48, LAYERS, 4, 2, 8, family="phi3", fused_projections=True)
    assert set(resolve_targets("all-linear", fused)) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    with pytest.raises(InputError, match="phi3 models have no projection q_proj; expected some of o_proj"):
        resolve_targets(["q_proj", "o_proj"], fused)
    # peft adapts what it finds, so a folder of peft's is read the same way.
    assert resolve_targets(["q_proj", "o_proj"], fused, absent_ok=True) == ("o_proj",)
