"""The file name endings of the formats, grouped by the content of the files."""

from __future__ import annotations

#: One JSON value a file or a line; `.gz` and `.zst` are unpacked while they are read.
JSON_SUFFIXES = tuple(
    f"{kind}{packed}" for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst")
)
#: Rows with named fields.
ROW_SUFFIXES = (*JSON_SUFFIXES, ".parquet")
#: Archives of JSON files.
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
