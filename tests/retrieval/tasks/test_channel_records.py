"""Channel records: the prompt holds one post, the answer is the comment, and each choice has a prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_rankings, read_records
from retrieval.evaluation.measures.choice_likelihoods import with_normalised_choices
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.answers import Answers, score_answers
from tests.retrieval.tasks.test_rank_numbers import chat


@pytest.fixture()
def built(write: Callable[[str, str], Path], tmp_path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The records of one corpus by direction and id."""
    train, test = write("train.ndjson", chat(1000)), write("test.ndjson", chat(5000))
    found = {}
    for direction in ("direct", "channel"):
        task = ThreadsTask.model_validate(
            {
                "source": str(train),
                "test_source": str(test),
                "legs": ["recency"],
                # The answered post is the third one back: held-out prompts lack it.
                "n_contexts": 2,
                "direction": direction,
            }
        )
        folder = tmp_path / direction
        build_record_files(ContextConfig(threads=task), folder)
        found[direction] = {row["id"]: row for row in read_records(folder / "records.parquet")}
    return found


def test_the_same_posts_are_read_the_other_way_around(
    built: dict[str, dict[str, dict[str, Any]]],
) -> None:
    assert built["direct"].keys() == built["channel"].keys()
    changed = {"instruction", "input", "output", "choice_inputs"}
    without = 0
    for name, direct in built["direct"].items():
        channel = built["channel"][name]
        assert {k: v for k, v in direct.items() if k not in changed} == {
            k: v for k, v in channel.items() if k not in changed
        }
        *blocks, question = direct["input"].split("\n\n")
        author, _, comment = question.removeprefix("Comment by ").partition(": ")
        assert channel["output"] == comment
        assert channel["choice_inputs"] == [
            f"{block.rpartition(chr(10))[2].partition(' ')[2]}: {block.rpartition(chr(10))[0]}"
            f"\n\nComment by {author}:"
            for block in blocks
        ]
        # What is taught is the comment after the post that it answers; a report shows all posts.
        if direct["split"] == "train":
            assert channel["input"] == channel["choice_inputs"][direct["choices"].index(direct["gold"][0])]
        else:
            without += not direct["gold"]
            assert channel["input"] == direct["input"]
    assert without and any(row["split"] == "train" for row in built["channel"].values())


def test_no_choice_is_normalised_by_the_length_of_its_label(
    built: dict[str, dict[str, dict[str, Any]]],
) -> None:
    for direction, missing in (("direct", False), ("channel", True)):
        records = [row for row in built[direction].values() if row["split"] == "test"]
        rows = [{"id": row["id"], "choice_logprobs": [-1.0] * len(row["choices"])} for row in records]
        found = with_normalised_choices(rows, records)
        assert all((row["normalised_choice"] is None) == missing for row in found)


def test_the_likelihood_of_a_comment_is_no_probability_of_a_choice(
    built: dict[str, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    for direction, systems in (("direct", {"base"}), ("channel", set())):
        records = [row for row in built[direction].values() if row["split"] == "test"]
        rows = [
            {
                "id": row["id"],
                "system": "base",
                "choice": row["choices"][0],
                "text": None,
                "choice_logprobs": [-1.0] * len(row["choices"]),
            }
            for row in records
        ]
        path = tmp_path / direction / "rankings.parquet"
        answers = Answers(
            records, rows, partial(read_rankings, path, "threads", "test"), "choice", seed=0, resamples=20
        )
        assert set(score_answers("threads", answers)["calibration"]) == systems


def test_abstaining_has_no_post() -> None:
    with pytest.raises(ValidationError, match="direction: channel scores a comment after each post"):
        ThreadsTask.model_validate({"source": "x", "direction": "channel", "abstain": True})
