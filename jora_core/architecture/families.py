"""The supported Hugging Face architectures, as one table of their differences.

A `Family` holds the decoder parts of an architecture, the defaults of `transformers` for fields that are
missing in ``config.json``, and the field values that leave the computation unchanged. Any other value is
refused by name, so every model that loads is computed exactly. A family that differs from Llama only in such
values needs only a new row.

Sources: ``configuration_*.py`` and ``modeling_*.py`` of each model in transformers 5; the papers are Llama 3
(arXiv 2407.21783), Mistral 7B (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388), Gemma (2403.08295),
Gemma 2 (2408.00118), Gemma 3 (2503.19786), OLMo 2 (2501.00656) and Phi-3 (2404.14219).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from jora_core.base.errors import InputError

Activation = Literal["silu", "gelu_tanh"]
Fields = Mapping[str, Any]
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"


# A function and not None, because `write_windows` recognizes families without windows by this function.
def no_layer(layer: int, fields: Fields) -> bool:
    """Say that no layer has a window."""
    return False


def _every_layer(layer: int, fields: Fields) -> bool:
    return fields["sliding_window"] is not None


def _upper_layers(layer: int, fields: Fields) -> bool:
    """Say whether a Qwen layer has a window: if windows are on, the layers from max_window_layers on do."""
    return fields["sliding_window"] is not None and layer >= fields["max_window_layers"]


def _all_but_every_nth(layer: int, fields: Fields) -> bool:
    """Say whether a Gemma layer has a window: all layers but the last one of each pattern."""
    # Counted from 1, as in transformers: with a pattern of 6, layers 5, 11, 17 attend to all tokens.
    return (layer + 1) % fields["sliding_window_pattern"] != 0


@dataclass(frozen=True, kw_only=True)
class DecoderParts:
    """The parts of the decoder that a family fixes. Only biases follow from fields of ``config.json``.

    `ModelConfig` holds a copy of these parts. The decoder and the table of tensors read that copy.

    Attributes:
        activation: activation function of the MLP's gate.
        qkv_bias: q, k and v have biases.
        output_bias: the output projection of attention has a bias.
        mlp_bias: the projections of the MLP have biases.
        qk_norm: q and k are normalized over each head.
        wide_qk_norm: q and k are normalized over all heads together.
        norm_offset: norms multiply by 1 + weight.
        wide_norm: norms multiply by their weight in float32, before the cast to the type of the input.
        no_pre_norms: no norms on the inputs of attention and MLP.
        post_norms: norms on the outputs of attention and MLP.
        fused_projections: one matrix makes q, k and v, and one makes gate and up.
    """

    activation: Activation = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    wide_qk_norm: bool = False
    norm_offset: bool = False
    wide_norm: bool = False
    no_pre_norms: bool = False
    post_norms: bool = False
    fused_projections: bool = False

    def parts(self) -> dict[str, Any]:
        """The values of all parts, by attribute name."""
        return {each.name: getattr(self, each.name) for each in fields(DecoderParts)}


@dataclass(frozen=True)
class Family(DecoderParts):
    """One supported architecture, a row of the table of families.

    Attributes:
        model_type, architecture: the values of these fields in ``config.json``.
        title: name of the family in prose.
        scaled_embedding: token embeddings are multiplied by the square root of the width.
        has_window: function (layer, fields) → whether the layer has a window, used without layer_types.
        names_layers: whether the family has the field layer_types.
        local_rope: whether layers with a window have rotary frequencies of their own.
        defaults: value of each field that is missing in a ``config.json``.
        accepted: supported values of fields. `ModelConfig.to_hf` writes the first one, and no field for None.
    """

    model_type: str
    architecture: str
    title: str
    scaled_embedding: bool = False
    has_window: Callable[[int, Fields], bool] = no_layer
    names_layers: bool = False
    local_rope: bool = False
    defaults: Fields = field(default_factory=dict)
    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def complete(self, fields: Fields) -> dict[str, Any]:
        """Return the fields of a ``config.json`` with the family's defaults for missing fields."""
        # null is as absent, but where it says "off" or "as many as heads".
        given = {name: v for name, v in fields.items() if v is not None or name in _MEANINGFUL_NULLS}
        # The file has precedence over the family's defaults, and these over the defaults of all families.
        complete = {**_DEFAULTS, **self.defaults, **given}
        # Qwen's published configs keep a width although windows are off.
        if complete.get("use_sliding_window") is False:
            complete["sliding_window"] = None
        return complete

    def check(self, fields: Fields, where: str) -> None:
        """Refuse field values of a ``config.json`` that this decoder would compute differently.

        Raises:
            InputError: a value is refused. The message names the field, the value and the accepted values.
        """
        for name, accepted in self._rules().items():
            # A missing field has the family's default, which this decoder computes.
            # Python compares 0 and False as equal, so both spellings of "off" in a file pass.
            value = fields.get(name)
            # null is as absent, but where it says "off".
            if value is None and name not in _MEANINGFUL_NULLS:
                continue
            if name in fields and value not in accepted:
                expected = " or ".join(json.dumps(value) for value in accepted)
                raise InputError(
                    f"{where}: {name}={json.dumps(value)} is not supported for {self.title} models; "
                    f"expected {expected}"
                )

    def constants(self) -> dict[str, Any]:
        """Return the ``config.json`` fields whose values all supported models of this family share."""
        written = {name: accepted[0] for name, accepted in self._rules().items() if accepted[0] is not None}
        return {"model_type": self.model_type, "architectures": [self.architecture], **written}

    def _rules(self) -> dict[str, tuple[Any, ...]]:
        # A rule of the family has precedence over the neutral rule: Qwen2 has attention_bias.
        foreign = {name: rule for name, rule in _NEUTRAL.items() if name not in self.defaults}
        return foreign | dict(self.accepted)


# Widths and the number of layers have no default: a config without these fields describes no model.
_DEFAULTS: Fields = MappingProxyType(
    {
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
    }
)
_MEANINGFUL_NULLS = frozenset(
    {"sliding_window", "num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping"}
)
# Fields that may change the computation, with the values that do not. A family that reads such a field has a
# default for the field and is exempt.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention_bias": (False, None),
        "attention_dropout": (0.0, None),
        "mlp_bias": (None, False),
        # Embedding models made of Gemma 3.
        "use_bidirectional_attention": (None, False),
        "partial_rotary_factor": (None, 1),
        "rope_interleaved": (None, False),
        "rope_local_base_freq": (None,),
        # In a family without windows, a window would be silently ignored, and long rows computed wrongly.
        "sliding_window": (None,),
        "use_sliding_window": (None, False),
        "sliding_window_pattern": (None,),
        "layer_types": (None,),
        # SmolLM3 and Llama 4.
        "no_rope_layers": (None,),
        "attention_chunk_size": (None,),
        # Gemma.
        "query_pre_attn_scalar": (None,),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        # Norms on q and k under other names, and OLMo's clipping.
        "qk_layernorm": (None, False),
        "use_qk_norm": (None, False),
        "clip_qkv": (None,),
        # Granite.
        "attention_multiplier": (None,),
        "embedding_multiplier": (None, 1),
        "residual_multiplier": (None, 1),
        "logits_scaling": (None, 1),
        # Mixtures of experts: Qwen, Mixtral.
        "num_experts": (None, 0),
        "num_local_experts": (None, 0),
        # Models of images and text nest the decoder's config.
        "text_config": (None,),
        "vision_config": (None,),
    }
)
# As in Qwen2Config: the width is set although the switch is off.
_QWEN_WINDOWS = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
# Gemma 2 has no field for the pattern: its code gives every second layer full attention.
_GEMMA2_WINDOWS = {"sliding_window": 4096, "sliding_window_pattern": 2, "layer_types": None}
_GELU = "gelu_pytorch_tanh"
_FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        "Llama",
        defaults={"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        accepted={"hidden_act": ("silu",)},
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        "Mistral",
        has_window=_every_layer,
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
        accepted={"hidden_act": ("silu",), "attention_bias": (None, False)},
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2",
        qkv_bias=True,
        has_window=_upper_layers,
        names_layers=True,
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, **_QWEN_WINDOWS},
        # The biases of q, k and v are a fixed part of the architecture.
        accepted={
            "hidden_act": ("silu",),
            "attention_bias": (None, True),
            "use_sliding_window": (False, True),
        },
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3",
        qk_norm=True,
        has_window=_upper_layers,
        names_layers=True,
        defaults={
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "attention_bias": False,
            **_QWEN_WINDOWS,
        },
        accepted={"hidden_act": ("silu",), "use_sliding_window": (False, True)},
    ),
    Family(
        "gemma",
        "GemmaForCausalLM",
        "Gemma",
        activation="gelu_tanh",
        # Gemma stores its norm weights minus one: a norm of zeros changes nothing.
        norm_offset=True,
        scaled_embedding=True,
        defaults={
            "num_key_value_heads": 16,
            # Not hidden_size / heads: Gemma 7B has 3072 / 16 = 192.
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
        # The first releases write "gelu" for the tanh approximation of GELU.
        accepted={"hidden_act": (_GELU, "gelu"), "hidden_activation": (_GELU, None)},
    ),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma 2",
        activation="gelu_tanh",
        norm_offset=True,
        post_norms=True,
        scaled_embedding=True,
        has_window=_all_but_every_nth,
        names_layers=True,
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            # Scores are divided by its root, not by that of head_dim: the 27B model has 144 and heads of 128.
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            **_GEMMA2_WINDOWS,
        },
        accepted={
            "hidden_act": (None, _GELU),
            "hidden_activation": (_GELU,),
            "sliding_window_pattern": (None, 2),
        },
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "Gemma 3",
        activation="gelu_tanh",
        qk_norm=True,
        norm_offset=True,
        post_norms=True,
        scaled_embedding=True,
        has_window=_all_but_every_nth,
        names_layers=True,
        local_rope=True,
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            # Gemma 3 has norms on q and k in place of the soft-caps of Gemma 2.
            "final_logit_softcapping": None,
            "rope_theta": 1000000.0,
            # The short base is for layers with a window: a window never spans a long distance.
            "rope_local_base_freq": 10000.0,
            **_GEMMA2_WINDOWS,
            "sliding_window_pattern": 6,
        },
        # transformers reads attn_logit_softcapping and does not apply it: only its absence is unambiguous.
        accepted={"hidden_act": (None, _GELU), "hidden_activation": (_GELU,)},
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        "OLMo 2",
        wide_qk_norm=True,
        # Differs from Llama's norm in narrow types only, by one rounding.
        wide_norm=True,
        no_pre_norms=True,
        post_norms=True,
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        accepted={"hidden_act": ("silu",)},
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        "Phi-3",
        fused_projections=True,
        has_window=_every_layer,
        defaults={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        },
        # Dropout of the base model. Training would need it; the published models have it off.
        accepted={"hidden_act": ("silu",), "resid_pdrop": (0.0, None), "embd_pdrop": (0.0, None)},
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in _FAMILIES})


# Why a model that users often bring is not supported. A model_type begins with the key.
_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "mixtral": "it is a mixture of experts; a dense Mistral model is",
        "qwen2_moe": "it is a mixture of experts; a dense Qwen2 model is",
        "qwen3_moe": "it is a mixture of experts; a dense Qwen3 model is",
        "qwen3_next": "it has linear attention and experts; a dense Qwen3 model is",
        "qwen3_5": "it has linear attention; a Qwen3 model is",
        "olmoe": "it is a mixture of experts; OLMo 2 is",
        "phimoe": "it is a mixture of experts; Phi-3 is",
        "granitemoe": "it is a mixture of experts",
        "gpt_oss": "it is a mixture of experts",
        "deepseek": "it has experts or latent attention; a distilled Llama or Qwen2 model is",
        "llama4": "it has experts and chunked attention; Llama 3 is",
        "gemma3n": "it has per-layer embeddings; Gemma 3 is",
        "gemma4": "its layers differ from those of Gemma 3; Gemma 3 is",
        "olmo3": "its windows and norms differ from those of OLMo 2; OLMo 2 is",
        "smollm3": "some of its layers have no rotary positions; SmolLM2 (Llama) is",
        "granite": "it multiplies embeddings, residuals and logits by factors of its own",
        "cohere": "its blocks are parallel, with layer norms",
        "gpt2": "it has learned positions and layer norms",
        "gpt_neox": "its blocks are parallel, with layer norms",
        "falcon": "its blocks are parallel, with layer norms",
        "mamba": "it is no transformer",
        "mllama": "it reads images between its layers; Llama 3.1 and 3.2 (text) are",
        "phi4mm": "it reads images and sound by adapters of its own; Phi-4-mini is",
    }
)


def find_family(fields: Fields, where: str) -> Family:
    """Return the family that a ``config.json`` names.

    Raises:
        InputError: no model_type, or an architecture that is not supported.
    """
    model_type, named = fields.get("model_type"), fields.get("architectures") or []
    architectures = [named] if isinstance(named, str) else named if isinstance(named, list) else [str(named)]
    # Any case: the first conversions of Llama wrote LLaMAForCausalLM.
    spelt = {str(name).lower() for name in architectures}
    if model_type is None:
        family = next((each for each in _FAMILIES if each.architecture.lower() in spelt), None)
        if family is None:
            raise InputError(f"{where}: field model_type is missing; add it, such as model_type: llama")
        return family
    family = FAMILIES.get(model_type.lower()) if isinstance(model_type, str) else None
    # model_type alone is not enough: "llama" is also LlamaForSequenceClassification, which has another head.
    if family is None or (spelt and family.architecture.lower() not in spelt):
        found = ", ".join(map(str, architectures)) or "of no name"
        known = ", ".join(f"{each.model_type} ({each.architecture})" for each in _FAMILIES)
        kind = model_type if isinstance(model_type, str) else ""
        reason = next((f": {why}" for name, why in _REASONS.items() if kind.startswith(name)), "")
        if any(name.endswith(("forsequenceclassification", "fortokenclassification")) for name in spelt):
            reason = ": it classifies and has no language head"
        raise InputError(
            f"{where}: architecture {model_type} ({found}) is not supported{reason}; supported are {known}"
        )
    return family


def refuse_quantized(fields: Fields, where: str) -> None:
    """Refuse a checkpoint whose weights are stored as packed codes.

    Raises:
        InputError: naming the field, the method and what to take instead.
    """
    for name in ("quantization_config", "compression_config"):
        settings = fields.get(name)
        if settings is None:
            continue
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise InputError(
            f"{where}: {name} says that the weights are quantized ({method or 'method not named'}), and an "
            "adapter needs the unquantized ones; take the original repository (bf16), or dequantize the "
            "model first. To train over 8 or 4 bits, set model.quantization to int8 or nf4"
        )
