"""Sections of the report about the lineage of the artifacts and about the configuration."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from flows.engine.artifact_store import Manifest
from flows.report.blocks import Block, Code, Figure, Prose, Table
from flows.report.facts import RunFacts
from flows.report.svg_charts import Node, graph
from flows.report.wording import plural

SHORT = 12  # hexadecimal digits of a digest that are shown
MOST_FILES = 12  # files of one stage in the tables
_INPUT_NAMES = {"build-context": "Corpora", "convert-model": "Base model"}


def lineage(facts: RunFacts) -> list[Block]:
    """Return blocks with the lineage from the input files to the export, as a graph and as tables."""
    if not facts.manifests:
        return []
    # Versions may differ between artifacts. Those of the last stage are shown.
    last = list(facts.manifests.values())[-1]
    return [
        Prose(
            "A key is the SHA-256 of a stage's settings, code, input contents and the keys of the stages it "
            "reads from, so the last key fixes everything above it. The full digests are in each artifact's "
            "`manifest.json`."
        ),
        Figure("From the input files to the result", _picture(facts)),
        Table(
            "Artifacts",
            ("Stage", "Key", "Made from", "Finished (UTC)"),
            tuple(_artifact_row(facts, name) for name in facts.manifests),
            text_columns=(1, 2),
        ),
        Table("Input files", ("File", "SHA-256", "Read by"), tuple(_input_rows(facts)), text_columns=(1, 2)),
        Table("Output files", ("File", "SHA-256", "Bytes"), tuple(_output_rows(facts)), text_columns=(1,)),
        Prose(
            "Made with "
            + ", ".join(f"{name} {version}" for name, version in last["environment"].items())
            + "."
        ),
    ]


def configuration(facts: RunFacts) -> list[Block]:
    """Return blocks with the configuration of the run, in which paths below the root are relative."""
    from ruamel.yaml import YAML

    root = facts.config.root
    data = facts.config.model_dump(mode="json", exclude_none=True, exclude={"root", "store"})
    written = StringIO()
    # As YAML, because that is what the reader would put into a file to repeat the run.
    YAML(pure=True).dump(_relative(data, root), written)  # this writer keeps the order of the keys
    text = written.getvalue()
    blocks: list[Block] = [Code("The whole configuration", text.rstrip("\n"), "yaml")]
    blocks += [
        Code(f"What decides {name}", json.dumps(manifest["config"], indent=1, sort_keys=True), "json")
        for name, manifest in facts.manifests.items()
    ]
    return blocks


def _picture(facts: RunFacts) -> str:
    nodes: list[Node] = []
    edges: list[tuple[str, str]] = []
    ranks: dict[str, int] = {}
    for name, manifest in facts.manifests.items():
        upstream = [other for other in manifest["upstream"] if other in facts.manifests]
        # The longest path from an input, so that every arrow points down.
        ranks[name] = 1 + max((ranks[other] for other in upstream), default=0)
        if manifest["inputs"]:
            source = f"{name} inputs"
            count = len(manifest["inputs"])
            nodes.append(
                Node(source, _INPUT_NAMES.get(name, "Inputs"), plural(count, "file"), ranks[name] - 1, True)
            )
            edges.append((source, name))
        nodes.append(Node(name, name, manifest["key"][:SHORT], ranks[name]))
        edges += [(other, name) for other in upstream]
    chain = "; ".join(
        f"{name} reads {', '.join(start for start, end in edges if end == name)}" for name in facts.manifests
    )
    return graph("From the input files to the result", f"{chain}.", nodes, _direct(edges))


def _direct(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Remove edges between nodes that a longer path connects too, which keeps the graph readable."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)

    def reaches(start: str, end: str) -> bool:
        return end in after.get(start, ()) or any(reaches(middle, end) for middle in after.get(start, ()))

    return [
        (start, end)
        for start, end in edges
        if not any(middle != end and reaches(middle, end) for middle in after[start])
    ]


def _artifact_row(facts: RunFacts, name: str) -> tuple[str, ...]:
    manifest = facts.manifests[name]
    upstream = ", ".join(f"{other} `{item['key'][:SHORT]}`" for other, item in manifest["upstream"].items())
    parts = [plural(len(manifest["code"]), "source file")]
    if manifest["inputs"]:
        parts.append(plural(len(manifest["inputs"]), "input file"))
    if upstream:
        parts.append(f"reads {upstream}")
    return name, f"`{manifest['key'][:SHORT]}`", "; ".join(parts), _moment(manifest)


def _input_rows(facts: RunFacts) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, manifest in facts.manifests.items():
        # A corpus can have thousands of files; the manifest lists them all.
        files = list(manifest["inputs"].values())
        rows += [(item["path"], f"`{item['sha256'][:SHORT]}`", name) for item in files[:MOST_FILES]]
        if len(files) > MOST_FILES:
            rows.append((f"and {len(files) - MOST_FILES:,} more", "", name))
    return rows


def _output_rows(facts: RunFacts) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, manifest in facts.manifests.items():
        files = list(manifest["outputs"].items())
        rows += [
            (f"{name}/{path}", f"`{item['sha256'][:SHORT]}`", f"{item['size']:,}")
            for path, item in files[:MOST_FILES]
        ]
        if len(files) > MOST_FILES:
            rows.append((f"and {len(files) - MOST_FILES:,} more of {name}", "", ""))
    return rows


def _relative(value: object, root: str) -> object:
    if isinstance(value, dict):
        return {key: _relative(child, root) for key, child in value.items()}
    if isinstance(value, list):
        return [_relative(child, root) for child in value]
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(root):
        return Path(value).relative_to(root).as_posix()
    return value


def _moment(manifest: Manifest) -> str:
    """Return the time at which an artifact was finished, to the minute, in UTC."""
    return manifest["ended"][:16].replace("T", " ")
