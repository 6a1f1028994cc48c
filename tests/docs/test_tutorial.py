"""docs/tutorial.md and flows/configs/qa.yaml: what they show is what the sample holds, and they agree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from flows.configuration.load import load_config
from retrieval.build.build import build_record_files

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "flows" / "configs" / "qa.yaml"
NOTICES = ROOT / "data" / "sample" / "notices"
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The page's code blocks of one language."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's records."""
    folder = tmp_path_factory.mktemp("records")
    build_record_files(load_config(RECIPE).context, folder)
    return folder


def test_the_script_writes_the_notices_again(tmp_path: Path) -> None:
    script = ROOT / "data" / "make_notices.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True, capture_output=True)
    for name in ("notices.jsonl", "questions.jsonl"):
        assert (tmp_path / name).read_bytes() == (NOTICES / name).read_bytes()


def test_shown_rows_are_rows_of_the_sample() -> None:
    document, question = blocks("json")
    assert document in (NOTICES / "notices.jsonl").read_text(encoding="utf-8")
    assert question in (NOTICES / "questions.jsonl").read_text(encoding="utf-8")
    assert json.loads(question)["document_id"] == json.loads(document)["id"]


def test_the_shown_configuration_is_the_recipe() -> None:
    (shown,) = blocks("yaml")
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    assert yaml.safe_load(shown) == {key: recipe[key] for key in ("model", "context", "phases", "evaluate")}


def test_the_shown_prompt_is_a_record(built: Path) -> None:
    (prompt,) = blocks("text")
    rows = pq.read_table(built / "records.parquet").to_pylist()
    assert prompt.strip() in {
        f"{row['instruction']}\n\n{row['input']}" for row in rows if row["split"] == "test"
    }


def test_the_shown_counts_are_those_of_the_build(built: Path) -> None:
    metrics = json.loads((built / "metrics.json").read_text(encoding="utf-8"))["tasks"]["qa"]
    for split in ("train", "test"):
        assert f"{metrics['records'][split]:,}" in PAGE
    recall = metrics["retrieval"]["test"]["fused"]["recall@1"]
    assert f"{recall:.3f}" in PAGE


def test_readme_and_recipe_show_the_same_scores_as_the_tutorial() -> None:
    scores = re.findall(r"\*\*(0\.\d{3})\*\* \((0\.\d{3}–0\.\d{3})\)", PAGE)
    assert len(scores) == 2, "exact match and F1 after fine-tuning"
    header = RECIPE.read_text(encoding="utf-8").partition("\nroot:")[0]
    for value, interval in scores:
        assert value in README and interval in README and value in header
