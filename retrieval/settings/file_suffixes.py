"""The file name endings of the formats, grouped by the content of the files."""

from __future__ import annotations

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")


def packed_too(*kinds: str) -> tuple[str, ...]:
    """Return endings, each also with the endings of packed files. Those are unpacked while they are read."""
    return tuple(f"{kind}{packed}" for kind in kinds for packed in _PACKED)


#: One JSON value a file or a line.
JSON_SUFFIXES = packed_too(".jsonl", ".ndjson", ".json")
#: Tables of any columns, which a mapping of columns explains.
TABLE_SUFFIXES = (*JSON_SUFFIXES, *packed_too(".csv", ".tsv"), ".xlsx", ".parquet", ".arrow")
#: Rows with named fields.
ROW_SUFFIXES = (*JSON_SUFFIXES, ".parquet")
#: What the library `datasets` writes beside the `.arrow` files of a data set.
DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")
#: Archives of JSON files.
ARCHIVE_SUFFIXES = (*packed_too(".tar"), ".tgz")
