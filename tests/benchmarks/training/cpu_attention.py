"""Attention of one layer on a CPU, output and gradients: our kernels, XLA's loops and PyTorch, in turns.

    python tests/benchmarks/training/cpu_attention.py [--rounds 9] [--json FILE]

8 heads of 64 in float32. Rows of one example each (all sides), and one row of a context of 2,000 slots from
which 40 branches of 50 leave (ours alone: PyTorch knows no trees). The sides agree within 1e-4 of the largest
value, else the script stops.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import at_least_one, machine, median, print_table, write_result

HEADS, WIDTH = 8, 64
# Rows and slots of examples; then context, branches and slots of a branch.
EXAMPLES = {"4 rows of 256": (4, 256), "4 rows of 1,024": (4, 1024)}
TREE = {"context 2,000, 40 branches of 50": (2000, 40, 50)}
# As the pipeline's child processes have it.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least_one, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != HUGE_PAGES["GLIBC_TUNABLES"]:
        # glibc reads it when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HUGE_PAGES})
    about = machine()
    results = []
    for name, shape in {**EXAMPLES, **TREE}.items():
        results += measure(name, shape, args.rounds)
    rows = [
        {
            "Slots": result["slots"],
            "Side": result["side"],
            "Median, ms": f"{1e3 * result['seconds']:.1f}",
            "Processor, ms": f"{1e3 * result['processor_seconds']:.1f}",
        }
        for result in results
    ]
    print_table(rows)
    by_side = {(result["slots"], result["side"]): result["seconds"] for result in results}
    ratios = {
        f"{side}/kernels, {slots}": seconds / by_side[slots, "kernels"]
        for (slots, side), seconds in by_side.items()
        if side != "kernels"
    }
    write_result(args.json, about, {"rounds": args.rounds}, results, ratios)


def measure(name: str, shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Let the sides compute the same attention in turns.

    Args:
        name: of the slots, for the results.
        shape: a value of `EXAMPLES` or `TREE`.
        rounds: turns of each side.

    Raises:
        SystemExit: the sides disagree.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jora_core.model.attention_slots import Slots
    from jora_core.model.blockwise_attention import blockwise_attention, fitting_block
    from jora_core.model.kernels.cpu_attention import cpu_attention

    until, positions = examples(*shape) if len(shape) == 2 else tree(*shape)
    slots = Slots(jnp.asarray(until), jnp.asarray(positions))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((*until.shape, HEADS, WIDTH)).astype(np.float32) for _ in range(4)]

    def passes(attention: Callable[..., jax.Array]) -> Callable[[], list[np.ndarray]]:
        def both(q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array) -> Any:
            out, back = jax.vjp(partial(attention, slots=slots, scale=WIDTH**-0.5), q, k, v)
            return [out, *back(grad)]

        given = [jnp.asarray(array) for array in arrays]
        compiled = jax.jit(both)
        return lambda: jax.block_until_ready(compiled(*given))

    loops = partial(blockwise_attention, block=fitting_block([until]))
    sides = {"kernels": passes(cpu_attention), "XLA's loops": passes(loops)}
    if len(shape) == 2:
        sides["PyTorch"] = of_torch(arrays)
    expected = [np.asarray(part) for part in sides["kernels"]()]
    for side, compute in sides.items():
        for found, exact in zip(compute(), expected, strict=True):
            if np.abs(np.asarray(found) - exact).max() > 1e-4 * np.abs(exact).max():
                raise SystemExit(f"{name}: {side} gives other values than the kernels")
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, compute in sides.items():
            begun, worked = time.perf_counter(), time.process_time()
            compute()
            used = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - worked}
            turns[side].append(used)
            # Threads spin for some milliseconds before they sleep.
            time.sleep(0.05)
    return [
        {
            "slots": name,
            "side": side,
            "seconds": median(found),
            "processor_seconds": median(found, "processor"),
        }
        for side, found in turns.items()
    ]


def examples(rows: int, length: int) -> tuple[Any, Any]:
    """Return bounds and positions of rows that hold one example each."""
    import numpy as np

    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return np.full_like(positions, length), positions


def tree(context: int, branches: int, size: int) -> tuple[Any, Any]:
    """Return bounds and positions of one row: a context and the branches that leave it at its end."""
    import numpy as np

    length = context + branches * size
    ends = context + size * (1 + np.arange(branches)).repeat(size)
    positions = [np.arange(context), context + np.tile(np.arange(size), branches)]
    return (
        np.concatenate([np.full(context, length), ends]).astype(np.int32)[None],
        np.concatenate(positions).astype(np.int32)[None],
    )


def of_torch(arrays: list[Any]) -> Callable[[], list[Any]]:
    """Return the same computation by PyTorch's attention, for rows of one example."""
    import torch

    q, k, v, grad = (torch.from_numpy(array).transpose(1, 2) for array in arrays)
    for x in (q, k, v):
        x.requires_grad_()

    def both() -> list[Any]:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        found = [out, *torch.autograd.grad(out, (q, k, v), grad)]
        return [part.detach().transpose(1, 2).numpy() for part in found]

    return both


if __name__ == "__main__":
    main()
