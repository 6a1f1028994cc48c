"""Answer, supporting-fact and joint scores of HotpotQA (arXiv:1809.09600), as its script counts them.

Answers are normalised as in SQuAD. F1 has a special case: if one of the two answers is `yes`, `no` or
`noanswer` and the other is not the same, F1 is 0, so that `yes, it is` gets nothing for `yes`. F1 of two
empty texts is 0. Supporting facts are sets of (title, sentence number). The joint precision and recall of a
question are products of those of its answer and of its facts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from retrieval.evaluation.measures.precision_recall import ZERO, PrecisionRecall, of_counts, of_words
from retrieval.evaluation.measures.squad import normalize_answer

#: Answers that are right as a whole or not at all.
CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})
Fact = tuple[str, int]


@dataclass(frozen=True)
class Score:
    """The score of one answer, or of one set of facts: whether it is exact, and its precision and recall."""

    exact: bool
    overlap: PrecisionRecall

    def joint(self, other: Score) -> Score:
        """Return the joint score of an answer and its facts: every part is a product."""
        one, two = self.overlap, other.overlap
        return Score(
            self.exact and other.exact,
            PrecisionRecall(one.precision * two.precision, one.recall * two.recall),
        )


NOTHING = Score(False, ZERO)


def answer_score(prediction: str, gold: str) -> Score:
    """Return the score of a predicted answer."""
    said, wanted = normalize_answer(prediction), normalize_answer(gold)
    if said != wanted and (said in CLOSED_ANSWERS or wanted in CLOSED_ANSWERS):
        return NOTHING
    return Score(said == wanted, of_words(said.split(), wanted.split()))


def supporting_fact_score(predicted: Collection[Fact], gold: Collection[Fact]) -> Score:
    """Return the score of predicted supporting facts. Repeated facts count once."""
    said, wanted = set(predicted), set(gold)
    return Score(said == wanted, of_counts(len(said & wanted), len(said), len(wanted)))


def hotpotqa_scores(
    answers: Mapping[str, str],
    facts: Mapping[str, Collection[Fact]],
    gold: Mapping[str, tuple[str, Collection[Fact]]],
) -> dict[str, float]:
    """Return the twelve numbers of HotpotQA's script, as shares from 0 to 1.

    Args:
        answers: predicted answers by question id.
        facts: predicted supporting facts by question id.
        gold: right answer and right facts by question id.

    Returns:
        `em`, `f1`, `prec` and `recall` of answers, the same of facts (`sp_…`) and joint (`joint_…`): means
        over all questions of `gold`, where a question without a prediction counts as 0.

    Raises:
        ValueError: `gold` has no question.
    """
    if not gold:
        raise ValueError("no question to score")
    totals: dict[str, float] = {}
    for name, (answer, supporting) in gold.items():
        said = answer_score(answers[name], answer) if name in answers else NOTHING
        shown = supporting_fact_score(facts[name], supporting) if name in facts else NOTHING
        for prefix, score in (("", said), ("sp_", shown), ("joint_", said.joint(shown))):
            for key, value in _numbers(score).items():
                totals[prefix + key] = totals.get(prefix + key, 0.0) + value
    return {key: total / len(gold) for key, total in totals.items()}


def _numbers(score: Score) -> dict[str, Any]:
    overlap = score.overlap
    return {
        "em": float(score.exact),
        "f1": overlap.f1,
        "prec": overlap.precision,
        "recall": overlap.recall,
    }
