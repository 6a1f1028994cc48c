"""Retriever and model as one system: the learned ranking and the tuned model decide together.

The model chooses among the posts of its prompt, the learned fusion ranks all candidates. A candidate c has
the score

    w1 · log p_retriever(c) + [c is in the prompt] · (w2 · log p_model(c) + w3)

and the candidate with the largest one is the answer. The three weights maximise the likelihood of the right
candidates under a softmax over the candidates of a message (conditional logit, McFadden 1974). They must be
fitted on messages that neither the retriever nor the model was trained on. Otherwise both look surer than
they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from retrieval.evaluation.answer_scores import Prediction

Row = Mapping[str, Any]

#: The weights of the retriever alone, and how strongly the fitted ones are drawn to them: as by one message.
RETRIEVER_ALONE = (1.0, 0.0, 0.0)
_PRIOR = 1.0
_STEPS = 50
_LEAST_MESSAGES = 50


@dataclass(frozen=True)
class ScoredCandidates:
    """N messages with K candidates each, padded to the same K, scored by the retriever and by the model.

    Attributes:
        ids: the ids of the records.
        contexts: the contexts of the records, for intervals.
        posts: the ids of the candidates of each record, in time order.
        authors: their authors.
        retriever: float64[N, K], log-probabilities of the learned fusion; minus infinity for padding.
        model: float64[N, K], log-probabilities of the model among the posts of the prompt; 0 for others.
        shown: bool[N, K], whether the post is in the prompt.
        right: bool[N, K], whether the comment answers the post.
    """

    ids: tuple[str, ...]
    contexts: tuple[str, ...]
    posts: tuple[tuple[str, ...], ...]
    authors: tuple[tuple[str, ...], ...]
    retriever: np.ndarray
    model: np.ndarray
    shown: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def features(self) -> np.ndarray:
        """float64[N, K, 3]: what the weights are multiplied with; 0 for padding."""
        present = np.isfinite(self.retriever)
        return np.stack([np.where(present, self.retriever, 0), self.model, self.shown], axis=-1)

    def take(self, rows: np.ndarray) -> ScoredCandidates:
        """Return the messages at the given rows."""
        chosen = [
            tuple(each[row] for row in rows.tolist())
            for each in (self.ids, self.contexts, self.posts, self.authors)
        ]
        return ScoredCandidates(
            *chosen, self.retriever[rows], self.model[rows], self.shown[rows], self.right[rows]
        )


def scored_candidates(
    records: Sequence[Row], rankings: Sequence[Row], answers: Sequence[Row]
) -> ScoredCandidates:
    """Join what the retriever and one model say about the candidates of the same records.

    Args:
        records: rows of `records.parquet`.
        rankings: rows of `rankings.parquet`, with `learned_scores`.
        answers: rows of `predictions.parquet` of one system, with `choice_logprobs`; their records are used.

    Raises:
        InputError: scores are missing, or belong to other records.
    """
    record_of, ranking_of = ({row["id"]: row for row in rows} for rows in (records, rankings))
    width = 0
    for row in answers:
        if row["id"] not in record_of or row["id"] not in ranking_of:
            raise InputError(
                f"record {row['id']} has an answer but no record or ranking; give the records.parquet and "
                "rankings.parquet that the answers were made from"
            )
        if not ranking_of[row["id"]].get("learned_scores"):
            raise InputError(
                f"record {row['id']} has no learned_scores in rankings.parquet; build with fusion: learned"
            )
        choices = record_of[row["id"]]["choices"]
        if len(row.get("choice_logprobs") or ()) != len(choices):
            raise InputError(
                f"record {row['id']} has no choice_logprobs for its {len(choices)} choices in "
                "predictions.parquet; evaluate again with evaluate.mode choice or both"
            )
        width = max(width, len(ranking_of[row["id"]]["candidate_ids"]))
    shape = len(answers), width
    retriever = np.full(shape, -np.inf)
    model, shown, right = np.zeros(shape), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for number, row in enumerate(answers):
        ranking, prompt = ranking_of[row["id"]], record_of[row["id"]]["context_ids"]
        place = {post: k for k, post in enumerate(ranking["candidate_ids"])}
        # Behind the candidates stands "starts a conversation", which is not the answer to a reply.
        retriever[number, : len(place)] = ranking["learned_scores"][: len(place)]
        # A choice "none of these" stands behind those of the posts. It takes its share of the probability.
        scores = np.array(row["choice_logprobs"])
        scores -= np.logaddexp.reduce(scores)
        at = [place[post] for post in prompt]
        model[number, at], shown[number, at] = scores[: len(at)], True
        right[number, [place[post] for post in ranking["gold_ids"] if post in place]] = True
    return ScoredCandidates(
        tuple(row["id"] for row in answers),
        tuple(record_of[row["id"]]["context_id"] for row in answers),
        tuple(tuple(ranking_of[row["id"]]["candidate_ids"]) for row in answers),
        tuple(tuple(ranking_of[row["id"]]["candidate_authors"]) for row in answers),
        retriever,
        model,
        shown,
        right,
    )


def fit_weights(candidates: ScoredCandidates) -> np.ndarray:
    """Return float64[3], the weights under which the right candidates are most likely.

    Args:
        candidates: messages that neither the retriever nor the model was trained on.

    Raises:
        InputError: too few of them have a right candidate.
    """
    known = candidates.right.any(axis=1)
    if known.sum() < _LEAST_MESSAGES:
        raise InputError(
            f"retriever and model together need at least {_LEAST_MESSAGES} replies whose parent is a "
            f"candidate, to fit three weights; found {int(known.sum())}, give more unseen contexts"
        )
    features = candidates.features[known]
    present = np.isfinite(candidates.retriever[known])
    target = candidates.right[known] / candidates.right[known].sum(axis=1, keepdims=True)
    prior = np.array(RETRIEVER_ALONE)
    weights = prior.copy()
    # Newton's method: the penalised likelihood has one maximum, which it reaches in a few steps.
    for _ in range(_STEPS):
        p = np.exp(_log_softmax(features @ weights, present))
        mean = np.einsum("nk,nkf->nf", p, features)
        gradient = np.einsum("nk,nkf->f", target - p, features) - _PRIOR * (weights - prior)
        spread = features - mean[:, None, :]
        curvature = np.einsum("nk,nkf,nkg->fg", p, spread, spread) + _PRIOR * np.eye(len(prior))
        step = np.linalg.solve(curvature, gradient)
        # A full step from far away may overshoot. A shorter one always climbs, because the likelihood is
        # concave.
        before = _penalised(features, present, target, weights)
        while _penalised(features, present, target, weights + step) < before - 1e-12:
            step = step / 2
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def cross_fitted_weights(candidates: ScoredCandidates) -> np.ndarray:
    """Return float64[N, 3]: for each message the weights fitted on all messages of the other contexts."""
    contexts = np.array(candidates.contexts, dtype=object).astype(str)
    out = np.zeros((len(candidates), len(RETRIEVER_ALONE)))
    for context in np.unique(contexts):
        own = contexts == context
        out[own] = fit_weights(candidates.take(np.flatnonzero(~own)))
    return out


def chosen_posts(
    candidates: ScoredCandidates, weights: np.ndarray | Sequence[float]
) -> dict[str, Prediction]:
    """Return the best candidate of each message, by record id; of equal ones the later.

    Args:
        candidates: the messages.
        weights: float64[3], or float64[N, 3] with other ones for each message.
    """
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64), (len(candidates), 3))
    scores = np.einsum("nkf,nf->nk", candidates.features, weights)
    scores[~np.isfinite(candidates.retriever)] = -np.inf
    return _best(candidates, scores)


def model_alone(candidates: ScoredCandidates) -> dict[str, Prediction]:
    """Return the model's best post of the prompt, by record id."""
    return _best(candidates, np.where(candidates.shown, candidates.model, -np.inf))


def _best(candidates: ScoredCandidates, scores: np.ndarray) -> dict[str, Prediction]:
    last = scores.shape[1] - 1 - np.argmax(scores[:, ::-1], axis=1)
    return {
        name: Prediction(posts[place], authors[place])
        for name, posts, authors, place in zip(
            candidates.ids, candidates.posts, candidates.authors, last.tolist(), strict=True
        )
    }


def _log_softmax(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    kept = np.where(present, scores, -np.inf)
    top = kept.max(axis=1, keepdims=True)
    return kept - top - np.log(np.exp(kept - top).sum(axis=1, keepdims=True))


def _penalised(features: np.ndarray, present: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    log_p = np.where(target > 0, _log_softmax(features @ weights, present), 0)
    return float((target * log_p).sum() - _PRIOR / 2 * ((weights - np.array(RETRIEVER_ALONE)) ** 2).sum())
