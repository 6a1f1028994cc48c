"""Tiny random models, ours and theirs, and adapters over them, for the tests against peft."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections
from jora_core.model.decoder import forward, unembed
from jora_core.parameters.initialize import init_adapter
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.adapter_targets import layer_ranks
from jora_core.specs.lora import LoraSpec
from jora_core.weights.load_params import load_params

ROWS, LENGTH, VOCAB = 3, 24, 96
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What each family has besides: grouped-query heads and a head width of its own are in all of them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "olmo2": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False},
    "gemma2": {
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 8,
    },
}
# Variants of families: biases, and scaled rotary frequencies beyond the positions of pre-training.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama-biases": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 16,
    },
    "qwen3-yarn": {
        "model_type": "qwen3",
        "attention_bias": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "phi3-longrope": {
        "model_type": "phi3",
        "tie_word_embeddings": False,
        "head_dim": 8,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.2], "long_factor": [2.0, 5.0]},
    },
}
DEFAULT = ["q_proj", "v_proj"]
# The first key that matches counts, and a key may be of one layer.
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 5, r"layers\.1\.self_attn\.v_proj": 2},
    "alpha_pattern": {r"layers\.0\..*": 7, "v_proj": 2},
}
# The seven projections of Llama and most families.
LLAMA_TARGETS = list(model_projections(ModelConfig(VOCAB, 32, 48, 2, 4, 2, 12)))


@dataclass(frozen=True)
class Base:
    """A random base model, ours and theirs."""

    folder: Path
    config: ModelConfig
    params: Params

    def theirs(self) -> Any:
        """A fresh model of transformers: peft changes the one that it is given."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.folder, attn_implementation="eager", dtype=torch.float32
        )


def make_bases(tmp_path_factory: Any) -> Callable[[str], Base]:
    """family → `Base`, made once each."""
    made: dict[str, Base] = {}

    def base(family: str) -> Base:
        from transformers import AutoConfig, AutoModelForCausalLM

        if family not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(family)
            fields = {"model_type": family, **SHAPE, **(FAMILIES | VARIANTS)[family]}
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
            with torch.no_grad():  # norms and biases start at constants, which would hide a mistake in them
                for value in model.parameters():
                    if value.ndim == 1:
                        value.add_(0.2 * torch.randn_like(value))
            model.save_pretrained(folder)
            config = ModelConfig.from_hf(folder)
            made[family] = Base(folder, config, load_params(folder, config))
        return made[family]

    return base


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB, (ROWS, LENGTH), dtype=np.int32)


@partial(jax.jit, static_argnums=1)
def compute(params: Params, config: ModelConfig, adapter: Adapter | None) -> jax.Array:
    ids = jnp.asarray(tokens())
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    until = jnp.full_like(ids, LENGTH)
    return unembed(params, config, forward(params, config, ids, positions, until, adapter=adapter))


def ours(base: Base, adapter: Adapter | None, params: Params | None = None) -> np.ndarray:
    return np.asarray(compute(params or base.params, base.config, adapter))


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens()).long()).logits.float().numpy()


def assert_same_logits(got: np.ndarray, expected: np.ndarray, bound: float = 2e-5) -> None:
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


def spec_of(**changes: Any) -> LoraSpec:
    return LoraSpec.model_validate(
        {"r": 3, "lora_alpha": 5, "lora_dropout": 0, "target_modules": DEFAULT} | changes
    )


def targets_of(base: Base, which: str) -> list[str]:
    """The targets of a test: "all" projections of the model, or those ("qv") that make queries and values."""
    names = list(model_projections(base.config))
    return names if which == "all" else [name for name in names if name in (*DEFAULT, "qkv_proj")]


def busy_adapter(base: Base, spec: LoraSpec, seed: int = 0) -> Adapter:
    """An adapter that changes something in every part, DoRA's magnitudes too."""
    adapter = init_adapter(base.config, spec, jax.random.key(seed), params=base.params)
    leaves, tree = jax.tree.flatten(adapter)
    rng = np.random.default_rng(seed)
    busy = jax.tree.unflatten(
        tree, [leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    )
    ranks = layer_ranks(spec.model_copy(update={"layers_to_transform": None}), list(busy.weights), 2)
    weights = {}
    for target, pair in busy.weights.items():
        used = np.arange(pair.a.shape[1]) < np.array([rank for rank, _ in ranks[target]])[:, None]
        weights[target] = pair.replace(a=pair.a * used[:, :, None], b=pair.b * used[:, None, :])
    return busy.replace(weights=weights)


def read_by_peft(base: Base, folder: Path, trainable: bool = False) -> Any:
    """Load a folder with peft, which must have nothing to remark."""
    from peft import PeftModel

    model = base.theirs()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def made_by_peft(base: Base, folder: Path, dtype: Any = torch.float32, **settings: Any) -> Any:
    """A random adapter of peft's over `base`, saved by peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": DEFAULT, "init_lora_weights": False} | settings
    model = get_peft_model(base.theirs(), LoraConfig(**settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                # Rounded to what the file will hold, so that the model in memory is the one in the file.
                value.copy_((value + 0.1 * torch.randn_like(value)).to(dtype).float())
    if dtype != torch.float32:
        narrow = {n: v.to(dtype) for n, v in model.state_dict().items()}
        model.save_pretrained(str(folder), state_dict=narrow)
    else:
        model.save_pretrained(str(folder))
    return model


KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_rslora": True, "use_dora": True},
}
