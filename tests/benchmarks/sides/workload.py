"""The work that both sides of a benchmark do: the model's shape, the token ids, the labels.

Batches are like those of retrieval-augmented fine-tuning: a long prompt without loss, then a short answer.
Weights come from a seeded generator and not from a file, so that either side makes the very same ones without
compiling or keeping anything for it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import at_least_one

WEIGHT_BOUND = 0.02 * 3**0.5  # uniform in ±bound: standard deviation 0.02, as Llama is initialised
ADAPTER_B_BOUND = 0.01  # B starts at zero in practice; here A must have a gradient from the first step on
TARGETS = ("q_proj", "v_proj")
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def write_config(folder: Path, shape: dict[str, int], positions: int) -> None:
    """``config.json`` of an untied Llama: all that either side needs to know of the model."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": max(positions, 2048),
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps({**fields, **shape}))


def token_ids(settings: dict[str, Any], step: int) -> np.ndarray:
    """Random token ids of one step, int32 [batch, sequence]."""
    rng = np.random.default_rng([settings["seed"], step])
    shape = (settings["batch"], settings["sequence"])
    return rng.integers(3, settings["shape"]["vocab_size"], shape, dtype=np.int32)


def first_supervised(settings: dict[str, Any]) -> int:
    """Number of the first token with a loss; the very first of a sequence never has one."""
    return max(1, settings["sequence"] - (settings["supervised"] or settings["sequence"]))


def random_values(name: str, layer: int, shape: Sequence[int], bound: float) -> np.ndarray:
    """Float32 values in ±bound of one tensor; `name` as in `LayerParams`, layer 0 for what is in none."""
    rng = np.random.default_rng(zlib.crc32(f"{name}/{layer}".encode()))
    values = rng.random(shape, np.float32)
    values -= 0.5
    values *= 2 * bound
    return values


def layer_kinds(settings: dict[str, Any]) -> int:
    """How many layers are made; further ones repeat them in turn (a large model is made in seconds so)."""
    return min(settings.get("layer_kinds") or 1000, settings["shape"]["num_hidden_layers"])


def supervised_tokens(text: str) -> int:
    """Command-line value of --supervised: a number, or "all" as 0."""
    if text == "all":
        return 0
    return at_least_one(text)


class Tokenised(NamedTuple):
    """One example: prompt int32 [T] with BOS and without loss, answer int32 with EOS and loss."""

    id: str
    context: str
    prompt: np.ndarray
    answer: np.ndarray


def write_examples(path: Path, rows: Sequence[Tokenised]) -> None:
    """Examples as an ``.npz`` that every side reads."""
    tokens = {
        f"{part}{n:06}": getattr(row, part) for n, row in enumerate(rows) for part in ("prompt", "answer")
    }
    names = {name: np.asarray([getattr(row, name) for row in rows]) for name in ("id", "context")}
    np.savez(path, **names, **tokens)


def read_examples(path: Path) -> list[Tokenised]:
    """What `write_examples` wrote."""
    with np.load(path) as file:
        names = zip(file["id"].tolist(), file["context"].tolist(), strict=True)
        return [
            Tokenised(*name, file[f"prompt{n:06}"], file[f"answer{n:06}"]) for n, name in enumerate(names)
        ]


def systematic(count: int, rounds: int, per_round: int) -> list[list[int]]:
    """Which of `count` batches, sorted by size, the rounds take: evenly spread ones, each round some of all.

    Round r takes the middles of every `rounds`-th of rounds x per_round equal parts.
    """
    parts = rounds * per_round
    middles = [min(int((part + 0.5) * count / parts), count - 1) for part in range(parts)]
    return [middles[start::rounds] for start in range(rounds)]
