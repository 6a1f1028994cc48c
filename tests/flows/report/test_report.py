"""The report: made from synthetic artifacts in the store's real layout, and compared with what was put in."""

from __future__ import annotations

import base64
import html
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.report.page import markdown_sections, write_report
from flows.report.statistics_sections import against
from tests.flows.report.report_cases import (
    STAGES,
    commit,
    comparison,
    key_of,
    score,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    root = tmp_path_factory.mktemp("project")
    return PipelineConfig.model_validate(
        {
            "root": str(root),
            "model": {"path": str(root / "data/tiny-llama")},
            "context": {
                "embedder": str(root / "data/tiny-embedder"),
                "threads": {"source": str(root / "data/sample/threads.ndjson")},
                "tables": {"source": str(root / "data/sample/tables")},
            },
            "phases": [
                {"stage": "finetune-structure", "tasks": ["tables"], "max_steps": 400},
                {"stage": "finetune-task", "tasks": ["threads"], "max_steps": 400},
            ],
        }
    )


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[ArtifactRef]:
    store = Store(tmp_path_factory.mktemp("store"))
    return [commit(store, stage) for stage in STAGES]


@pytest.fixture(scope="module")
def page(config: PipelineConfig, references: list[ArtifactRef]) -> str:
    store = Store(Path(references[0].path).parents[2])
    path = write_report(store, config, references)
    assert path == store.root / "report.html"
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Which elements a page has, whether they are closed in order, and what it refers to."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src") and value:
                self.links.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_page_is_well_formed_and_needs_nothing_else(page: str, outline: Outline) -> None:
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids)), "an id is given twice"
    assert not {"script", "link", "img", "iframe"} & set(outline.seen)
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_data_is_escaped(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_p_is_corrected_for_the_comparisons_that_are_shown() -> None:
    """With ten contexts the least p is 2 / 1,024, too much for a correction for 45 pairs."""
    rows = [comparison("phase1", rival, "not separable") for rival in ("random", "bm25", "base")]
    rows.append(comparison("base", "bm25", "not separable"))
    for row in rows:
        row |= {"p": 2 / 1024, "p_holm": 90 / 1024}
    found = against(rows, "base")
    for row in found.values():
        assert row["verdict"] == ("better" if row["value"] > 0 else "worse")
    assert [row["p_holm"] for row in found.values()] == [4 / 1024] * 2


def test_page_says_what_the_artifacts_say(outline: Outline) -> None:
    text = " ".join(" ".join(outline.text).split())
    for name in (
        "Random post",
        "Opening post",
        "Previous post",
        "BM25",
        "Base model",
        "Phase 1 only",
        "Both phases",
    ):
        assert name in text
    assert "61.0 % (58.6–63.6)" in text
    assert "1,200 held-out comments in 140 threads (drawn by seed from 2,479 in 141 threads)" in text
    assert "0.41 · log-probability of the model + 0.9 · that of the fusion, weighed on 296 training" in text
    assert "+1.2 (-1.2 to +3.8) points against Learned fusion: 40 comments" in text
    assert "Best baseline: BM25 44.0 %" in text and "Both phases is better by 17.0 ± 3.0 points" in text
    assert "88.0 % of the held-out prompts" in text
    assert "Denotation accuracy".lower() in text.lower()
    for stage in STAGES:
        assert stage in text and key_of(stage)[:12] in text
    assert "1 min 15 s" in text and "1.4 GiB" in text  # export's time, training's memory
    assert "and 3 more" in text  # of build-context's 15 input files


def test_systems_are_compared_in_words_and_the_surest_choices_counted(
    config: PipelineConfig, references: list[ArtifactRef]
) -> None:
    text = html.unescape(markdown_sections(config, references)["evaluation"])
    assert "**Both phases against each other system: the right post**" in text
    bm25 = "| BM25 | +17.0 (+14.0 to +20.0) | < 0.001 | 310 and 106 | 0.012 | better by 17.0 ± 3.0 points |"
    assert bm25 in text
    assert "| not separable, ± 3.0 points |" in text
    # Of a system that comes after the shown one, the row is turned.
    assert "| New | -47.0 (-50.0 to -44.0) | < 0.001 | 106 and 310 |" in text
    assert "| worse by 47.0 ± 3.0 points |" in text
    assert "| Base model | 1,200 | 15.1 % | 76.6 % | 63.2 % | 46.6 % |" in text
    assert "| Both phases | 1,200 | 4.2 % | 87.5 % |" in text


def test_few_contexts_are_said_before_the_scores(config: PipelineConfig, tmp_path: Path) -> None:
    store = Store(tmp_path)
    own = [commit(store, stage) for stage in STAGES]
    (evaluation,) = (Path(one.path) for one in own if one.stage == "evaluate")
    scores = json.loads((evaluation / "metrics.json").read_text())
    texts = []
    for contexts in (9, 10):
        scores["drawn"]["threads"]["contexts"] = contexts
        (evaluation / "metrics.json").write_text(json.dumps(scores))
        texts.append(markdown_sections(config, own)["evaluation"])
    few, enough = texts
    said = "Held-out records of threads: only 9 contexts, so the interval is not to be trusted."
    assert said in few and "61.0 %" not in few.partition(said)[0]
    assert "Held-out records of threads: only" not in enough


def test_links_and_groups_of_comments_are_reported(
    config: PipelineConfig, references: list[ArtifactRef]
) -> None:
    text = markdown_sections(config, references)["evaluation"].replace("**", "")
    assert "2,300 annotated messages of 9 held-out threads with 2,400 links" in text
    assert "The others of 10 threads were not drawn whole. Messages without a record" in text
    assert "a parent too from a probability of 0.31" in text
    assert "| Addressed, then previous | 50.0 % (47.6–52.6) | 50.0 % (47.6–52.6) |" in text
    assert "| Both phases | 50.0 % (47.6–52.6) | none | 50.0 % (47.6–52.6) |" in text
    # The models and the best baseline.
    assert "| Comments | n | BM25 | Base model | Phase 1 only | Both phases |" in text
    assert "| Right posts: several | 100 | 30.0 % (27.6–32.6) |" in text


def test_the_data_is_reported_with_guards_intervals_and_groups(
    config: PipelineConfig, references: list[ArtifactRef]
) -> None:
    parts = markdown_sections(config, references)
    text = parts["retrieval"]
    assert "| Leg | Recall@1 | Recall@3 |" in text and "| MRR | nDCG@10 |" in text
    assert "| BM25 | 44.0 % (42.0–47.0) |" in text and "| 0.440 (0.430–0.450) | 0.490 |" in text
    assert (
        "| 51 and more | 500 | 40.0 % (37.6–42.6) |" in text and "| 0–5 |" not in text
    )  # one group says nothing
    assert "fitted on 3,210 messages of 12 training threads" in text
    assert "| Held-out split | 0.751 | 0.744 | 0.800 |" in text.replace("**", "")
    assert "| All features | 0.731 | 0.752 | 0.710 |" in text
    assert "| Without mentions | 0.610 | 0.550 | - |" in text
    text = parts["corpora"]
    assert "| comments in threads, test | 60 | 15 | 88.0 % |" in text
    assert "| Nearly a held-out one, left out | 4 |" in text and "| Leak: quotelink, left out | 1 |" in text
    assert "comment without text | 3 |" in text and "| context shortened | 5 |" in text
    assert "Words: mean 120, median 110, longest 300." in text


def test_every_chart_has_a_title_and_a_description(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    # Scores, calibration, recall, lengths, losses, time, lineage.
    assert len(charts) == 4 + 2 + 2 + 1 + 2 + 1 + 1
    for chart in charts:
        root = ET.fromstring(chart)
        ids = {element.get("id"): element.text for element in root if element.get("id")}
        assert root.get("role") == "img"
        assert all(ids[name] for name in str(root.get("aria-labelledby")).split())


def test_examples_show_five_right_and_five_wrong_and_ten_records(
    config: PipelineConfig, references: list[ArtifactRef]
) -> None:
    parts = markdown_sections(config, references)
    right, wrong, records = (parts[name].split("\n**")[1:] for name in ("right", "wrong", "records"))
    assert (len(right), len(wrong), len(records)) == (5, 5, 10)
    assert all("Both phases" in example and "✓" in _answer(example, "Both phases") for example in right)
    assert all("✗" in _answer(example, "Both phases") for example in wrong)
    assert all("Right answer" in example and "BM25" in example for example in right + wrong)
    assert {example.split(":")[0] for example in records} == {"tables", "threads"}
    for example in right:  # the marked post is the right answer's
        label = re.findall(r"Right answer: `(#\d \w+)`", example)[0]
        assert re.search(rf"✓ .*\n  {label}\n", example)


def _answer(example: str, who: str) -> str:
    return next(line for line in example.splitlines() if line.startswith(f"- {who}"))


def test_markdown_has_the_same_sections_and_embedded_charts(
    config: PipelineConfig, references: list[ArtifactRef], outline: Outline
) -> None:
    parts = markdown_sections(config, references)
    assert [name for name in outline.ids if name in parts] == list(parts)
    assert all(re.fullmatch(r"[a-z-]+", name) for name in parts)
    images = re.findall(r"\(data:image/svg\+xml;base64,([^)]*)\)", "".join(parts.values()))
    assert len(images) == 13
    for image in images:
        ET.fromstring(base64.b64decode(image))
    for line in parts["evaluation"].splitlines():
        if line.startswith("|"):
            # Tables of two, four, five, six and eight columns.
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 5, 6, 7, 9)


def test_report_does_not_depend_on_where_and_when_it_is_written(
    config: PipelineConfig, references: list[ArtifactRef], page: str, tmp_path: Path
) -> None:
    again = [item.model_copy(update={"cached": True, "seconds": 0.0}) for item in references]
    assert write_report(Store(tmp_path / "elsewhere"), config, again).read_text(encoding="utf-8") == page
    assert len(list((tmp_path / "elsewhere/reports").glob("*.html"))) == 1
    assert config.root not in page.replace(str(Path(references[-1].path)), "")


def test_a_page_is_rendered_again_only_when_it_or_its_content_changed(
    config: PipelineConfig,
    references: list[ArtifactRef],
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(tmp_path)
    write_report(store, config, references)
    (written,) = (tmp_path / "reports").glob("*.html")
    rendered: list[str] = []
    monkeypatch.setattr("flows.report.page.sections", lambda _: rendered.append("again") or [])
    (tmp_path / "report.html").unlink()
    assert write_report(store, config, references).read_text(encoding="utf-8") == page
    assert not rendered
    damaged = bytearray(written.read_bytes())
    damaged[1000] ^= 1
    written.write_bytes(damaged)
    write_report(store, config, references)
    assert rendered == ["again"]
    write_report(store, config, references)
    assert rendered == ["again"]
    changed = config.model_copy(update={"store": config.store + "-renamed"})
    write_report(store, changed, references)
    assert rendered == ["again", "again"]


@pytest.mark.parametrize("present", [(), ("build-context",), ("convert-model", "finetune-task"), STAGES[:5]])
def test_report_of_a_part_of_the_pipeline(
    config: PipelineConfig, references: list[ArtifactRef], present: tuple[str, ...], tmp_path: Path
) -> None:
    some = [item for item in references if item.stage in present]
    text = write_report(Store(tmp_path), config, some).read_text(encoding="utf-8")
    parser = Outline()
    parser.feed(text)
    assert parser.open == []
    assert ("evaluation" in parser.ids) == ("evaluate" in present)
    assert ("lineage" in parser.ids) == bool(present)


def test_report_leaves_out_what_could_not_be_scored(config: PipelineConfig, tmp_path: Path) -> None:
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    systems = {"bm25": {"reply@1": nothing}, "base": {"reply@1": score(0.2), "p(reply|target)": nothing}}
    text = report_of_scores(config, tmp_path, systems)
    assert "none" in text and "20.0 %" in text


def test_report_of_a_run_without_threads(config: PipelineConfig, tmp_path: Path) -> None:
    text = report_of_scores(config, tmp_path, {"base": {"f1": score(0.31)}, "phase1": {"f1": score(0.42)}})
    assert "42.0 %" in text and "held-out comments" not in text
    # The summary shows the score that there is, not that of replies.
    assert "Phase 1 only: F1 of words" in text and "Phase 1 only: the right post" not in text


def report_of_scores(config: PipelineConfig, tmp_path: Path, systems: dict[str, Any]) -> str:
    """The page of an evaluation that says nothing but these scores."""
    store = Store(tmp_path)
    reference = commit(store, "build-context")
    folder = store.begin("evaluate", "0" * 64)
    (folder / "metrics.json").write_text(json.dumps({"systems": systems}))
    manifest = {"stage": "evaluate", "key": "0" * 64, "inputs": {}, "upstream": {}, "code": {}, "config": {}}
    manifest |= {"metrics": {}, "seconds": 1.0, "ended": "2030-01-02T03:14:05+00:00", "environment": {}}
    path = store.commit("evaluate", "0" * 64, manifest)
    evaluate = ArtifactRef(
        stage="evaluate", key="0" * 64, path=str(path), cached=False, seconds=1.0, reason=""
    )
    return write_report(store, config, [reference, evaluate]).read_text("utf-8")


def test_a_store_that_cannot_be_written_is_one_line(config: PipelineConfig, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.root.write_text("a file")
    with pytest.raises(ValueError, match=r"reports.* cannot be written") as caught:
        write_report(store, config, [])
    assert "\n" not in str(caught.value)
