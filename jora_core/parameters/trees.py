"""Parameter trees: the weights of a decoder, an adapter, a quantized weight."""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LoraWeights:
    """Adapter matrices of one projection, stacked over layers: a [L, R, in], b [L, out, R].

    DoRA also has a magnitude [L, out]; LoRA has None.
    """

    a: jax.Array
    b: jax.Array
    magnitude: jax.Array | None = None


@flax.struct.dataclass
class Adapter:
    """Adapter of a model: the matrices of each projection by name. All other fields are static.

    Where layers of a target have different ranks, the rows of A and columns of B beyond a layer's rank are
    zero. Their gradients are zero too, so they stay zero in training.

    Attributes:
        weights: matrices by projection.
        scale: factor of the update.
        dropout: rate of dropout on the adapter's input.
        scales: factors of the layers of those targets that have others than `scale`.
    """

    weights: dict[str, LoraWeights]
    scale: float = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    # Tuples, because a static field must be hashable.
    scales: tuple[tuple[str, tuple[float, ...]], ...] = flax.struct.field(pytree_node=False, default=())

    def scale_of(self, target: str, layer: jax.Array) -> float | jax.Array:
        """Return the factor of a target's update in a layer, a number where all layers have the same.

        Args:
            target: name of the projection.
            layer: number of the layer.
        """
        factors = dict(self.scales).get(target, (self.scale,))
        return factors[0] if len({*factors}) == 1 else jnp.asarray(factors, jnp.float32)[layer]


def reads_weights(*adapters: Adapter | None) -> bool:
    """Return whether an adapter reads the base weights beside their products: DoRA's norm does."""
    pairs = (pair for adapter in adapters if adapter is not None for pair in adapter.weights.values())
    return any(pair.magnitude is not None for pair in pairs)


@flax.struct.dataclass
class LayerParams:
    """Weights of all decoder layers, each with a leading layer axis L.

    A weight is None in models without it; see the table in `jora_core.architecture.tensor_names`.
    """

    # Checkpoints of full training number the leaves in this order: new fields come last.
    attention_norm: jax.Array | None = None  # [L, D]
    q_proj: jax.Array | None = None  # [L, N*H, D]
    k_proj: jax.Array | None = None  # [L, K*H, D]
    v_proj: jax.Array | None = None  # [L, K*H, D]
    o_proj: jax.Array | None = None  # [L, D, N*H]
    mlp_norm: jax.Array | None = None  # [L, D]
    gate_proj: jax.Array | None = None  # [L, F, D]
    up_proj: jax.Array | None = None  # [L, F, D]
    down_proj: jax.Array | None = None  # [L, D, F]
    q_bias: jax.Array | None = None  # [L, N*H]
    k_bias: jax.Array | None = None  # [L, K*H]
    v_bias: jax.Array | None = None  # [L, K*H]
    q_norm: jax.Array | None = None  # [L, H]
    k_norm: jax.Array | None = None  # [L, H]
    attention_post_norm: jax.Array | None = None  # [L, D]
    mlp_post_norm: jax.Array | None = None  # [L, D]
    qkv_proj: jax.Array | None = None  # [L, N*H + 2*K*H, D], rows of q, then k, then v
    gate_up_proj: jax.Array | None = None  # [L, 2*F, D], rows of gate, then up
    o_bias: jax.Array | None = None  # [L, D]
    gate_bias: jax.Array | None = None  # [L, F]
    up_bias: jax.Array | None = None  # [L, F]
    down_bias: jax.Array | None = None  # [L, D]


@flax.struct.dataclass
class Params:
    """All weights of one model; `head` is None in tied models, whose output projection is the embedding."""

    embedding: jax.Array  # [V, D]
    layers: LayerParams
    final_norm: jax.Array  # [D]
    head: jax.Array | None = None  # [V, D]


Kind = Literal["int8", "nf4"]


@flax.struct.dataclass
class QuantizedWeight:
    """A weight [..., out, in] in 8 or 4 bits, which takes the place of an array in `LayerParams`.

    Codes and scale have the same leading layer axis, so ``jax.tree.map(lambda x: x[i], w)`` is one layer.

    Attributes:
        codes: int8: int8 [..., out, in]. nf4: uint8 [..., out, blocks * 32], byte j of a block holds its
            element j in the low bits and element j + 32 in the high ones.
        scale: float32. int8: [..., out], the step of a code. nf4: [..., out, blocks], the largest magnitude
            of a block.
        padding: nf4: number of elements of the last block beyond the weight's inputs; 0 where inputs are
            split.
    """

    codes: jax.Array
    scale: jax.Array
    kind: Kind = flax.struct.field(pytree_node=False)
    padding: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain weight."""
        width = self.codes.shape[-1]
        return (*self.codes.shape[:-1], width if self.kind == "int8" else 2 * width - self.padding)
