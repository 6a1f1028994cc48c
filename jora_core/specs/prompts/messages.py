"""Records as messages: the form in which chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping

Message = Mapping[str, str]


def as_messages(instruction: str, input: str, system: str = "") -> list[Message]:
    """Return a record's prompt as messages: the system's, if there is one, and the user's.

    The user's message is the instruction, a blank line, and the input.

    Args:
        instruction: the task's instruction.
        input: context and question, "" for none.
        system: the system message, "" for none.
    """
    user = f"{instruction}\n\n{input}" if instruction and input else instruction or input
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": user}]
