"""Training data: a Parquet file of records becomes groups of tokenised examples.

Two kinds of file are read, told apart by their columns:

* Alpaca records (``instruction``, ``input``, ``output`` and the columns of the record contract): the prompt's
  text comes from a template, only the answer and EOS have loss;
* weighted text (``segments``: list of {text, weight}; optional ``suffixes``: list of such lists that each
  follow the row's segments): every token has its segment's weight. This is what a base model is trained from.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from jora_core.data.instruction_files import mixed_records
from jora_core.data.prompts import fill_template, shorten_prompt
from jora_core.data.records import _columns, _read_rows
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

_Tokenised = tuple[Row, Pieces]


@dataclass(frozen=True)
class TrainData:
    """Groups to train on, groups kept for validation, and what happened on the way."""

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

    Examples longer than `max_seq_len` are shortened in their context, never in their answer; how many is
    logged and counted.

    Args:
        blocks: size of the mesh's data axis, each part of which has a row of every microbatch.

    Raises:
        InputError: no such file, not Parquet, a column missing, or nothing left to train on.
    """
    counts = {"records": 0, "shortened": 0, "dropped": 0, "mixed": 0}
    columns = _columns(spec)
    limit = most_slots(spec, blocks)
    make = _weighted_groups if "segments" in columns else _record_groups
    rows = _held_out_or_not(_tokenised_rows(spec, columns, tokenizer), spec, seed)
    found = make(rows, spec, tokenizer, limit, counts)
    train, validation = found[False], found[True]
    if not train:
        raise InputError(
            f"{spec.records}: no examples with split={spec.split!r} and tasks={spec.tasks} "
            f"({counts['records']} read, {counts['dropped']} dropped); check data.split and data.tasks"
        )
    if spec.alpaca_mix and spec.split == "train":
        train += _mixed_groups(sum(len(group.ids) for group in train), spec, tokenizer, seed, counts, log)
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
    """Slots of the largest group that shares a context: a row of a microbatch, of which each block of the
    mesh's data axis has one.
    """
    return max(spec.tokens_per_batch // blocks // ROW_STEP * ROW_STEP, spec.max_seq_len)


def _tokenised_rows(spec: DataSpec, columns: list[str], tokenizer: TextTokenizer) -> Iterator[_Tokenised]:
    """The selected rows with the token ids of their texts, from the cache where there is one."""
    import pyarrow.parquet as pq

    weighted = "segments" in columns
    texts_of = _weighted_texts if weighted else partial(_record_texts, spec.prompt_template)
    with pq.ParquetFile(spec.records) as file:
        total = file.metadata.num_rows
    if spec.cache_dir is None:
        return tokenised(_read_rows(spec, columns), texts_of, tokenizer, total)
    key, read = _cache_key(spec, columns, tokenizer), partial(_read_rows, spec, columns)
    return cached_tokens(spec.cache_dir, key, read, texts_of, tokenizer, total)


def _cache_key(spec: DataSpec, columns: list[str], tokenizer: TextTokenizer) -> str:
    selection = {
        "texts": "weighted" if "segments" in columns else spec.prompt_template,
        "split": spec.split if "split" in columns else None,
        "tasks": spec.tasks,
        "max_records": spec.max_records,
    }
    return cache_key(spec.records, tokenizer, selection)


def cached(spec: DataSpec, tokenizer: TextTokenizer) -> bool:
    """Whether the token ids of this order's records are in its cache."""
    if spec.cache_dir is None:
        return False
    return has_tokens(spec.cache_dir, _cache_key(spec, _columns(spec), tokenizer))


def _record_texts(template: str, row: Row) -> list[str]:
    return [fill_template(template, row["instruction"], row["input"]), row["output"]]


def _weighted_texts(row: Row) -> list[str]:
    return [s["text"] for segments in (row["segments"], *(row.get("suffixes") or [])) for s in segments]


def _held_out_or_not(
    rows: Iterator[_Tokenised], spec: DataSpec, seed: int
) -> Iterator[tuple[bool, _Tokenised]]:
    """Each row, marked if it is kept for validation.

    A context is kept or not by the hash of its name, so that a context is never on both sides.
    """
    for row, pieces in rows:
        name = row["context_id"] or row["id"]
        yield spec.validation_share > 0 and _share_of(f"{seed}:{name}") < spec.validation_share, (row, pieces)


def _share_of(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2.0**64


def _record_groups(
    rows: Iterable[tuple[bool, _Tokenised]],
    spec: DataSpec,
    tokenizer: TextTokenizer,
    limit: int,
    counts: dict[str, int],
) -> dict[bool, list[Group]]:
    """Groups to train on (False) and for validation (True); a context's records may stand anywhere."""
    bos = _bos(tokenizer)
    examples: dict[bool, list[Example]] = {False: [], True: []}
    for held_out, (row, (prompt, answer)) in rows:
        counts["records"] += 1
        answer = np.append(answer, np.int32(tokenizer.eos_id))
        budget = spec.max_seq_len - len(bos) - len(answer)
        if budget < 1:
            counts["dropped"] += 1
            continue
        if len(prompt) > budget:
            counts["shortened"] += 1
            ids = row.get("context_ids") or []
            oracle = set(row.get("oracle_ids") or [])
            prompt = shorten_prompt(
                tokenizer,
                spec.prompt_template,
                row["instruction"],
                row["input"],
                budget,
                blocks=len(ids),
                protected=[number for number, id in enumerate(ids) if id in oracle],
            )
        example = Example(row["id"], row["context_id"], np.concatenate([bos, prompt]), answer)
        examples[held_out].append(example)
    if spec.sharing == "off":
        return {side: [plain_group(example) for example in found] for side, found in examples.items()}
    return {side: share_contexts(found, limit) for side, found in examples.items()}


def _mixed_groups(
    records: int,
    spec: DataSpec,
    tokenizer: TextTokenizer,
    seed: int,
    counts: dict[str, int],
    log: Callable[[str], None],
) -> list[Group]:
    """General instructions beside the training records: never held out, never of the file itself."""
    wanted = int(records * spec.alpaca_mix)
    rows: list[Row] = [
        {
            "id": record.id,
            "context_id": "",
            "instruction": record.instruction,
            "input": record.input,
            "output": record.output,
        }
        for record in mixed_records(wanted, seed, spec.alpaca_path)
    ]
    made = tokenised(rows, partial(_record_texts, spec.prompt_template), tokenizer, len(rows))
    records = counts["records"]
    groups = _record_groups(((False, row) for row in made), spec, tokenizer, most_slots(spec), counts)[False]
    counts["records"] = records  # of the file
    counts["mixed"] = len(groups)
    source = spec.alpaca_path or "the built-in set"
    fewer = f" ({wanted} wanted)" if len(groups) < wanted else ""
    log(f"data: {len(groups)} general instructions mixed in from {source}{fewer}")
    return groups


def _weighted_groups(
    rows: Iterable[tuple[bool, _Tokenised]],
    spec: DataSpec,
    tokenizer: TextTokenizer,
    limit: int,
    counts: dict[str, int],
) -> dict[bool, list[Group]]:
    """Groups to train on (False) and for validation (True)."""
    bos = _bos(tokenizer)
    groups: dict[bool, list[Group]] = {False: [], True: []}
    for held_out, (row, pieces) in rows:
        counts["records"] += 1
        left = iter(pieces)
        segments, *later = (
            (part, list(itertools.islice(left, len(part))))
            for part in (row["segments"], *(row.get("suffixes") or []))
        )
        suffixes = [_piece(*suffix, tokenizer) for suffix in later if suffix[0]]
        prefix = Piece(bos, np.zeros(len(bos), np.float32)) + _piece(
            *segments, None if suffixes else tokenizer
        )
        room = spec.max_seq_len - max((len(s) for s in suffixes), default=0)
        if room <= len(bos):
            counts["dropped"] += 1
            continue
        if len(prefix) > room:
            counts["shortened"] += 1
            prefix = prefix[: len(bos)] + prefix[len(prefix) - (room - len(bos)) :]
        if suffixes:
            groups[held_out].extend(suffix_groups(row["id"], prefix, suffixes, limit, spec.sharing == "auto"))
        elif len(prefix) > 1:
            groups[held_out].append(Group((row["id"],), (Branch(0, prefix),)))
    return groups


def _piece(
    segments: list[dict[str, Any]], tokens: list[np.ndarray], tokenizer: TextTokenizer | None
) -> Piece:
    """Tokens of a list of segments with their weights; EOS at the end if a tokenizer is given."""
    parts = list(tokens)
    weights = [np.full(len(part), s["weight"], np.float32) for s, part in zip(segments, parts, strict=True)]
    if tokenizer is not None:
        parts.append(np.asarray([tokenizer.eos_id], np.int32))
        weights.append(np.asarray([segments[-1]["weight"] if segments else 0.0], np.float32))
    if not parts:
        return Piece(np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Piece(np.concatenate(parts), np.concatenate(weights))


def _bos(tokenizer: TextTokenizer) -> np.ndarray:
    return np.asarray([] if tokenizer.bos_id is None else [tokenizer.bos_id], np.int32)
