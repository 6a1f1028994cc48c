"""Guards against leakage: near-duplicates, splits by time, and leaks planted into whole builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.guards import leaks, splits
from retrieval.guards.near_duplicates import NearDuplicates, bands_for, shingles, similarity
from retrieval.readers.threads import fourchan
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, ThreadsTask
from tests.retrieval.conftest import TOPICS, link, post

Write = Callable[[str, str], Path]
WORDS = [f"{a}{b}" for a in TOPICS for b in TOPICS]


def test_shingles_are_runs_of_three_words() -> None:
    assert shingles("A, b! C d") == {"a b c", "b c d"}
    assert shingles("One, TWO") == {"one two"}
    assert shingles("…!") == frozenset()
    assert similarity(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)
    assert similarity(frozenset(), frozenset()) == 0.0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([0.5, 0.8, 0.95]))
def test_near_duplicates_are_those_that_every_pair_compared_finds(
    data: st.DataObject, threshold: float
) -> None:
    words = st.lists(st.sampled_from(WORDS), max_size=20)
    held_out = [" ".join(w) for w in data.draw(st.lists(words, max_size=8))]
    texts = [" ".join(w) for w in data.draw(st.lists(words, max_size=4))]
    for text in held_out:  # copies with a word changed, added, or a sentence put before
        cut = data.draw(st.integers(0, 20))
        texts += [text, f"{text} {WORDS[cut]}", " ".join(text.split()[:cut]), f"{WORDS[cut]} {text}"]
    found = list(NearDuplicates(held_out, held_out.__getitem__, threshold).matches(texts))
    for text, place in zip(texts, found, strict=True):
        scores = [similarity(shingles(text), shingles(other)) for other in held_out]
        best = max(scores, default=0.0)
        assert place == (scores.index(best) if best >= threshold else -1)


def test_bands_miss_next_to_nothing() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.9, 1.0):
        bands = bands_for(threshold)
        assert (1 - threshold ** (128 // bands)) ** bands <= 1e-3


def test_splits_by_time_put_the_newest_last() -> None:
    times: dict[str, float | None] = {f"c{i}": float(i % 8) for i in range(40)} | {"none": None}
    split = splits.splits_by_time(times, 0.25, "qa.split")
    assert {c for c, s in split.items() if s == "test"} == {c for c, t in times.items() if t in (6.0, 7.0)}
    assert split["none"] == "train"
    assert set(splits.splits_by_time(times, 0.0, "qa.split").values()) == {"train"}
    with pytest.raises(InputError, match=r"qa\.split is time, but none of the 1 contexts has a time"):
        splits.splits_by_time({"a": None}, 0.2, "qa.split")
    with pytest.raises(InputError, match="of the same moment as the oldest"):
        splits.splits_by_time({"a": 1.0, "b": 1.0, "c": 1.0}, 0.4, "qa.split")


def test_near_held_out_leaves_the_test_side_alone() -> None:
    one = " ".join(WORDS[:30])
    texts = [one, f"{one} more", "else entirely different words", one]
    assert splits.near_test_texts(texts, ["test", "train", "", "test"], 0.8) == [False, True, False, False]
    assert splits.near_test_texts(texts, ["test", "train", "", "test"], "off") == [False] * 4
    assert splits.near_test_texts(texts, ["train"] * 4, 0.8) == [False] * 4


def threads_config(source: Path, **fields: Any) -> ContextConfig:
    top = {key: fields.pop(key) for key in ("near_duplicates", "test_share") if key in fields}
    task = {"source": str(source), "legs": ["bm25", "recency"], "n_contexts": 4} | fields
    return ContextConfig(**({"test_share": 0.3} | top), threads=ThreadsTask(**task))


def write_threads(write: Write, name: str, *threads: list[dict[str, Any]]) -> Path:
    return write(name, "".join(json.dumps({"posts": posts}) + "\n" for posts in threads))


def talk(start: int, opening: str, reply: str) -> list[dict[str, Any]]:
    return [post(start, opening), post(start + 1, link(start) + reply, "Lena", start)]


def test_a_planted_near_duplicate_across_splits_is_caught(write: Write, tmp_path: Path) -> None:
    opening = "Does anybody here still know where the old harbour kettle of my aunt went last winter?"
    reply = "It went to the violin shop beside the orchard, and they sold it to a sourdough baker in May."
    train = write_threads(
        write,
        "train.ndjson",
        talk(10, opening, reply + " Sad."),
        talk(20, "Good morning.", "Good evening, all."),
    )
    test = write_threads(write, "test.ndjson", talk(30, opening, reply))
    metrics = build_record_files(threads_config(train, test_source=str(test)), tmp_path / "out")
    dropped = metrics["tasks"]["threads"]["dropped"]
    assert dropped == {"near_duplicate_of_test_record": 1}
    assert [r["id"] for r in read_records(tmp_path / "out" / "records.parquet", split="train")] == [
        "threads:20:21"
    ]
    config = threads_config(train, test_source=str(test), near_duplicates="off")
    assert build_record_files(config, tmp_path / "off")["tasks"]["threads"]["dropped"] == {}


def test_threads_are_split_by_time(write: Write, tmp_path: Path) -> None:
    # Numbers do not grow with time here: only the times can have decided.
    threads = []
    for i in range(10):
        posts = talk(100 * i + 100, f"Opening about the {TOPICS[i % 9]}.", f"Reply {i} about it.")
        threads.append([p | {"time": 1000 - i} for p in posts])
    source = write_threads(write, "t.ndjson", *threads)
    config = threads_config(source, split="time")
    build_record_files(config, tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    assert {r["context_id"] for r in records if r["split"] == "test"} == {"100", "200", "300"}


def test_off_may_be_yaml_false() -> None:
    config = ContextConfig.model_validate({"near_duplicates": False, "threads": {"source": "x"}})
    assert config.near_duplicates == "off"


PARENT = "My uncle keeps seven copper kettles in the old harbour shed."


def leaking(reply: str, **fields: Any) -> list[dict[str, Any]]:
    """A thread whose second comment answers the first by `reply`, beside one that is clean."""
    posts = talk(10, "What is in your shed?", PARENT)
    return [*posts, post(12, link(11) + reply, "Oskar", 10) | fields]


@pytest.mark.parametrize(
    ("reply", "fields", "leak"),
    [
        ("see above", {}, leaks.QUOTELINK),
        (f"You said: {PARENT} Why seven?", {}, leaks.QUOTED_PARENT),
        ("I agree with #2 Lena here", {}, leaks.ANSWER_LABEL),
        ("Nice ones.", {"time": 5}, leaks.LATER_CONTEXT),
    ],
)
def test_a_planted_leak_is_caught_in_the_finished_record(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reply: str,
    fields: dict[str, Any],
    leak: str,
) -> None:
    if leak == leaks.QUOTELINK:  # a reader that overlooks them: ours was never seen to
        parse = fourchan.parse_comment

        def overlook(html: str, thread_no: str) -> fourchan.Comment:
            found = parse(html, thread_no)
            return found._replace(text=f">>11 {found.text}") if "see above" in html else found

        monkeypatch.setattr(fourchan, "parse_comment", overlook)
    source = write_threads(write, "t.ndjson", leaking(reply, **fields))
    metrics = build_record_files(threads_config(source, test_share=0.0), tmp_path / "out")["tasks"]["threads"]
    assert metrics["dropped"] == {leak: 1}
    assert metrics["guards"]["leaks_dropped"][leak.removeprefix("leak_")] == 1
    assert metrics["guards"]["records_searched"] == 2
    records = read_records(tmp_path / "out" / "records.parquet")
    assert [r["id"] for r in records] == ["threads:10:11"]
    monkeypatch.undo()
    clean = write_threads(write, "c.ndjson", leaking("Nice ones, said the harbour master."))
    assert build_record_files(threads_config(clean, test_share=0.0), tmp_path / "clean")["records"] == 2


def test_quoting_is_repeating_in_a_row() -> None:
    long = " ".join(WORDS[:30])
    assert leaks.quotes(f"well {long.upper()}!", long)
    assert leaks.quotes(" ".join(WORDS[5:17]), long)
    assert not leaks.quotes(" ".join(WORDS[5:16]), long)
    assert leaks.quotes("so: one two three four five six. why", "One two three, four five six")
    assert not leaks.quotes("yes yes yes", "yes yes yes")
    assert leaks.names("as #3 Marta said", "#3 Marta") and not leaks.names("as #3 Martas said", "#3 Marta")


def qa_config(write: Write, documents: list[dict], questions: list[dict], **fields: Any) -> ContextConfig:
    rows = {"documents": documents, "questions": questions}
    paths = {
        name: write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
        for name, found in rows.items()
    }
    top = {"test_share": fields.pop("test_share", 0.0), "near_duplicates": fields.pop("near_duplicates", 0.8)}
    task = {"source": str(paths["documents"]), "questions": str(paths["questions"]), "legs": ["bm25"]}
    return ContextConfig(**top, qa=QaTask(**(task | fields)))


def document(number: int, text: str = "", **fields: Any) -> dict[str, Any]:
    words = (
        text
        or f"The {TOPICS[number % 9]} of number {number} costs {number * 7} coins at the {WORDS[number]}."
    )
    return {"id": f"d{number}", "title": "", "text": words} | fields


def question(number: int, **fields: Any) -> dict[str, Any]:
    asked = f"What does the {TOPICS[number % 9]} of number {number} cost?"
    row = {"id": f"q{number}", "document_id": f"d{number}", "question": asked}
    return row | {"answers": [f"{number * 7} coins"]} | fields


def test_a_planted_context_later_than_the_question_is_caught(write: Write, tmp_path: Path) -> None:
    documents = [document(i, time=i) for i in range(20)]
    # Question 3 is asked before its own document was written; the others right after theirs.
    questions = [question(i, time=2 if i == 3 else i + 0.5) for i in range(20)]
    config = qa_config(write, documents, questions, oracle_share=1.0)
    metrics = build_record_files(config, tmp_path / "out")["tasks"]["qa"]
    assert metrics["dropped"] == {leaks.LATER_CONTEXT: 1}
    records = read_records(tmp_path / "out" / "records.parquet")
    assert len(records) == 19
    for record in records:
        asked = int(record["id"].removeprefix("qa:q"))
        assert all(int(name[1:]) <= asked for name in record["context_ids"])


def test_questions_are_split_by_time(write: Write, tmp_path: Path) -> None:
    documents = [document(i) for i in range(20)]
    config = qa_config(write, documents, [question(i, time=100 - i) for i in range(20)], test_share=0.25)
    config = config.model_copy(update={"qa": config.qa.model_copy(update={"split": "time"})})
    build_record_files(config, tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    assert {r["id"] for r in records if r["split"] == "test"} == {f"qa:q{i}" for i in range(5)}


def test_documents_that_nearly_repeat_a_held_out_one_stay_out_of_training(
    write: Write, tmp_path: Path
) -> None:
    base = [document(i, " ".join(WORDS[i : i + 25])) for i in range(0, 54, 3)]
    held = [d for d in base if splits.split_of(0, d["id"], 0.3) == "test"]
    assert held
    # A copy that is asked about, in the training split by its id, and one that nobody asks about.
    ids = (f"d{n}" for n in range(100, 1000) if splits.split_of(0, f"d{n}", 0.3) == "train")
    copy, idle = (
        {"id": next(ids), "title": "", "text": f"{held[0]['text']} {word}"} for word in ("once", "again")
    )
    numbers = [int(d["id"][1:]) for d in [*base, copy]]
    config = qa_config(write, [*base, copy, idle], [question(n) for n in numbers], test_share=0.3)
    metrics = build_record_files(config, tmp_path / "out")["tasks"]["qa"]
    assert metrics["dropped"] == {"document_nearly_in_test": 1}
    assert metrics["guards"]["near_duplicates_dropped"] == 1
    assert metrics["guards"]["test_contexts_in_training_prompts"] == 0
    train = read_records(tmp_path / "out" / "records.parquet", split="train")
    barred = {d["id"] for d in held} | {copy["id"], idle["id"]}
    assert train and not any(barred & set(record["context_ids"]) for record in train)
