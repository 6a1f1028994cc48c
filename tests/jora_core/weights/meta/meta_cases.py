"""Tiny Llama models in Meta's layout, made from models of transformers."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch

from tests.jora_core.family_cases import CASES, make_model
from tests.jora_core.weights.gguf.gguf_cases import TEXTS

# Meta's name of each module in a layer, and the axis along which its devices share the weight.
LAYER = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}


def tiny_llama(folder: Path, rows: int, **changes: Any) -> Any:
    """A Llama whose heads are as wide as width / heads, as in Meta's code."""
    fields = CASES["llama"] | {"vocab_size": rows, "head_dim": 16, "rms_norm_eps": 1e-5} | changes
    return make_model(folder, fields)


def write_meta(
    folder: Path,
    model: Any,
    shards: int = 1,
    embedding_axis: int = 1,
    dtype: Any = torch.float32,
    **params: Any,
) -> None:
    """Write a model of transformers as Meta's code would have saved it on so many devices."""
    config = model.config
    names = {"model.embed_tokens.weight": ("tok_embeddings", embedding_axis)}
    names |= {"model.norm.weight": ("norm", None), "lm_head.weight": ("output", 0)}
    for layer in range(config.num_hidden_layers):
        for theirs, (ours, axis) in LAYER.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = (f"layers.{layer}.{ours}", axis)
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, value in model.state_dict().items():
        ours, axis = names[name]
        if ours.endswith(("wq", "wk")):
            value = to_pairs(value, config.hidden_size // config.num_attention_heads)
        pieces = [value] * shards if axis is None else torch.chunk(value, shards, axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[f"{ours}.weight"] = piece.to(dtype).clone()
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        part["rope.freqs"] = torch.ones(8)
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    fields = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": -1,
        "multiple_of": 32,
        "norm_eps": config.rms_norm_eps,
    }
    (folder / "params.json").write_text(json.dumps(fields | params))


def to_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The rows of q or k with neighbouring pairs where transformers has halves, one row after the other."""
    rows = []
    for head in range(len(weight) // head_dim):
        for pair in range(head_dim // 2):
            rows += [weight[head * head_dim + pair], weight[head * head_dim + head_dim // 2 + pair]]
    return torch.stack(rows)


def sentencepiece_model(folder: Path) -> int:
    """Write a small SentencePiece model as Llama 2's; return the number of its pieces."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    raw = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=raw,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(raw.getvalue())
    return int(SentencePieceProcessor(model_proto=raw.getvalue()).get_piece_size())


def rank_list(folder: Path, tokens: list[bytes]) -> None:
    """Write a list of ranks as Llama 3's."""
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(tokens)]
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
