"""Made questions become records of their own chunks, and are scored apart from those by people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_core.base.errors import InputError
from jora_core.base.record_columns import arrow_schema
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.evaluation.task_report import TaskReport
from retrieval.prompts.answer_styles import Passage, taught_answer
from retrieval.readers.documents.synthetic_questions import read_synthetic_questions
from retrieval.settings.context import ContextConfig
from retrieval.synthesis.question_files import QUESTION_COLUMNS
from retrieval.tasks.answers import Answers
from retrieval.tasks.qa.corpus import read_corpus
from retrieval.tasks.qa.scoring import score

CHUNKS = {
    "d": [
        Document("d@0-40", "", "It opens at seven. It is free.", parent="d", start=0, end=40),
        Document("d@30-70", "", "It is free. It closes at six.", parent="d", start=30, end=70),
        Document("d@70-99", "", "It is free.", parent="d", start=70, end=99),
    ]
}


def test_a_corpus_whose_questions_were_all_refused_says_so(tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text("It opens at seven. It is free.")
    empty = pa.Table.from_pylist([], schema=arrow_schema(QUESTION_COLUMNS))
    pq.write_table(empty, tmp_path / "questions.parquet")
    qa = {"source": str(tmp_path / "d.md"), "synthetic_questions": str(tmp_path / "questions.parquet")}
    config = ContextConfig.model_validate({"qa": {**qa, "legs": ["bm25"]}})
    assert config.qa is not None
    with pytest.raises(InputError, match="every made question was refused"):
        read_corpus(config, config.qa, tmp_path / "work", TaskReport(), lambda *step: None)


def write(path: Path, **values: Any) -> SourceFile:
    row: dict[str, Any] = {
        name: {"str": "", "int": 0, "bool": True, "list": []}[kind] for name, kind in QUESTION_COLUMNS.items()
    }
    row |= {"id": "made-1", "question": "What does it cost?", "answers": ["free"], "document_id": "d"}
    row |= {"chunk_ids": ["d@0-40"], "evidence": "It is free.", **values}
    pq.write_table(pa.Table.from_pylist([row], schema=arrow_schema(QUESTION_COLUMNS)), path)
    return SourceFile(path, path.name)


def read(file: SourceFile) -> tuple[Question, Counter[str]]:
    tally = Tally()
    (question,) = read_synthetic_questions([file], CHUNKS, tally)
    return question, tally.read


def test_overlapping_chunks_with_the_evidence_are_right_too(tmp_path: Path) -> None:
    question, counts = read(write(tmp_path / "q.parquet"))
    # The third chunk says it as well, but does not overlap: it is another place of the document.
    assert question.oracles == ("d@0-40", "d@30-70") and not question.needs_all and question.synthetic
    assert counts == {"questions": 1, "questions_synthetic": 1}
    question, _ = read(write(tmp_path / "r.parquet", evidence="It opens at seven."))
    assert question.oracles == ("d@0-40",)


def test_a_comparison_needs_both_chunks(tmp_path: Path) -> None:
    question, _ = read(write(tmp_path / "q.parquet", chunk_ids=["d@0-40", "d@30-70"]))
    assert question.oracles == ("d@0-40", "d@30-70") and question.needs_all


def test_unanswerable_questions_are_counted(tmp_path: Path) -> None:
    question, counts = read(write(tmp_path / "q.parquet", answers=[], evidence=""))
    assert question.answers == () and counts["questions_unanswerable"] == 1


@pytest.mark.parametrize("values", [{"chunk_ids": ["d@0-41"]}, {"document_id": "e"}, {"chunk_ids": []}])
def test_questions_of_other_chunks_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="run the stage make-questions again"):
        read(write(tmp_path / "q.parquet", **values))


@pytest.mark.parametrize(
    ("shown", "output", "counted"),
    [
        (
            "It opens at seven. It is free.",
            "##begin_quote## It is free. ##end_quote## So. ##Answer: free",
            "reasoned",
        ),
        ("It opens at seven.", "free", "reasoned_quote_not_in_prompt"),
        (None, "free", "quote_without_oracle"),
    ],
)
def test_reasoned_answers_quote_what_is_in_the_prompt(shown: str | None, output: str, counted: str) -> None:
    oracles = [] if shown is None else [Passage("d@0-40", "", shown)]
    found = taught_answer(
        "reasoned",
        None,
        record="qa:made-1",
        question="What does it cost?",
        answers=["free"],
        direct="free",
        passages=oracles,
        oracles=oracles,
        abstain=None,
        reasoned="##begin_quote## It is free. ##end_quote## So. ##Answer: free",
    )
    assert (found.output, found.counted) == (output, counted)


def test_a_question_without_reasons_is_taught_with_its_quotation() -> None:
    oracle = Passage("d", "", "It is free.")
    found = taught_answer(
        "reasoned",
        None,
        record="qa:h",
        question="What does it cost?",
        answers=["free"],
        direct="free",
        passages=[oracle],
        oracles=[oracle],
        abstain=None,
    )
    assert found.output == "##begin_quote## It is free. ##end_quote## ##Answer: free"


def test_scores_by_origin() -> None:
    def record(number: int, **more: Any) -> dict[str, Any]:
        return {
            "id": f"q{number}", "context_id": f"c{number}", "gold": ["free"], "input": "Question: cost?",
            "task": "qa", "oracle_in_context": True, "context_ids": [], "oracle_ids": [], **more,
        }  # fmt: skip

    def answers(records: list[dict[str, Any]]) -> Answers:
        rows = [
            {"id": r["id"], "system": "base", "text": "free" if r["id"] == "q0" else "dear"} for r in records
        ]
        return Answers(records, rows, list, "generate", 0, 20)

    apart = [record(0, synthetic=False), record(1, synthetic=True), record(2, synthetic=True)]
    found = score(answers(apart))
    assert found["systems"]["base"]["exact_match"]["n"] == 3
    by_origin = {
        name: (scores["records"], scores["systems"]["base"]["exact_match"]["value"])
        for name, scores in found["question_origins"].items()
    }
    assert by_origin == {"human": (1, 1.0), "synthetic": (2, 0.0)}
    assert "question_origins" not in score(answers([record(0), record(1)]))
