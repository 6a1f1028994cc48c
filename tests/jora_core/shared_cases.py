"""Examples that share contexts, and what one training step makes of them, grouped or apart.

Run as a program, ``python -m tests.jora_core.shared_cases FILE``, it writes what four virtual devices make of
`fixed_examples`, grouped, for every family.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import Batch, BatchStream, RowPlan
from jora_core.data.row_packing import pack
from jora_core.data.shared_context import Example, Group, plain_group, share_contexts
from jora_core.model import blockwise_attention
from jora_core.parallel.mesh import make_mesh
from jora_core.parallel.placements import adapter_shardings, param_shardings
from jora_core.parallel.processes import put
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.specs.train import TrainSpec
from jora_core.training.optimizer import make_schedule
from jora_core.training.train_step import build_step
from tests.jora_core.family_cases import CASES, FAMILY_CASES, VOCAB, write_config

LENGTH, ROWS = 128, 4  # of every batch: one program serves grouped and apart
BLOCK = 32  # so that a row has several blocks, some of them without a pair that is allowed
# Little optimisation: these programs run for a moment and take long to compile.
OPTIONS = {"xla_backend_optimization_level": 0}


class Shape(NamedTuple):
    """Tokens of a context, and of each of its questions: (of the context's end that it does not read, prompt,
    answer).
    """

    context: int
    questions: tuple[tuple[int, int, int], ...]


def examples_of(shapes: Sequence[Shape], seed: int) -> list[Example]:
    """Random examples of these shapes, in an order in which contexts are not together."""
    rng = np.random.default_rng(seed)
    made = []
    for number, shape in enumerate(shapes):
        context = rng.integers(3, VOCAB, shape.context, dtype=np.int32)
        for place, (left, prompt, answer) in enumerate(shape.questions):
            own, said = (rng.integers(3, VOCAB, size, dtype=np.int32) for size in (prompt, answer))
            read = context[: len(context) - left]
            made.append(Example(f"{number}-{place}", str(number), np.concatenate([read, own]), said))
    return [made[i] for i in rng.permutation(len(made))]


class Trainer:
    """One family's training step on a mesh, compiled once."""

    def __init__(self, case: str, data: int = 1, tensor: int = 1) -> None:
        with tempfile.TemporaryDirectory() as name:
            self.config = ModelConfig.from_hf(write_config(Path(name), CASES[case]))
        self.spec = TrainSpec.model_validate(
            {
                "model": "unused",
                "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"},
                "optim": {"learning_rate": 3e-3, "schedule": "constant", "warmup_ratio": 0},
                "data": {"records": "unused", "max_seq_len": LENGTH, "tokens_per_batch": ROWS * LENGTH},
                "max_steps": 10,
                "output_dir": "unused",
                "checkpoint_dir": "unused",
            }
        )
        self.blocks, self.mesh = data, make_mesh(data, tensor)
        with jax.set_mesh(self.mesh):
            params = _random(lambda key: init_params(self.config, key), 1)
            self.frozen = put(params, param_shardings(self.config, self.mesh))
            adapter = _random(lambda key: init_adapter(self.config, self.spec.lora, key), 2)
            adapter = put(adapter, adapter_shardings(self.config, adapter, self.mesh))
            self.step = build_step(
                self.config, self.spec, self.mesh, make_schedule(self.spec.optim, 10), adapter
            )
            self.state = self.step.start(adapter)
            sums, batch = self.step.zero(self.state), self.placed([plain_group(_DUMMY)], True)[0]
            lowered = self.step.accumulate.lower(sums, self.state, self.frozen, batch, 0)
            self.accumulate = lowered.compile(compiler_options=OPTIONS)

    def sums(self, groups: Sequence[Group], packed: bool, state: Any = None) -> Any:
        """`Sums` over all microbatches of these groups."""
        state = self.state if state is None else state
        with jax.set_mesh(self.mesh):
            sums = self.step.zero(state)
            for batch in self.placed(groups, packed):
                sums = self.accumulate(sums, state, self.frozen, batch, 0)
        return sums

    def trained(self, groups: Sequence[Group], steps: int) -> Any:
        """The adapter after so many optimizer steps."""
        with jax.set_mesh(self.mesh):
            state = jax.tree.map(jnp.copy, self.state)
            for _ in range(steps):
                state, _, _ = self.step.update(state, self.sums(groups, True, state))
        return jax.device_get(state.trainable)

    def placed(self, groups: Sequence[Group], packed: bool) -> list[Any]:
        stream = BatchStream(groups, ROWS * LENGTH, seed=0, blocks=self.blocks, shuffle=False)
        slots, numbers = np.asarray([group.slots for group in groups]), np.arange(len(groups))
        rows = pack(numbers, slots, (LENGTH,))[LENGTH] if packed else [(int(n),) for n in numbers]
        plans = [RowPlan(LENGTH, tuple(rows[i : i + ROWS])) for i in range(0, len(rows), ROWS)]
        return [self.step.place(_same_shape(stream.build(plan))) for plan in plans]


_DUMMY = Example("x", "", np.arange(3, 9, dtype=np.int32), np.asarray([5, 2], np.int32))


def _random(make: Any, seed: int) -> Any:
    """A tree of the shapes that `make` gives; no leaf is constant, as norms, biases and B are at birth."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(make, jax.random.key(0))
    return jax.tree.map(lambda x: (0.15 * rng.standard_normal(x.shape)).astype(np.float32), shapes)


def _same_shape(batch: Batch) -> Batch:
    """The batch with as many gathered positions as there are slots, whatever it holds."""
    size = ROWS * LENGTH // batch.index.shape[0]
    fields = {
        name: np.pad(x := getattr(batch, name), ((0, 0), (0, size - x.shape[1])))
        for name in ("index", "targets", "weights")
    }
    return dataclasses.replace(batch, **fields)


def grouped(examples: Sequence[Example]) -> list[Group]:
    """The examples as training shares them."""
    return share_contexts(examples, LENGTH)


def apart(examples: Sequence[Example]) -> list[Group]:
    """The same examples, each with a context of its own."""
    return [plain_group(example) for example in examples]


def difference(found: Any, expected: Any) -> float:
    """The largest relative difference of two trees' leaves, each as a vector."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)) for a, b in pairs)


def fixed_examples() -> list[Example]:
    """Contexts of several examples, one of which grows from one to the next, and one of a single one."""
    shapes = [
        Shape(60, ((20, 3, 2), (0, 9, 4), (10, 2, 1), (10, 5, 3))),
        Shape(33, ((0, 7, 5), (0, 4, 1))),
        Shape(20, ((0, 12, 3),)),
    ]
    return examples_of(shapes, 0)


def leaves(sums: Any) -> list[np.ndarray]:
    """Gradients, loss and weight on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(sums))]


# Fused projections are not split over the tensor axis.
MESHES = {"llama-3": ((2, 2), (1, 4)), "phi3": ((2, 1),)}


def _main() -> None:
    blockwise_attention.BLOCK_SLOTS["cpu"] = BLOCK
    found = {}
    for case in FAMILY_CASES:
        for data, tensor in MESHES.get(case, ((2, 2),)):
            sums = Trainer(case, data, tensor).sums(grouped(fixed_examples()), packed=True)
            found |= {f"{case} {data}x{tensor} {i:03}": leaf for i, leaf in enumerate(leaves(sums))}
    np.savez(Path(sys.argv[1]), **found)


if __name__ == "__main__":
    _main()
