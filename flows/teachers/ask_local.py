"""Ask a teacher that runs here, through the generation of the training core, block by block.

Each block is a child process, and its answers are stored before the next one begins, so a kill loses at most
one block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.teachers.answer_store import AnswerStore, StoredAnswer, Usage
from flows.teachers.ask_server import Asked
from jora_core.base.record_columns import arrow_schema
from jora_core.specs.answers import PredictSpec, SamplingSpec
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.read_answers import is_refusal, usable

#: Requests of a child process, whose model is loaded anew.
BLOCK = 64
#: Characters of a token of the answer, which the core does not count here.
_CHARACTERS_OF_TOKEN = 4
_COLUMNS: dict[str, str] = dict.fromkeys(("id", "instruction", "input", "split", "task"), "str")


def ask_local(
    requests: Callable[[], Iterator[Asked]],
    settings: QuestionGeneration,
    spec: PredictSpec,
    store: AnswerStore,
    on_answer: Callable[[], None],
) -> dict[str, Any]:
    """Let the model answer all requests that are not answered yet.

    Args:
        requests: returns all requests, each time from the first one.
        settings: how questions are made.
        spec: the model, its adapter, and the folder of its files; records and lengths are set here.
        store: the teacher's answers.
        on_answer: called after each finished request.

    Returns:
        Counts of requests.
    """
    pending = (request for request in requests() if not store.has(request.id))
    asked = 0
    unreadable: dict[str, int] = {}
    while block := list(islice(pending, BLOCK)):
        texts = _answer(block, settings, spec)
        for request, text in zip(block, texts, strict=True):
            outcome = "ok" if usable(text, request.kinds) else "no_questions_in_it"
            if outcome != "ok":
                outcome = "refusal" if is_refusal(text) else outcome
                unreadable[outcome] = unreadable.get(outcome, 0) + 1
            tokens = -(-len(text) // _CHARACTERS_OF_TOKEN)
            usage = Usage(
                outcome,
                request.tokens,
                tokens,
                request.tokens,
                settings.questions_per_chunk * len(request.kinds),
            )
            name = spec.model.name
            now = int(time.time())
            store.add(
                StoredAnswer(request.id, outcome, text, name, now, request.tokens, tokens), request.id, usage
            )
            on_answer()
        asked += len(block)
    everything = [request.id for request in requests()]
    prompts, answers = store.spent(everything)
    return {
        "requests": len(everything),
        "answered": sum(store.has(name) for name in everything),
        "asked": asked,
        "retried": {},
        "failed": {},
        "unreadable": dict(sorted(unreadable.items())),
        "structured_output": False,
        "prompt_tokens": prompts,
        "answer_tokens": answers,
    }


def _answer(block: Sequence[Asked], settings: QuestionGeneration, spec: PredictSpec) -> list[str]:
    """Return the texts that the model writes for a block of requests."""
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
        for request in block
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(_COLUMNS)), spec.records)
    teacher = settings.teacher
    longest = max(request.tokens for request in block)
    changed = spec.model_copy(
        update={
            "max_new_tokens": teacher.max_answer_tokens,
            # The tokens are an estimate where no tokenizer is configured, and the template adds some.
            "max_seq_len": max(spec.max_seq_len, 2 * longest + teacher.max_answer_tokens),
            "sampling": SamplingSpec(temperature=teacher.temperature, seed=settings.seed),
        }
    )
    run_child("predict", changed, folder)
    written = pq.read_table(folder / "predictions.parquet", columns=["id", "text"]).to_pylist()
    texts = {row["id"]: row["text"] or "" for row in written}
    return [texts[request.id] for request in block]
