"""Which projections get an adapter: PEFT's ``target_modules``, a list of names or a pattern.

PEFT compares with module names such as ``model.layers.3.self_attn.q_proj``. A name in a list matches the
module of exactly that name, or one that ends in ``.name``. A string is a regular expression that must match
the whole module name, or ``all-linear``. Here the adapters of one target are stacked over all layers, so a
choice must be the same in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.tensor_names import PROJECTIONS, model_projections
from jora_core.base.errors import InputError

ALL_LINEAR = "all-linear"
# Modules that peft can adapt and this core does not.
_OTHER_MODULES = ("model.embed_tokens", "lm_head")
# More layers than any model has: a pattern that matches nothing in these matches nothing at all.
_MANY_LAYERS = 256


def resolve_targets(
    targets: Sequence[str] | str,
    config: ModelConfig,
    exclude: Sequence[str] | str | None = None,
    *,
    absent_ok: bool = False,
) -> tuple[str, ...]:
    """The projections of a model that a choice means, in the order of the table `TENSORS`.

    Args:
        targets: names, or one pattern.
        config: the model, for its projections and the number of its layers.
        exclude: PEFT's ``exclude_modules``: matches of it are left out.
        absent_ok: skip names of projections that only other families have, as PEFT does.

    Raises:
        InputError: nothing matches, only some layers do, a module matches that cannot have an adapter here,
            the model has no projection of a name, or the pattern is no regular expression.
    """
    shown = f"target_modules {_shown(targets)}"
    projections = model_projections(config)
    num_layers = config.num_layers
    # The usual list for Llama would match o_proj and down_proj alone in a model with fused projections.
    absent = [] if isinstance(targets, str) else [name for name in targets if name in PROJECTIONS]
    absent = [name for name in absent if name not in projections]
    if absent and not absent_ok:
        raise InputError(
            f"{shown}: {config.family} models have no projection {absent[0]}; {_known(projections)}"
        )
    layers: dict[str, list[int]] = {}
    for module, name, layer in _modules(projections, num_layers):
        if _matches(targets, module, shown) and not (
            exclude and _matches(exclude, module, "exclude_modules")
        ):
            if name not in projections:
                raise InputError(
                    f"{shown} picks {module}, which cannot have an adapter; {_known(projections)}"
                )
            layers.setdefault(name, []).append(layer)
    if not layers:
        raise InputError(f"{shown} matches no projection of the model; {_known(projections)}{_hint(targets)}")
    for name, found in layers.items():
        if len(found) < num_layers:
            raise InputError(
                f"{shown} picks {name} in layers {_ranges(found)} alone, of {num_layers}; an adapter is the "
                "same in every layer: match all of them"
            )
    return tuple(name for name in projections if name in layers)


def check_targets(targets: Sequence[str] | str) -> None:
    """Refuse, before any model is known, what can match in none.

    Raises:
        InputError: an empty list, a name that is no projection, a pattern that is broken or matches nothing.
    """
    if isinstance(targets, str):
        shown = f"target_modules {_shown(targets)}"
        if not any(_matches(targets, module, shown) for module, _, _ in _modules(PROJECTIONS, _MANY_LAYERS)):
            raise InputError(f"{shown} matches no projection of any model; {_known()}{_hint(targets)}")
        return
    if not targets:
        raise InputError(f"target_modules is empty; {_known()}")
    for name in targets:
        if name not in PROJECTIONS:
            raise InputError(f"target_modules names {_shown(name)}; {_known()}{_hint(name)}")


def _modules(projections: Mapping[str, str], num_layers: int) -> Iterator[tuple[str, str, int]]:
    """Module name, projection and layer of every projection; then the modules that peft could also pick."""
    for layer in range(num_layers):
        for name, module in projections.items():
            yield f"model.layers.{layer}.{module}", name, layer
    for module in _OTHER_MODULES:
        yield module, module, 0


def _matches(targets: Sequence[str] | str, module: str, shown: str) -> bool:
    if not isinstance(targets, str):
        return any(module == name or module.endswith(f".{name}") for name in targets)
    if targets.lower() == ALL_LINEAR:
        return module not in _OTHER_MODULES
    try:
        return re.fullmatch(targets, module) is not None
    except re.error as err:
        raise InputError(f"{shown} is no regular expression: {err}") from None


def _shown(targets: Iterable[str] | str) -> str:
    if isinstance(targets, str):
        return f"'{targets}'"
    names = sorted(map(str, targets))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _known(projections: Iterable[str] = PROJECTIONS) -> str:
    return f"expected some of {', '.join(projections)}, {ALL_LINEAR}, or a pattern"


def _hint(targets: Sequence[str] | str) -> str:
    """How to mend a name given as a pattern, or a pattern given as a name."""
    if not isinstance(targets, str):
        return ""
    if targets in PROJECTIONS:
        return f"; one name goes into a list: [{targets}]"
    return (
        ""
        if targets.lower() == ALL_LINEAR
        else " that matches whole names such as model.layers.0.self_attn.q_proj"
    )


def _ranges(layers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
