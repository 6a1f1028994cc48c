"""Cache of a records file's token ids: an Arrow file that later runs map into memory.

The file holds the tokenizer's results: for each record the token ids of its texts (prompt and answer, or the
segments and suffixes of weighted text), without special tokens. Later processing, such as shortening,
grouping or the train/validation split, is no part of the cache key.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.digests import json_digest, sealed_path, whole
from jora_core.base.progress import progress
from jora_core.data.tokenizer import TextTokenizer

# Part of the key: another layout of the file gets another number, and older files are not read.
FORMAT = 1
# Rows of one call of the tokenizer, which spreads them over its threads, and of one Arrow batch.
_CHUNK_ROWS = 2048
# Smaller files are tokenised before a progress bar could be read.
_BAR_ROWS = 20_000

Row = dict[str, Any]
Pieces = list[np.ndarray]
TextsOf = Callable[[Row], Sequence[str]]


def tokenised(
    rows: Iterable[Row], texts_of: TextsOf, tokenizer: TextTokenizer, total: int
) -> Iterator[tuple[Row, Pieces]]:
    """Yield each row with the token ids (int32 [T]) of its texts.

    Args:
        rows: rows of the records file.
        texts_of: returns the texts of a row.
        tokenizer: the model's.
        total: number of rows, for the progress bar of a large file.
    """
    iterator = iter(rows)
    done = 0
    with progress("tokenise", total, shown=total >= _BAR_ROWS) as bar:
        while chunk := list(itertools.islice(iterator, _CHUNK_ROWS)):
            texts = [texts_of(row) for row in chunk]
            flat = iter(tokenizer.encode_batch([text for group in texts for text in group]))
            for row, group in zip(chunk, texts, strict=True):
                yield row, list(itertools.islice(flat, len(group)))
            done += len(chunk)
            bar.update(done)
        if done < total:
            bar.update(total)  # the rest of the file is of another split or task


def cached_tokens(
    folder: Path,
    key: str,
    rows: Callable[[], Iterable[Row]],
    texts_of: TextsOf,
    tokenizer: TextTokenizer,
    total: int,
) -> Iterator[tuple[Row, Pieces]]:
    """Yield the same as `tokenised` from a cache file. A missing or damaged file is written first.

    Args:
        folder: folder of the cache.
        key: `cache_key` of the rows.
        rows: reads the rows again at each call, in the same order.
        texts_of: returns the texts of a row.
        tokenizer: the model's.
        total: number of rows, for the progress bar.

    Raises:
        InputError: the cache's folder cannot be written.
    """
    path = folder / f"{key}.arrow"
    # Training would not notice a changed bit.
    if not whole(path):
        _build(path, tokenised(rows(), texts_of, tokenizer, total))
    # The file holds ids alone; the rows are read again from the records beside it.
    yield from zip(rows(), _read(path), strict=True)


def cache_key(rows: str, tokenizer: TextTokenizer, selection: dict[str, Any]) -> str:
    """Return the cache key: the SHA-256 of the rows' digest, the tokenizer's digest, and the selection.

    Args:
        rows: digest of the selected rows.
        tokenizer: the model's.
        selection: the selected rows and texts, as JSON values.
    """
    import tokenizers

    # Another version of the library may cut a text into other tokens.
    parts = [FORMAT, rows, tokenizer.digest, tokenizers.__version__, selection]
    return json_digest(parts)


def has_tokens(folder: Path, key: str) -> bool:
    """Return whether the cache has an undamaged file of this key."""
    return whole(folder / f"{key}.arrow")


def _build(path: Path, rows: Iterator[tuple[Row, Pieces]]) -> None:
    import pyarrow as pa

    kind = pa.list_(pa.list_(pa.int32()))
    schema = pa.schema([("pieces", kind)], {"format": str(FORMAT)})
    # Arrow's own file object: writing through Python's would copy each buffer and hold the lock.
    with (
        sealed_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        while chunk := [pieces for _, pieces in itertools.islice(rows, _CHUNK_ROWS)]:
            writer.write_batch(pa.record_batch([_nested(chunk)], schema=schema))


def _nested(chunk: list[Pieces]) -> Any:
    """Return the rows' pieces as an Arrow array list<list<int32>>. Offsets are faster than Python lists."""
    import pyarrow as pa

    flat = [piece for pieces in chunk for piece in pieces]
    # The empty array serves a chunk without texts, which `np.concatenate` refuses. Offsets of Arrow lists
    # have 32 bits: enough for 2,048 rows, not for a whole file.
    values = np.concatenate([np.zeros(0, np.int32), *flat]).astype(np.int32)
    inner = np.concatenate([[0], np.cumsum([len(piece) for piece in flat])]).astype(np.int32)
    outer = np.concatenate([[0], np.cumsum([len(pieces) for pieces in chunk])]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(outer), pa.ListArray.from_arrays(pa.array(inner), pa.array(values))
    )


def _read(path: Path) -> Iterator[Pieces]:
    """Yield the token ids of each row, as views of the mapped file."""
    import pyarrow as pa

    # The map is not closed here: the arrays that are given out are views of it, and keep it alive.
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    for number in range(reader.num_record_batches):
        rows = reader.get_batch(number).column(0)
        pieces = rows.values
        values = pieces.values.to_numpy(zero_copy_only=True)
        inner = pieces.offsets.to_numpy(zero_copy_only=True)
        outer = rows.offsets.to_numpy(zero_copy_only=True)
        for start, stop in itertools.pairwise(outer.tolist()):
            yield [values[inner[i] : inner[i + 1]] for i in range(start, stop)]
