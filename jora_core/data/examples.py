"""Groups of tokenised training examples from a Parquet file of records.

Three kinds of file are read, told apart by their columns:

* Alpaca records (``instruction``, ``input``, ``output`` and the columns of the record contract): a template
  makes the prompt, and only the answer and the token that ends it have loss;
* conversations (``messages``: list of {role, content}): every turn of the assistant has loss;
* weighted text (``segments``: list of {text, weight}; optional ``suffixes``: a list of such lists, each of
  which continues the row's segments): every token has its segment's weight. Base models are trained from it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jora_core.base.errors import InputError
from jora_core.data.instruction_files import mixed_records
from jora_core.data.prompts.conversations import has_answer, without_oldest
from jora_core.data.prompts.prompt_template import PromptTemplate, load_template
from jora_core.data.prompts.shortening import NoRoomError, shorten_prompt
from jora_core.data.records import columns_to_read, read_rows, selection_digest
from jora_core.data.row_packing import ROW_STEP
from jora_core.data.shared_context import (
    Branch,
    Example,
    Group,
    Piece,
    plain_group,
    share_contexts,
    suffix_groups,
)
from jora_core.data.token_cache import Pieces, Row, cache_key, cached_tokens, has_tokens, tokenised
from jora_core.data.tokenizer import TextTokenizer
from jora_core.specs.data import DataSpec


@dataclass(frozen=True)
class TrainData:
    """The groups of the training and validation splits, and counts of records, groups and slots."""

    train: tuple[Group, ...]
    validation: tuple[Group, ...]
    counts: dict[str, int] = field(default_factory=dict)


def load_groups(
    spec: DataSpec,
    tokenizer: TextTokenizer,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
    blocks: int = 1,
) -> TrainData:
    """Read, tokenise and group the records that a spec selects.

    Examples longer than `max_seq_len` are shortened in their context, never in their answer. Their number is
    logged and counted.

    Args:
        spec: selection of records, longest example, and whether contexts are shared.
        tokenizer: the model's.
        seed: seed of the train/validation split and of the mixed-in instructions.
        log: called with each message, one line.
        blocks: size of the mesh's data axis. A microbatch has at least one row for each part of this axis.

    Raises:
        InputError: no such file, not Parquet, a column missing, or nothing left to train on.
    """
    columns = columns_to_read(spec)
    limit = most_slots(spec, blocks)
    # A chain of generators: the texts of a row are freed when its tokens are in a group, so only tokens fill
    # the memory.
    if "segments" in columns:
        rows = _split_rows(_tokenised_rows(spec, columns, tokenizer, None), spec, seed)
        template = None
        found = _weighted_groups(rows, spec, tokenizer, limit)
    else:
        template = load_template(spec.prompt, tokenizer)
        rows = _split_rows(_tokenised_rows(spec, columns, tokenizer, template), spec, seed)
        found = _record_groups(rows, spec, tokenizer, template, limit)
        if template.name != "alpaca":
            end = tokenizer.text_of(template.end_id)
            log(f"data: prompts by the template of {template.name}; answers end with {end}")
    train, validation = found.train, found.validation
    counts = {name: found.counts[name] for name in ("records", "shortened", "dropped")} | {"mixed": 0}
    if not train:
        raise InputError(
            f"{spec.records}: no examples with split={spec.split!r} and tasks={spec.tasks} "
            f"({counts['records']} read, {counts['dropped']} dropped); check data.split and data.tasks"
        )
    # Never into another split: an evaluation on general instructions would measure another task.
    if spec.alpaca_mix and spec.split == "train":
        template = template or load_template(spec.prompt, tokenizer)
        wanted = int(sum(len(group.ids) for group in train) * spec.alpaca_mix)
        mixed = _mixed_groups(wanted, spec, tokenizer, template, seed)
        train += mixed.train
        counts["mixed"] = len(mixed.train)
        for name in ("shortened", "dropped"):
            counts[name] += mixed.counts[name]
        fewer = f" ({wanted} wanted)" if len(mixed.train) < wanted else ""
        source = spec.alpaca_path or "the built-in set"
        log(f"data: {len(mixed.train)} general instructions mixed in from {source}{fewer}")
    counts["groups"] = len(train)
    counts["validation_groups"] = len(validation)
    counts["slots"] = sum(g.slots for g in train)
    counts["slots_apart"] = sum(g.slots_apart for g in train)
    counts["examples"] = sum(len(g.branches) for g in train)
    log(
        f"data: {counts['records']} records, {len(train)} groups to train on, {len(validation)} for "
        f"validation, {counts['slots']} token slots ({counts['slots_apart']} without sharing)"
    )
    if counts["shortened"] or counts["dropped"]:
        log(
            f"data: {counts['shortened']} examples longer than {spec.max_seq_len} tokens had their context "
            f"shortened, {counts['dropped']} had answers that alone are longer and were dropped"
        )
    return TrainData(tuple(train), tuple(validation), counts)


def most_slots(spec: DataSpec, blocks: int = 1) -> int:
    """Return the largest allowed group in slots: a row of a microbatch that has one row for each block."""
    # A single example of `max_seq_len` tokens must always fit.
    return max(spec.tokens_per_batch // blocks // ROW_STEP * ROW_STEP, spec.max_seq_len)


def _tokenised_rows(
    spec: DataSpec, columns: list[str], tokenizer: TextTokenizer, template: PromptTemplate | None
) -> Iterator[tuple[Row, Pieces]]:
    """Yield the selected rows with the token ids of their texts, from the token cache if the spec has one.

    Without a template the rows are weighted text.
    """
    import pyarrow.parquet as pq

    texts_of = _weighted_texts if template is None else partial(_record_texts, template)
    with pq.ParquetFile(spec.records) as file:
        # The number of rows is in the footer of the file; no row is read.
        total = file.metadata.num_rows
    if spec.cache_dir is None:
        return tokenised(read_rows(spec, columns), texts_of, tokenizer, total)
    key, read = _cache_key(spec, columns, tokenizer, template), partial(read_rows, spec, columns)
    return cached_tokens(spec.cache_dir, key, read, texts_of, tokenizer, total)


def _cache_key(
    spec: DataSpec, columns: list[str], tokenizer: TextTokenizer, template: PromptTemplate | None
) -> str:
    selection = {
        "texts": "weighted" if template is None else template.digest,
        # Without the column all splits have the same rows, so the key must not differ either.
        "split": spec.split if "split" in columns else None,
        "tasks": spec.tasks,
        "max_records": spec.max_records,
    }
    # Of the rows and not of the file: rows of other tasks in the file change nothing.
    return cache_key(selection_digest(spec), tokenizer, selection)


def cached(spec: DataSpec, tokenizer: TextTokenizer) -> bool:
    """Return whether the token ids of a spec's records are in the spec's token cache."""
    if spec.cache_dir is None:
        return False
    columns = columns_to_read(spec)
    template = None if "segments" in columns else load_template(spec.prompt, tokenizer)
    return has_tokens(spec.cache_dir, _cache_key(spec, columns, tokenizer, template))


def _record_texts(template: PromptTemplate, row: Row) -> list[str]:
    """Return the texts of a row, alternately given and answered; none for a row without an answer."""
    if row.get("messages") is not None:
        try:
            return template.turns(row["messages"]) if has_answer(row["messages"]) else []
        except InputError as err:
            raise InputError(f"record {row['id']}: {err}") from None
    return [template.prompt(row["instruction"], row["input"]), template.answer(row["output"])]


def _weighted_texts(row: Row) -> list[str]:
    return [s["text"] for segments in (row["segments"], *(row.get("suffixes") or [])) for s in segments]


class _SplitRow(NamedTuple):
    """One row with the token ids of its texts and its side of the train/validation split."""

    for_validation: bool
    row: Row
    pieces: Pieces


class _Grouped(NamedTuple):
    """Groups of both sides of the split, and counts of records read, shortened and dropped."""

    train: list[Group]
    validation: list[Group]
    counts: Counter[str]


def _split_rows(rows: Iterator[tuple[Row, Pieces]], spec: DataSpec, seed: int) -> Iterator[_SplitRow]:
    """Assign each row to the training or to the validation split."""
    for row, pieces in rows:
        yield _SplitRow(spec.validates(row["context_id"] or row["id"], seed), row, pieces)


def _record_groups(
    rows: Iterable[_SplitRow],
    spec: DataSpec,
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    limit: int,
) -> _Grouped:
    """Group records and conversations; the records of a context may be anywhere in the file."""
    train: list[Example] = []
    validation: list[Example] = []
    counts: Counter[str] = Counter()
    for for_validation, row, pieces in rows:
        counts["records"] += 1
        made = (
            _conversation_example(row, pieces, spec, tokenizer, template)
            if row.get("messages") is not None
            else _record_example(row, pieces, spec, tokenizer, template)
        )
        if made is None:
            counts["dropped"] += 1
            continue
        example, shortened = made
        counts["shortened"] += shortened
        (validation if for_validation else train).append(example)

    def groups(examples: list[Example]) -> list[Group]:
        if spec.sharing == "off":
            return [plain_group(example) for example in examples]
        return share_contexts(examples, limit)

    return _Grouped(groups(train), groups(validation), counts)


def _record_example(
    row: Row, pieces: Pieces, spec: DataSpec, tokenizer: TextTokenizer, template: PromptTemplate
) -> tuple[Example, bool] | None:
    """Return a record's example and whether it was shortened; None if its answer leaves no room."""
    prompt, answer = pieces
    # With a Python integer, `np.append` would widen the ids to int64.
    answer = np.append(answer, np.int32(template.end_id))
    budget = spec.max_seq_len - len(template.bos) - len(answer)
    # The answer leaves no token for the prompt. A cut answer would teach a wrong one.
    if budget < 1:
        return None
    shortened = len(prompt) > budget
    if shortened:
        ids = row.get("context_ids") or []
        oracle = set(row.get("oracle_ids") or [])
        try:
            prompt = shorten_prompt(
                tokenizer,
                template,
                row["instruction"],
                row["input"],
                budget,
                blocks=len(ids),
                # The text with the answer stays. Without this text the model would learn to invent answers.
                protected=[number for number, id in enumerate(ids) if id in oracle],
            )
        except NoRoomError:
            return None
    return Example(row["id"], row["context_id"], np.concatenate([template.bos, prompt]), answer), shortened


def _conversation_example(
    row: Row, pieces: Pieces, spec: DataSpec, tokenizer: TextTokenizer, template: PromptTemplate
) -> tuple[Example, bool] | None:
    """Return a conversation's example and whether it lost turns; None without an answer or without room.

    The oldest exchanges are dropped until the rest fits; the system message and the last exchange stay.
    """
    messages = list(row["messages"])
    shortened = False
    while pieces and len(template.bos) + sum(map(len, pieces)) > spec.max_seq_len:
        messages = without_oldest(messages)
        pieces = tokenizer.encode_batch(template.turns(messages)) if messages else []
        shortened = True
    if not pieces:
        return None
    given, *rest = pieces
    # Answers and what is given between them alternate; only answers have loss.
    weights = [np.full(len(piece), 1.0 - number % 2, np.float32) for number, piece in enumerate(rest)]
    example = Example(
        row["id"],
        row["context_id"],
        np.concatenate([template.bos, given]),
        np.concatenate(rest),
        np.concatenate(weights),
    )
    return example, shortened


def _mixed_groups(
    wanted: int, spec: DataSpec, tokenizer: TextTokenizer, template: PromptTemplate, seed: int
) -> _Grouped:
    """Group general instructions that are mixed into the training split."""
    rows: list[Row] = [
        {
            "id": record.id,
            "context_id": "",
            "instruction": record.instruction,
            "input": record.input,
            "output": record.output,
            "messages": list(record.messages) or None,
        }
        for record in mixed_records(wanted, seed, spec.alpaca_path)
    ]
    texts_of = partial(_record_texts, template)
    # None of them is for validation, which measures the task alone.
    split = (_SplitRow(False, *made) for made in tokenised(rows, texts_of, tokenizer, len(rows)))
    return _record_groups(split, spec, tokenizer, template, most_slots(spec))


def _weighted_groups(
    rows: Iterable[_SplitRow], spec: DataSpec, tokenizer: TextTokenizer, limit: int
) -> _Grouped:
    """Group rows of weighted text."""
    bos = _bos(tokenizer)
    found = _Grouped([], [], Counter())
    for for_validation, row, pieces in rows:
        groups = found.validation if for_validation else found.train
        found.counts["records"] += 1
        # The pieces of a row are one flat list in the order of `_weighted_texts`. Each list of segments takes
        # as many of them as it has.
        left = iter(pieces)
        segments, *later = (
            (part, list(itertools.islice(left, len(part))))
            for part in (row["segments"], *(row.get("suffixes") or []))
        )
        suffixes = [_piece(*suffix, tokenizer) for suffix in later if suffix[0]]
        # BOS has weight 0, because nothing before it could predict it. EOS ends only the last text of a path:
        # before suffixes the text goes on.
        prefix = Piece(bos, np.zeros(len(bos), np.float32)) + _piece(
            *segments, None if suffixes else tokenizer
        )
        prefix_limit = spec.max_seq_len - max((len(s) for s in suffixes), default=0)
        if prefix_limit <= len(bos):
            found.counts["dropped"] += 1
            continue
        if len(prefix) > prefix_limit:
            found.counts["shortened"] += 1
            # The beginning of a text is cut, since the end predicts the suffixes. BOS stays.
            prefix = prefix[: len(bos)] + prefix[len(prefix) - (prefix_limit - len(bos)) :]
        if suffixes:
            groups.extend(suffix_groups(row["id"], prefix, suffixes, limit, spec.sharing == "auto"))
        # A single token is a target without an input, so such a row is left out.
        elif len(prefix) > 1:
            groups.append(Group((row["id"],), (Branch(0, prefix),)))
    return found


def _piece(
    segments: list[dict[str, Any]], tokens: list[np.ndarray], tokenizer: TextTokenizer | None
) -> Piece:
    """Return the tokens of a list of segments with their loss weights, and EOS if a tokenizer is given."""
    parts = list(tokens)
    weights = [np.full(len(part), s["weight"], np.float32) for s, part in zip(segments, parts, strict=True)]
    if tokenizer is not None:
        parts.append(np.asarray([tokenizer.eos_id], np.int32))
        # EOS has the weight of the segment that it ends.
        weights.append(np.asarray([segments[-1]["weight"] if segments else 0.0], np.float32))
    if not parts:
        return Piece(np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Piece(np.concatenate(parts), np.concatenate(weights))


def _bos(tokenizer: TextTokenizer) -> np.ndarray:
    return np.asarray([] if tokenizer.bos_id is None else [tokenizer.bos_id], np.int32)
