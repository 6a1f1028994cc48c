"""The decoder of every family: pure functions over stacked parameters, one `lax.scan` over layers.

Projections keep Hugging Face's orientation ``[out, in]`` after a leading layer axis. So weights are read,
merged and written without a transposition. This is also the fastest orientation for training on a CPU: the
weight gradient of ``x Wᵀ`` is one matrix product, 1.5 times as fast as for ``[in, out]`` at 4,096 × 128 ×
344.

The code computes one device's part of the work (see `jora_core.parallel.placements`), so projections and
heads may be the device's share. With sequence parallelism (arXiv:2205.05198) the residual stream x is split
by tokens, [B, T/N, D] instead of [B, T, D]. Rotary positions use Hugging Face's layout, which rotates the
first half of a head with the second half. Norms are computed in float32. Families differ in fields of the
config. A weight that a family does not have is None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.tensor_names import PROJECTIONS
from jora_core.model.attention_slots import Slots, take_slots
from jora_core.model.cudnn_attention import KernelChoice, SelfAttention, cpu_kernels, self_attention
from jora_core.model.dropout import dropout
from jora_core.model.embedding_noise import embedding_noise
from jora_core.model.projections import linear, rounds_products
from jora_core.model.rematerialization import KEPT_INPUT, KEPT_MLP, KEPT_QKV, KEPT_RESIDUAL, recomputed
from jora_core.model.rotary import Rotary, rotary_tables, rotate
from jora_core.parallel.collectives import (
    add_up,
    gather_tokens,
    own_tokens,
    sum_over_tensor,
    tensor_index,
    tensor_shards,
    tokens_split,
)
from jora_core.parallel.mesh import splits_inputs
from jora_core.parameters.lora_math import adapted, low_rank
from jora_core.parameters.quantization import dense
from jora_core.parameters.trees import Adapter, LayerParams, LoraWeights, Params
from jora_core.specs.common import Remat

# The number of each projection, which is folded into the key of the projection's dropout mask.
_NUMBERS = {name: number for number, name in enumerate(PROJECTIONS)}


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    until: jax.Array,
    *,
    adapter: Adapter | None = None,
    dropout_key: jax.Array | None = None,
    noise: tuple[float, jax.Array] | None = None,
    remat: Remat = "none",
    attention: KernelChoice = "auto",
    attention_block: int | None = None,
    index: jax.Array | None = None,
) -> jax.Array:
    """Compute the model's hidden states after the final norm.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        tokens: int32 [B, T].
        positions: int32 [B, T], position of each token within its own example.
        until: int32 [B, T], the attention mask; see `jora_core.model.attention_slots.Slots`.
        adapter: low-rank updates to add.
        dropout_key: turns on the adapter's dropout for training; None is inference.
        noise: NEFTune's alpha and the random key of noise on the embeddings, in training; None for none.
        remat: rematerialization policy, see `jora_core.model.rematerialization`.
        attention: kernel choice, see `jora_core.model.cudnn_attention`.
        attention_block: slots of a block of blockwise attention; chosen by platform if None.
        index: int32 [G, M], slots as `pick_positions` takes them: only their hidden states are computed to
            the end of the last layer, for inference. None for all.

    Returns:
        Hidden states [B, T, D] in the type of the weights; under `per_device` this device's tokens
        [B, T/N, D] where `tokens_split(T)`. With `index` what `pick_positions` returns of them, [G, M, D].
    """
    split = tokens_split(tokens.shape[1])
    slots = Slots(until, positions)
    attend = model_attention(config, slots, attention, params.embedding.dtype, attention_block)
    # Outside of the scan: all layers have the same positions, so the tables are computed once.
    rotary = rotary_tables(config, positions)

    def through(x: jax.Array, layer: Layer, at: jax.Array | None = None) -> jax.Array:
        project = projector(layer, adapter, dropout_key)
        attend_here = partial(attend, layer_window=layer.window, at=at)
        return decoder_layer(config, x, layer, project, rotary, attend=attend_here, split=split, at=at)

    def step(x: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
        return through(x, layer), None

    x = embed(params, config, tokens)
    if noise is not None:
        x = x + embedding_noise(x, noise[0], tokens.shape[1], noise[1])
    whole = index is None
    x = over_layers(recomputed(step, remat), x, params, config, adapter, but_last=not whole)[0]
    if not whole:
        x = through(x, layer_at(params, config, adapter, config.num_layers - 1), index)
    return rms_norm(x, params.final_norm, config)


def pick_positions(hidden: jax.Array, index: jax.Array, length: int) -> jax.Array:
    """Gather the hidden states of some positions.

    Args:
        hidden: result [B, T, D] of `forward`, or this device's tokens of the result.
        index: int32 [G, M], slots numbered within their block of B/G rows, so that no gather crosses the
            data axis.
        length: T, slots of a row.

    Returns:
        [G, M, D], the same on every device of the tensor axis.
    """
    if not tokens_split(length):
        return take_slots(hidden, index)
    # Each device has the hidden states of its own tokens only: it puts zeros for the others, and a sum over
    # the tensor axis puts the parts together.
    size = length // tensor_shards()
    row, token = index // length, index % length
    own = token // size == tensor_index()
    picked = take_slots(hidden, row * size + token % size)
    return sum_over_tensor(jnp.where(own[..., None], picked, jnp.zeros_like(picked)))


def unembed(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Compute the logits of hidden states, or this device's part of the logits.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        hidden: hidden states [..., D].

    Returns:
        Logits float32 [..., V], or [..., V/N] under `per_device`.
    """
    logits = jnp.einsum("...d,vd->...v", hidden, output_head(params), preferred_element_type=jnp.float32)
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def output_head(params: Params) -> jax.Array:
    """Return the output projection [V, D]: the head, or the embedding in a tied model."""
    return params.embedding if params.head is None else params.head


def embed(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Compute the embeddings of tokens, the input of the first layer.

    Args:
        params: weights, or this device's part of them.
        config: the model's.
        tokens: int [B, T].
    """
    table = params.embedding
    split = tokens_split(tokens.shape[1])
    if table.shape[0] == config.vocab_size:
        x = table[own_tokens(tokens, split)]
    else:
        # The vocabulary is split over devices: each adds the rows that it has, and zeros for the others.
        own = tokens - tensor_index() * table.shape[0]
        inside = (own >= 0) & (own < table.shape[0])
        # Clipped, so that every index is valid. Rows of tokens on other devices are replaced by zeros.
        rows = table[jnp.clip(own, 0, table.shape[0] - 1)]
        x = add_up(jnp.where(inside[..., None], rows, jnp.zeros_like(rows)), split)
    # Gemma's factor is the root of D, rounded to the type of the weights as in its reference code.
    return x if config.embedding_scale is None else x * jnp.asarray(config.embedding_scale, x.dtype)


@flax.struct.dataclass
class Layer:
    """The parts of one decoder layer: weights, adapter weights, index, and attention window (0 for none)."""

    weights: LayerParams
    lora: dict[str, LoraWeights]
    index: jax.Array
    window: jax.Array | int


def over_layers(
    step: Callable[[Any, Layer], tuple[Any, Any]],
    start: Any,
    params: Params,
    config: ModelConfig,
    adapter: Adapter | None,
    *,
    but_last: bool = False,
) -> tuple[Any, Any]:
    """Scan a function over all layers of a model.

    Args:
        step: the function (carry, layer) → (carry, output of the layer).
        start: the first carry.
        params: weights, stacked by layer.
        config: the model's.
        adapter: low-rank updates, None for none.
        but_last: whether the last layer is left out, for inference.

    Returns:
        The last carry, and the outputs stacked by layer.
    """
    # A scan compiles one layer instead of L copies of it: the time to compile does not grow with depth.
    if but_last:
        # By index: as inputs of the scan, the weights of the other layers would be copied.
        numbers = jnp.arange(config.num_layers - 1)
        return jax.lax.scan(lambda x, i: step(x, layer_at(params, config, adapter, i)), start, numbers)

    def body(carry: Any, inputs: tuple) -> tuple[Any, Any]:
        weights, lora, index = inputs
        return step(carry, Layer(weights, lora, index, _window(config, index)))

    lora = {} if adapter is None else adapter.weights
    return jax.lax.scan(body, start, (params.layers, lora, jnp.arange(config.num_layers)))


def layer_at(params: Params, config: ModelConfig, adapter: Adapter | None, index: jax.Array | int) -> Layer:
    """Return one layer of a model.

    Args:
        params: weights, stacked by layer.
        config: the model's.
        adapter: low-rank updates, None for none.
        index: number of the layer, from 0 on.
    """
    lora = {} if adapter is None else adapter.weights
    weights, lora = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), (params.layers, lora)
    )
    return Layer(weights, lora, jnp.asarray(index), _window(config, index))


def _window(config: ModelConfig, index: jax.Array | int) -> jax.Array | int:
    """Return a layer's attention window, 0 for none."""
    # One window for all layers stays a Python number, which kernels need at compile time; windows that differ
    # by layer are traced.
    same = common_window(config)
    return jnp.asarray(config.windows, jnp.int32)[index] if same is None else same


class Projector(Protocol):
    """Function that computes one layer's projections by name, base weight plus low-rank update."""

    def __call__(self, name: str, x: jax.Array, own: jax.Array | None = None) -> jax.Array:
        """Project x [B, T, in] to [B, T, out].

        Args:
            name: name of the projection, such as ``q_proj``.
            x: [B, T, in].
            own: this device's tokens of x, [B, T/N, in]; None where tokens are not split.
        """
        ...


def projector(layer: Layer, adapter: Adapter | None, dropout_key: jax.Array | None) -> Projector:
    """Return the projections of one layer.

    Under `per_device` the results of o_proj and down_proj are partial sums, which the caller adds up. With
    sequence parallelism, the other projections compute x Aᵀ from the device's own tokens. They gather this
    result, which is R wide instead of D. So neither dropout nor the gradient of A needs the gathered x.

    Args:
        layer: weights, adapter weights and index.
        adapter: the adapter, for scale and dropout rate; None for the base model.
        dropout_key: random key of the step, None for no dropout.
    """
    # `fold_in` gives a mask that follows from the number of the layer, not from the keys drawn before.
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer.index)

    def project(name: str, x: jax.Array, own: jax.Array | None = None) -> jax.Array:
        weight = getattr(layer.weights, name)
        # Flattened to two axes: with three, XLA would materialise a transposed copy of the input for the
        # weight gradient.
        with jax.named_scope("projection"):
            out = linear(x.reshape(-1, x.shape[-1]), weight)
        if adapter is not None and name in layer.lora:
            pair, y = layer.lora[name], x if own is None else own
            # Where tokens are split, a device's own ones are fewer.
            row, split = splits_inputs(name), y.shape[1] < x.shape[1]
            if key is not None and adapter.dropout > 0:
                target = jax.random.fold_in(key, _NUMBERS[name])
                y = dropout(y, adapter.dropout, target, by_inputs=row, by_tokens=split)
            with jax.named_scope("lora"):
                low = low_rank(y, pair) if row else gather_tokens(low_rank(y, pair), split)
                low = low.reshape(-1, low.shape[-1])
                over_inputs = sum_over_tensor if row else _same
                scale = adapter.scale_of(name, layer.index)
                out = adapted(out, low, weight, pair, scale, dense=dense, sum_over_inputs=over_inputs)
        # Only some families have biases, such as Qwen 2 on q, k and v. A partial sum gets none here: the
        # caller first adds up the parts of all devices.
        bias = None if splits_inputs(name) else getattr(layer.weights, name.replace("_proj", "_bias"), None)
        out = out if bias is None else out + bias
        return out.reshape(*x.shape[:-1], -1)

    return project


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    layer: Layer,
    project: Projector,
    rotary: Rotary,
    *,
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    split: bool,
    at: jax.Array | None = None,
) -> jax.Array:
    """Compute one decoder layer: attention and MLP, each added to the residual stream.

    Args:
        config: the model's.
        x: the residual stream [B, T, D], or [B, T/N, D] where it is split by tokens.
        layer: the layer's weights.
        project: the layer's projections.
        rotary: rotary tables of the batch's positions.
        attend: attention function of rotated q, k and v, each [B, T, heads, H]. With `at` it returns the
            values of these slots alone.
        split: whether the residual stream is split by tokens.
        at: int32 [G, M], slots as `pick_positions` takes them: only these are computed to the end, and the
            result is [G, M, D] of them. None for all.
    """
    weights = layer.weights
    x = checkpoint_name(x, KEPT_INPUT)
    # The norm comes before the gather: each token is normalized on one device instead of on all.
    own = _norm_if_any(x, weights.attention_norm, config)
    y = gather_tokens(own, split)
    heads = (*y.shape[:2], -1, config.head_dim)
    if weights.qkv_proj is None:
        flat = [project(name, y, own) for name in ("q_proj", "k_proj", "v_proj")]
    else:
        # Split after the product, because an adapter on the fused matrix has one A for all three, as in peft.
        ends = [n * config.head_dim for n in (config.num_heads, config.num_heads + config.num_kv_heads)]
        flat = jnp.split(project("qkv_proj", y, own), ends, axis=-1)
    q, k, v = (part.reshape(heads) for part in flat)
    if weights.q_norm is not None and weights.k_norm is not None:
        if config.wide_qk_norm:
            q = all_heads_norm(q, weights.q_norm, config, config.num_heads)
            k = all_heads_norm(k, weights.k_norm, config, config.num_kv_heads)
        else:
            q, k = rms_norm(q, weights.q_norm, config), rms_norm(k, weights.k_norm, config)
    tables = rotary.of(layer.window)
    with jax.named_scope("rotary"):
        q, k = rotate(q, *tables), rotate(k, *tables)
    k, v = own_kv_heads(config, k), own_kv_heads(config, v)
    q, k, v = (checkpoint_name(part, KEPT_QKV) for part in (q, k, v))
    with jax.named_scope("attention"):
        mixed = attend(q, k, v)
    mixed = mixed.reshape(*mixed.shape[:2], -1)
    if at is not None:
        # No layer reads the other positions of the last one.
        x, split = pick_positions(x, at, y.shape[1]), False
    # Each device has summed over its own heads. Where tokens are split, the sum over devices and the split of
    # its result are one collective.
    out = _with_bias(add_up(project("o_proj", mixed), split), weights.o_bias)
    out = _norm_if_any(out, weights.attention_post_norm, config)
    x = checkpoint_name(x + out, KEPT_RESIDUAL)
    own = _norm_if_any(x, weights.mlp_norm, config)
    y = gather_tokens(own, split)
    if weights.gate_up_proj is None:
        flat = [project(name, y, own) for name in ("gate_proj", "up_proj")]
    else:
        flat = jnp.split(project("gate_up_proj", y, own), 2, axis=-1)
    gate, up = (checkpoint_name(part, KEPT_MLP) for part in flat)
    # Gemma's gate is the tanh approximation of GELU; the exact one gives other logits.
    with jax.named_scope("activation"):
        gated = swiglu(gate, up) if config.activation == "silu" else jax.nn.gelu(gate, approximate=True) * up
    out = _with_bias(add_up(project("down_proj", gated), split), weights.down_bias)
    return x + _norm_if_any(out, weights.mlp_post_norm, config)


def own_kv_heads(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Select the key/value head of this device's query heads, if devices outnumber key/value heads.

    `k_proj` and `v_proj` are then computed whole on each device.
    """
    shards = tensor_shards()
    if config.num_kv_heads % shards == 0:
        return x
    return jax.lax.dynamic_slice_in_dim(x, tensor_index() * config.num_kv_heads // shards, 1, 2)


def _same(x: jax.Array) -> jax.Array:
    return x


def model_attention(
    config: ModelConfig, slots: Slots, choice: KernelChoice, dtype: Any, block: int | None = None
) -> SelfAttention:
    """Return the model's attention function over whole rows.

    Args:
        config: the model's.
        slots: the attention mask.
        choice: kernel choice, see `jora_core.model.cudnn_attention`.
        dtype: type of the weights.
        block: slots of a block of blockwise attention; chosen by platform if None.
    """
    scale, softcap = attention_scale(config), config.attention_softcap
    # The kernels for a CPU are faster in float32 than XLA's loops are in bfloat16.
    narrow = rounds_products() and cpu_kernels(choice, softcap) is None
    kernel = self_attention(
        slots,
        width=config.head_dim,
        dtype=jnp.bfloat16 if narrow else dtype,
        scale=scale,
        softcap=softcap,
        windows=tuple(sorted(set(config.windows) or {0})),
        choice=choice,
        block=block,
    )

    if not narrow:
        return kernel

    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        layer_window: jax.Array | int,
        at: jax.Array | None = None,
    ) -> jax.Array:
        rounded = (x.astype(jnp.bfloat16) for x in (q, k, v))
        return kernel(*rounded, layer_window=layer_window, at=at).astype(q.dtype)

    return attend


def common_window(config: ModelConfig) -> int | None:
    """Return the attention window of all layers in positions, 0 for none, or None where layers differ."""
    windows = set(config.windows) or {0}
    return windows.pop() if len(windows) == 1 else None


def attention_scale(config: ModelConfig) -> float:
    """Return the factor of the attention scores."""
    return config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale


def rms_norm(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """Apply the root-mean-square norm (arXiv:1910.07467) over the last axis, in float32.

    Args:
        x: [..., D].
        weight: [D].
        config: the model's, for epsilon and the kind of weight.
    """
    # Squares of float16 overflow above 256, and a bfloat16 sum loses its small terms.
    with jax.named_scope("norm"):
        wide = x.astype(jnp.float32)
        return _normed(x, jnp.mean(wide * wide, axis=-1, keepdims=True), weight, config)


def all_heads_norm(x: jax.Array, weight: jax.Array, config: ModelConfig, heads: int) -> jax.Array:
    """Apply the root-mean-square norm over all heads of a token together (OLMo 2, arXiv:2501.00656).

    Args:
        x: [B, T, N, H], queries or keys of this device's heads.
        weight: [N * H], the weight for the same heads.
        config: the model's.
        heads: number of heads on all devices together.
    """
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide * wide, axis=(-2, -1), keepdims=True)
    if x.shape[-2] < heads:
        # Each device has the mean over as many heads, so the mean of the means is the mean over all.
        mean = sum_over_tensor(mean) * (x.shape[-2] / heads)
    return _normed(x, mean, weight.reshape(x.shape[-2:]), config)


def _normed(x: jax.Array, mean_square: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """Divide x by the root of the given mean square (float32), and multiply by the norm's weight."""
    normed = x.astype(jnp.float32) * jax.lax.rsqrt(mean_square + config.norm_eps)
    if config.norm_offset:  # Gemma stores weights minus 1, and multiplies before the cast
        return (normed * (1 + weight.astype(jnp.float32))).astype(x.dtype)
    # OLMo 2 multiplies before the cast to the type of x, Llama after it: the two round differently.
    if config.wide_norm:
        return (normed * weight.astype(jnp.float32)).astype(x.dtype)
    return normed.astype(x.dtype) * weight


def _with_bias(x: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add a bias, or return x unchanged where the model has none."""
    return x if bias is None else x + bias


def _norm_if_any(x: jax.Array, weight: jax.Array | None, config: ModelConfig) -> jax.Array:
    """Apply a norm, or return x unchanged where the family has no norm."""
    return x if weight is None else rms_norm(x, weight, config)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Compute silu(gate) * up elementwise (SwiGLU, arXiv:2002.05202)."""
    return jax.nn.silu(gate) * up


def _swiglu_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = saved
    # The barriers keep sigmoid and both gradients as arrays. Without them, XLA's CPU compiler fuses this
    # arithmetic into each of the four products that use it and repeats it there: 62 ms instead of 45 for the
    # backward pass of a block.
    sigmoid = jax.lax.optimization_barrier(jax.nn.sigmoid(gate))
    silu = gate * sigmoid
    grads = grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu
    return jax.lax.optimization_barrier(grads)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
