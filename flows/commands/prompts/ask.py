"""The command `jora ask`, which answers questions from the corpus of a configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.children.ask_corpus_spec import AskSpec
from flows.children.run_child import run_child
from flows.commands.common_options import Set, load, print_json, print_status, read_stdin, require_utf8
from flows.configuration.gates import BASE
from flows.configuration.prompts import prompt_spec
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES
from flows.stages.build_context import with_made_questions
from flows.stages.converted_model import converted
from flows.stages.model_conversion import tokenizer_folder
from flows.teachers.teacher import STAGE as QUESTIONS_STAGE
from jora_core.base.errors import InputError
from jora_core.specs.answers import PredictSpec
from jora_core.specs.common import ComputeSettings, values_of
from retrieval.prompts.answer_matching import final_answer
from retrieval.prompts.answer_styles import quotations
from retrieval.settings.context import ContextConfig
from retrieval.settings.task_registry import TASKS

# Longer texts are cut in the printed list; --json has them whole.
_SHOWN = 90

#: Author of a new post without one.
GUEST = "Guest"


@dataclass(frozen=True)
class Asking:
    """What is asked of a configuration's corpus and model.

    Attributes:
        texts: the questions, or new posts of a thread.
        task: the task that is asked; None chooses by `about`, else the first of the configuration.
        thread: id of the thread of new posts.
        table: id of the table that questions are about; None lets the retriever find it.
        author: who writes the posts; None is a guest.
        top: number of texts in a prompt; None takes that of the training.
        base: whether the base model answers, without an adapter.
        max_new_tokens: largest number of tokens in an answer; None takes that of the evaluation.
    """

    texts: Sequence[str]
    task: str | None = None
    thread: str | None = None
    table: str | None = None
    author: str | None = None
    top: int | None = None
    base: bool = False
    max_new_tokens: int | None = None


def ask(
    *,
    question: Annotated[str, typer.Argument(metavar="[QUESTION]")] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c")] = None,
    overrides: Set = None,
    file: Annotated[Path | None, typer.Option("--file", "-f")] = None,
    task: Annotated[str | None, typer.Option("--task")] = None,
    thread: Annotated[str | None, typer.Option("--thread", metavar="ID")] = None,
    table: Annotated[str | None, typer.Option("--table", metavar="ID")] = None,
    author: Annotated[str | None, typer.Option("--author")] = None,
    top: Annotated[int | None, typer.Option("--top", min=1)] = None,
    base: Annotated[bool, typer.Option("--base")] = False,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Answer a question from the corpus.

    Finds texts in the corpus of CONFIG as the training did, and answers with the model that it trained. Shows
    which texts were read, and what the answer quotes. The corpus is prepared at the first question.

    \b
    Examples:
      jora ask "When does the library open?"
      jora ask "Who won in 1998?" -c tables.yaml --table 203-csv/12
      jora ask "Bob: yes, mount it read-only" -c irc.yaml --thread 2004-12-25 --author Ann
      jora ask - --json < questions.txt            one question a line, answered together
      jora ask "When does the library open?" --base

    Args:
        question: The question, or the text of a new post; `-` reads one a line from standard input.
        config: YAML file; without it, ./jora.yaml, else a checkout's sample.
        overrides: changes of single values of the configuration.
        file: Read the questions from a file, one a line.
        task: Which corpus of CONFIG: qa, tables or threads; else told by --thread and --table.
        thread: The thread that a new post belongs to.
        table: The table that the question is about; else the retriever finds it.
        author: Who writes the new post of a thread; else Guest.
        top: Number of texts to read; else as many as in the training.
        base: Let the base model answer, without the training.
        max_new_tokens: Largest number of tokens in an answer; else as in the evaluation.
        as_json: Print the answers, the texts that were read and the quotations as JSON.
    """
    require_utf8({"QUESTION": question, "--thread": thread, "--table": table, "--author": author})
    settings = load(config, overrides)
    texts = read_questions(question, file)
    asking = Asking(texts, task, thread, table, author, top, base, max_new_tokens)
    answers = ask_questions(settings, asking, print_status)
    if as_json:
        print_json(answers)
    else:
        print("\n\n".join(describe(answer) for answer in answers))


def read_questions(question: str, file: Path | None) -> list[str]:
    """Return the questions of the command line: one, or the lines of a file or of standard input.

    Raises:
        InputError: none, two sources, or a file that cannot be read.
    """
    if file is not None and question:
        raise InputError("expected one of: a QUESTION, `-` for standard input, or --file FILE")
    if file is None and not question.strip():
        raise InputError("the question is empty; expected a QUESTION, `-` for standard input, or --file FILE")
    if file is None and question != "-":
        return [question]
    try:
        text = read_stdin() if file is None else file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--file {file}: {(error.strerror or 'unreadable').lower()}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error.reason}") from None
    require_utf8({str(file or "standard input"): text})
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{file or 'standard input'} holds no question; expected one a line")
    return lines


def ask_questions(
    config: PipelineConfig, asking: Asking, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Answer questions from the corpus of a configuration.

    Args:
        config: the configuration of the corpus, the training and the evaluation.
        asking: the questions.
        say: called with each line about the model that answers.

    Returns:
        For each question: question, task, answer, choice and its log-probability, model, the texts that were
        read, in the order of the prompt, and the quotations that none of them holds.

    Raises:
        InputError: no such task, thread or table, or no trained model.
    """
    task = _task(config, asking)
    store = open_store(config)
    base = Path(converted(config, store, STAGES).model.path)
    adapter, model = (None, BASE) if asking.base else _adapter(config, store, say)
    with tempfile.TemporaryDirectory(prefix="jora-ask-") as name:
        folder = Path(name)
        records = folder / "records.parquet"
        context = _with_questions(config, store, task)
        if context.embedding_cache is None:
            context = context.model_copy(update={"embedding_cache": str(store.cache_dir / "embeddings")})
        if context.tokenizer and context.counts_tokens:
            tokenizer = tokenizer_folder(Path(context.tokenizer), store.cache_dir, folder)
            context = context.model_copy(update={"tokenizer": str(tokenizer)})
        found = run_child(
            "flows.children.ask_corpus",
            AskSpec(
                context=context,
                task=task,
                texts=list(asking.texts),
                about=asking.thread or asking.table or "",
                author=asking.author or GUEST,
                top=asking.top,
                # By task and project: another configuration has a folder of its own.
                work_dir=store.cache_dir / "corpora" / f"{config.project or 'config'}-{task}",
                records=records,
                output_dir=folder / "prompts",
            ),
            folder,
            # The first question prepares the corpus, which may take minutes.
            on_line=say,
        )["asked"]
        evaluation = config.evaluate
        spec = PredictSpec(
            model=base,
            systems={model: adapter},
            records=records,
            task=task,
            prompt=prompt_spec(config),
            max_seq_len=evaluation.max_seq_len,
            tokens_per_batch=evaluation.tokens_per_batch,
            mode=evaluation.mode if TASKS[task].facts.answers == "choice" else "generate",
            sharing=evaluation.sharing,
            max_new_tokens=asking.max_new_tokens or evaluation.max_new_tokens,
            mesh=config.mesh,
            **values_of(ComputeSettings, config.model),
            output_dir=folder / "answers",
            compilation_cache_dir=store.cache_dir / "jax",
        )
        run_child("predict", spec, folder)
        rows = _read(folder / "answers" / "predictions.parquet")
    return [_answer(text, one, row, model) for text, one, row in zip(asking.texts, found, rows, strict=True)]


def _with_questions(config: PipelineConfig, store: Store, task: str) -> ContextConfig:
    """Return the settings of the corpus. Where a teacher makes its questions, they are those of the store.

    Raises:
        InputError: the store has none.
    """
    context = config.context
    if task != "qa" or context.qa is None or context.qa.generate is None:
        return context
    key = identify(config, STAGES, until=QUESTIONS_STAGE)[QUESTIONS_STAGE].key
    store.fetch(QUESTIONS_STAGE, key)
    if not store.check(QUESTIONS_STAGE, key).whole:
        raise InputError(
            f"ask: the questions of this corpus are not made yet; run `{config.command('questions')}`"
        )
    return with_made_questions(context, store.path(QUESTIONS_STAGE, key))


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _task(config: PipelineConfig, asking: Asking) -> str:
    """Return the task that is asked.

    Raises:
        InputError: the configuration has no such task, or the options tell different ones.
    """
    told = {"threads": asking.thread, "tables": asking.table}
    by_option = [name for name, given in told.items() if given]
    wanted = asking.task or next(iter(by_option), None)
    names = list(config.context.tasks)
    if wanted is None:
        # A post needs its thread, so a corpus that takes questions comes first.
        wanted = next((name for name in ("qa", "tables") if name in names), names[0])
    if wanted not in names:
        told_by = f"--task {wanted}" if asking.task else {"threads": "--thread", "tables": "--table"}[wanted]
        raise InputError(f"{told_by}: the configuration has {', '.join(names)}")
    if any(name != wanted for name in by_option):
        raise InputError(f"--thread is for threads and --table for tables; this asks {wanted}")
    if asking.author is not None and wanted != "threads":
        raise InputError(f"--author is for threads; this asks {wanted}")
    return wanted


def _adapter(config: PipelineConfig, store: Store, say: Callable[[str], None]) -> tuple[Path, str]:
    """Return the adapter of the last trained phase, and its stage with the beginning of its key.

    The current one is taken where it exists, else the newest one of the project.

    Raises:
        InputError: the store has no finished adapter of the project.
    """
    identities = identify(config, STAGES, until=config.phases[-1].stage)
    for phase in reversed(config.phases):
        key = identities[phase.stage].key
        store.fetch(phase.stage, key)
        if store.check(phase.stage, key).whole:
            return store.path(phase.stage, key), f"{phase.stage} {key[:8]}"
        rows = [
            row
            for index in store.indexes(phase.stage)
            for row in index.rows
            if row.ended and row.project == config.project
        ]
        for row in sorted(rows, key=lambda row: row.ended, reverse=True):
            if store.check(phase.stage, row.key).whole:
                say(
                    f"note: {phase.stage} {row.key[:8]} of {row.ended[:16]} answers; settings or data "
                    f"have changed since (`{config.command('plan')}` says what)"
                )
                return store.path(phase.stage, row.key), f"{phase.stage} {row.key[:8]}"
    raise InputError(
        f"ask: {store.root} has no finished training of this project; run `{config.command('run')}`, or ask "
        "the base model with --base"
    )


def _answer(question: str, asked: Mapping[str, Any], row: Mapping[str, Any], model: str) -> dict[str, Any]:
    written = row["text"] or ""
    choice = row["choice"] or ""
    short = choice or final_answer(written)
    quoted = quotations(written)
    texts = []
    for text in asked["texts"]:
        spans = [span for span in quoted if span in text["text"]]
        chosen = bool(choice) and text["label"] == choice
        holds = not choice and bool(short) and short.casefold() in text["text"].casefold()
        texts.append({**text, "quoted": spans, "chosen": chosen, "holds_answer": holds})
    return {
        "question": question,
        "task": asked["record"]["task"],
        "answer": short,
        "written": written,
        "choice_logprob": row["choice_logprob"],
        "model": model,
        "texts": texts,
        "unsupported_quotes": [
            span for span in quoted if all(span not in text["text"] for text in asked["texts"])
        ],
    }


def describe(answer: Mapping[str, Any]) -> str:
    """Return an answer as lines for a terminal: the answer, its quotations, and what was read."""
    lines = [answer["question"], f"  {answer['answer'] or '(no answer)'}    [{answer['model']}]"]
    lines += [f'  quoted: "{span}"' for text in answer["texts"] for span in text["quoted"]]
    lines += [f'  quoted, but in none of the texts: "{span}"' for span in answer["unsupported_quotes"]]
    for text in answer["texts"]:
        mark = "quoted" if text["quoted"] else "chosen" if text["chosen"] else ""
        mark = mark or ("holds the answer" if text["holds_answer"] else "")
        shown = " ".join(f"{text['label']}: {text['text']}".split())
        shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
        lines.append(f"  read {text['rank']:>3}. {text['id']}  {shown}{f'  ({mark})' if mark else ''}")
    return "\n".join(lines)
