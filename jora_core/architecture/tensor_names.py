"""Hugging Face's names and shapes of all weights, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from jora_core.architecture.model_config import ModelConfig


@dataclass(frozen=True)
class TensorRow:
    """One field of `Params` (or of its layers): Hugging Face module, and shape as names of widths.

    `when` and `unless` name a flag of `ModelConfig` that must be on, or off, for a model to have the tensor.
    """

    field: str
    module: str
    shape: tuple[str, ...]
    per_layer: bool = True
    kind: str = "weight"
    when: str | None = None
    unless: str | None = None

    def name(self, layer: int = 0) -> str:
        """The tensor's name in a Hugging Face checkpoint."""
        return f"{self.prefix(layer)}.{self.kind}"

    def prefix(self, layer: int = 0) -> str:
        """The module's name in a Hugging Face model."""
        return f"model.layers.{layer}.{self.module}" if self.per_layer else self.module

    def size(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape of one (layer's) tensor."""
        widths = {
            "V": config.vocab_size,
            "D": config.hidden_size,
            "F": config.intermediate_size,
            "NH": config.num_heads * config.head_dim,
            "KH": config.num_kv_heads * config.head_dim,
            "H": config.head_dim,
        }
        return tuple(widths[axis] for axis in self.shape)

    def belongs(self, config: ModelConfig) -> bool:
        """Whether a model of this config has the tensor."""
        wanted = self.when is None or bool(getattr(config, self.when))
        return wanted and (self.unless is None or not getattr(config, self.unless))


TENSORS: tuple[TensorRow, ...] = (
    TensorRow("embedding", "model.embed_tokens", ("V", "D"), per_layer=False),
    TensorRow("attention_norm", "input_layernorm", ("D",)),
    TensorRow("q_proj", "self_attn.q_proj", ("NH", "D")),
    TensorRow("k_proj", "self_attn.k_proj", ("KH", "D")),
    TensorRow("v_proj", "self_attn.v_proj", ("KH", "D")),
    TensorRow("o_proj", "self_attn.o_proj", ("D", "NH")),
    TensorRow("q_bias", "self_attn.q_proj", ("NH",), kind="bias", when="qkv_bias"),
    TensorRow("k_bias", "self_attn.k_proj", ("KH",), kind="bias", when="qkv_bias"),
    TensorRow("v_bias", "self_attn.v_proj", ("KH",), kind="bias", when="qkv_bias"),
    TensorRow("q_norm", "self_attn.q_norm", ("H",), when="qk_norm"),
    TensorRow("k_norm", "self_attn.k_norm", ("H",), when="qk_norm"),
    # Hugging Face's "post attention" names the norm before the MLP in most families, and what it says in
    # Gemma 2 and 3.
    TensorRow("mlp_norm", "post_attention_layernorm", ("D",), unless="post_norms"),
    TensorRow("attention_post_norm", "post_attention_layernorm", ("D",), when="post_norms"),
    TensorRow("mlp_norm", "pre_feedforward_layernorm", ("D",), when="post_norms"),
    TensorRow("mlp_post_norm", "post_feedforward_layernorm", ("D",), when="post_norms"),
    TensorRow("gate_proj", "mlp.gate_proj", ("F", "D")),
    TensorRow("up_proj", "mlp.up_proj", ("F", "D")),
    TensorRow("down_proj", "mlp.down_proj", ("D", "F")),
    TensorRow("final_norm", "model.norm", ("D",), per_layer=False),
    TensorRow("head", "lm_head", ("V", "D"), per_layer=False, unless="tie_embeddings"),
)
_ROWS = {row.field: row for row in TENSORS}


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each field of `LayerParams` that a model of this config has, without the layer axis."""
    return {row.field: row.size(config) for row in model_rows(config) if row.per_layer}


def projection_shape(config: ModelConfig, target: str) -> tuple[int, int]:
    """(out, in) of one projection."""
    out_width, in_width = _ROWS[target].size(config)
    return out_width, in_width


def lora_tensor_name(layer: int, target: str, part: str) -> str:
    """PEFT's name of one adapter tensor; `part` is "A", "B" or "magnitude" (DoRA's, which has no .weight)."""
    tensor = "lora_magnitude_vector" if part == "magnitude" else f"lora_{part}.weight"
    return f"base_model.model.{_ROWS[target].prefix(layer)}.{tensor}"


def model_rows(config: ModelConfig) -> list[TensorRow]:
    """The rows of a model of this config: a tied model has no head of its own, few have biases."""
    return [row for row in TENSORS if row.belongs(config)]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config must hold."""
    expected = {}
    for row in model_rows(config):
        for layer in range(config.num_layers if row.per_layer else 1):
            expected[row.name(layer)] = row.size(config)
    return expected
