"""Which linear layers get an adapter: names or a pattern, with PEFT's meaning, to a set of projections.

PEFT compares with module names such as ``model.layers.3.self_attn.q_proj``: a name in a list matches the
module of exactly that name or one that ends in ``.name``; a string is a regular expression that must match
the whole name, or ``all-linear``. This core holds the adapters of a target stacked over all layers, so a
choice must be the same in every layer. No JAX here: orders are checked with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from jora_core.base.errors import InputError

# The projections of a layer, in the order of the model, and their modules in a Hugging Face layer.
PROJECTIONS: dict[str, str] = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
ALL_LINEAR = "all-linear"
# Modules that peft would adapt and this core does not.
_OTHER_MODULES = ("model.embed_tokens", "lm_head")
# More layers than any model has: a pattern that matches nothing in these matches nothing at all.
_MANY_LAYERS = 256


def resolve_targets(
    targets: Sequence[str] | str, num_layers: int, exclude: Sequence[str] | str | None = None
) -> tuple[str, ...]:
    """The projections that a choice means, in the order of the model, the same in every layer.

    Args:
        targets: names, or one pattern.
        exclude: PEFT's ``exclude_modules``: matches of it are left out.

    Raises:
        InputError: nothing matches, only some layers do, a module matches that cannot have an adapter here,
            or the pattern is no regular expression.
    """
    shown = f"target_modules {_shown(targets)}"
    layers: dict[str, list[int]] = {}
    for module, name, layer in _modules(num_layers):
        if _matches(targets, module, shown) and not (
            exclude and _matches(exclude, module, "exclude_modules")
        ):
            if name not in PROJECTIONS:
                raise InputError(f"{shown} picks {module}, which cannot have an adapter; {_known()}")
            layers.setdefault(name, []).append(layer)
    if not layers:
        raise InputError(f"{shown} matches no projection of the model; {_known()}{_hint(targets)}")
    for name, found in layers.items():
        if len(found) < num_layers:
            raise InputError(
                f"{shown} picks {name} in layers {_ranges(found)} alone, of {num_layers}; an adapter is the "
                "same in every layer: match all of them"
            )
    return tuple(name for name in PROJECTIONS if name in layers)


def check_targets(targets: Sequence[str] | str) -> None:
    """Refuse, before any model is known, what can match in none.

    Raises:
        InputError: an empty list, a name that is no projection, a pattern that is broken or matches nothing.
    """
    if isinstance(targets, str):
        shown = f"target_modules {_shown(targets)}"
        if not any(_matches(targets, module, shown) for module, _, _ in _modules(_MANY_LAYERS)):
            raise InputError(f"{shown} matches no projection of any model; {_known()}{_hint(targets)}")
        return
    if not targets:
        raise InputError(f"target_modules is empty; {_known()}")
    for name in targets:
        if name not in PROJECTIONS:
            raise InputError(f"target_modules names {_shown(name)}; {_known()}{_hint(name)}")


def _modules(num_layers: int) -> Iterator[tuple[str, str, int]]:
    """Module name, projection and layer of every linear layer of a model, and of what is none of ours."""
    for layer in range(num_layers):
        for name, module in PROJECTIONS.items():
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


def _known() -> str:
    return f"expected some of {', '.join(PROJECTIONS)}, {ALL_LINEAR}, or a pattern"


def _hint(targets: Sequence[str] | str) -> str:
    """For what was almost right: a name given as a pattern, or a pattern given as a name."""
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
