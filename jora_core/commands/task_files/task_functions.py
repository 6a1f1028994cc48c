"""Documents and scores of a task of lm-eval. The file is copied beside the task, whose YAML file names it.

lm-eval computes the log-likelihoods of the texts; what is done with them stands here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def documents(file: str, **_: Any) -> dict[str, Any]:
    """Return the documents of a task as its split `test`.

    Args:
        file: name of the JSON lines beside this file.
        _: what else lm-eval gives, such as the metadata of the task.
    """
    # Comes with lm-eval, which alone calls this function.
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    # Split at "\n" only: `splitlines` also splits at signs that a JSON text may hold, such as U+2028.
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}


def scores(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return whether a right choice has the largest log-likelihood, in sum and for each character.

    Args:
        doc: a document; its first continuation is the end of the prompt alone, the others are the end of the
            prompt with one choice each.
        results: log-likelihood of each continuation, and whether it is the likeliest text.

    Returns:
        acc, of the sums over the tokens of a choice and its end; acc_norm, of the same divided by the
        characters of the choice.
    """
    end_of_prompt, *found = [float(likelihood) for likelihood, _ in results]
    sums = [likelihood - end_of_prompt for likelihood in found]
    norms = [value / max(len(text), 1) for value, text in zip(sums, doc["choices"], strict=True)]
    # Of equal ones the first.
    best, best_norm = (values.index(max(values)) for values in (found, norms))
    return {"acc": float(best in doc["gold"]), "acc_norm": float(best_norm in doc["gold"])}
