"""Learned fusion of threads: choose the messages to fit on, fit the ranker, rank candidates with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jora_core.base.errors import InputError
from retrieval.corpus.mapped_items import load_array, save_array
from retrieval.corpus.types import Post, Tally
from retrieval.evaluation.task_report import Progress
from retrieval.search.bm25.index import BM25Index
from retrieval.search.bm25.vocabulary import known_ids
from retrieval.search.bm25.window import add_window_scores
from retrieval.search.fusion import Fusion
from retrieval.search.learned.features import (
    IMPLIED_LEGS,
    MESSAGE_CUES,
    Features,
    FeatureSpace,
    Windows,
    leg_scores,
)
from retrieval.search.learned.fit_ranker import FOLDS, Examples, fit_ranker, link_measures
from retrieval.search.learned.listwise_mlp import Training
from retrieval.search.learned.reply_ranker import (
    DECIMALS,
    LEAST_LOG,
    UNSEEN,
    ReplyRanker,
    load_ranker,
    save_ranker,
)
from retrieval.search.learned.thread_facts import ThreadFacts, thread_facts
from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.search.legs.rank_legs import rank_legs
from retrieval.settings.legs import LEGS
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.threads.links import Predicted, asked_messages, linked_threads
from retrieval.tasks.threads.store import ReplyRow, ThreadStore
from retrieval.text.normalize import seeded_hash

FOLDER = "learned"
_FOLDS_FILE = "folds.npy"
#: Messages to fit on at most, whole threads by seed. More of them gain little and take longer.
MOST_FITTED = 60_000
#: With fewer replies whose parents are known, the ranker would learn chance.
LEAST_REPLIES = 100
#: Messages whose features are computed together.
_AT_A_TIME = 64


class Cosines(Protocol):
    """Gives the cosines of a message with the posts before it."""

    def __call__(self, number: int, low: int, high: int) -> np.ndarray:
        """Return float[high - low]: message `number` of the fitted ones with posts `low` to `high` - 1."""
        ...


@dataclass(frozen=True)
class FittedMessages:
    """Messages whose parents are known, in order, and the fold of every thread.

    Attributes:
        rows: the messages; one without parents starts a conversation.
        training: how many of them are of the training split. Of the others, of the test split, links are
            predicted, and those that have a parent among their candidates, or none at all, are measured.
        folds: int8[threads], the fold of each thread of the training split, else `UNSEEN`.
    """

    rows: list[ReplyRow]
    training: int
    folds: np.ndarray


def choose_messages(
    threads: ThreadStore, task: ThreadsTask, seed: int, left_out: frozenset[tuple[int, int]], tally: Tally
) -> FittedMessages:
    """Choose the messages to fit and to measure on: those of whole threads, in an order by seed.

    Args:
        threads: the corpus.
        task: the settings of the task.
        seed: decides the order.
        left_out: (thread, place) of the replies that repeat a held-out one.
        tally: counts messages that cannot be used.

    Raises:
        InputError: there are too few threads or replies to fit on.
    """
    ids, splits = list(threads.rows.column("id")), list(threads.rows.column("split"))
    order = sorted(range(len(ids)), key=lambda number: (seeded_hash(seed, "fitted", ids[number]), number))
    folds = np.full(len(ids), UNSEEN, dtype=np.int8)
    rows: list[ReplyRow] = []
    used = 0
    for number in order:
        if splits[number] != "train" or len(rows) >= MOST_FITTED:
            continue
        found = list(_known_messages(threads, number, task, left_out, tally))
        if found:
            # One fold after the other, so that all have as many threads.
            folds[number] = used % FOLDS
        used += bool(found)
        rows += found
    replies = sum(bool(row.parents) for row in rows)
    if used < FOLDS or replies < LEAST_REPLIES:
        raise InputError(
            f"threads.fusion: learned needs at least {FOLDS} training threads and {LEAST_REPLIES} replies "
            f"whose parents are known and in the window, found {used:,} and {replies:,}; give more "
            "threads, or set fusion to rrf or weighted"
        )
    held_out = [
        row
        for number in linked_threads(threads, task.window, seed)
        for row in asked_messages(threads, number, task.window)
    ]
    return FittedMessages(rows + held_out, len(rows), folds)


def _known_messages(
    threads: ThreadStore,
    number: int,
    task: ThreadsTask,
    left_out: frozenset[tuple[int, int]],
    tally: Tally,
) -> list[ReplyRow]:
    """Return the messages of a thread whose parents are known, and that have candidates."""
    posts = threads.thread(number).posts
    places = {post.id: place for place, post in enumerate(posts)}
    found = []
    for place, post in enumerate(posts):
        # The first message of a thread has no candidates: nothing can be learned from it.
        if place == 0 or not post.has_known_parents or not post.text or (number, place) in left_out:
            continue
        low = max(0, place - task.window)
        parents = tuple(p for p in (places[parent] for parent in post.parents) if low <= p < place)
        if post.parents and not parents:
            tally.read["fusion_parent_outside_window"] += 1
            continue
        found.append(ReplyRow(number, place, parents, low))
    return found


@dataclass
class FeatureSource:
    """Computes the features of messages of a corpus.

    The facts of the last thread stay in memory, because the messages of a thread follow one another.
    """

    threads: ThreadStore
    bm25: BM25Index
    space: FeatureSpace
    _last: tuple[int, ThreadFacts] | None = field(default=None, init=False)

    def facts(self, number: int, words_from: int = 0) -> ThreadFacts:
        """Return the facts of a thread.

        Args:
            number: the thread.
            words_from: place of the first message whose words are wanted, see `thread_facts`. Later calls for
                the same thread must not want earlier ones.
        """
        if self._last is None or self._last[0] != number:
            self._last = number, self.facts_of(self.threads.thread(number).posts, words_from)
        return self._last[1]

    def facts_of(self, posts: Sequence[Post], words_from: int = 0) -> ThreadFacts:
        """Return the facts of posts in time order, which need not be in the corpus.

        Args:
            posts: the posts.
            words_from: place of the first post whose words are wanted.
        """
        weights = DocumentFrequencies(self.bm25)
        return thread_facts(posts, self.bm25.tokenizer, weights, self.space.cue_numbers, words_from)

    def features(
        self, rows: Sequence[ReplyRow], scores: Mapping[str, np.ndarray], words_from: int = 0
    ) -> tuple[Features, np.ndarray]:
        """Return the features of messages of one thread, and the number of candidates of each, int64[M].

        Args:
            rows: the messages.
            scores: scores of all pairs by the legs of the space, see `FeatureSpace.features`.
            words_from: see `facts`.
        """
        windows = Windows(np.array([row.place for row in rows]), np.array([row.low for row in rows]))
        return self.space.features(self.facts(rows[0].thread, words_from), windows, scores), windows.sizes

    def leg_scores(
        self, number: int, rows: Sequence[ReplyRow], cosines: Cosines | None
    ) -> dict[str, np.ndarray]:
        """Return the scores of the legs of the space, for each candidate of fitted messages of one thread.

        Args:
            number: number of the first message among the fitted ones.
            rows: the messages, which follow one another there.
            cosines: gives the scores of the dense leg; None without this leg.
        """
        thread = rows[0].thread
        posts, start = self.threads.thread(thread).posts, self.threads.rows.value("start", thread)
        out: dict[str, np.ndarray] = {}
        similar: dict[str, list[np.ndarray]] = {"bm25": self._bm25_scores(posts, start, rows)}
        if cosines is not None:
            windows = enumerate(rows, start=number)
            similar["dense"] = [cosines(k, start + row.low, start + row.place) for k, row in windows]
        for leg in self.space.legs:
            if leg in similar:
                out[leg] = np.concatenate(similar[leg])
                continue
            queries = (LegQuery(posts[row.place], posts[row.low : row.place], row.low) for row in rows)
            out[leg] = np.concatenate(
                [leg_scores(rank_legs([leg], query)[leg], len(query.candidates)) for query in queries]
            )
        return out

    def _bm25_scores(self, posts: Sequence[Post], start: int, rows: Sequence[ReplyRow]) -> list[np.ndarray]:
        """Return the BM25 scores of the candidates of each message."""
        postings, words = self.bm25.postings, self.bm25.tokenizer
        out = []
        for row in rows:
            terms = np.array(known_ids(self.bm25.vocabulary, words(posts[row.place].text)), dtype=np.int64)
            scores = np.zeros(row.place - row.low)
            add_window_scores(*postings[:3], terms, start + row.low, scores)
            out.append(scores)
        return out


@dataclass(frozen=True)
class DocumentFrequencies:
    """Weights of words by an index: log of all documents by those that hold the word, 0 if all hold it."""

    bm25: BM25Index

    @property
    def largest(self) -> float:
        """That of a word in one document."""
        return max(float(np.log((self.bm25.n_documents + 1) / 1.5)), 1.0)

    def of(self, words: Sequence[str]) -> np.ndarray:
        """Return float64[W], the weights of W words."""
        indptr, vocabulary = self.bm25.postings.indptr, self.bm25.vocabulary
        ids = np.array([vocabulary.get(word, -1) for word in words], dtype=np.int64)
        held = np.where(ids >= 0, indptr[ids + 1] - indptr[ids], 0)
        return np.maximum(np.log((self.bm25.n_documents + 1) / (held + 0.5)), 0)


def hand_set_fusion(task: ThreadsTask) -> Fusion:
    """Return the settings of the fusion of the legs by hand-set weights.

    Beside a learned ranking, the legs are fused by rank: a baseline that shows what learning gives.
    """
    return Fusion("rrf" if task.fusion == "learned" else task.fusion, task.rrf_k, task.weights)


def leg_features_of(task: ThreadsTask) -> tuple[str, ...]:
    """Return the legs of a task that are features of their own, in the order of `LEGS`.

    BM25 always is. What the other legs rank by is among the features of structure.
    """
    return tuple(leg for leg in LEGS if leg in {*task.legs, "bm25"} - IMPLIED_LEGS)


def fit_fusion(
    source: FeatureSource,
    chosen: FittedMessages,
    cosines: Cosines | None,
    seed: int,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], Predicted]:
    """Fit the ranker on the training split, and write it. Return its measures and held-out links.

    Args:
        source: gives features; its space has no cue words yet.
        chosen: the messages.
        cosines: gives the scores of the dense leg; None without this leg.
        seed: seed of first weights, folds and draws.
        folder: the task's folder.
        progress: receives (step, done, total) while the work advances.
    """
    source, examples = training_examples(source, chosen, cosines, seed, progress)
    ranker, measures = fit_ranker(
        examples, Training(), lambda done, total: progress("threads: fit fusion", done, total)
    )
    measures["threads"] = int((chosen.folds != UNSEEN).sum())
    (folder / FOLDER).mkdir(exist_ok=True)
    links: Predicted = {}
    if chosen.training < len(chosen.rows):
        progress("threads: measure fusion", 0, 0)
        log_p = [
            ranker.log_probabilities(features) for features in held_out_features(source, chosen, cosines)
        ]
        measures["test"] = held_out_measures(chosen, log_p, ranker)
        links = _held_out_links(chosen, log_p, ranker)
    save_ranker(ranker, folder / FOLDER, measures)
    save_array(folder / FOLDER / _FOLDS_FILE, chosen.folds)
    return measures, links


def training_examples(
    source: FeatureSource, chosen: FittedMessages, cosines: Cosines | None, seed: int, progress: Progress
) -> tuple[FeatureSource, Examples]:
    """Return the source with its cue words, and the messages of the training split with their features.

    Args:
        source: gives features; its space has no cue words yet.
        chosen: the messages.
        cosines: gives the scores of the dense leg; None without this leg.
        seed: seed of the draws.
        progress: receives (step, done, total) while the work advances.
    """
    progress("threads: features of fusion", 0, chosen.training)
    cues = frequent_words(source, chosen)
    source = FeatureSource(source.threads, source.bm25, FeatureSpace(source.space.legs, tuple(cues)))
    examples = Examples(source.space, seed)
    for low, high in _runs(chosen.rows[: chosen.training]):
        rows = chosen.rows[low:high]
        scores = source.leg_scores(low, rows, cosines)
        # The messages of a thread are in time order, so no later ones have earlier candidates.
        features, sizes = source.features(rows, scores, rows[0].low)
        parents = [[parent - row.low for parent in row.parents] for row in rows]
        examples.add(features, sizes, parents, int(chosen.folds[rows[0].thread]))
        progress("threads: features of fusion", high, chosen.training)
    return source, examples


def frequent_words(source: FeatureSource, chosen: FittedMessages) -> list[str]:
    """Return the most frequent words of the training messages, by the number of messages that hold them.

    Frequent words are the words of talk, such as *thanks*, *hi* or *how*, in any language.
    """
    counts: Counter[str] = Counter()
    for row in chosen.rows[: chosen.training]:
        counts.update(set(source.bm25.tokenizer(source.threads.thread(row.thread).posts[row.place].text)))
    # Equal counts by name, so that the order of a set decides nothing.
    return sorted(counts, key=lambda word: (-counts[word], word))[:MESSAGE_CUES]


def held_out_features(
    source: FeatureSource, chosen: FittedMessages, cosines: Cosines | None
) -> Iterator[Features]:
    """Yield the features of each chosen message of the test split.

    Args:
        source: gives features.
        chosen: the messages.
        cosines: gives the scores of the dense leg; None without this leg.
    """
    for number, row in enumerate(chosen.rows[chosen.training :], start=chosen.training):
        yield source.features([row], source.leg_scores(number, [row], cosines), row.low)[0]


def held_out_measures(
    chosen: FittedMessages, found: Sequence[np.ndarray], ranker: ReplyRanker
) -> dict[str, Any]:
    """Return the measures of the links of the chosen messages of the test split.

    Args:
        chosen: the messages.
        found: the log-probabilities of the candidates of each of them.
        ranker: the ranker.
    """
    pairs = [
        (row, scores)
        for row, scores in zip(chosen.rows[chosen.training :], found, strict=True)
        if not row.parents or max(row.parents) >= row.low
    ]
    log_p = np.full((len(pairs), max((len(scores) for _, scores in pairs), default=1)), -np.inf)
    targets = np.zeros(log_p.shape, dtype=np.float32)
    for number, (row, scores) in enumerate(pairs):
        log_p[number, : len(scores)] = scores
        right = [1 + parent - row.low for parent in row.parents if parent >= row.low]
        targets[number, right or [0]] = 1
    return {"messages": len(pairs), **link_measures(log_p, targets, ranker.second_parent)}


def _held_out_links(
    chosen: FittedMessages, found: Sequence[np.ndarray], ranker: ReplyRanker
) -> dict[tuple[int, int], list[int]]:
    """Return the predicted parents of each message, the best first; of a start, the message itself."""
    return {
        (row.thread, row.place): [
            row.place if link == 0 else row.low + link - 1 for link in ranker.links(scores)
        ]
        for row, scores in zip(chosen.rows[chosen.training :], found, strict=True)
    }


def _runs(rows: Sequence[ReplyRow]) -> list[tuple[int, int]]:
    """Return (first, last + 1) of runs of messages of one thread, each of at most `_AT_A_TIME`."""
    found, low = [], 0
    for high in range(1, len(rows) + 1):
        if high == len(rows) or high - low == _AT_A_TIME or rows[high].thread != rows[low].thread:
            found.append((low, high))
            low = high
    return found


@dataclass(frozen=True)
class LearnedFusion:
    """The fitted ranker of a task, opened to rank candidates."""

    source: FeatureSource
    ranker: ReplyRanker
    folds: np.ndarray

    @classmethod
    def open(cls, threads: ThreadStore, bm25: BM25Index, folder: Path) -> LearnedFusion:
        """Open the ranker that `fit_fusion` wrote.

        Args:
            threads: the corpus.
            bm25: its index.
            folder: the task's folder.
        """
        ranker = load_ranker(folder / FOLDER)
        return cls(
            FeatureSource(threads, bm25, ranker.space), ranker, load_array(folder / FOLDER / _FOLDS_FILE)
        )

    def log_probabilities(self, row: ReplyRow, legs: Mapping[str, LegRanking]) -> np.ndarray:
        """Return float64[1 + N]: the log-probability of the start of a conversation, then of each candidate.

        A message of a training thread is ranked by the perceptron that has not seen the thread.

        Args:
            row: the message.
            legs: rankings of its candidates, of the legs that are features at least.
        """
        features, _ = self.source.features([row], self._scores(legs, row.place - row.low))
        return self.ranker.log_probabilities(features, int(self.folds[row.thread]))

    def log_probabilities_of_new(
        self, posts: Sequence[Post], low: int, legs: Mapping[str, LegRanking]
    ) -> np.ndarray:
        """Return what `log_probabilities` returns, for the last of some posts, which is not in the corpus.

        Args:
            posts: the posts of the thread in time order, the new one at the end.
            low: place of its first candidate.
            legs: rankings of its candidates, of the legs that are features at least.
        """
        windows = Windows(np.array([len(posts) - 1]), np.array([low]))
        scores = self._scores(legs, len(posts) - 1 - low)
        features = self.source.space.features(self.source.facts_of(posts, low), windows, scores)
        return self.ranker.log_probabilities(features)

    def _scores(self, legs: Mapping[str, LegRanking], n: int) -> dict[str, np.ndarray]:
        return {leg: leg_scores(legs[leg], n) for leg in self.ranker.space.legs}


def ranked(log_probabilities: np.ndarray) -> np.ndarray:
    """Return int64[N]: the candidates, best first, without the start; of equal ones the later is first."""
    scores = log_probabilities[1:]
    # The later of two equal candidates: people answer what was said last.
    return np.lexsort((-np.arange(len(scores)), -scores))


def choice_scores(
    record: Mapping[str, Any], candidates: Sequence[str], log_probabilities: np.ndarray
) -> list[float]:
    """Return the log-probability of each of a record's choices.

    A choice that names no post has the probability that none of the prompt's posts is answered.

    Args:
        record: the record, with `context_ids` and `choices`.
        candidates: ids of all candidates.
        log_probabilities: float64[1 + N], of the start and of the candidates.
    """
    by_id = dict(zip(candidates, log_probabilities[1:].tolist(), strict=True))
    found = [by_id[post] for post in record["context_ids"]]
    if len(record["choices"]) > len(found):
        none = max(1 - float(np.exp(found).sum()), float(np.exp(LEAST_LOG)))
        found.append(round(float(np.log(none)), DECIMALS))
    return found
