"""Mutations of config.json, tokenizer files and adapter_config.json: read, or refused in one line."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.adapter_targets import layer_ranks
from jora_core.weights.peft_config import read_peft_config
from tests.jora_core.family_cases import CASES, SHAPE

LLAMA = ModelConfig.from_fields(CASES["llama"])
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 10**9, 10**40, -0.5, 0.0, 0.5, 1e-300, 1e300, float("nan")])
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a", "2", "all-linear", "(", "</s>"])
JUNK = st.recursive(
    SCALARS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from("ab"), each, max_size=2),
)
ROPE = st.dictionaries(
    st.sampled_from(
        ["rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings", "beta_fast",
         "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor", "short_factor",
         "long_factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"]
    ),
    JUNK | st.sampled_from(["linear", "yarn", "dynamic", "longrope", "llama3", [1.0] * 12]),
    max_size=6,
)  # fmt: skip
FIELDS = sorted(
    {name for case in CASES.values() for name in case}
    | {"architectures", "model_type", "quantization_config", "text_config", "layer_types", "rms_norm_eps",
       "max_window_layers", "sliding_window_pattern", "rope_local_base_freq", "attention_bias", "mlp_bias"}
)  # fmt: skip
CONFIG_CHANGES = st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=3)
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
PEFT_FIELDS = [*PEFT, "rank_pattern", "alpha_pattern", "exclude_modules", "use_dora", "use_rslora", "bias",
               "lora_dropout", "init_lora_weights", "modules_to_save", "task_type", "unknown"]  # fmt: skip
TOKENS = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "▁": 4}
FLAGS = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": i, "content": text, "special": True, **FLAGS}
        for i, text in enumerate(("<s>", "</s>"))
    ],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": TOKENS, "unk_token": "a"},
}  # fmt: skip
FILES = ("tokenizer_config.json", "special_tokens_map.json", "config.json", "added_tokens.json",
         "generation_config.json", "tokenizer.json")  # fmt: skip
TOKEN_FIELDS = ["bos_token", "eos_token", "pad_token", "add_bos_token", "eos_token_id", "tokenizer_class",
                "added_tokens_decoder", "added_tokens", "post_processor", "pre_tokenizer",
                "text_config"]  # fmt: skip


def one_line(check: Callable[[], object]) -> None:
    """Run a check, which may refuse its input in one line, and nothing else."""
    try:
        check()
    except InputError as err:
        assert "\n" not in str(err)
        assert len(str(err)) < 2000


def check_config(case: str, changes: dict[str, Any], rope: dict[str, Any], where: str) -> None:
    fields = copy.deepcopy(CASES[case]) | changes
    if rope:
        fields[where] = rope
    one_line(lambda: ModelConfig.from_fields(fields, "config.json").to_hf())


def check_adapter(changes: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adapter_config.json").write_text(json.dumps(PEFT | changes))

        def read() -> None:
            spec = read_peft_config(folder, LLAMA)
            layer_ranks(spec, ["q_proj"], LLAMA.num_layers)

        one_line(read)


def check_tokenizer(changes: dict[str, dict[str, Any]], text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in FILES:
            base = {"tokenizer.json": TOKENIZER, "config.json": SHAPE | {"eos_token_id": 1}}.get(file, {})
            (folder / file).write_text(json.dumps(base | changes.get(file, {})))

        def read() -> None:
            ids = load_tokenizer(folder, 5).encode(text)
            assert ids.size == 0 or 0 <= ids.min() <= ids.max() < 5

        one_line(read)


CONFIGS = (st.sampled_from(sorted(CASES)), CONFIG_CHANGES, ROPE | st.just({}),
           st.sampled_from(["rope_scaling", "rope_parameters"]))  # fmt: skip
ADAPTERS = (st.dictionaries(st.sampled_from(PEFT_FIELDS), JUNK, max_size=3),)
TOKENIZERS = (
    st.dictionaries(
        st.sampled_from(FILES), st.dictionaries(st.sampled_from(TOKEN_FIELDS), JUNK, max_size=2), max_size=3
    ),
    st.sampled_from(["a", "</s>", "b", "zebra"]),
)
QUIET = [HealthCheck.too_slow]
KINDS = {
    "config": (check_config, CONFIGS),
    "adapter": (check_adapter, ADAPTERS),
    "tokenizer": (check_tokenizer, TOKENIZERS),
}


def run(kind: str, examples: int) -> None:
    check, strategies = KINDS[kind]
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, derandomize=True)
    limits(given(*strategies)(check))()


@pytest.mark.parametrize(("kind", "examples"), [("config", 250), ("adapter", 120), ("tokenizer", 130)])
def test_mutations_are_read_or_refused(kind: str, examples: int) -> None:
    run(kind, examples)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "examples"), [("config", 5000), ("adapter", 2500), ("tokenizer", 2500)])
def test_many_mutations_are_read_or_refused(kind: str, examples: int) -> None:
    run(kind, examples)
