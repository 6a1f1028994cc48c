"""Training examples that share a context equals training them apart: loss, gradients, and steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_core.model import blockwise_attention
from tests.jora_core.family_cases import FAMILY_CASES
from tests.jora_core.shared_cases import (
    BLOCK,
    MESHES,
    Shape,
    Trainer,
    apart,
    difference,
    examples_of,
    fixed_examples,
    grouped,
    leaves,
)

_QUESTION = st.tuples(st.sampled_from((0, 0, 3, 8)), st.integers(1, 9), st.integers(1, 5))
_SHAPE = st.builds(Shape, st.integers(24, 60), st.lists(_QUESTION, min_size=1, max_size=4).map(tuple))
_SHAPES = st.lists(_SHAPE, min_size=1, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blockwise_attention.BLOCK_SLOTS, "cpu", BLOCK)
        yield


@cache
def trainer(case: str) -> Trainer:
    """One family's step on one device."""
    return Trainer(case)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    """Family and mesh → gradients, loss and weight of the fixed examples, grouped, on four devices."""
    out = tmp_path_factory.mktemp("four") / "found.npz"
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.jora_core.shared_cases", str(out)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[np.ndarray]] = {}
    with np.load(out) as arrays:
        for name in sorted(arrays):
            found.setdefault(name.rpartition(" ")[0], []).append(arrays[name])
    return found


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_loss_and_gradients_of_any_groups_equal_those_apart(case: str) -> None:
    one = trainer(case)

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(shapes=_SHAPES, seed=st.integers(0, 99), packed=st.booleans())
    def check(shapes: list[Shape], seed: int, packed: bool) -> None:
        examples = examples_of(shapes, seed)
        shared = grouped(examples)
        # Each context is one group, whatever the order, so the comparison is of something.
        assert len(shared) <= len(shapes)
        expected = jax.device_get(one.sums(apart(examples), packed=True))
        found = jax.device_get(one.sums(shared, packed=packed))
        assert found.weight == expected.weight == sum(len(e.answer) for e in examples)
        assert abs(found.loss - expected.loss) <= 1e-5 * abs(expected.loss)
        assert difference(found.grads, expected.grads) <= 1e-5

    check()


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_four_devices_equal_one(case: str, on_four: dict[str, list[np.ndarray]]) -> None:
    """Grouped over data and tensor axes of two (once also a tensor axis of four), and apart on one device."""
    expected = leaves(trainer(case).sums(apart(fixed_examples()), packed=True))
    found = {name: values for name, values in on_four.items() if name.split()[0] == case}
    assert {f"{case} {data}x{tensor}" for data, tensor in MESHES.get(case, ((2, 2),))} == set(found)
    assert {name: gap for name, values in found.items() if (gap := difference(values, expected)) > 1e-5} == {}


def test_ten_steps_stay_together() -> None:
    one = trainer(FAMILY_CASES[-1])
    examples = examples_of(
        [Shape(50, ((9, 3, 2), (0, 9, 4), (20, 2, 1))), Shape(30, ((0, 7, 5), (0, 4, 1)))], 1
    )
    shared = grouped(examples)
    assert sum(group.slots for group in shared) < 0.7 * sum(group.slots for group in apart(examples))
    before = jax.device_get(one.state.trainable)
    expected = one.trained(apart(examples), 10)
    assert difference(one.trained(shared, 10), expected) <= 1e-4
    assert difference(before, expected) > 1e-2, "ten steps change something"


def test_a_group_that_sees_too_much_would_be_noticed() -> None:
    """The check itself: every branch sees those before it, and gradients differ."""
    one = trainer(FAMILY_CASES[-1])
    examples = examples_of([Shape(50, ((0, 3, 2), (0, 9, 4), (0, 2, 1)))], 2)
    (group,) = grouped(examples)
    (batch,) = one.placed([group], packed=True)
    wrong = dict(batch)
    wrong["until"] = np.where(np.asarray(batch["until"]) > 0, group.slots, 0)
    with jax.set_mesh(one.mesh):
        sums = [one.accumulate(one.step.zero(one.state), one.state, one.frozen, b, 0) for b in (batch, wrong)]
    assert difference(jax.device_get(sums[1].grads), jax.device_get(sums[0].grads)) > 1e-3
