"""The table of all weights: name, shape, and the models that have each weight.

Each row of `TENSORS` is one field of `Params` or `LayerParams`. Other modules read the table: loading, saving
and merging use the names, initialization uses the shapes, placement on a mesh uses the width of each axis,
quantization and adapters use the rows of projections. A new kind of weight is a new row.
`jora_core.architecture.model_tensors` gives the rows of one model with their sizes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorRow:
    """One weight of the table: a field of `Params` or `LayerParams`.

    Attributes:
        field: name in `Params` or `LayerParams`.
        module: name of the Hugging Face module; where `per_layer`, its name within a layer.
        shape: the width of each axis by letter (V vocabulary, D model, F feed-forward, H one head, NH all
            query heads, KH all key/value heads). A sum such as "NH+KH+KH" is a fused axis.
        per_layer: whether each layer has the tensor.
        kind: the parameter of the module, "weight" or "bias".
        when: flag of `ModelConfig` that is on in models with this tensor, None for no condition.
        unless: flag of `ModelConfig` that is off in models with this tensor, None for no condition.
    """

    field: str
    module: str
    shape: tuple[str, ...]
    per_layer: bool = True
    kind: str = "weight"
    when: str | None = None
    unless: str | None = None

    def name(self, layer: int = 0) -> str:
        """Return the tensor's name in a Hugging Face checkpoint."""
        return f"{self.prefix(layer)}.{self.kind}"

    def prefix(self, layer: int = 0) -> str:
        """Return the module's name in a Hugging Face model."""
        return f"model.layers.{layer}.{self.module}" if self.per_layer else self.module

    @property
    def is_projection(self) -> bool:
        """Whether the weight is a matrix [out, in] of a layer, so that adapters and quantization apply."""
        # Norms and biases have one axis. Embedding and head are matrices, but stand outside the layers.
        return self.per_layer and len(self.shape) == 2

    @property
    def is_fused(self) -> bool:
        """Whether one matrix holds the outputs of several projections."""
        return any("+" in axis for axis in self.shape)


TENSORS: tuple[TensorRow, ...] = (
    TensorRow("embedding", "model.embed_tokens", ("V", "D"), per_layer=False),
    TensorRow("attention_norm", "input_layernorm", ("D",), unless="no_pre_norms"),
    TensorRow("q_proj", "self_attn.q_proj", ("NH", "D"), unless="fused_projections"),
    TensorRow("k_proj", "self_attn.k_proj", ("KH", "D"), unless="fused_projections"),
    TensorRow("v_proj", "self_attn.v_proj", ("KH", "D"), unless="fused_projections"),
    TensorRow("o_proj", "self_attn.o_proj", ("D", "NH")),
    # Qwen2 has biases in q, k and v only, Llama and Qwen3 with attention_bias in o too.
    TensorRow("q_bias", "self_attn.q_proj", ("NH",), kind="bias", when="qkv_bias"),
    TensorRow("k_bias", "self_attn.k_proj", ("KH",), kind="bias", when="qkv_bias"),
    TensorRow("v_bias", "self_attn.v_proj", ("KH",), kind="bias", when="qkv_bias"),
    TensorRow("o_bias", "self_attn.o_proj", ("D",), kind="bias", when="output_bias"),
    # Two rows may fill one field; `when` and `unless` let at most one of them belong to a model.
    TensorRow("q_norm", "self_attn.q_norm", ("H",), when="qk_norm"),
    TensorRow("k_norm", "self_attn.k_norm", ("H",), when="qk_norm"),
    # OLMo 2 normalizes all heads together, so the weight is as wide as the projection.
    TensorRow("q_norm", "self_attn.q_norm", ("NH",), when="wide_qk_norm"),
    TensorRow("k_norm", "self_attn.k_norm", ("KH",), when="wide_qk_norm"),
    # Hugging Face's "post attention" names the norm before the MLP in most families. Where outputs have norms
    # (Gemma 2 and 3, OLMo 2) the name is literal: the norm on the output of attention.
    TensorRow("mlp_norm", "post_attention_layernorm", ("D",), unless="post_norms"),
    TensorRow("attention_post_norm", "post_attention_layernorm", ("D",), when="post_norms"),
    TensorRow("mlp_norm", "pre_feedforward_layernorm", ("D",), when="post_norms", unless="no_pre_norms"),
    TensorRow("mlp_post_norm", "post_feedforward_layernorm", ("D",), when="post_norms"),
    TensorRow("gate_proj", "mlp.gate_proj", ("F", "D"), unless="fused_projections"),
    TensorRow("up_proj", "mlp.up_proj", ("F", "D"), unless="fused_projections"),
    TensorRow("down_proj", "mlp.down_proj", ("D", "F")),
    TensorRow("gate_bias", "mlp.gate_proj", ("F",), kind="bias", when="mlp_bias"),
    TensorRow("up_bias", "mlp.up_proj", ("F",), kind="bias", when="mlp_bias"),
    TensorRow("down_bias", "mlp.down_proj", ("D",), kind="bias", when="mlp_bias"),
    # New projections come after these: the position of a projection seeds its dropout, see `projector`.
    TensorRow("qkv_proj", "self_attn.qkv_proj", ("NH+KH+KH", "D"), when="fused_projections"),
    TensorRow("gate_up_proj", "mlp.gate_up_proj", ("F+F", "D"), when="fused_projections"),
    TensorRow("final_norm", "model.norm", ("D",), per_layer=False),
    TensorRow("head", "lm_head", ("V", "D"), per_layer=False, unless="tie_embeddings"),
)
_PROJECTION_ROWS = {row.field: row for row in TENSORS if row.is_projection}
# The projections of all families, by field: the module in a Hugging Face layer.
PROJECTIONS: dict[str, str] = {field: row.module for field, row in _PROJECTION_ROWS.items()}


def projection_row(target: str) -> TensorRow:
    """Return the table row of a projection, by its field name."""
    return _PROJECTION_ROWS[target]


def head_tensor_name() -> str:
    """Return the output projection's name in a checkpoint.

    The checkpoint of a tied model may hold this tensor too, although the model uses the embedding instead.
    """
    return next(row for row in TENSORS if row.field == "head").name()


def lora_tensor_name(layer: int, target: str, part: str) -> str:
    """Return PEFT's name of one adapter tensor.

    Args:
        layer: number of the layer, from 0.
        target: the projection's field, such as "q_proj".
        part: "A", "B", or "magnitude" (only DoRA; this name has no ".weight").
    """
    tensor = "lora_magnitude_vector" if part == "magnitude" else f"lora_{part}.weight"
    return f"base_model.model.{projection_row(target).prefix(layer)}.{tensor}"
