"""Records of messages that start a conversation, and the scores of links from answers to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_links, read_rankings, read_records
from retrieval.prompts.templates import NO_POST
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.answers import Answers, predicted_links, score_answers, values_of_records


def write_logs(folder: Path, split: str, lines: list[tuple[str, int]]) -> None:
    """One log of lines and of the line that each answers, its own for a start."""
    (folder / split).mkdir(parents=True)
    said = [f"[10:{n:02d}] <{text.split()[0]}> {text} in {split}" for n, (text, _) in enumerate(lines)]
    (folder / split / f"{split}-log.ascii.txt").write_text("\n".join(said) + "\n")
    links = [f"{parent} {n} -\n" for n, (_, parent) in enumerate(lines)]
    (folder / split / f"{split}-log.annotation.txt").write_text("".join(links))


LINES = [
    ("ann opens the gate", 0),
    ("bob asks which gate", 0),
    ("cy sells a boat", 2),
    ("dan wants the boat", 2),
    ("ann means the red gate", 1),
    ("eve looks for a cat", 5),
]


def task(source: Path, **extra: Any) -> ThreadsTask:
    return ThreadsTask.model_validate(
        {"source": str(source), "format": "irc", "n_contexts": 3, "legs": ["bm25", "recency"]} | extra
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("starts")
    write_logs(folder, "train", LINES)
    write_logs(folder, "dev", LINES)
    config = ContextConfig(threads=task(folder, abstain=True, starts=True))
    return folder / "out", build_record_files(config, folder / "out")


def test_starts_are_records_that_abstain(built: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = built
    records = {row["id"]: row for row in read_records(folder / "records.parquet", split="test")}
    # The first line of a log has no earlier post, so nobody can be asked.
    assert [name.rpartition(":")[2] for name in records] == ["1", "2", "3", "4", "5"]
    start = records["threads:dev/dev-log:2"]
    assert (start["output"], start["gold"], start["oracle_ids"]) == (NO_POST, [NO_POST], [])
    assert start["choices"][-1] == NO_POST and not start["oracle_in_context"]
    assert records["threads:dev/dev-log:3"]["oracle_ids"] == ["2"]
    found = metrics["tasks"]["threads"]
    assert found["records"] == {"train": 5, "test": 5}
    assert found["notes"]["test"]["conversation_starts"] == 2
    # Retriever measures, and the share of prompts with the answer, are of the three replies.
    assert found["retrieval"]["test"]["fused"]["n"] == 3 and found["oracle_in_context"]["test"] == 1.0


def test_starts_need_their_answer(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="starts needs abstain"):
        task(tmp_path, starts=True)


def answers_of(folder: Path, said: dict[str, dict[str, int]], drawn: int | None = None) -> Answers:
    """Answers that choose the posts with these line numbers; -1 for none of them."""
    records = read_records(folder / "records.parquet", split="test")[:drawn]
    rows = []
    for system, numbers in said.items():
        for record in records:
            line = numbers.get(record["id"].rpartition(":")[2], -1)
            place = record["context_ids"].index(str(line)) if line >= 0 else len(record["choices"]) - 1
            scores = [-3.0] * len(record["choices"])
            scores[place] = -0.5
            rows.append(
                {
                    "id": record["id"],
                    "system": system,
                    "choice": record["choices"][place],
                    "text": None,
                    "choice_logprobs": scores,
                }
            )
    return Answers(
        records=records,
        rows=rows,
        rankings=lambda: read_rankings(folder / "rankings.parquet", "threads", "test"),
        mode="choice",
        seed=0,
        resamples=50,
        links=lambda: read_links(folder / "links.parquet", "threads", "test"),
    )


def test_models_are_scored_by_links_too(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    right = {"1": 0, "3": 2, "4": 1}
    wrong = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 4}
    answers = answers_of(folder, {"base": wrong, "both_phases": right})
    scores = score_answers("threads", answers)
    links = scores["links"]
    assert list(links["systems"]) == [
        "previous_post",
        "previous_other_author",
        "addressed_then_previous",
        "base",
        "both_phases",
    ]
    assert (links["logs"], links["of_logs"], links["messages"], links["links"]) == (1, 1, 6, 6)
    assert (links["without_record"], links["second_parent"]) == (0, None)
    value = {name: found["link_f1"]["value"] for name, found in links["systems"].items()}
    # Of six links, the first line's start counts for all; the wrong model has two more.
    assert value["both_phases"] == 1 and value["base"] == 0.5 and value["previous_post"] == 0.5
    assert links["systems"]["both_phases"]["exact_f1"]["value"] == 1
    # The measures of replies leave the two starts out.
    assert scores["n"] == 3 and scores["systems"]["both_phases"]["reply@1"]["value"] == 1
    assert len(values_of_records("threads", answers).ids) == 3
    json.dumps(scores, allow_nan=False)


def test_logs_that_were_not_drawn_whole_are_left_out(built: tuple[Path, dict[str, Any]]) -> None:
    links = score_answers("threads", answers_of(built[0], {"base": {}}, drawn=3))["links"]
    assert (links["logs"], links["of_logs"]) == (0, 1)
    assert links["systems"]["base"]["link_f1"]["value"] is None


def test_without_records_of_starts_the_rules_are_scored_alone(tmp_path: Path) -> None:
    write_logs(tmp_path, "train", LINES)
    write_logs(tmp_path, "dev", LINES)
    build_record_files(ContextConfig(threads=task(tmp_path)), tmp_path / "out")
    answers = answers_of(tmp_path / "out", {"base": {"1": 0, "3": 2, "4": 1}})
    found = predicted_links("threads", answers)
    assert list(found.systems) == ["previous_post", "previous_other_author", "addressed_then_previous"]
    assert found.gold == {"dev/dev-log": {(0, 0), (1, 0), (2, 2), (3, 2), (4, 1), (5, 5)}}
    assert predicted_links("tables", answers) is None
