"""Resolution of PEFT's ``target_modules`` to the projections of one model.

`jora_core.specs.target_names` has the rules for names and patterns. The adapters of one target are stacked
over all layers, so the matched projections must be the same in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections
from jora_core.architecture.tensor_names import PROJECTIONS, projection_row
from jora_core.base.errors import InputError
from jora_core.specs.lora import LoraSpec
from jora_core.specs.target_names import (
    adaptable_modules,
    expected_targets,
    matches_targets,
    show_targets,
    target_hint,
)

# Rank and scale of each layer's adapter, by target; rank 0 for a layer without one.
Ranks = dict[str, list[tuple[int, float]]]


def lora_targets(lora: LoraSpec, config: ModelConfig) -> tuple[str, ...]:
    """Return the projections that get an adapter by the settings of one, and check its layers.

    Raises:
        InputError: as `resolve_targets`, or a layer that the model does not have.
    """
    last = config.num_layers - 1
    for layer in lora.layers_to_transform or ():
        if layer > last:
            raise InputError(f"layers_to_transform: the model has no layer {layer}; its last is {last}")
    return resolve_targets(lora.target_modules, config, lora.exclude_modules)


def layer_ranks(lora: LoraSpec, targets: Sequence[str], num_layers: int) -> Ranks:
    """Return rank and scale of each layer's adapters, after rank_pattern and alpha_pattern.

    Args:
        lora: the adapter's settings.
        targets: the projections that have an adapter.
        num_layers: layers of the model.
    """
    ranks: Ranks = {}
    for target in targets:
        for layer in range(num_layers):
            if lora.layers_to_transform is not None and layer not in lora.layers_to_transform:
                ranks.setdefault(target, []).append((0, lora.scale))
                continue
            module = projection_row(target).prefix(layer)
            rank = int(_first(lora.rank_pattern, module, lora.r))
            alpha = _first(lora.alpha_pattern, module, lora.lora_alpha)
            # As `LoraSpec.scale`, with the module's own numbers.
            ranks.setdefault(target, []).append((rank, alpha / (rank**0.5 if lora.use_rslora else rank)))
    return ranks


def check_patterns(lora: LoraSpec, targets: Sequence[str], num_layers: int) -> None:
    """Refuse a pattern of ranks or alphas that matches no adapter, which peft takes without a word.

    Args:
        lora: the adapter's settings.
        targets: the projections that have an adapter.
        num_layers: layers of the model.

    Raises:
        InputError: naming the pattern.
    """
    modules = [projection_row(target).prefix(layer) for target in targets for layer in range(num_layers)]
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(lora, name):
            if not any(_matches(pattern, module) for module in modules):
                raise InputError(
                    f"lora.{name}: {pattern!r} matches no module with an adapter; expected the end of a name "
                    f"such as {modules[0]}"
                )


def _first(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches a module."""
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), default)


def _matches(pattern: str, module: str) -> bool:
    # The end of the name, as in peft.
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def resolve_targets(
    targets: Sequence[str] | str,
    config: ModelConfig,
    exclude: Sequence[str] | str | None = None,
    *,
    absent_ok: bool = False,
) -> tuple[str, ...]:
    """Return the projections that `targets` match in a model, in the sequence of the table `TENSORS`.

    Args:
        targets: names, or one pattern.
        config: the model's, for its projections and number of layers.
        exclude: PEFT's ``exclude_modules``, names or a pattern of modules that are left out.
        absent_ok: skip names of projections that only other families have, as PEFT does.

    Raises:
        InputError: nothing matches, only some layers do, a module matches that cannot have an adapter here,
            the model has no projection of a name, or the pattern is no regular expression.
    """
    shown = f"target_modules {show_targets(targets)}"
    projections = model_projections(config)
    num_layers = config.num_layers
    # The usual list for Llama would match o_proj and down_proj alone in a model with fused projections.
    absent = [] if isinstance(targets, str) else [name for name in targets if name in PROJECTIONS]
    absent = [name for name in absent if name not in projections]
    if absent and not absent_ok:
        raise InputError(
            f"{shown}: {config.family} models have no projection {absent[0]}; {expected_targets(projections)}"
        )
    layers: dict[str, list[int]] = {}
    for module, name, layer in adaptable_modules(projections, num_layers):
        if matches_targets(targets, module, shown) and not (
            exclude and matches_targets(exclude, module, "exclude_modules")
        ):
            # After the match: `exclude_modules` may take such a module out again.
            if name not in projections:
                raise InputError(
                    f"{shown} picks {module}, which cannot have an adapter; {expected_targets(projections)}"
                )
            layers.setdefault(name, []).append(layer)
    if not layers:
        raise InputError(
            f"{shown} matches no projection of the model; {expected_targets(projections)}"
            f"{target_hint(targets)}"
        )
    # peft would adapt those layers alone. Here the layers are one array, which has no gaps.
    for name, found in layers.items():
        if len(found) < num_layers:
            raise InputError(
                f"{shown} picks {name} in layers {_ranges(found)} alone, of {num_layers}; an adapter is the "
                "same in every layer: match all of them, and choose layers by layers_to_transform"
            )
    # In the sequence of the table: the adapter is the same however the user sorts the names.
    return tuple(name for name in projections if name in layers)


def _ranges(layers: Sequence[int]) -> str:
    """Write layers 0, 1, 2, 5 as "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
