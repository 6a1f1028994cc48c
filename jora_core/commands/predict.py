"""Answer records with one base model and several adapters: score given choices, generate, or both.

``python -m jora_core.commands.predict --spec FILE`` writes ``predictions.parquet`` (id, system, choice,
choice_logprob, choice_logprobs, text) and ``result.json``. The base model is read once. Adapters of equal
shapes share their compiled programs. With ``stream``, each generated answer is also written to standard
output when its batch ends: a line of JSON with ``id``, ``text``, ``prompt_tokens`` and ``answer_tokens``.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.errors import InputError
from jora_core.base.progress import progress
from jora_core.base.record_columns import (
    ANSWERING_CHANNEL_COLUMNS,
    ANSWERING_COLUMNS,
    ANSWERING_OPTIONAL_COLUMNS,
    CHOICES_COLUMN,
    answer_schema,
    is_channel,
)
from jora_core.commands.run_command import run_command
from jora_core.data.prompts.prompt_template import PromptTemplate, load_template
from jora_core.data.prompts.shortening import shorten_prompt
from jora_core.data.tokenizer import TextTokenizer, end_tokens, load_tokenizer
from jora_core.generation.choice_scores import score_choices
from jora_core.generation.choice_trees import ChoicePlan, Question, plan_choices
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.generation.text_stream import TextStream
from jora_core.model.projections import frozen_type
from jora_core.parallel.devices import peak_memory_bytes
from jora_core.parallel.mesh import mesh_of_one_process
from jora_core.parameters.trees import Adapter, Params, reads_weights
from jora_core.specs.answers import PredictSpec, QuestionSpec
from jora_core.weights.adapter_folder import read_adapter
from jora_core.weights.load_params import load_params
from jora_core.weights.model_folder import read_model


def predict(spec: PredictSpec, on_answer: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Answer the records and write ``predictions.parquet`` and ``result.json``.

    Args:
        spec: the records, the model, and the settings of the answers.
        on_answer: called with each generated answer and its tokens when its batch ends.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: the model, an adapter, or the records cannot be used.
    """
    began = time.perf_counter()
    config = read_model(spec.model)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    # Records, prompts and adapters come before the base: errors in them show before the long load.
    rows = read_rows(spec)
    template = load_template(spec.prompt, tokenizer)
    asked = [part for row in rows for part in scored_parts(row)]
    questions, shortened = make_questions(asked, spec, tokenizer, template)
    mesh = mesh_of_one_process(spec.mesh.data, spec.mesh.tensor)
    with jax.set_mesh(mesh), jax.default_matmul_precision(spec.matmul_precision):
        adapters = {name: read_adapter(folder, config, mesh) for name, folder in spec.systems.items()}
        kept = frozen_type(spec.dtype, exact=reads_weights(*adapters.values()))
        params = load_params(spec.model, config, jnp.dtype(spec.dtype), mesh, spec.quantization, kept)
        # `seconds` compares systems and leaves the load out; `seconds_total` has it.
        loaded = time.perf_counter()
        table: dict[str, list[Any]] = {name: [] for name in answer_schema().names}
        ends = end_tokens(spec.model, config, tokenizer, template.end_id)
        work = Work(spec, config, params, questions, tokenizer, ends)
        for system, adapter in adapters.items():
            logprobs = by_record(rows, questions, work.score(system, adapter))
            # Of equal scores the first choice wins; a record without choices has none.
            best = [int(np.argmax(values)) if values else None for values in logprobs]
            table["id"] += [row["id"] for row in rows]
            table["system"] += [system] * len(rows)
            for row, values, number in zip(rows, logprobs, best, strict=True):
                table["choice"].append("" if number is None else row["choices"][number])
                table["choice_logprob"].append(None if number is None else values[number])
            table["choice_logprobs"] += logprobs
            written = spec.mode != "choice"
            table["text"] += work.write(system, adapter, on_answer) if written else [""] * len(rows)
    # The table comes first: a result.json says that the table beside it is whole.
    _write_table(spec.output_dir / "predictions.parquet", table)
    result = {
        "records": len(rows),
        "systems": list(spec.systems),
        "shortened": shortened,
        "prompt_template": template.name,
        "prompt_tokens": int(sum(len(question.prompt) for question in questions)),
        "seconds": round(time.perf_counter() - loaded, 3),
        "seconds_total": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(spec.output_dir / "result.json", result)
    return result


def read_rows(spec: QuestionSpec) -> list[dict[str, Any]]:
    """Return the records that a spec selects, in the file's order.

    Raises:
        InputError: no such file, not Parquet, a column missing, nothing selected, a null text, or
            no record with choices in mode `choice`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted: list[str] = list(ANSWERING_COLUMNS)
    if spec.mode != "generate":
        wanted.append(CHOICES_COLUMN)
    try:
        names = pq.read_schema(spec.records).names
        if missing := [name for name in wanted if name not in names]:
            raise InputError(
                f"{spec.records}: column {missing[0]!r} is missing; expected {', '.join(wanted)}"
            )
        channel = ANSWERING_CHANNEL_COLUMNS if set(ANSWERING_CHANNEL_COLUMNS) <= set(names) else ()
        optional = [name for name in (*ANSWERING_OPTIONAL_COLUMNS, *channel) if name in names]
        rows = pq.read_table(spec.records, columns=[*wanted, *optional]).to_pylist()
    except FileNotFoundError:
        raise InputError(f"records file {spec.records} does not exist; build the context first") from None
    except (OSError, pa.ArrowInvalid) as err:
        raise InputError(
            f"{spec.records} is not a readable Parquet file: {str(err).splitlines()[0]}"
        ) from None
    rows = [r for r in rows if r["split"] == spec.split and spec.task in (None, r["task"])]
    # After the selection, so that the limit counts records that are answered.
    rows = rows[: spec.max_records]
    if not rows:
        task = f" and task={spec.task!r}" if spec.task else ""
        raise InputError(f"{spec.records}: no records with split={spec.split!r}{task}")
    # id, instruction and input: a null in them would become the text "None" in a prompt.
    for name in wanted[:3]:
        bad = next((i for i, row in enumerate(rows) if row[name] is None), None)
        if bad is not None:
            raise InputError(
                f"{spec.records}: {name} is null in selected record {bad}; every record needs one"
            )
    if spec.mode != "choice" and any(map(is_channel, rows)):
        raise InputError(
            f"{spec.records}: channel records are scored and not answered in words; use mode=choice"
        )
    # In mode "both" a file of open questions is fine: such records are generated only.
    if spec.mode == "choice" and not any(row["choices"] for row in rows):
        raise InputError(f"{spec.records}: no record has choices; use mode=generate for open questions")
    return rows


def scored_parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records by which one is scored: itself, or one for each choice of a channel record.

    The only choice of such a part is the text that all of them have.
    """
    if not is_channel(row):
        return [row]
    # One retrieved text each.
    one = (row.get("context_ids") or [])[:1]
    return [
        row | {"input": text, "choices": [row["output"]], "context_ids": one} for text in row["choice_inputs"]
    ]


def by_record(
    rows: Sequence[dict[str, Any]], questions: Sequence[Question], scores: Sequence[np.ndarray]
) -> list[list[float]]:
    """Return the log-likelihood of each record's choices from those of its parts, see `scored_parts`.

    Those of a channel record are means over the tokens of its text. Sums overstate what is known: a long text
    has many tokens that depend on one another.

    Args:
        rows: the records.
        questions: the questions of all parts.
        scores: float64 [choices] of each question.
    """
    parts = iter(zip(questions, scores, strict=True))
    found = []
    for row in rows:
        if is_channel(row):
            own = [next(parts) for _ in row["choice_inputs"]]
            found.append([float(values[0]) / len(question.choice_tokens[0]) for question, values in own])
        else:
            found.append(next(parts)[1].tolist())
    return found


def make_questions(
    rows: Sequence[dict[str, Any]], spec: QuestionSpec, tokenizer: TextTokenizer, template: PromptTemplate
) -> tuple[list[Question], int]:
    """Make a tokenized question of each record. A prompt too long for its longest answer loses context.

    Args:
        rows: the records, as `read_rows` returns them.
        spec: `max_seq_len` and the lengths of answers.
        tokenizer: the base model's.
        template: the template of all prompts.

    Returns:
        The questions, and the number of shortened ones.

    Raises:
        InputError: an answer leaves no token for a prompt.
    """
    texts = [template.prompt(row["instruction"], row["input"]) for row in rows]
    prompts = tokenizer.encode_batch(texts)
    choices = [tuple(row.get("choices") or ()) for row in rows]
    # All choices in one call: the tokenizer works on many texts at once, and equal ones are encoded once.
    flat = iter(tokenizer.encode_batch([template.answer(choice) for group in choices for choice in group]))
    bos = template.bos
    shortened = 0
    questions = []
    for row, prompt, texts_of_row in zip(rows, prompts, choices, strict=True):
        # With the end token: without it "yes" never scores lower than "yes, but", which it begins.
        ended = tuple(np.append(next(flat), np.int32(template.end_id)) for _ in texts_of_row)
        # The longest choice decides, so that all choices of a record see the same context.
        longest = max((len(tokens) for tokens in ended), default=0)
        if spec.mode != "choice":
            # The generated answer needs room as well, and both modes must see one prompt.
            longest = max(longest, spec.max_new_tokens)
        budget = spec.max_seq_len - len(bos) - longest
        if budget < 1:
            raise InputError(
                f"{spec.records}, record {row['id']}: an answer of {longest} tokens leaves no room for a "
                f"prompt; raise max_seq_len (now {spec.max_seq_len})"
            )
        if len(prompt) > budget:
            shortened += 1
            prompt = shorten_prompt(
                tokenizer,
                template,
                row["instruction"],
                row["input"],
                budget,
                # Retrieved texts in the context: whole ones are dropped before any is cut.
                blocks=len(row.get("context_ids") or ()),
            )
        context = row.get("context_id") or ""
        questions.append(Question(row["id"], np.concatenate([bos, prompt]), texts_of_row, ended, context))
    return questions, shortened


@dataclass(frozen=True)
class Work:
    """The questions of one spec and the base model, with methods that answer them with an adapter."""

    spec: PredictSpec
    config: ModelConfig
    params: Params
    questions: Sequence[Question]
    tokenizer: TextTokenizer
    ends: tuple[int, ...]

    @functools.cached_property
    def _plan(self) -> ChoicePlan | None:
        """How the choices are computed, which is the same for all systems; None without any choice."""
        blocks, share = self.spec.mesh.data, self._share
        return plan_choices(self.questions, self.spec.tokens_per_batch, blocks=blocks, share=share)

    @property
    def _share(self) -> bool:
        return self.spec.sharing == "auto"

    def score(self, system: str, adapter: Adapter | None) -> list[np.ndarray]:
        """Return the log-likelihoods float64 [choices] of each question's choices, in mode generate none."""
        plan = None if self.spec.mode == "generate" else self._plan
        if plan is None:
            return [np.zeros(0)] * len(self.questions)
        return score_choices(
            self.params,
            self.config,
            plan,
            adapter=adapter,
            attention=self.spec.attention,
            label=f"choose, {system}",
        )

    def write(
        self,
        system: str,
        adapter: Adapter | None,
        on_answer: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[str]:
        """Return the generated answer to each question.

        A record's random draws depend on its id alone, so its answer does not depend on the other records.

        Args:
            system: name of the adapter, for the progress.
            adapter: the adapter, None for the base model.
            on_answer: called with each answer and its tokens when its batch ends.
        """
        streams = [TextStream(self.tokenizer, self.spec.stop) for _ in self.questions]
        texts = [""] * len(self.questions)

        def watch(place: int, tokens: np.ndarray) -> bool:
            streams[place].add(tokens)
            return streams[place].stopped

        with progress(f"generate, {system}", len(self.questions), shown=not self.spec.stream) as bar:

            def take(places: Sequence[int], answers: Sequence[np.ndarray]) -> None:
                for place, answer in zip(places, answers, strict=True):
                    if self.spec.stop:
                        streams[place].finish()
                        texts[place] = streams[place].text.strip()
                    else:
                        texts[place] = self.tokenizer.decode(answer.tolist()).strip()
                    if on_answer is not None:
                        question = self.questions[place]
                        tokens = {"prompt_tokens": len(question.prompt), "answer_tokens": len(answer)}
                        on_answer({"id": question.id, "text": texts[place], **tokens})
                bar.advance(len(places))

            generate(
                self.params,
                self.config,
                [question.prompt for question in self.questions],
                GenerationSettings(
                    eos_ids=self.ends,
                    max_new_tokens=self.spec.max_new_tokens,
                    min_new_tokens=self.spec.min_new_tokens,
                    sampling=self.spec.sampling,
                    tokens_per_batch=self.spec.tokens_per_batch,
                    attention=self.spec.attention,
                ),
                adapter=adapter,
                # crc32 and not hash(): Python's hash of a string differs from process to process.
                numbers=[zlib.crc32(question.id.encode()) for question in self.questions],
                contexts=[q.context for q in self.questions] if self._share else None,
                # Only stop strings need the text during generation; else an answer is decoded once.
                watch=watch if self.spec.stop else None,
                on_answers=take,
            )
        return texts


def _write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Given and not inferred: a column of None alone would get the type null.
    schema = answer_schema()
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)


def _main(spec: PredictSpec) -> None:
    if not spec.stream:
        predict(spec)
        return
    # What libraries print to standard output goes to standard error: it must not come between the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Flushed, because a kill must lose the batch in work at most.
    predict(spec, lambda answer: print(json.dumps(answer), file=lines, flush=True))


if __name__ == "__main__":
    run_command(PredictSpec, _main)
