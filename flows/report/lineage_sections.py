"""Sections of the report about the lineage of the artifacts and about the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from flows.engine.artifact_store import Manifest
from flows.lineage.edges import direct, edges_of
from flows.report.blocks import Block, Code, Figure, Prose, Table
from flows.report.facts import RunFacts
from flows.report.svg_charts import Node, graph
from retrieval.text.labels import plural

SHORT = 12  # hexadecimal digits of a digest that are shown
MOST_FILES = 12  # files of one stage in the tables
_INPUT_NAMES = {"build-context": "Corpora", "convert-model": "Base model"}


def lineage(facts: RunFacts) -> list[Block]:
    """Return blocks with the lineage from the input files to the export, as a graph and as tables."""
    return lineage_of(facts.manifests)


def lineage_of(manifests: Mapping[str, Manifest]) -> list[Block]:
    """Return the blocks of `lineage` for the manifests of a run or of a chain of artifacts, by stage."""
    if not manifests:
        return []
    # Versions may differ between artifacts. Those of the last stage are shown.
    versions = list(manifests.values())[-1].get("environment")
    blocks: list[Block] = [
        Prose(
            "A key is the SHA-256 of a stage's settings, code, input contents and the keys of the stages it "
            "reads from, so the last key fixes everything above it. The full digests are in each artifact's "
            "`manifest.json`."
        ),
        Figure("From the input files to the result", _picture(manifests)),
        Table(
            "Artifacts",
            ("Stage", "Key", "Made from", "Finished (UTC)"),
            tuple(_artifact_row(name, manifest) for name, manifest in manifests.items()),
            text_columns=(1, 2),
        ),
        Table(
            "Input files", ("File", "SHA-256", "Read by"), tuple(_input_rows(manifests)), text_columns=(1, 2)
        ),
        Table(
            "Output files", ("File", "SHA-256", "Bytes"), tuple(_output_rows(manifests)), text_columns=(1,)
        ),
    ]
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        blocks.append(Prose(f"Made with {said}."))
    return blocks


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


def _picture(manifests: Mapping[str, Manifest]) -> str:
    nodes: list[Node] = []
    edges = edges_of(manifests)
    ranks: dict[str, int] = {}
    for name, manifest in manifests.items():
        upstream = [other for other in manifest["upstream"] if other in manifests]
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
    chain = "; ".join(
        f"{name} reads {', '.join(start for start, end in edges if end == name)}" for name in manifests
    )
    return graph("From the input files to the result", f"{chain}.", nodes, direct(edges))


def _artifact_row(name: str, manifest: Manifest) -> tuple[str, ...]:
    upstream = ", ".join(f"{other} `{item['key'][:SHORT]}`" for other, item in manifest["upstream"].items())
    parts = [plural(len(manifest["code"]), "source file")]
    if manifest["inputs"]:
        parts.append(plural(len(manifest["inputs"]), "input file"))
    if upstream:
        parts.append(f"reads {upstream}")
    return name, f"`{manifest['key'][:SHORT]}`", "; ".join(parts), _moment(manifest)


def _input_rows(manifests: Mapping[str, Manifest]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, manifest in manifests.items():
        # A corpus can have thousands of files; the manifest lists them all.
        files = list(manifest["inputs"].values())
        rows += [(item["path"], f"`{item['sha256'][:SHORT]}`", name) for item in files[:MOST_FILES]]
        if len(files) > MOST_FILES:
            rows.append((f"and {len(files) - MOST_FILES:,} more", "", name))
    return rows


def _output_rows(manifests: Mapping[str, Manifest]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, manifest in manifests.items():
        files = list(manifest["outputs"].items())
        rows += [
            (f"{name}/{path}", f"`{item['sha256'][:SHORT]}`", f"{item['size']:,}" if "size" in item else "")
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
    return manifest.get("ended", "")[:16].replace("T", " ")
