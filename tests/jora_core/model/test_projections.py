"""The projection with products in bfloat16, beside the exact one of inputs rounded by hand."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.model.projections import emulated_products, frozen_type, linear


@pytest.fixture
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Input [40, 96], weight [56, 96] and the upstream gradient [40, 56], float32."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((40, 96), (56, 96), (40, 56))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))  # type: ignore[return-value]


def rounded(x: jax.Array) -> np.ndarray:
    """The values of x after rounding to bfloat16, in float64."""
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32), np.float64)


def close(found: jax.Array, expected: np.ndarray) -> bool:
    """Whether the two differ by float32's rounding only."""
    return np.abs(np.asarray(found, np.float64) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_product_and_gradients_are_those_of_rounded_inputs_with_float32_sums(inputs):
    x, weight, upstream = inputs
    with jax.default_matmul_precision("bfloat16"):
        out, backward = jax.vjp(jax.jit(linear), x, weight)
        d_x, d_weight = backward(upstream)
    assert out.dtype == d_x.dtype == d_weight.dtype == jnp.float32
    assert close(out, rounded(x) @ rounded(weight).T)
    assert close(d_x, rounded(upstream) @ rounded(weight))
    assert close(d_weight, rounded(upstream).T @ rounded(x))


def test_default_keeps_the_exact_product(inputs):
    x, weight, _ = inputs
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    assert close(linear(x, weight), exact)
    with jax.default_matmul_precision("default"):
        assert close(jax.jit(linear)(x, weight), exact)
    # The test above can fail: rounding is visible at this bound.
    assert not close(jnp.asarray(rounded(x) @ rounded(weight).T), exact)


def test_bfloat16_arrays_stay_bfloat16(inputs):
    x, weight, upstream = (value.astype(jnp.bfloat16) for value in inputs)
    with jax.default_matmul_precision("bfloat16"):
        out, backward = jax.vjp(linear, x, weight)
        d_x, d_weight = backward(upstream)
    assert out.dtype == d_x.dtype == d_weight.dtype == jnp.bfloat16
    expected = rounded(x) @ rounded(weight).T
    assert np.abs(np.asarray(out, np.float64) - expected).max() <= 2**-8 * np.abs(expected).max()


def test_weights_rounded_at_loading_give_the_same_bits(inputs):
    x, weight, upstream = inputs
    with jax.default_matmul_precision("bfloat16"):
        kept = weight.astype(frozen_type(weight.dtype))
        assert kept.dtype == jnp.bfloat16
        for found, expected in zip(frozen(x, kept, upstream), frozen(x, weight, upstream), strict=True):
            np.testing.assert_array_equal(found, expected)


def frozen(x: jax.Array, weight: jax.Array, upstream: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product with a weight that is not trained, and the gradient of x."""
    out, backward = jax.vjp(jax.jit(lambda x: linear(x, weight)), x)
    return out, *backward(upstream)


def test_exact_products_and_exact_readers_keep_all_bits():
    assert frozen_type(jnp.float32) == jnp.float32
    with jax.default_matmul_precision("bfloat16"):
        assert frozen_type(jnp.float32, exact=True) == jnp.float32
        assert frozen_type(jnp.float16) == jnp.float16


@pytest.mark.parametrize(
    ("flags", "emulates"),
    [
        ("flags\t\t: fpu avx2 avx512f", True),
        ("flags\t\t: fpu avx512_bf16", False),
        ("flags\t\t: fpu amx_tile amx_bf16", False),
        ("Features\t: fp asimd", True),
        ("Features\t: fp asimd bf16", False),
        ("model name\t: unknown", False),
    ],
)
def test_a_processor_that_emulates_bfloat16_is_named(flags: str, emulates: bool, tmp_path: Path) -> None:
    """Only where the setting is on, and only where the processor is known."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{flags}\n")
    assert emulated_products(cpuinfo) is None
    with jax.default_matmul_precision("bfloat16"):
        assert emulated_products(tmp_path / "missing") is None
        found = emulated_products(cpuinfo)
    assert (found is not None) == emulates
    assert found is None or "matmul_precision is bfloat16" in found
