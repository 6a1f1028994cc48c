"""Canonical values of right answers about tables, from the tagged files of WikiTableQuestions.

`tagged/data/NAME.tagged` beside `data/NAME.tsv` has the columns `id`, `targetValue` and `targetCanon` among
others. `targetCanon` is the value as the data set's evaluator compares it: `1000.0` for `1,000`, `1990-05-xx`
for `May 1990`. Its parts are joined and escaped as those of `targetValue`.
"""

from __future__ import annotations

from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.readers.files.packed_lines import text_lines

CANONICAL = "targetCanon"


def tagged_file(root: Path, tsv: Path) -> Path | None:
    """Return the tagged file of a file of questions below a root; None if there is none."""
    path = root / "tagged" / "data" / f"{tsv.stem}.tagged"
    return path if path.is_file() else None


def read_tagged(path: Path) -> dict[str, tuple[int, str]]:
    """Return the line number and the field `targetCanon` of each question, by id.

    Raises:
        InputError: a column is missing, or a row has another number of fields than the header.
    """
    lines = text_lines(path)
    _, first = next(lines, (0, ""))
    header = first.split("\t")
    missing = [name for name in ("id", CANONICAL) if name not in header]
    if missing:
        raise InputError(
            f"{path}:1: column {', '.join(missing)} is missing; expected a tagged file of "
            "WikiTableQuestions; take it away to score answers by their texts"
        )
    key, canonical = header.index("id"), header.index(CANONICAL)
    found = {}
    for number, line in lines:
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(f"{path}:{number}: {len(fields)} tab-separated fields, expected {len(header)}")
        found[fields[key]] = (number, fields[canonical])
    return found
