"""Make the files of questions from the answers of a teacher: read, check, decide, search, count."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jora_core.base.digests import canonical_json, json_digest
from retrieval.corpus.mapped_items import Items
from retrieval.corpus.types import Document
from retrieval.evaluation.task_report import Progress
from retrieval.prompts.answer_matching import final_answer
from retrieval.settings.context import ContextConfig
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.checks import Candidate, Checked, check, edited
from retrieval.synthesis.decisions import Decision, read_decisions
from retrieval.synthesis.language import language_of
from retrieval.synthesis.prompts import PROMPT_VERSION
from retrieval.synthesis.question_files import (
    QUESTION_COLUMNS,
    QUESTIONS,
    REFUSED,
    REFUSED_COLUMNS,
    write_questions,
)
from retrieval.synthesis.read_answers import TeacherAnswer, kind_of, read_drafts
from retrieval.synthesis.repeated import answered_elsewhere, repeated
from retrieval.synthesis.requests import CHUNKS, REQUESTS, TeacherRequest
from retrieval.synthesis.round_trip import measures, round_trip
from retrieval.tasks.task_index import counted
from retrieval.text.words import tokenize


@dataclass(frozen=True)
class _Made:
    """A question on its way through the checks."""

    id: str
    candidate: Candidate
    checked: Checked
    answer: TeacherAnswer
    decision: str = ""


def make_questions(
    config: ContextConfig,
    folder: Path,
    answers: Sequence[TeacherAnswer],
    teacher: str,
    output: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write `questions.parquet` and `refused.parquet`.

    Args:
        config: the configuration, with `qa.generate`.
        folder: folder of the requests, as `write_requests` has filled it; the index is written there too.
        answers: the answers, in any order.
        teacher: name of the teacher, for the files.
        output: folder of the two files.
        progress: receives (step, done, total) while the work advances.

    Returns:
        The number of questions by kind, of refusals by reason, and the ranks of the retriever.

    Raises:
        InputError: the decisions cannot be read, or a file cannot be written.
    """
    assert config.qa is not None and config.qa.generate is not None
    settings = config.qa.generate
    decisions = read_decisions(None if settings.decisions is None else Path(settings.decisions))
    chunks = Items(folder / CHUNKS, Document)
    counts: Counter[str] = Counter()
    made = list(_checked(config, folder, chunks, answers, counts, progress))
    made = _decided(made, decisions, counts)
    made = _without_repeats(made, settings, chunks)
    accepted = [one for one in made if not one.checked.reason]
    refused = [one for one in made if one.checked.reason]
    metadata = {
        "teacher": teacher,
        "prompt_version": str(PROMPT_VERSION),
        "generate": canonical_json(settings.deciding()),
    }
    rows = [_row(one, teacher) for one in accepted]
    write_questions(output / QUESTIONS, rows, QUESTION_COLUMNS, metadata)
    write_questions(
        output / REFUSED,
        [{**_row(one, teacher), "reason": one.checked.reason} for one in refused],
        REFUSED_COLUMNS,
        metadata,
    )
    ranks, overall = round_trip(
        config,
        chunks,
        [row["question"] for row in rows],
        [row["chunk_ids"] for row in rows],
        folder,
        progress,
    )
    by_kind: dict[str, list[int]] = {}
    for one, rank in zip(accepted, ranks, strict=True):
        by_kind.setdefault(one.candidate.kind, []).append(rank)
    return {
        "questions": len(accepted),
        "kinds": {kind: len(found) for kind, found in sorted(by_kind.items())},
        "documents_with_questions": len({row["document_id"] for row in rows}),
        "refused": dict(sorted(Counter(one.checked.reason for one in refused).items())),
        "counts": {name: int(number) for name, number in sorted(counts.items()) if number},
        "decisions": dict(sorted(Counter(one.decision for one in made if one.decision).items())),
        "languages": dict(sorted(Counter(row["language"] for row in rows).items())),
        "round_trip": {"all": overall, **{kind: measures(found) for kind, found in sorted(by_kind.items())}},
        "digest": json_digest([[row["id"], row["question"], row["answers"]] for row in rows]),
    }


def _checked(
    config: ContextConfig,
    folder: Path,
    chunks: Items[Document],
    answers: Sequence[TeacherAnswer],
    counts: Counter[str],
    progress: Progress,
) -> Iterator[_Made]:
    """Yield every question of the answers with the result of its checks, in the order of the requests."""
    assert config.qa is not None and config.qa.generate is not None
    settings = config.qa.generate
    requests = Items(folder / REQUESTS, TeacherRequest)
    by_request = {answer.request: answer for answer in answers}
    place = {name: number for number, name in enumerate(chunks.column("id"))}
    languages: dict[str, str] = {}
    for request in counted(requests, "questions: check", progress, len(requests)):
        answer = by_request.get(request.id)
        if answer is None:
            counts["requests_without_an_answer"] += 1
            continue
        parts = tuple(chunks[place[name]] for name in request.chunk_ids)
        text = "\n".join(part.text for part in parts)
        if request.id not in languages:
            languages[request.id] = language_of(text)
        left = dict.fromkeys(request.kinds, settings.questions_per_chunk)
        for number, draft in enumerate(read_drafts(answer.text)):
            kind = kind_of(draft, request.kinds)
            if not kind:
                counts["drafts_of_no_known_kind"] += 1
                continue
            if not left[kind]:
                counts["drafts_more_than_asked"] += 1
                continue
            left[kind] -= 1
            candidate = Candidate(
                draft,
                kind,
                parts,
                languages[request.id],
                config.qa.answer_style == "reasoned",
                settings,
            )
            checked = check(candidate)
            counts["quotations_supplied"] += checked.supplied
            yield _Made(_name(request.id, number), candidate, checked, answer)
        counts["drafts_fewer_than_asked"] += sum(left.values())


def _name(request: str, number: int) -> str:
    """Return the id of a question: the same for the same place in the answer to the same prompt."""
    return f"made-{hashlib.sha256(f'{request}:{number}'.encode()).hexdigest()[:16]}"


def _decided(made: Sequence[_Made], decisions: Mapping[str, Decision], counts: Counter[str]) -> list[_Made]:
    """Apply what a person decided, which overrules the checks."""
    known = {one.id for one in made}
    # Such as questions about a chunk that has changed since the review.
    counts["decisions_about_no_question"] += len(set(decisions) - known)
    found = []
    for one in made:
        decision = decisions.get(one.id)
        if decision is not None:
            one = _with_decision(one, decision)
        found.append(one)
    return found


def _with_decision(one: _Made, decision: Decision) -> _Made:
    if decision.action == "refuse":
        return replace(one, checked=Checked("refused_by_a_person"), decision="refuse")
    draft, chunks = one.candidate.draft, one.candidate.chunks
    if decision.action == "accept":
        if one.checked.reason:
            answer = "" if one.candidate.kind == "unanswerable" else draft.answer
            one = replace(one, checked=edited(draft.question, answer, chunks))
        return replace(one, decision="accept")
    answer = draft.answer if decision.answer is None else decision.answer
    checked = edited(decision.question, answer, chunks)
    reasoned = decision.reasoned or one.checked.reasoned
    # Else the reasons still lead to the answer before the edit; those that follow from the text are taken.
    if reasoned and tokenize(final_answer(reasoned)) == tokenize(answer):
        checked = replace(checked, reasoned=reasoned)
    candidate = replace(one.candidate, draft=replace(draft, question=decision.question, answer=answer))
    return replace(one, candidate=candidate, checked=checked, decision="edit")


def _without_repeats(
    made: Sequence[_Made], settings: QuestionGeneration, chunks: Items[Document]
) -> list[_Made]:
    """Refuse questions that another one repeats or that another document answers, unless a person decided."""
    open_ones = [one for one in made if not one.checked.reason]
    reasons = repeated((one.candidate.draft.question for one in open_ones), settings.near_duplicates)
    elsewhere = answered_elsewhere(
        [one.checked.evidence for one in open_ones],
        [one.candidate.chunks[0].context_id for one in open_ones],
        chunks,
    )
    found: dict[str, str] = {}
    for one, reason, twice in zip(open_ones, reasons, elsewhere, strict=True):
        if not one.decision:
            found[one.id] = reason or ("answered_by_another_document" if twice else "")
    return [
        replace(one, checked=replace(one.checked, reason=found[one.id])) if found.get(one.id) else one
        for one in made
    ]


def _row(one: _Made, teacher: str) -> dict[str, Any]:
    candidate, checked, answer = one.candidate, one.checked, one.answer
    first = candidate.chunks[0]
    # A refused question is shown with what the teacher wrote.
    short = candidate.draft.answer if checked.reason else checked.answer
    quotes = candidate.draft.quotes if checked.reason else checked.quotes
    return {
        "id": one.id,
        "question": candidate.draft.question,
        "answers": [short] if short else [],
        "reasoned": candidate.draft.reasoning if checked.reason else checked.reasoned,
        "kind": candidate.kind,
        "document_id": first.context_id,
        "chunk_ids": [chunk.id for chunk in candidate.chunks],
        "evidence": checked.evidence,
        "quotes": list(quotes),
        "language": candidate.language,
        "synthetic": True,
        "decision": one.decision,
        "source": first.source,
        "source_row": first.row,
        "teacher": teacher,
        "prompt_version": PROMPT_VERSION,
        "request": answer.request,
        "created": answer.created,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
    }
