"""The field of the run form that says which stages run: all, only one, or one and those after it."""

from __future__ import annotations

from collections.abc import Sequence

from jora_core.base.errors import InputError

ALL_STAGES = "all stages"


def stage_choices(names: Sequence[str]) -> list[str]:
    """Return the choices for stages, which are given in the order in which they run."""
    return [ALL_STAGES, *(f"only {name}" for name in names), *(f"from {name} on" for name in names[1:])]


def selection_of(choice: str) -> tuple[str | None, str | None]:
    """Return the name of the only stage and that of the first stage of a choice; None for no such limit.

    Raises:
        InputError: the text is no choice.
    """
    words = choice.split()
    if choice == ALL_STAGES:
        return None, None
    if len(words) == 2 and words[0] == "only":
        return words[1], None
    if len(words) == 3 and (words[0], words[2]) == ("from", "on"):
        return None, words[1]
    raise InputError(f"stages: expected '{ALL_STAGES}', 'only STAGE' or 'from STAGE on', got {choice!r}")
