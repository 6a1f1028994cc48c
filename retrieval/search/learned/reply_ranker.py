"""The learned fusion: how likely is each earlier message the one that a message answers?

A ranker is a few perceptrons (`listwise_mlp`) over the features of a message and its candidates (`features`).
One more candidate stands for "answers nothing, starts a conversation". Each perceptron is fitted on all
training threads but one fold of them. A thread of that fold is ranked by this perceptron alone, which has not
seen it; any other thread by the mean of all.

One perceptron is a little too sure, and the mean of several is not. So the scores of one alone are divided by
a temperature (Guo et al. 2017, arXiv:1706.04599), and the probabilities of both kinds mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.atomic_files import atomic_path, write_json
from retrieval.search.learned.features import Features, FeatureSpace
from retrieval.search.learned.listwise_mlp import Weights, log_softmax, scores_of

WEIGHTS = "ranker.safetensors"
ABOUT = "ranker.json"
#: Fold of a thread that no perceptron has seen.
UNSEEN = -1
#: Decimals of the logarithm of a probability. Its last bits depend on the number of cores.
DECIMALS = 5
#: Smallest probability that is told apart.
LEAST_LOG = -30.0
#: Candidates that are scored at a time.
_AT_A_TIME = 24


@dataclass(frozen=True)
class Scale:
    """Means and standard deviations of the features of pairs and of messages, float32 arrays."""

    pair_mean: np.ndarray
    pair_deviation: np.ndarray
    message_mean: np.ndarray
    message_deviation: np.ndarray

    def pairs(self, raw: np.ndarray) -> np.ndarray:
        """Scale features of pairs [..., P] to mean 0 and deviation 1, and append the mark of the start, 0."""
        scaled = (raw - self.pair_mean) / self.pair_deviation
        return np.concatenate([scaled, np.zeros((*scaled.shape[:-1], 1), dtype=scaled.dtype)], axis=-1)

    def messages(self, raw: np.ndarray) -> np.ndarray:
        """Scale features of messages [..., Q]."""
        return (raw - self.message_mean) / self.message_deviation

    def start(self) -> np.ndarray:
        """Return float32[P + 1], the features of "starts a conversation", of which only the mark is set."""
        return np.append(np.zeros_like(self.pair_mean), np.float32(1))


@dataclass(frozen=True)
class ReplyRanker:
    """A fitted ranker.

    Attributes:
        space: the features.
        scale: their means and deviations on the training split.
        models: the perceptron of each fold.
        second_parent: probability from which a second message counts as answered too.
        temperature: divides the scores of one perceptron alone.
    """

    space: FeatureSpace
    scale: Scale
    models: tuple[Weights, ...]
    second_parent: float
    temperature: float

    def log_probabilities(self, features: Features, fold: int = UNSEEN) -> np.ndarray:
        """Return float64[1 + N]: the log-probability of the start of a conversation, then of each candidate.

        Args:
            features: of one message with its N candidates.
            fold: fold of the thread, whose perceptron is used alone; `UNSEEN`: the mean of all.
        """
        # In float64 and rounded: matrix products differ in their last bits with the number of cores.
        pairs = self.scale.pairs(features.pairs.astype(np.float64))
        pairs = np.concatenate([self.scale.start()[None], pairs])[None]
        messages = self.scale.messages(features.messages.astype(np.float64))
        present = np.ones(pairs.shape[:2], dtype=bool)
        chosen, temperature = (
            (self.models, 1.0) if fold == UNSEEN else ((self.models[fold],), self.temperature)
        )
        scores = [_scores_in_parts(model, pairs, messages) / temperature for model in chosen]
        logs = [log_softmax(found, present)[0] for found in scores]
        mean = np.log(np.maximum(np.exp(logs).mean(axis=0), np.exp(LEAST_LOG)))
        return np.round(mean, DECIMALS)

    def links(self, log_probabilities: np.ndarray) -> list[int]:
        """Return the numbers of the candidates that a message answers, from 1; [0] if it answers none.

        The best candidate counts, and a second message if its probability is at least `second_parent`.
        """
        order = np.argsort(-log_probabilities, kind="stable")[:2].tolist()
        second = len(order) > 1 and 0 not in order
        return order if second and log_probabilities[order[1]] >= np.log(self.second_parent) else order[:1]


def _scores_in_parts(model: Weights, pairs: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """Return the scores of candidates, computed for a few of them at a time.

    Args:
        model: the perceptron.
        pairs: float64[1, K, P], features of the candidates.
        messages: float64[1, Q], features of the message.
    """
    # BLAS starts its threads for larger products, and they wait for each other where other programs run.
    parts = range(0, pairs.shape[1], _AT_A_TIME)
    return np.concatenate(
        [scores_of(model, pairs[:, at : at + _AT_A_TIME], messages) for at in parts], axis=1
    )


def save_ranker(ranker: ReplyRanker, folder: Path, measures: Mapping[str, Any]) -> None:
    """Write a ranker: its arrays as safetensors, and names, settings and measures as JSON.

    Args:
        ranker: the fitted ranker.
        folder: folder of the two files.
        measures: what was measured when it was fitted, for people who read the file.
    """
    from safetensors.numpy import save_file

    arrays = {f"scale.{name}": array for name, array in asdict(ranker.scale).items()}
    for number, model in enumerate(ranker.models):
        arrays |= {f"model.{number}.{name}": array for name, array in asdict(model).items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(temporary))
    about = {
        "models": len(ranker.models),
        "second_parent": ranker.second_parent,
        "temperature": ranker.temperature,
        "legs": list(ranker.space.legs),
        "cues": list(ranker.space.cues),
        "pair_features": list(ranker.space.pair_groups),
        "message_features": list(ranker.space.message_groups),
        "measures": dict(measures),
    }
    write_json(folder / ABOUT, about)


def load_ranker(folder: Path) -> ReplyRanker:
    """Read a ranker that `save_ranker` wrote."""
    from safetensors.numpy import load_file

    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    arrays = load_file(str(folder / WEIGHTS))

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    return ReplyRanker(
        FeatureSpace(tuple(about["legs"]), tuple(about["cues"])),
        Scale(**part("scale.")),
        tuple(Weights(**part(f"model.{number}.")) for number in range(about["models"])),
        about["second_parent"],
        about["temperature"],
    )
