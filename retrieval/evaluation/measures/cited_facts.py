"""Supporting facts that an answer cites by its quotations, and the joint scores of HotpotQA from them.

HotpotQA (arXiv:1809.09600) asks a system for the numbers of the sentences that support its answer. Here a
model writes text, and the sentences that it quotes are its facts. A quotation cites each numbered sentence
that it overlaps; one that overlaps none, such as an invented one, is a wrong fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from retrieval.evaluation.measures.hotpotqa import (
    NOTHING,
    Score,
    answer_score,
    supporting_fact_score,
)
from retrieval.prompts.answer_styles import quotations
from retrieval.settings.tasks import HOTPOTQA_SCORES
from retrieval.text.supporting_facts import Fact, ShownSentence


def cited_facts(answer: str, prompt: str, sentences: Sequence[ShownSentence]) -> set[Fact]:
    """Return the facts that an answer cites.

    Args:
        answer: the written answer, with its quotation marks.
        prompt: the `input` that the places of the sentences count in.
        sentences: the numbered sentences of the prompt.
    """
    facts: set[Fact] = set()
    for span in quotations(answer):
        # The same words may stand in a title or in the question first.
        places = [found.span() for found in re.finditer(re.escape(span), prompt)] if span else []
        cited = ({s.fact for s in sentences if s.start < end and start < s.end} for start, end in places)
        facts |= next(filter(None, cited), {(f"quoted: {span}", -1)})
    return facts


def joint_values(
    said: Sequence[str | None],
    gold: Sequence[Sequence[str]],
    cited: Sequence[set[Fact]],
    facts: Sequence[set[Fact]],
) -> dict[str, np.ndarray]:
    """Return HotpotQA's scores of each question.

    Args:
        said: predicted answers; None: there is none, which gets nothing, as in HotpotQA's script.
        gold: accepted answers of each question; HotpotQA has one. Of several the best counts.
        cited: cited facts.
        facts: right facts.

    Returns:
        HOTPOTQA_SCORES, each float64[N].
    """
    rows = []
    for text, accepted, named, right in zip(said, gold, cited, facts, strict=True):
        answer = NOTHING if text is None else _best(text, accepted)
        # Without an answer there is nothing that could have a quotation.
        fact = NOTHING if text is None else supporting_fact_score(named, right)
        parts = (answer, fact, answer.joint(fact))
        rows.append([value for part in parts for value in (float(part.exact), part.overlap.f1)])
    columns = np.asarray(rows, np.float64).reshape(-1, len(HOTPOTQA_SCORES)).T
    return dict(zip(HOTPOTQA_SCORES, columns, strict=True))


def _best(text: str, accepted: Sequence[str]) -> Score:
    scores = [answer_score(text, answer) for answer in accepted]
    return max(scores, key=lambda score: (score.overlap.f1, score.exact), default=NOTHING)
