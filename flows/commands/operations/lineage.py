"""The command `jora lineage`, which goes back from an exported model to the raw rows that taught it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.common_options import load, print_json
from flows.commands.print_pipeline import print_table
from flows.engine.errors import one_line_os_errors
from flows.engine.shared.shared_store import open_store
from flows.lineage.chain import Chain, follow
from flows.lineage.graph import draw
from flows.lineage.taught_rows import (
    COUNTED,
    Taught,
    TaughtRow,
    counted_rows,
    listed_rows,
    taught,
    taught_rows,
)
from jora_core.base.atomic_files import write_bytes


def lineage(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    config: Annotated[Path | None, typer.Option("--config", "-c")] = None,
    root: Annotated[Path | None, typer.Option("--root", metavar="DIR")] = None,
    rows: Annotated[bool, typer.Option("--rows")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say which raw rows taught a model; verify all digests.

    DIR is an artifact of the store, a folder in it such as the exported model or adapter, or a copy of an
    export. Draws the artifacts that it was made from, back to the input files, and says which rows of the
    corpora each training has learned from. Names each file that has other bytes than recorded; the exit
    status is then 1.

    \\b
    Examples:
      jora lineage runs/export/4f2c…
      jora lineage runs/export/4f2c…/adapter --rows
      jora lineage copied-export -c my.yaml --html lineage.html

    Args:
        folder: Folder of an artifact or of an export.
        config: Configuration whose store has the artifacts, for a copy of an export.
        root: Folder that the paths of input files are relative to, if the corpora have moved.
        rows: List each row, not only their numbers.
        html: Also write a page with the graph, the files and the rows.
        as_json: print JSON instead of text.
    """
    settings = None if config is None else load(config, None)
    store = None if settings is None else open_store(settings)
    place = root or (None if settings is None else Path(settings.root))
    chain = follow(folder, store, None if place is None else place.resolve())
    found = taught(chain)
    listed = list(taught_rows(chain)) if rows or html is not None else []
    if html is not None:
        # Here, because the page's template and charts are for those who want a page.
        from flows.report.lineage_page import lineage_page

        page = lineage_page(str(folder), chain, found, listed)
        with one_line_os_errors("write", html):
            write_bytes(html, page.encode())
    if as_json:
        print_json(_as_json(chain, found, listed if rows else None))
    else:
        _print(chain, found, listed if rows else None)
        if html is not None:
            print(f"page: {html}")
    if chain.damaged:
        raise typer.Exit(1)


def _print(chain: Chain, found: Taught, listed: list[TaughtRow] | None) -> None:
    print("\n".join(draw(chain)))
    if found.sources:
        print("\nrows that taught the model:")
        print_table(
            tuple(header.lower() for header in COUNTED),
            counted_rows(found.sources),
        )
        print("rows: of the file; records: made from them; seen: how often; offered: training records there")
    for note in found.notes:
        print(note)
    for row in listed_rows(listed or ()):
        print("\t".join(row))
    print()
    if chain.other_code:
        first = chain.other_code[0]
        print(f"code: {len(chain.other_code)} source files differ from those here, such as {first}")
    for finding in chain.findings:
        print(f"{finding.state}: {finding.what}: {finding.detail}")
    absent = sum(finding.state == "absent" for finding in chain.findings)
    wrong = len(chain.findings) - absent
    print(
        f"{chain.files:,} files verified"
        + (f", {wrong} not as recorded" if wrong else ", all as recorded")
        + (f"; {absent} not here, so not verified" if absent else "")
    )


def _as_json(chain: Chain, found: Taught, listed: list[TaughtRow] | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "artifacts": [
            {
                "stage": link.manifest["stage"],
                "key": link.manifest["key"],
                "folder": None if link.folder is None else str(link.folder),
                "inputs": link.manifest["inputs"],
                "upstream": {name: item["key"] for name, item in link.manifest["upstream"].items()},
                "outputs": {name: item["sha256"] for name, item in link.manifest["outputs"].items()},
            }
            for link in chain.links
        ],
        "verified_files": chain.files,
        "damaged": chain.damaged,
        "findings": [asdict(finding) for finding in chain.findings],
        "other_code": list(chain.other_code),
        "taught": [asdict(one) for one in found.sources],
        "notes": list(found.notes),
    }
    return value if listed is None else value | {"rows": [asdict(row) for row in listed]}
