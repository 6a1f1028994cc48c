"""Settings of the learned fusion, compared on training logs of IRC by cross-validation, over several seeds.

    python tests/benchmarks/search/learned_fusion_trials.py [--embedder FOLDER|minilm] [--seeds 3] [--folds 5]
        [--json FILE] [--trial hidden=96,48 epochs=8 dropout=0.25] …

Features are computed once. Each trial then fits the perceptrons with its settings, once for each seed, and
measures the links of every third training message by the perceptron that has not seen its log, with the
second parents that are best there. Settings are chosen by this figure. The development logs are measured
beside it, so that everyone sees what the choice costs or gives there. With fewer than five folds a trial is
quicker: the links of these folds alone are measured, and fewer perceptrons rank the development logs. Seeds
decide first weights, dropout and order; the folds and the drawn candidates stay the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import numpy as np
from harness import machine, print_table, write_result
from search.irc_recall import data_folder, embedder_folder, recipe_task, with_dense

from retrieval.build.shards import prepare
from retrieval.corpus.types import Tally
from retrieval.search.bm25.index import BM25Index
from retrieval.search.dense.embedder import load_embedder
from retrieval.search.learned.features import Features, FeatureSpace
from retrieval.search.learned.fit_ranker import (
    FOLDS,
    ScaledExamples,
    fit_perceptrons,
    fit_temperature,
    held_back,
    scaled_examples,
    second_parent_threshold,
    tempered,
)
from retrieval.search.learned.listwise_mlp import Training
from retrieval.search.learned.reply_ranker import ReplyRanker
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.task_index import open_index
from retrieval.tasks.threads.learned_fusion import (
    Cosines,
    FeatureSource,
    FittedMessages,
    choose_messages,
    held_out_features,
    held_out_measures,
    leg_features_of,
    training_examples,
)
from retrieval.tasks.threads.store import ThreadStore
from retrieval.tasks.threads.vectors import ThreadVectors

#: Every third training message is measured.
STEP = 3
MEASURES = ("link_f1", "reply@1", "start_f1")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Features of the training and of the development messages."""

    space: FeatureSpace
    data: ScaledExamples
    chosen: FittedMessages
    held_out: list[Features]


def main() -> None:
    """Print a table of the trials; with --json also write it."""
    parser = argparse.ArgumentParser(description="Settings of the learned fusion on IRC")
    parser.add_argument(
        "--data", type=Path, help="folder with train/ and dev/ (default: $JORA_SHARED/data/irc)"
    )
    parser.add_argument("--embedder", help="adds the dense leg: a sentence-transformers folder, or `minilm`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--trial", nargs="*", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    trials = [training_of(words) for words in args.trial] or [Training()]
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(args.data or data_folder(), embedder_folder(args.embedder), Path(folder))
        results = [trial_of(corpus, training, range(args.seeds), args.folds) for training in trials]
    print_table([row_of(result) for result in results])
    write_result(args.json, about, {"embedder": args.embedder, "seeds": args.seeds}, results, {})


def training_of(words: Sequence[str]) -> Training:
    """Return the default settings with those that `NAME=VALUE` words change."""
    changes: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        default = getattr(Training(), name)
        changes[name] = tuple(map(int, value.split(","))) if name == "hidden" else type(default)(value)
    return dataclasses.replace(Training(), **changes)


def corpus_of(data: Path, embedder: str | None, folder: Path) -> Corpus:
    """Read the logs and compute the features, as `build-context` does."""
    task = recipe_task(data)
    if embedder:
        task = with_dense(task)
    # Prepared with another fusion, so that nothing is fitted here.
    config = ContextConfig(threads=_with_fusion(task, "rrf"), embedder=embedder)
    prepare(config, folder, lambda *_: None)
    work, task = folder / "threads", _with_fusion(task, "learned")
    threads = ThreadStore(work)
    chosen = choose_messages(threads, task, config.seed, frozenset(), Tally())
    cosines = _cosines(threads, chosen, embedder, work) if embedder else None
    index = open_index(config, threads.texts, work)
    assert isinstance(index, BM25Index)
    source = FeatureSource(threads, index, FeatureSpace(leg_features_of(task), ()))
    source, examples = training_examples(source, chosen, cosines, config.seed, lambda *_: None)
    held_out = list(held_out_features(source, chosen, cosines))
    return Corpus(source.space, scaled_examples(examples), chosen, held_out)


def trial_of(corpus: Corpus, training: Training, seeds: Sequence[int], n_folds: int) -> dict[str, Any]:
    """Fit with each seed, and return the measures of all."""
    folds = corpus.data.fold_numbers[:n_folds]
    rows = np.flatnonzero(np.isin(corpus.data.folds, folds))[::STEP]
    targets = corpus.data.lists.targets[rows]
    runs = []
    for seed in seeds:
        wall, cpu = time.perf_counter(), time.process_time()
        models = fit_perceptrons(corpus.data, seed, training, folds)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        offsets = corpus.data.lists.offsets[rows]
        log_p = held_back(corpus.data, models, rows)
        temperature = fit_temperature(log_p, offsets, targets)
        threshold, found = second_parent_threshold(tempered(log_p, offsets, temperature), targets)
        ranker = ReplyRanker(corpus.space, corpus.data.scale, tuple(models.values()), threshold, temperature)
        dev = held_out_measures(corpus.chosen, [ranker.log_probabilities(f) for f in corpus.held_out], ranker)
        run = {"seed": seed, "threshold": threshold, "training": found, "dev": dev, **seconds}
        print(dataclasses.asdict(training), run, flush=True)
        runs.append(run)
    return {"settings": dataclasses.asdict(training), "runs": runs}


def row_of(result: dict[str, Any]) -> dict[str, str]:
    """A row of the table: means over the seeds, and the least and largest of them."""
    row = {name: str(value) for name, value in result["settings"].items()}
    for logs in ("training", "dev"):
        for measure in MEASURES:
            values = [100 * run[logs][measure] for run in result["runs"]]
            spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
            row[f"{logs} {measure}"] = f"{statistics.mean(values):.1f}{spread}"
    return row | {"cpu s": f"{statistics.mean(run['cpu'] for run in result['runs']):.0f}"}


def _with_fusion(task: ThreadsTask, fusion: str) -> ThreadsTask:
    return ThreadsTask.model_validate(task.model_dump() | {"fusion": fusion})


def _cosines(threads: ThreadStore, chosen: FittedMessages, embedder: str, folder: Path) -> Cosines:
    places = np.array([(row.thread, row.place, row.low) for row in chosen.rows])
    ThreadVectors.build(threads, places, load_embedder(embedder, "embedder"), lambda *_: None, folder)
    vectors = ThreadVectors.open(folder)

    def of_message(number: int, low: int, high: int) -> np.ndarray:
        return vectors.window_scores(number, low, high)

    return of_message


if __name__ == "__main__":
    main()
