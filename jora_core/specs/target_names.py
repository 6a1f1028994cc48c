"""Checks of PEFT's ``target_modules``, a list of names or a pattern, before a model is known.

PEFT compares with module names such as ``model.layers.3.self_attn.q_proj``. A name in a list matches the
module of exactly that name, or one that ends in ``.name``. A string is a regular expression that must match
the whole module name, or ``all-linear``. `jora_core.specs.adapter_targets` finds the targets in one model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jora_core.architecture.tensor_names import PROJECTIONS
from jora_core.base.errors import InputError

ALL_LINEAR = "all-linear"
# Modules that peft can adapt and this core cannot: "all-linear" leaves them out, as peft does for the head,
# and a pattern that matches one of them is refused instead of being trained without it.
_OTHER_MODULES = ("model.embed_tokens", "lm_head")
# More layers than any supported model has. A pattern may name single layers ("layers\.31\."), so that a
# check against layer 0 alone would refuse a good one.
_MOST_LAYERS = 256


def check_targets(targets: Sequence[str] | str) -> None:
    """Refuse targets that match in no supported model.

    Raises:
        InputError: an empty list, a name that is no projection, a pattern that is broken or matches nothing.
    """
    if isinstance(targets, str):
        shown = f"target_modules {show_targets(targets)}"
        if not any(
            matches_targets(targets, module, shown)
            for module, _, _ in adaptable_modules(PROJECTIONS, _MOST_LAYERS)
        ):
            raise InputError(
                f"{shown} matches no projection of any model; {expected_targets()}{target_hint(targets)}"
            )
        return
    if not targets:
        raise InputError(f"target_modules is empty; {expected_targets()}")
    for name in targets:
        # Names only, where peft would take any suffix: a misspelt one fails before a model is loaded.
        if name not in PROJECTIONS:
            raise InputError(
                f"target_modules names {show_targets(name)}; {expected_targets()}{target_hint(name)}"
            )


def adaptable_modules(projections: Mapping[str, str], num_layers: int) -> Iterator[tuple[str, str, int]]:
    """Yield module name, projection and layer of every projection, then of modules that only peft adapts."""
    for layer in range(num_layers):
        for name, module in projections.items():
            yield f"model.layers.{layer}.{module}", name, layer
    for module in _OTHER_MODULES:
        yield module, module, 0


def matches_targets(targets: Sequence[str] | str, module: str, shown: str) -> bool:
    """Return whether targets match a module.

    Args:
        targets: names, or one pattern.
        module: whole module name, such as ``model.layers.3.self_attn.q_proj``.
        shown: text of the targets for an error message.

    Raises:
        InputError: the pattern is no regular expression.
    """
    if not isinstance(targets, str):
        return any(module == name or module.endswith(f".{name}") for name in targets)
    # peft accepts any case.
    if targets.lower() == ALL_LINEAR:
        return module not in _OTHER_MODULES
    try:
        # fullmatch and not search, as in peft: "q_proj" as a pattern matches nothing.
        return re.fullmatch(targets, module) is not None
    except re.error as err:
        raise InputError(f"{shown} is no regular expression: {err}") from None


def show_targets(targets: Iterable[str] | str) -> str:
    """Return the text of targets for an error message. A long list is shortened."""
    if isinstance(targets, str):
        return f"'{targets}'"
    names = sorted(map(str, targets))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def expected_targets(projections: Iterable[str] = PROJECTIONS) -> str:
    """Return the part of an error message that names the accepted targets."""
    return f"expected some of {', '.join(projections)}, {ALL_LINEAR}, or a pattern"


def target_hint(targets: Sequence[str] | str) -> str:
    """Return advice for a name given as a pattern, or for a pattern that matches only a part of a name."""
    if not isinstance(targets, str):
        return ""
    if targets in PROJECTIONS:
        return f"; one name goes into a list: [{targets}]"
    return (
        ""
        if targets.lower() == ALL_LINEAR
        else " that matches whole names such as model.layers.0.self_attn.q_proj"
    )
