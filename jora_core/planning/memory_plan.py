"""Plan of a training step without a device: memory, collectives, operations and the longest row.

The training step is compiled for the mesh from ``config.json`` alone; no weight is allocated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, get_args

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_rows
from jora_core.base.errors import InputError
from jora_core.data.row_packing import ROW_STEP
from jora_core.parallel.placements import check_mesh
from jora_core.planning.compile_step import DoesNotFitError, StepMemory, compile_step
from jora_core.planning.compile_target import Target, make_target
from jora_core.planning.hlo_text import collectives, unsplit_rows
from jora_core.planning.step_flops import step_flops
from jora_core.specs.planning import Card, MemorySpec

CARDS: tuple[int, ...] = get_args(Card)
# Compilations that the search for the longest row may take.
_SEARCH_STEPS = 4
# The search ends at a row that fills this share of the card.
_CLOSE = 0.985
# The search aims at this share of the card, because the real heap is a little larger than interpolated.
_AIM = 0.995


def card_bytes(card: int) -> int:
    """Return the bytes that a step may use on a card with `card` GB by its name.

    Such a card has `card` GiB. The 7 % between GB and GiB are left for the driver, the CUDA context and NCCL.
    """
    return card * 10**9


def devices_of(target: Target) -> dict[int, tuple[str, int]]:
    """Return the devices that a plan is held against: memory by name to the name and the bytes of a step.

    NVIDIA's cards have their memory in GB. Of a TPU there is the one chip of the slice, in GiB.
    """
    if target.chip is not None:
        return {target.chip.gib: (f"{target.chip.name}, {target.chip.gib} GiB", target.chip.usable)}
    return {card: (f"{card} GB", card_bytes(card)) for card in CARDS}


def read_model(spec: MemorySpec) -> ModelConfig:
    """Read the config of the spec's model.

    Raises:
        InputError: neither a folder nor a config.json, or an unsupported model.
    """
    path = spec.model
    if path.is_file() and path.name != "config.json":
        raise InputError(f"{path}: expected a config.json, or a model folder that holds one")
    return ModelConfig.from_hf(path.parent if path.name == "config.json" else path)


def plan_memory(spec: MemorySpec, log: Callable[[str], None]) -> dict[str, Any]:
    """Compile the training step of a spec and return its plan. `jora memory --json` prints the plan.

    Raises:
        InputError: an unsupported model, a mesh that cannot split the model, a target that is not installed,
            a step that does not fit a TPU.
    """
    config = read_model(spec)
    target = make_target(spec.target, spec.mesh.data, spec.mesh.tensor, spec.topology)
    check_mesh(config, target.mesh)

    def compile_at(seq_len: int) -> StepMemory:
        start = time.monotonic()
        found = compile_step(target, config, spec, seq_len)
        took = time.monotonic() - start
        log(f"compiled for rows of {seq_len} tokens in {took:.1f} s: {found.total / 1e9:.2f} GB a device")
        return found

    log(f"compiler: {target.description}; mesh {spec.mesh.data} x {spec.mesh.tensor}")
    devices = devices_of(target)
    try:
        step = compile_at(spec.seq_len)
    except DoesNotFitError as err:
        (name, usable), *_ = devices.values()
        raise InputError(
            f"{spec.rows} row(s) of {spec.seq_len} tokens need {err.total / 1e9:.2f} GB a device, more than "
            f"the {usable / 1e9:.2f} GB for a program on a {name}; take shorter or fewer rows, remat "
            "full, quantization int8 or nf4, or a larger topology with more devices on the tensor axis"
        ) from None

    def total_at(length: int) -> int:
        try:
            return compile_at(length).total
        except DoesNotFitError as err:
            log(f"rows of {length} tokens need {err.total / 1e9:.2f} GB a device, which the compiler refuses")
            return err.total

    fitting = [card for card, (_, usable) in devices.items() if step.total <= usable]
    card = spec.card or (fitting[0] if fitting else max(devices))
    _, budget = devices[card]
    points = {spec.seq_len: step.total}
    # Beyond the model's positions there may be memory, but the answers are wrong.
    most = max(config.max_positions // ROW_STEP * ROW_STEP, ROW_STEP)
    longest = None
    if spec.find_longest:
        longest = longest_row(budget, points, total_at, most)
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
            {"gb": size, "name": name, "fits": size in fitting, "free_bytes": usable - step.total}
            for size, (name, usable) in devices.items()
        ],
        "card": card,
        "longest_row": longest,
        "most_positions": most,
        "row_bytes": {str(length): total for length, total in sorted(points.items())},
        "change": [] if card in fitting else what_to_change(spec, config, step, budget, longest),
        "collectives": None if target.kind == "tpu" else collective_rows(step, config),
        "unsplit_logits": unsplit_logits(step, config, spec, answers),
        "flops_per_token": flops.as_dict(),
    }


def longest_row(budget: int, points: dict[int, int], total_at: Callable[[int], int], most: int) -> int | None:
    """Find the longest row up to a limit, in steps of 64 slots, whose compiled step fits into `budget` bytes.

    Memory is nearly linear in the length, so two known lengths give the next one to try.

    Args:
        budget: bytes of the card.
        points: known bytes by length, at least one. The search adds its results to this dict.
        total_at: compiles the step for a length and returns the bytes.
        most: slots of the longest row that is of use.

    Returns:
        The length in slots; None where not even the shortest row that was tried fits.
    """
    first = min(points)
    if points[first] <= budget and first >= most:
        return most
    if len(points) == 1:
        # Towards the budget, so that the two lengths are likely to lie on both sides of it.
        second = max(first // 2, ROW_STEP) if points[first] > budget else min(first * 2, most)
        points[second] = total_at(second)
    for _ in range(_SEARCH_STEPS):
        below = max((n for n, total in points.items() if total <= budget), default=None)
        above = min((n for n, total in points.items() if total > budget), default=None)
        if below is not None and points[below] > _CLOSE * budget:
            break
        guess = _next_length(points, budget, below, above, most)
        if guess is None:
            break
        points[guess] = total_at(guess)
    found = max((n for n, total in points.items() if total <= budget), default=None)
    return None if found is None else min(found, most)


def _next_length(
    points: dict[int, int], budget: int, below: int | None, above: int | None, most: int
) -> int | None:
    """Return the length to try next, None if its memory is known already.

    Between the longest length that fits (`below`) and the shortest that does not (`above`), memory is
    interpolated as a power of the length. If one of the two is unknown, a line through the two points nearest
    to the budget is extended.
    """
    if below is not None and above is not None:
        if above - below <= ROW_STEP:
            return None
        low, high = points[below], points[above]
        guess = below * (above / below) ** (math.log(_AIM * budget / low) / math.log(high / low))
        # Strictly between the two, so that each compilation narrows the search.
        guess = min(max(guess, below + ROW_STEP), above - ROW_STEP)
    else:
        a, b = sorted(sorted(points, key=lambda n: abs(points[n] - budget))[:2])
        # The slope has a lower bound, since a flat line never meets the budget.
        slope = max((points[b] - points[a]) / (b - a), 1.0)
        guess = a + (budget * _AIM - points[a]) / slope
    length = max(int(min(guess, most)) // ROW_STEP * ROW_STEP, ROW_STEP)
    return None if length in points else length


def what_to_change(
    spec: MemorySpec, config: ModelConfig, step: StepMemory, budget: int, longest: int | None
) -> list[str]:
    """Return changes of settings that make a step fit onto a card, each with the expected bytes.

    Args:
        spec: the settings that do not fit.
        config: the model's.
        step: the compiled step of these settings.
        budget: bytes that a step may use on the card.
        longest: longest row in slots that fits with these settings, None if unknown.
    """
    advice: list[str] = []

    def add(text: str, total: float) -> None:
        advice.append(
            f"{text}: about {total / 1e9:.1f} GB" + ("" if total <= budget else ", with another change")
        )

    if spec.remat != "full" and step.activations > step.total // 10:
        # `full` keeps two residuals of two bytes for each layer; without sharding by tokens this is exact,
        # with it an upper bound.
        kept = 4 * spec.rows * spec.seq_len * config.hidden_size * config.num_layers
        kept //= spec.mesh.devices
        add("remat=full", step.total - max(step.activations - kept, 0))
    # Codes and scales of a quantized weight as a share of its bfloat16 size.
    for kind, share in (("int8", 0.51), ("nf4", 0.29)):
        if spec.trainable == "lora" and spec.quantization == "none" and spec.dtype == "bfloat16":
            # The embedding and the head are never quantized.
            outside = 2 * config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
            outside //= spec.mesh.tensor
            add(f"quantization={kind}", step.total - (1 - share) * max(step.weights - outside, 0))
    if spec.rows > spec.mesh.data:
        moving = step.activations + step.logits + step.workspace
        add("one row a device and more accumulation", step.total - moving * (1 - spec.mesh.data / spec.rows))
    tensor = spec.mesh.tensor
    fused = any(row.is_fused for row in model_rows(config))  # which no tensor axis can split
    # At most 8 devices, as one machine has: beyond, the network slows each layer.
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
    """Return the collectives of a step by kind and size. `per_layer` marks those in the loop over layers."""
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
    """Return the names of logit arrays whose vocabulary axis is not split over the devices.

    The result should be empty, since the vocabulary is split over the tensor axis.

    Args:
        step: the compiled step.
        config: the model's.
        spec: settings of the step, for mesh and rows.
        answers: number of supervised positions in a row.
    """
    if spec.mesh.tensor == 1:
        return []
    rows = max(answers * spec.rows // spec.mesh.data, 1)
    return [found.name for found in unsplit_rows(step.program, config.vocab_size, rows)]
