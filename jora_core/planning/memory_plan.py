"""Say before a device is rented what a training step takes: memory, collectives, arithmetic, longest row.

The real step is compiled for the real mesh, from ``config.json`` alone; nothing is allocated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.tensor_names import model_rows
from jora_core.base.errors import InputError
from jora_core.planning.step_flops import step_flops
from jora_core.specs.planning import Card, MemorySpec

if TYPE_CHECKING:
    from jora_core.planning.compile_step import StepMemory

CARDS: tuple[int, ...] = get_args(Card)
ROW_STEP = 64
LONGEST_ROW = 1 << 20
# Compilations that the search for the longest row may take.
_SEARCH_STEPS = 4
# A row that fills this share of the card is long enough.
_CLOSE = 0.985
Say = Callable[[str], None]


def card_bytes(card: int) -> int:
    """Bytes that a step may fill on a card sold with so many GB.

    Such a card has that many GiB; the 7 % between the two are left to driver, CUDA context and NCCL.
    """
    return card * 10**9


def read_model(spec: MemorySpec) -> ModelConfig:
    """The config of the order's model.

    Raises:
        InputError: neither a folder nor a config.json, or an unsupported model.
    """
    path = spec.model
    if path.is_file() and path.name != "config.json":
        raise InputError(f"{path}: expected a config.json, or a model folder that holds one")
    return ModelConfig.from_hf(path.parent if path.name == "config.json" else path)


def plan_memory(spec: MemorySpec, say: Say) -> dict[str, Any]:
    """Compile the step of an order and describe it; what `jora memory --json` prints.

    Raises:
        InputError: an unsupported model, a mesh that does not divide it, a target that is not installed.
    """
    config = read_model(spec)
    from jora_core.parallel.mesh import check_mesh
    from jora_core.planning.compile_step import compile_step
    from jora_core.planning.compile_target import make_target

    target = make_target(spec.target, spec.mesh.data, spec.mesh.tensor)
    check_mesh(config, target.mesh)

    def compile_at(seq_len: int) -> StepMemory:
        start = time.monotonic()
        found = compile_step(target, config, spec, seq_len)
        took = time.monotonic() - start
        say(f"compiled for rows of {seq_len} tokens in {took:.1f} s: {found.total / 1e9:.2f} GB a device")
        return found

    say(f"compiler: {target.description}; mesh {spec.mesh.data} x {spec.mesh.tensor}")
    step = compile_at(spec.seq_len)
    fitting = [card for card in CARDS if step.total <= card_bytes(card)]
    card = spec.card or (fitting[0] if fitting else CARDS[-1])
    points = {spec.seq_len: step.total}
    longest = None
    if spec.find_longest:
        longest = longest_row(card_bytes(card), points, lambda length: compile_at(length).total)
    answers = min(spec.answer_tokens or max(spec.seq_len // 8, 1), spec.seq_len)
    lora = spec.lora if spec.trainable == "lora" else None
    flops = step_flops(config, lora, spec.remat, spec.seq_len, answers / spec.seq_len)
    return {
        "compiler": {"target": target.kind, "description": target.description},
        "settings": spec.model_dump(mode="json", exclude={"output_dir"}) | {"answer_tokens": answers},
        "bytes_per_device": {**step.by_kind(), "total": step.total},
        "offloaded_bytes": step.offloaded,
        "largest_arrays": step.largest(8),
        "cards": [
            {"gb": size, "fits": size in fitting, "free_bytes": card_bytes(size) - step.total}
            for size in CARDS
        ],
        "card": card,
        "longest_row": longest,
        "row_bytes": {str(length): total for length, total in sorted(points.items())},
        "change": [] if card in fitting else what_to_change(spec, config, step, card, longest),
        "collectives": collective_rows(step, config),
        "unsplit_logits": unsplit_logits(step, config, spec, answers),
        "flops_per_token": flops.as_dict(),
    }


def longest_row(budget: int, points: dict[int, int], total_at: Callable[[int], int]) -> int | None:
    """The longest row, in steps of 64, that is compiled and seen to fit into `budget` bytes.

    Memory is near to linear in the length: two known lengths give the next to try.

    Args:
        points: known totals by length; those found are added.
        total_at: compiles for a length.

    Returns:
        None where not even the shortest row tried fits.
    """
    first = min(points)
    if len(points) == 1:
        points[other] = total_at(other := max(first // 2, ROW_STEP) if points[first] > budget else first * 2)
    for _ in range(_SEARCH_STEPS):
        below = max((n for n, total in points.items() if total <= budget), default=None)
        above = min((n for n, total in points.items() if total > budget), default=None)
        if below is not None and points[below] > _CLOSE * budget:
            break
        guess = _next_length(points, budget, below, above)
        if guess is None:
            break
        points[guess] = total_at(guess)
    return max((n for n, total in points.items() if total <= budget), default=None)


def _next_length(points: dict[int, int], budget: int, below: int | None, above: int | None) -> int | None:
    """The length to try next: where the line through the two nearest points fills the budget, or between
    the longest that fits and the shortest that does not, as if memory were a power of the length there.
    """
    if below is not None and above is not None:
        if above - below <= ROW_STEP:
            return None
        low, high = points[below], points[above]
        guess = below * (above / below) ** (math.log(0.995 * budget / low) / math.log(high / low))
        guess = min(max(guess, below + ROW_STEP), above - ROW_STEP)
    else:
        a, b = sorted(sorted(points, key=lambda n: abs(points[n] - budget))[:2])
        slope = max((points[b] - points[a]) / (b - a), 1.0)
        # A hair below the line: the heap is never packed quite as well as the line says.
        guess = a + (budget * 0.995 - points[a]) / slope
    length = max(int(min(guess, LONGEST_ROW)) // ROW_STEP * ROW_STEP, ROW_STEP)
    return None if length in points else length


def what_to_change(
    spec: MemorySpec, config: ModelConfig, step: StepMemory, card: int, longest: int | None
) -> list[str]:
    """What would bring a step that does not fit onto the card, with the bytes expected."""
    budget, advice = card_bytes(card), []

    def add(text: str, total: float) -> None:
        advice.append(
            f"{text}: about {total / 1e9:.1f} GB" + ("" if total <= budget else ", with another change")
        )

    if spec.remat != "full" and step.activations > step.total // 10:
        # Two residuals a layer are kept; this one is an upper bound.
        kept = 4 * spec.rows * spec.seq_len * config.hidden_size * config.num_layers
        kept //= spec.mesh.devices
        add("remat=full", step.total - max(step.activations - kept, 0))
    for kind, share in (("int8", 0.51), ("nf4", 0.29)):
        if spec.trainable == "lora" and spec.quantization == "none" and spec.dtype == "bfloat16":
            outside = 2 * config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
            outside //= spec.mesh.tensor
            add(f"quantization={kind}", step.total - (1 - share) * max(step.weights - outside, 0))
    if spec.rows > spec.mesh.data:
        moving = step.activations + step.logits + step.workspace
        add("one row a device and more accumulation", step.total - moving * (1 - spec.mesh.data / spec.rows))
    tensor = spec.mesh.tensor
    fused = any(row.is_fused for row in model_rows(config))  # which no tensor axis can split
    while not fused and tensor < 8 and config.num_heads % (tensor * 2) == 0:
        tensor *= 2
        if step.total * spec.mesh.tensor / tensor <= budget:
            break
    if tensor > spec.mesh.tensor:
        add(f"mesh.tensor={tensor}", step.total * spec.mesh.tensor / tensor)
    if longest is not None and longest < spec.seq_len:
        advice.append(f"rows of at most {longest} tokens")
    return advice or ["a card with more memory"]


def collective_rows(step: StepMemory, config: ModelConfig) -> list[dict[str, Any]]:
    """The step's collectives by kind and size; `per_layer` where they stand in a loop over the layers."""
    from jora_core.planning.hlo_text import collectives

    rows = []
    for found in collectives(step.program):
        in_layers = found.loop == config.num_layers and found.count % config.num_layers == 0
        rows.append(
            {
                "kind": found.kind,
                "elements": found.elements,
                "bytes": found.bytes,
                "count": found.count,
                "per_layer": found.count // config.num_layers if in_layers else 0,
                "operation": found.op_name,
            }
        )
    return rows


def unsplit_logits(step: StepMemory, config: ModelConfig, spec: MemorySpec, answers: int) -> list[str]:
    """Arrays of all supervised positions by the whole vocabulary on one device of several: should be none."""
    from jora_core.planning.hlo_text import unsplit_rows

    if spec.mesh.tensor == 1:
        return []
    rows = max(answers * spec.rows // spec.mesh.data, 1)
    return [found.name for found in unsplit_rows(step.program, config.vocab_size, rows)]


def activation_all_reduces(rows: list[dict[str, Any]], activation_elements: int) -> float:
    """A layer's traffic in all-reduces of one activation [B, T, D]; an all-gather or a reduce-scatter of
    one, which move half of its bytes, count half. Arrays under half of an activation, such as an adapter's
    [B, T, R], are not counted.
    """
    total = 0.0
    for row in rows:
        if 2 * row["elements"] >= activation_elements:
            weight = 1.0 if row["kind"] == "all-reduce" else 0.5
            total += row["per_layer"] * weight * row["elements"] / activation_elements
    return total
