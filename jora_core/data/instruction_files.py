"""Instruction files: JSON, JSON lines or Parquet with instruction, input and output, or with `messages`.

General instructions can be mixed into the user's own, so that a model does not forget other tasks. The JORA
paper mixes in 30 % from the Alpaca set. Its licence does not allow us to ship the set, so the user names its
file. Without this file, a small built-in set of word and number tasks is used.
"""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.data.prompts.conversations import read_messages
from jora_core.data.prompts.shortening import split_question
from jora_core.specs.prompts.messages import Message

Split = Literal["train", "test"]

# The prompt of Stanford Alpaca and of JORA, https://github.com/tatsu-lab/stanford_alpaca. The head goes into
# the record's instruction, so that one template serves records with and without an input.
_HEAD_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n"
)
_HEAD_ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{}"
)
PAPER_TEMPLATE = "{instruction}{input}\n\n### Response:\n"

_WORD_LIST = (
    "apple bridge candle desert engine forest guitar harbor island jacket kettle ladder meadow needle orange "
    "pencil quarry ribbon saddle tunnel umbrella valley window yellow zipper basket copper dinner"
)
_WORDS = tuple(_WORD_LIST.split())


class AlpacaRecord(NamedTuple):
    """One instruction. `context` names the table or thread that it shares with others, "" for none.

    Of a conversation, instruction, input and output are those of its last exchange, and `messages` is whole.
    """

    id: str
    instruction: str
    input: str
    output: str
    context: str
    split: str | None
    messages: tuple[Message, ...] = ()

    @property
    def head(self) -> str:
        """The prompt up to the input."""
        return (_HEAD_WITH_INPUT if self.input else _HEAD_ALONE).format(self.instruction)

    @property
    def prompt(self) -> str:
        """The whole prompt, as in the JORA paper."""
        return PAPER_TEMPLATE.format(instruction=self.head, input=self.input)


def read_alpaca(path: Path) -> list[AlpacaRecord]:
    """Read an instruction file, whose format is found from its first bytes.

    Raises:
        InputError: missing file, broken JSON (with its line), a record without instruction or output (with
            its row), no records at all.
    """
    records = []
    unanswered = 0
    for number, row in enumerate(_rows(path)):
        if isinstance(row, dict) and (chat := row.get("messages") or row.get("conversations")):
            record = _conversation(row, read_messages(chat, f"{path}, record {number}"), path, number)
            unanswered += record is None
            records += [] if record is None else [record]
            continue
        for name in ("instruction", "output"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                raise InputError(
                    f"{path}, record {number}: no text in field {name!r}; expected the Alpaca fields, or "
                    "messages"
                )
        text = row.get("input") or ""
        if not isinstance(text, str):
            raise InputError(f"{path}, record {number}: field 'input' must be text")
        # Without an id, inputs that differ only in their last paragraph share a context. An input of one
        # paragraph may as well be the question, so it names none.
        context = row.get("context_id") or (split_question(text)[0] if split_question(text)[1] else "")
        id = str(row.get("id") or f"{path.stem}-{number}")
        records.append(
            AlpacaRecord(id, row["instruction"], text, row["output"], str(context), row.get("split") or None)
        )
    if unanswered:
        notice(f"{path}: {unanswered} conversations without an answer of the assistant are left out")
    if not records:
        raise InputError(f"{path}: no records; expected Alpaca records as JSON, JSON lines or Parquet")
    return records


def _conversation(
    row: dict[str, Any], messages: list[Message], path: Path, number: int
) -> AlpacaRecord | None:
    """Return a conversation as a record; None if no turn of the assistant follows one of the user."""
    last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    if not last or messages[last - 1]["role"] != "user":
        return None
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    user = messages[last - 1]["content"]
    instruction, text = (system, user) if system else (user, "")
    id = str(row.get("id") or f"{path.stem}-{number}")
    return AlpacaRecord(
        id,
        instruction,
        text,
        messages[last]["content"],
        str(row.get("context_id") or ""),
        row.get("split") or None,
        tuple(messages[: last + 1]),
    )


def split_records(records: list[AlpacaRecord], split: Split, share: float) -> list[AlpacaRecord]:
    """Return the train or test split, by the file's split column, else by the order of the file.

    Records of one context are in one split, so no context of a test record is trained on.

    Args:
        records: records of the file.
        split: "train" or "test".
        share: without a split column, the share of records, counted from the first, for training.

    Raises:
        InputError: the part is empty.
    """
    # One record with a split is enough: then the file decides, and records without one are in neither part.
    if any(record.split for record in records):
        chosen = [record for record in records if record.split == split]
    else:
        contexts: dict[str, list[AlpacaRecord]] = {}
        for record in records:
            contexts.setdefault(record.context or record.id, []).append(record)
        wanted = int(len(records) * share)
        train: list[AlpacaRecord] = []
        test: list[AlpacaRecord] = []
        for members in contexts.values():
            # A context is never divided, so the training split may exceed `share` by a part of one context.
            (train if len(train) < wanted else test).extend(members)
        chosen = train if split == "train" else test
    if not chosen:
        raise InputError(f"split {split!r} holds none of the {len(records)} records; change split_percentage")
    return chosen


def mixed_records(count: int, seed: int, path: Path | None) -> list[AlpacaRecord]:
    """Return a random choice of general instructions.

    Args:
        count: number of instructions; a file with fewer gives all.
        seed: seed of the choice.
        path: an instruction file, None for the built-in set.
    """
    # A text as seed: no other use of the same seed draws the same numbers. Python hashes it with SHA-512, so
    # the draws are the same in every process.
    rng = random.Random(f"alpaca mix {seed}")
    if path is None:
        return [_built_in(rng, number) for number in range(count)]
    records = read_alpaca(path)
    chosen = rng.sample(records, min(count, len(records)))
    # The prefix keeps these ids apart from the user's. Without a context they are grouped with nothing.
    return [record._replace(id=f"mix-{record.id}", context="") for record in chosen]


def _built_in(rng: random.Random, number: int) -> AlpacaRecord:
    words = rng.sample(_WORDS, rng.randint(3, 7))
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    listed = ", ".join(words)
    tasks = [
        ("Sort these words alphabetically.", listed, ", ".join(sorted(words))),
        ("Write these words in reverse order.", listed, ", ".join(reversed(words))),
        ("Which of these words is first?", listed, words[0]),
        ("Which of these words is last?", listed, words[-1]),
        ("How many words are in the list?", listed, str(len(words))),
        ("Write the text in capital letters.", " ".join(words), " ".join(words).upper()),
        ("Repeat the text.", " ".join(words), " ".join(words)),
        (f"What is {a} plus {b}?", "", str(a + b)),
        (f"Which number is larger, {a} or {b}?", "", str(max(a, b))),
        (f"Spell the word {words[0]}, letters separated by spaces.", "", " ".join(words[0])),
    ]
    instruction, text, output = rng.choice(tasks)
    return AlpacaRecord(f"mix-{number}", instruction, text, output, "", None)


def _rows(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            # The content decides, not the name: JSON lines are often called `.json`. "PAR1" begins every
            # Parquet file.
            start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        if start[:4] == b"PAR1":
            yield from _parquet_rows(path)
            return
        # Also `\r\n` and `\r` become `\n`.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror or err}") from None
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not UTF-8 text: {err.reason} at byte {err.start}") from None
    if start[:1] == b"[":
        yield from _parsed(text, path, 1)
        return
    # Not `splitlines`: it also cuts at U+2028, U+0085 and others, which occur in texts.
    for number, line in enumerate(text.split("\n"), 1):
        # A file that was joined from several others has a byte order mark at the start of each part.
        line = line.removeprefix("\ufeff")
        if line.strip():
            yield _parsed(line, path, number)


def _parsed(text: str, path: Path, line: int) -> Any:
    """Return a JSON value that begins on a line of a file.

    Raises:
        InputError: the text is no JSON, or its brackets nest too deep.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise InputError(f"{path}, line {line + err.lineno - 1}: broken JSON ({err.msg})") from None
    # ValueError: an integer of more than 4,300 digits. RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as err:
        raise InputError(f"{path}, line {line}: unusable JSON ({err})") from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = ("id", "instruction", "input", "output", "messages", "context_id", "split")
            # Other columns, such as embeddings, may be large and are not read.
            columns = [name for name in wanted if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as err:
        raise InputError(f"cannot read {path}: {str(err).splitlines()[0]}") from None
