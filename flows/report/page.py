"""Render a report as one self-contained HTML page, and as markdown for Prefect.

The content comes from `flows.report.sections`. The page needs no script, no network and no other file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.configuration.hub_models import model_name
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.report.blocks import Section, to_markdown
from flows.report.facts import RunFacts
from flows.report.sections import sections
from flows.report.svg_charts import STYLE
from jora_core.base.atomic_files import write_bytes
from jora_core.base.digests import file_digests, json_digest, text_digest
from jora_core.base.secrets import mask

REPORTS = "reports"
LATEST = "report.html"
TITLE = "Retrieval-augmented fine-tuning"
STAMP_LENGTH = len("\n<!-- ") + 64 + len(" -->\n")  # in bytes; see `_stamp`
TEMPLATE = Path(__file__).with_name("template.html")


def write_report(
    store: Store, config: PipelineConfig, references: Sequence[ArtifactRef], latest: bool = True
) -> Path:
    """Write the HTML page `<store>/reports/<digest of the keys>.html` and its copy `<store>/report.html`.

    The copy of another project than the store's first is `report-<project>.html`.

    Args:
        store: the artifact store, which also contains the report.
        config: the configuration of the run.
        references: the artifacts that the report shows, in the order in which their stages run.
        latest: whether to write the copy; False for the report of a part of the pipeline.

    Returns:
        The path of the copy; without a copy, the path of the page.

    Raises:
        InputError: the store cannot be written, or the disk is full.
    """
    facts = RunFacts.read(config, references)
    page_path = report_page(store, {name: manifest["key"] for name, manifest in facts.manifests.items()})
    page = page_path.read_bytes() if page_path.is_file() else b""
    # Reading the records for a page takes longer than all checks of a run without work.
    if not page.endswith(_stamp(facts, page[:-STAMP_LENGTH])):
        page = render_html(facts).encode("utf-8")
        page += _stamp(facts, page)
        write_bytes(page_path, page)
    if not latest:
        return page_path
    # Atomic: a browser that reloads during a run sees a whole page.
    newest = latest_path(store, config.project)
    write_bytes(newest, page)
    return newest


def report_page(store: Store, keys: Mapping[str, str]) -> Path:
    """Return the path of the page about artifacts, which stays when newer reports are written.

    Args:
        store: the artifact store.
        keys: keys of the artifacts by stage, in the order in which the stages run.
    """
    # Named by the keys, so that the same artifacts give the same file.
    name = text_digest("\n".join(f"{stage} {key}" for stage, key in keys.items()))[:16]
    return store.root / REPORTS / f"{name}.html"


def latest_path(store: Store, project: str) -> Path:
    """Return the path of a project's newest report.

    The first project of a store has `report.html`, each other one `report-<project>.html`.

    Raises:
        InputError: the store cannot be written.
    """
    owner = store.root / REPORTS / "project.txt"
    if not owner.is_file():
        write_bytes(owner, f"{project}\n".encode())
    if owner.read_text(encoding="utf-8").strip() == project:
        return store.root / LATEST
    # A name may come from a folder, with any characters.
    name = re.sub(r"[^\w.-]+", "-", project)
    return store.root / f"report-{name}.html"


def _stamp(facts: RunFacts, page: bytes) -> bytes:
    """Return the last line of a page: a digest of its bytes and of all that decides them."""
    code = file_digests([TEMPLATE, *sorted(Path(__file__).parent.glob("*.py"))])
    page_digest = hashlib.sha256(page).hexdigest()
    digest = json_digest([facts.config.model_dump(mode="json"), facts.manifests, code, page_digest])
    return f"\n<!-- {digest} -->\n".encode()


def markdown_sections(config: PipelineConfig, references: Sequence[ArtifactRef]) -> dict[str, str]:
    """Return the report's sections as markdown by section name, with charts as embedded images."""
    facts = RunFacts.read(config, references)
    return {section.name: mask(to_markdown(section)) for section in sections(facts)}


def render_html(facts: RunFacts) -> str:
    """Render the whole report as an HTML page."""
    return render_page(TITLE, _subtitle(facts), sections(facts), _footer(facts))


def render_page(title: str, subtitle: str, parts: Sequence[Section], footer: str = "JORA-RAFT") -> str:
    """Render sections as one self-contained HTML page.

    Args:
        title: title of the page.
        subtitle: the line below it.
        parts: the sections.
        footer: the last line.
    """
    import jinja2

    # Corpora hold markup of strangers, which must not run in the reader's browser. `StrictUndefined`: a
    # misspelled name is an error, not an empty place.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(title=title, subtitle=subtitle, sections=parts, chart_style=STYLE, footer=footer)
    return mask(page)


def _subtitle(facts: RunFacts) -> str:
    model = model_name(Path(facts.config.model.path))
    ended = max((manifest["ended"] for manifest in facts.manifests.values()), default="")
    moment = f" · {ended[:16].replace('T', ' ')} UTC" if ended else ""
    return f"{model} on {', '.join(facts.config.context.tasks)}{moment}"


def _footer(facts: RunFacts) -> str:
    last = list(facts.manifests.values())[-1:]
    return f"JORA-RAFT · `{last[0]['stage']}` `{last[0]['key']}`" if last else "JORA-RAFT"
