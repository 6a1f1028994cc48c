"""The command `jora memory` and the memory part of `jora plan`, which plan the memory of a training step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from flows.children.run_child import run_child
from flows.commands.common_options import Config, Json, Set, load, print_json, print_status
from flows.commands.planning.print_memory import print_memory
from flows.configuration.schema import PhaseConfig, PipelineConfig
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES
from flows.stages.converted_model import converted
from jora_core.base.error_messages import describe_validation_error
from jora_core.base.errors import InputError
from jora_core.specs.planning import MemorySpec

ROW_STEP = 64
_UNUSED = Path("unused")


def memory(
    *,
    config: Config = None,
    model: Annotated[Path | None, typer.Option("--model")] = None,
    data: Annotated[int | None, typer.Option("--data", min=1)] = None,
    tensor: Annotated[int | None, typer.Option("--tensor", min=1)] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", min=8)] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1)] = None,
    tokens_per_batch: Annotated[int | None, typer.Option("--tokens-per-batch", min=8)] = None,
    answer_tokens: Annotated[int | None, typer.Option("--answer-tokens", min=1)] = None,
    remat: Annotated[str | None, typer.Option("--remat")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype")] = None,
    quantization: Annotated[str | None, typer.Option("--quantization")] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", min=1)] = None,
    lora_targets: Annotated[str | None, typer.Option("--lora-targets")] = None,
    card: Annotated[int | None, typer.Option("--card")] = None,
    target: Annotated[str | None, typer.Option("--target")] = None,
    topology: Annotated[str | None, typer.Option("--topology")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say what a training step takes on each device.

    Compiles the real step for the real mesh from config.json, without weights or devices. Prints the bytes by
    kind, the cards that are large enough, the longest row, collectives and arithmetic. Without --model, plans
    the phase of CONFIG with the largest microbatch.

    \b
    Example:
      jora memory --model config.json --tensor 4 --seq-len 4096 --card 80
      jora memory --model config.json --tensor 8 --target tpu --topology v5e:2x4

    Args:
        config: configuration file.
        model: Model folder or config.json, instead of CONFIG.
        data: Devices that split the batch.
        tensor: Devices that split a weight.
        seq_len: Tokens of a row.
        batch: Rows of a microbatch, over all devices.
        tokens_per_batch: Tokens of a microbatch, instead of --batch.
        answer_tokens: Supervised tokens in a row; else an eighth of the row.
        remat: Activations to recompute, as in phases.N.remat.
        dtype: Number type of the base: float32 or bfloat16.
        quantization: Quantization of the base: none, int8 or nf4.
        lora_r: Rank of the adapter.
        lora_targets: Projections with an adapter, separated by commas.
        card: Memory of the card in GB: 24, 40, 48, 80 or 141.
        target: Compiler: auto, cuda, tpu, host or cpu (see docs/memory.md).
        topology: For --target tpu: the slice to compile for, whose devices the mesh must have; else v5e:2x4.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    if model is not None and config is not None:
        raise InputError("give CONFIG or --model, not both")
    given = {
        "data": data,
        "tensor": tensor,
        "seq_len": seq_len,
        "rows": batch,
        "tokens_per_batch": tokens_per_batch,
        "answer_tokens": answer_tokens,
        "remat": remat,
        "dtype": dtype,
        "quantization": quantization,
        "r": lora_r,
        "target_modules": lora_targets.split(",") if lora_targets else None,
        "card": card,
        "target": target,
        "topology": topology,
    }
    settings = memory_settings(None if model else with_model_folder(load(config, overrides)), model, given)
    plan = memory_plan(settings, print_status)
    if as_json:
        print_json(plan)
    else:
        print_memory(plan)


def with_model_folder(config: PipelineConfig) -> PipelineConfig:
    """Return a configuration whose base model is a model folder.

    Raises:
        InputError: the model is in another layout and not converted yet.
    """
    return converted(config, open_store(config), STAGES)


def memory_settings(
    config: PipelineConfig | None, model: Path | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of a `MemorySpec` for a model or a configuration, changed by the given options.

    Args:
        config: configuration whose phase with the largest microbatch is planned; None with `model`.
        model: model folder or config.json; None with `config`.
        given: option to value, or to None for an option that is not given. `rows` and `tokens_per_batch`
            exclude each other.

    Raises:
        InputError: a value or a combination of options is not valid.
    """
    settings: dict[str, Any]
    phase: PhaseConfig | None
    if config is not None:
        # The phases run one after another, so the larger one decides which card is enough.
        phase = max(config.phases, key=lambda phase: (phase.tokens_per_batch, phase.max_seq_len))
        settings = phase_settings(config, phase)
    else:
        settings = {"model": model}
        phase = None
    given = {name: value for name, value in given.items() if value is not None}
    budget = given.pop("tokens_per_batch", None)
    if budget is not None and "rows" in given:
        raise InputError("give --batch or --tokens-per-batch, not both")
    for part, names in (("mesh", ("data", "tensor")), ("lora", ("r", "target_modules"))):
        changes = {name: given.pop(name) for name in names if name in given}
        settings[part] = {**settings.get(part, {}), **changes}
    # A longer row in the same budget of tokens means fewer rows, as in training.
    if "seq_len" in given and phase is not None and budget is None and "rows" not in given:
        budget = phase.tokens_per_batch
    settings |= given
    if budget is not None:
        settings["rows"] = max(1, budget // settings.get("seq_len", 2048))
    try:
        # Validated now, before a child is started; the output folder is known only then.
        return MemorySpec.model_validate(settings | {"output_dir": _UNUSED}).model_dump(mode="json")
    except ValidationError as error:
        raise InputError(f"jora memory: {describe_validation_error(error, MemorySpec)}") from None


def phase_settings(config: PipelineConfig, phase: PhaseConfig) -> dict[str, Any]:
    """Return the fields of a `MemorySpec` for the largest possible microbatch of one phase.

    Groups of examples that share a context are in rows of up to the token budget. An example without a shared
    context has a row of its own.
    """
    longest = phase.max_seq_len
    if phase.sharing == "auto":
        # A microbatch is split over the data axis by rows, so a row holds at most one device's share.
        longest = max(longest, phase.tokens_per_batch // config.mesh.data)
    # Rounded up, as the batches of the training are.
    seq_len = -(-longest // ROW_STEP) * ROW_STEP
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "mesh": config.mesh.model_dump(),
        "lora": phase.lora.model_dump(),
        "remat": phase.remat,
        "seq_len": seq_len,
        "rows": max(1, phase.tokens_per_batch // seq_len),
    }


def memory_plan(settings: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Run ``python -m jora_core.commands.memory`` on the settings and return the memory plan."""
    with tempfile.TemporaryDirectory(prefix="jora-memory-") as name:
        spec = MemorySpec.model_validate(settings | {"output_dir": Path(name) / "plan"})
        return run_child("memory", spec, Path(name), on_line=say)


def memory_of_phases(
    config: PipelineConfig, counts: Mapping[str, Mapping[str, Any]], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Plan the memory of the phases that `counts` contains.

    Args:
        config: configuration with the phases.
        counts: stage name to the counts of `sharing_counts`. If the records of a phase are
            counted, its largest microbatch of groups is planned.
        say: called with a line for each step that is compiled.

    Returns:
        Stage name to the memory plan of the training core.
    """
    plans = {}
    for phase in config.phases:
        if phase.stage in counts:
            say(f"{phase.stage}: compiling its step")
            settings = phase_settings(config, phase) | counts[phase.stage].get("fullest", {})
            # The search compiles the step several times, which is too slow for a plan of all phases.
            plans[phase.stage] = memory_plan(settings | {"find_longest": False}, say)
    return plans
