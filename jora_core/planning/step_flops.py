"""Floating-point operations of one training step, counted from the shape of the model.

XLA's own count (`compiled.cost_analysis()`) counts the body of a loop once, and compilers for GPUs give no
count. So operations are counted here, two for a multiply-add. A test compares the result with XLA's count on
a model without loops.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections, projection_shape
from jora_core.specs.adapter_targets import layer_ranks, lora_targets
from jora_core.specs.lora import LoraSpec

# Matrix products of blockwise attention: two forward, and five backward, which computes the scores again.
_ATTENTION_FORWARD, _ATTENTION_BACKWARD = 2, 5


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations for one token: forward, backward, and rematerialization (`recompute`)."""

    forward: float
    backward: float
    recompute: float

    @property
    def total(self) -> float:
        """Sum of forward, backward and rematerialization."""
        return self.forward + self.backward + self.recompute

    def as_dict(self) -> dict[str, float]:
        """Return all counts by name, and their total."""
        return {**asdict(self), "total": self.total}


def step_flops(
    config: ModelConfig, lora: LoraSpec | None, remat: str, seq_len: int, answer_share: float
) -> StepFlops:
    """Return the floating-point operations of a training step for one token.

    Args:
        config: the model's.
        lora: settings of the adapter; None where all weights are trained.
        remat: rematerialization policy, see `jora_core.model.rematerialization`.
        seq_len: tokens of a row.
        answer_share: share of supervised positions; only these are projected to the vocabulary.
    """
    projections = model_projections(config)
    sizes = {name: 2 * _product(projection_shape(config, name)) for name in projections}
    layer = sum(sizes.values())
    attention = _attention_flops(config, seq_len)
    low_rank = 0.0
    if lora is not None:
        targets = lora_targets(lora, config)
        ranks = layer_ranks(lora, targets, config.num_layers)
        # All layers of a target are as wide as the widest.
        widths = {name: max(rank for rank, _ in each) for name, each in ranks.items()}
        low_rank = sum(2 * widths[name] * sum(projection_shape(config, name)) for name in targets)
    head = 2 * config.vocab_size * config.hidden_size * answer_share
    layers = config.num_layers
    forward = layers * (layer + low_rank + attention * _ATTENTION_FORWARD) + head
    # The gradient of a product's input costs one product. A trained weight's gradient costs one more.
    weight_gradients = layer if lora is None else 0.0
    per_layer = layer + weight_gradients + 2 * low_rank + attention * _ATTENTION_BACKWARD
    backward = layers * per_layer + head * (2 if lora is None else 1)
    # The MLP's products that the down projection reads: gate and up, fused or apart.
    mlp = sum(
        size for name, size in sizes.items() if projections[name].startswith("mlp.") and name != "down_proj"
    )
    again = {
        "none": 0.0,
        "dots": 0.0,
        "attention": mlp,
        # Neither the last product of the layer nor its low-rank part is needed again.
        "full": layer - sizes["down_proj"] + low_rank + attention * _ATTENTION_FORWARD,
    }
    recompute = layers * again["full" if remat == "offload" else remat]
    return StepFlops(forward, backward, recompute)


def _attention_flops(config: ModelConfig, seq_len: int) -> float:
    """Return the operations of one product of causal attention, as a mean over tokens and layers."""
    windows = getattr(config, "windows", ()) or (0,) * config.num_layers
    keys = 0.0
    for window in windows:
        seen = min(window or seq_len, seq_len)
        # The first `seen` queries see 1, 2, …, `seen` keys, and all later ones see `seen`.
        keys += (seen * (seen + 1) / 2 + (seq_len - seen) * seen) / seq_len
    return 2 * config.num_heads * config.head_dim * keys / len(windows)


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
