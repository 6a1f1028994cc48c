"""The choice with the largest log-likelihood for each of its characters.

The sum of a choice's log-likelihoods is smaller the longer the choice is. Divided by the number of characters
it is what lm-eval (EleutherAI's Language Model Evaluation Harness) calls `acc_norm`. Here the sum holds the
token that ends the answer, too, which has no character.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jora_core.base.record_columns import is_channel

Row = Mapping[str, Any]


def normalised_likelihoods(choices: Sequence[str], logprobs: Sequence[float]) -> list[float]:
    """Return each choice's log-likelihood for a character. A choice without characters counts as one.

    Raises:
        ValueError: there is not one log-likelihood for each choice.
    """
    return [value / max(len(text), 1) for text, value in zip(choices, logprobs, strict=True)]


def with_normalised_choices(rows: Iterable[Row], records: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows of answers with `normalised_choice`, None for an answer without log-likelihoods.

    Args:
        rows: answers, with the `id` of a record and `choice_logprobs`, those of its choices.
        records: the records, with their `choices`. Channel records have no such choice: their likelihoods
            are of another text than the choices.
    """
    choices = {record["id"]: record["choices"] for record in records if not is_channel(record)}
    found = []
    for row in rows:
        best = None
        if row.get("choice_logprobs") and row["id"] in choices:
            values = normalised_likelihoods(choices[row["id"]], row["choice_logprobs"])
            # Of equal ones the first, as of the sums.
            best = choices[row["id"]][values.index(max(values))]
        found.append({**row, "normalised_choice": best})
    return found
