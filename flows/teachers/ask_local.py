"""Ask a teacher that runs here, through the generation of the training core.

One child process has the model. It tells each answer when its batch ends, and the answer is stored at once.
So a kill loses at most one batch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.teachers.answer_store import AnswerStore, Usage
from flows.teachers.ask_server import Asked
from jora_core.base.record_columns import arrow_schema
from jora_core.specs.answers import PredictSpec, SamplingSpec
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.read_answers import TeacherAnswer, is_refusal, usable

_COLUMNS: dict[str, str] = dict.fromkeys(("id", "instruction", "input", "split", "task"), "str")


def ask_local(
    requests: Callable[[], Iterator[Asked]],
    settings: QuestionGeneration,
    spec: PredictSpec,
    store: AnswerStore,
    on_answer: Callable[[str], None],
) -> dict[str, Any]:
    """Let the model answer all requests that are not answered yet.

    Args:
        requests: returns all requests, each time from the first one.
        settings: how questions are made.
        spec: the model, its adapter, and the folder of its files; records and lengths are set here.
        store: the teacher's answers.
        on_answer: called after each finished request, with the rate of writing.

    Returns:
        Counts of requests.
    """
    pending = {request.id: request for request in requests() if not store.has(request.id)}
    unreadable: Counter[str] = Counter()
    shortened, written, began = 0, 0, time.monotonic()

    def take(line: str) -> None:
        nonlocal written
        found = json.loads(line)
        request, text = pending[found["id"]], found["text"]
        outcome = "ok" if usable(text, request.kinds) else "no_questions_in_it"
        if outcome != "ok":
            outcome = "refusal" if is_refusal(text) else outcome
            unreadable[outcome] += 1
        tokens = found["prompt_tokens"], found["answer_tokens"]
        questions = settings.questions_per_chunk * len(request.kinds)
        answer = TeacherAnswer(request.id, outcome, text, spec.model.name, int(time.time()), *tokens)
        store.add(answer, request.id, Usage(outcome, *tokens, request.tokens, questions))
        written += tokens[1]
        # From the start of the child: who waits also waits for the model and its compilation.
        on_answer(f"{written / (time.monotonic() - began):.1f} tokens/s")

    if pending:
        shortened = _answer(list(pending.values()), settings, spec, take)
    everything = [request.id for request in requests()]
    prompts, answers = store.spent(everything)
    return {
        "requests": len(everything),
        "answered": sum(store.has(name) for name in everything),
        "asked": len(pending),
        "retried": {},
        "failed": {},
        "unreadable": dict(sorted(unreadable.items())),
        "shortened": {"prompts_over_the_longest": shortened} if shortened else {},
        "structured_output": False,
        "prompt_tokens": prompts,
        "answer_tokens": answers,
    }


def _answer(
    pending: Sequence[Asked], settings: QuestionGeneration, spec: PredictSpec, take: Callable[[str], None]
) -> int:
    """Let the child answer requests, and return how many prompts were too long and lost a part.

    Args:
        pending: the requests.
        settings: how questions are made.
        spec: the model and the folder of its files.
        take: called with each line of the child.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(spec.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": request.id,
            "instruction": request.system,
            "input": request.user,
            "split": "test",
            "task": "qa",
        }
        for request in pending
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(_COLUMNS)), spec.records)
    teacher = settings.teacher
    longest = max(request.tokens for request in pending)
    changed = spec.model_copy(
        update={
            "max_new_tokens": teacher.max_answer_tokens,
            # The tokens are an estimate where no tokenizer is configured, and the template adds some.
            "max_seq_len": max(spec.max_seq_len, 2 * longest + teacher.max_answer_tokens),
            "sampling": SamplingSpec(temperature=teacher.temperature, seed=settings.seed),
        }
    )
    return run_child("predict", changed, folder, on_output=take)["shortened"]
