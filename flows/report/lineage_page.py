"""The page of `jora lineage`: the graph, what was verified, and the rows that taught the model."""

from __future__ import annotations

from collections.abc import Sequence

from flows.lineage.chain import Chain
from flows.lineage.taught_rows import COUNTED, LISTED, Taught, TaughtRow, counted_rows, listed_rows
from flows.report.blocks import Block, Fact, Facts, Prose, Section, Table
from flows.report.lineage_sections import lineage_of
from flows.report.page import render_page
from retrieval.text.labels import plural

MOST_ROWS = 2_000  # rows of the page; a browser shows many more only slowly


def lineage_page(folder: str, chain: Chain, found: Taught, rows: Sequence[TaughtRow]) -> str:
    """Return the page as HTML.

    Args:
        folder: the folder that was asked for.
        chain: the artifacts behind it, verified.
        found: what each corpus file gave to each training.
        rows: the rows that taught the model.
    """
    parts = (
        ("verified", "What was verified", _verified(chain)),
        ("graph", "From the raw files to the model", lineage_of(chain.manifests)),
        ("rows", "Rows that taught the model", _rows(found, rows)),
    )
    sections = [Section(name, title, tuple(blocks)) for name, title, blocks in parts if blocks]
    return render_page("Lineage", folder, sections)


def _verified(chain: Chain) -> list[Block]:
    wrong = sum(finding.state != "absent" for finding in chain.findings)
    facts = Facts(
        (
            Fact("Files as recorded", f"{chain.files:,}"),
            Fact("Files not as recorded", f"{wrong:,}"),
            Fact("Not here, so not verified", f"{len(chain.findings) - wrong:,}"),
            Fact("Source files with other code here", f"{len(chain.other_code):,}", "no damage"),
        )
    )
    rows = tuple((one.what, one.state, one.detail) for one in chain.findings)
    table = Table("Findings", ("File or artifact", "State", "What"), rows, text_columns=(1, 2))
    return [facts, table] if rows else [facts]


def _rows(found: Taught, rows: Sequence[TaughtRow]) -> list[Block]:
    blocks: list[Block] = []
    if found.sources:
        counts = tuple(counted_rows(found.sources))
        blocks.append(Table("By corpus file", COUNTED, counts, text_columns=(1, 2)))
    blocks += [Prose(f"{note}.") for note in found.notes]
    if rows:
        shown = tuple(listed_rows(rows[:MOST_ROWS]))
        more = len(rows) - len(shown)
        caption = plural(len(rows), "record") + (f", the first {MOST_ROWS:,} shown" if more else "")
        blocks.append(Table(caption, LISTED, shown, text_columns=(1, 3, 4)))
    return blocks
