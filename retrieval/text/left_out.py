"""What a source or a build leaves out, by reason, and how a line says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_OTHER_KIND = "file_of_other_kind"


def other_kind(path: Path) -> str:
    """Return the reason under which a file of another kind is counted, such as `file_of_other_kind.docx`."""
    return f"{_OTHER_KIND}{path.suffix.lower() or '.(no ending)'}"


def counted_reasons(left_out: Mapping[str, int]) -> str:
    """Return the reasons with their counts, the largest first; "" if nothing was left out.

    Files of other kinds are one item, with their endings: `12 files of other kinds (7 .docx, 5 .csv)`.
    """
    kinds: Counter[str] = Counter()
    items: list[tuple[int, str]] = []
    for reason, count in left_out.items():
        if reason.startswith(_OTHER_KIND):
            kinds[reason.removeprefix(_OTHER_KIND)] = count
        else:
            items.append((count, reason.replace("_", " ")))
    said = [f"{count:,} {reason}" for count, reason in sorted(items, key=lambda item: (-item[0], item[1]))]
    if kinds:
        endings = ", ".join(f"{count:,} {ending}" for ending, count in kinds.most_common())
        said.insert(0, f"{kinds.total():,} files of other kinds ({endings})")
    return ", ".join(said)
