"""Launches and bytes of a layer's attention over trees, compiled for an H100 by description: nothing is run.

    python tests/benchmarks/training/kernel_launches.py --json out.json    # needs jora-raft[gpu], but no GPU

Heads of Llama-2-7B in bfloat16 and rows of 8,192 slots: contexts of 2,000 tokens with questions of 40, and
the same slots as one example. The kernel for trees stands beside blockwise attention. XLA lists what a
program launches. Loops of blockwise attention are counted by the blocks that the row needs; for each decision
of a loop or branch the host waits for the device.

Bytes are those that both passes ask the memory for; a part of them the cache serves. A launch of XLA's reads
its operands and writes its results once, by the compiled program. Our kernels load tiles again and again, so
theirs are counted tile by tile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import jax
import jax.numpy as jnp
import numpy as np
from harness import machine, print_table, write_result
from jax.sharding import NamedSharding, PartitionSpec

from jora_core.model import blockwise_attention as blockwise
from jora_core.model.attention_slots import Slots
from jora_core.model.blockwise_attention import blockwise_attention
from jora_core.model.kernels.tree_attention import (
    Tilings,
    TreePlan,
    plan_trees,
    tilings_of,
    tree_attention,
)
from jora_core.model.kernels.visible_blocks import pair_kinds
from jora_core.planning.compile_target import CUDA_OPTIONS, cuda_plugin, described_mesh
from jora_core.planning.gpu_launches import Thunk, count_launches, kernels, read_thunks
from jora_core.planning.hlo_text import Program, parse_program
from jora_core.planning.moved_bytes import launch_bytes, moved_bytes

SLOTS, HEADS, WIDTH, BLOCK = 8192, 32, 128, 512
PREFIX, QUESTION = 2000, 40
MIB = 2**20


def tree_row(questions: int) -> Slots:
    """A row of as many whole contexts as fit, each with so many questions; one long example if 0."""
    until, positions = np.zeros((2, 1, SLOTS), np.int32)
    if not questions:
        return Slots(until + SLOTS, positions + np.arange(SLOTS, dtype=np.int32))
    size, start = PREFIX + questions * QUESTION, 0
    while start + size <= SLOTS:
        until[0, start : start + PREFIX] = start + size
        positions[0, start : start + PREFIX] = np.arange(PREFIX)
        for question in range(questions):
            first = start + PREFIX + question * QUESTION
            until[0, first : first + QUESTION] = first + QUESTION
            positions[0, first : first + QUESTION] = PREFIX + np.arange(QUESTION)
        start += size
    return Slots(until, positions)


class Compiled:
    """What a function compiles to for the card: thunks, instructions, bytes of the temporaries."""

    def __init__(self, function: Callable[..., Any], *shapes: Any) -> None:
        mesh = described_mesh("h100")
        place = NamedSharding(mesh, PartitionSpec())
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
        with tempfile.TemporaryDirectory() as dump, jax.set_mesh(mesh):
            options = {**CUDA_OPTIONS, "xla_dump_to": dump, "xla_dump_hlo_as_text": True}
            compiled = jax.jit(function).lower(*shapes).compile(compiler_options=options)
            self.thunks: list[Thunk] = read_thunks(Path(dump))
        self.program: Program = parse_program(compiled.as_text())
        self.temporary_bytes = compiled.memory_analysis().temp_size_in_bytes


def passes(attend: Callable[..., jax.Array], rows: Any) -> list[Compiled]:
    """The forward pass and both passes, compiled."""
    q = jax.ShapeDtypeStruct((1, SLOTS, HEADS, WIDTH), jnp.bfloat16)

    def both(q: Any, k: Any, v: Any, grad: Any, rows: Any) -> Any:
        out, back = jax.vjp(lambda *x: attend(*x, rows), q, k, v)
        return out, back(grad)

    return [Compiled(attend, q, q, q, rows), Compiled(both, q, q, q, q, rows)]


def loops_of_blocks(slots: Slots) -> Callable[[int], tuple[float, float]]:
    """How often blockwise attention's loops run on a row: over blocks, and over what each block visits."""
    count = SLOTS // BLOCK
    visited = needed_pairs(slots, BLOCK, BLOCK)
    return lambda depth: (count if depth == 0 else visited / count, 1.0)


def needed_pairs(slots: Slots, queries: int, keys: int) -> int:
    """How many pairs of blocks hold an allowed pair of slots.

    Args:
        slots: the row.
        queries: slots of a block of queries.
        keys: slots of a block of keys.
    """
    rows = jax.tree.map(jnp.asarray, slots)
    return int((np.asarray(pair_kinds(rows, 0, queries, keys)) < 2).sum())


def decisions(thunks: list[Thunk], loops: Callable[[int], tuple[float, float]], depth: int = 0) -> float:
    """How often the host waits for the device to tell it how a loop or branch goes on."""
    total = 0.0
    for thunk in thunks:
        inside = [decisions(part, loops, depth + (thunk.kind == "kWhile")) for part in thunk.parts.values()]
        if thunk.kind == "kWhile":
            times = loops(depth)[0]
            total += times + 1 + times * sum(inside)
        else:
            total += sum(inside) + (thunk.kind == "kConditional")
    return total


def operations(slots: Slots, tilings: list[tuple[int, int, int]]) -> float:
    """Operations of all products over the blocks that a row needs, a multiply-add counted as two.

    Args:
        slots: the row.
        tilings: of each loop over blocks, their slots of queries and of keys, and its products.
    """
    return sum(
        products * 2.0 * needed_pairs(slots, queries, keys) * queries * keys * WIDTH * HEADS
        for queries, keys, products in tilings
    )


def tile_bytes(slots: Slots, tilings: Tilings) -> int:
    """Bytes that the programs of the three kernels load and store, without lists and mask (below 1 %)."""
    head, number = WIDTH * jnp.dtype(jnp.bfloat16).itemsize, 4  # of one slot: a vector, and a float32
    # Of each kernel: bytes of a slot of the own blocks, results among them, then those of a visited block.
    kernels_bytes = (
        # q, output and logarithm; keys and values of the visited block.
        (tilings.output, 2 * head + number, tilings.output.keys * 2 * head),
        # q, its gradient, that of the output, logarithm and inner product; keys and values.
        (tilings.d_q, 3 * head + 2 * number, tilings.d_q.keys * 2 * head),
        # k, v and their gradients; q, the output's gradient, logarithm and inner product.
        (tilings.d_kv, 4 * head, tilings.d_kv.queries * (2 * head + 2 * number)),
    )
    return HEADS * sum(
        SLOTS * own + needed_pairs(slots, tiling.queries, tiling.keys) * visited
        for tiling, own, visited in kernels_bytes
    )


def other_bytes(program: Program) -> float:
    """Bytes of the launches of a program without loops that are not our kernels."""
    launches = [instruction for instruction, _, _ in program.walk() if instruction.opcode != "custom-call"]
    return sum(launch_bytes(program, instruction) for instruction in launches)


def figures(name: str, found: list[Compiled], loops: Callable[[int], tuple[float, float]]) -> dict[str, Any]:
    """One side's figures on one row."""
    both = found[1]
    launches = [count_launches(side.thunks, loops) for side in found]
    return {
        "side": name,
        "forward": round(launches[0]),
        "backward": round(launches[1] - launches[0]),
        "both": round(launches[1]),
        "host_waits": round(decisions(both.thunks, loops)),
        "temporary_bytes": both.temporary_bytes,
        "kernels": sorted({thunk.name for thunk in kernels(both.thunks)}),
    }


def main() -> int:
    """Compile, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    args = parser.parse_args()
    if cuda_plugin() is None:
        parser.error("compiling for a GPU needs JAX's CUDA plugin; install jora-raft[gpu]")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    # The size of a block on an accelerator, though the process has none.
    blockwise.BLOCK_SLOTS["cpu"] = BLOCK
    rows = tree_row(16)

    def plan_of(slots: Slots) -> TreePlan:
        return plan_trees(slots, WIDTH, jnp.bfloat16)

    def trees(q: Any, k: Any, v: Any, plan: TreePlan) -> jax.Array:
        return tree_attention(q, k, v, plan, scale=WIDTH**-0.5)

    def blocks(q: Any, k: Any, v: Any, slots: Slots) -> jax.Array:
        return blockwise_attention(q, k, v, slots, scale=WIDTH**-0.5)

    kernel = passes(trees, jax.eval_shape(plan_of, rows))
    loops = passes(blocks, rows)
    batch = count_launches(Compiled(plan_of, rows).thunks, lambda _: (1, 1.0))
    # What the kernels would move if the cache served all that is loaded again.
    once = moved_bytes(kernel[1].program, lambda _: (1, 1.0))
    tilings = tilings_of(WIDTH, jnp.bfloat16, SLOTS)
    results, ratios = [], {}
    for questions in (0, 4, 16, 32):
        row = tree_row(questions)
        name = f"{questions} questions a context" if questions else "one example"
        times = loops_of_blocks(row)
        pair = [figures("blocks", loops, times), figures("kernel", kernel, times)]
        # Scores and output forward; backward the scores again, and four gradients. The kernel computes scores
        # and their gradients twice, once for each of its two gradient kernels.
        pair[0]["operations"] = operations(row, [(BLOCK, BLOCK, 2 + 5)])
        shapes = zip(tilings, (2, 3, 4), strict=True)
        tiles = [(tiling.queries, tiling.keys, products) for tiling, products in shapes]
        pair[1]["operations"] = operations(row, tiles)
        pair[0]["bytes"] = round(moved_bytes(loops[1].program, times))
        pair[1]["bytes"] = round(tile_bytes(row, tilings) + other_bytes(kernel[1].program))
        results += [{"row": name, **side} for side in pair]
        ratios[f"launches/{name}"] = round(pair[0]["both"] / pair[1]["both"], 1)
    columns = ("row", "side", "forward", "backward", "both", "host_waits")
    print_table(
        [
            {name: str(result[name]) for name in columns}
            | {
                "TFLOP": f"{result['operations'] / 1e12:.2f}",
                "GB": f"{result['bytes'] / 1e9:.1f}",
                "temporary MiB": f"{result['temporary_bytes'] / MIB:.0f}",
            }
            for result in results
        ]
    )
    print(f"once a batch, for the kernel's lists of blocks: {batch:.0f} launches")
    print(f"kernel with each array of a launch once: {once / 1e9:.1f} GB")
    for name, ratio in ratios.items():
        print(f"{name} {ratio}")
    print("compiled by description, not run on a GPU")
    settings = {"slots": SLOTS, "heads": HEADS, "width": WIDTH, "block": BLOCK, "card": "h100"}
    settings |= {"launches_once_a_batch": batch, "kernel_bytes_once": round(once)}
    write_result(args.json, machine(), settings, results, ratios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
