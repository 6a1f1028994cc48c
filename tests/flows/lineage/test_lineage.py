"""`jora lineage`: the way back from an export, and every changed byte in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store, render_manifest
from flows.engine.plan import select
from flows.engine.run_stage import run_stages
from flows.engine.stage import StageContext
from flows.lineage.chain import Chain, follow
from flows.lineage.graph import draw
from flows.lineage.taught_rows import taught, taught_rows
from flows.report.lineage_page import lineage_page
from jora_core.base.errors import InputError
from jora_core.base.record_columns import TRAINED_RECORDS
from tests.flows.conftest import Project
from tests.flows.damage import damage

RECORDS = [
    # id, task, split, source, row
    ("w1", "tables", "train", "tables/training.tsv", 1),
    ("w2", "tables", "train", "tables/training.tsv", 2),
    ("q1", "qa", "train", "questions.jsonl", 1),
    ("t1", "threads", "train", "threads.ndjson", 1),
    ("t2", "threads", "train", "threads.ndjson", 1),
    ("t3", "threads", "test", "threads.ndjson", 2),
]
SEEN = {"finetune-structure": {"w1": 3, "q1": 1, "alpaca-7": 2}, "finetune-task": {"t1": 1, "t2": 5}}


def write_rows(project: Project) -> None:
    """Let the stand-ins write real records and real lists of trained records."""
    names = ("id", "task", "split", "source", "source_row")
    rows = [{**dict(zip(names, row, strict=True)), "context_id": f"c{row[4]}"} for row in RECORDS]

    def with_file(stage: str, name: str, table: pa.Table) -> None:
        run = project.registry[stage].run

        def both(context: StageContext) -> dict[str, Any]:
            result = run(context)
            pq.write_table(table, context.output_dir / name)
            return result

        object.__setattr__(project.registry[stage], "run", both)

    with_file("build-context", "records.parquet", pa.Table.from_pylist(rows))
    for stage, counts in SEEN.items():
        table = pa.table({"id": list(counts), "times": pa.array(list(counts.values()), pa.int32())})
        with_file(stage, TRAINED_RECORDS, table)


def run_all(project: Project, *overrides: str) -> Path:
    """Run all stages, gates and upload too; return the folder of the export."""
    config: PipelineConfig = project.config(
        "gates=[{metric: threads.reply@1, at_least: 0.1}]", "export.push_to=me/model", *overrides
    )
    run_stages(select(config, project.registry), config, project.store, project.registry)
    return project.artifact("export")


@pytest.fixture
def export(project: Project) -> Path:
    write_rows(project)
    return run_all(project)


def said(chain: Chain) -> list[str]:
    return [f"{one.state}: {one.what}: {one.detail}" for one in chain.findings]


def test_a_whole_chain_goes_back_to_the_rows(export: Path, project: Project) -> None:
    for folder in (export, export / "model", export / "adapter", project.artifact("push")):
        chain = follow(folder)
        assert said(chain) == [] and not chain.damaged
        stages = [link.manifest["stage"] for link in chain.links]
        assert set(stages[:-1]) >= {"build-context", "convert-model", *SEEN, "evaluate", "check-gates"}
        made = sum(len(link.manifest["outputs"]) + 1 for link in chain.links)
        assert chain.files == made + sum(len(link.manifest["inputs"]) for link in chain.links)
    found = taught(follow(export))
    assert [
        (one.phase, one.source, one.rows, one.records, one.times, one.offered) for one in found.sources
    ] == [
        ("finetune-structure", "questions.jsonl", 1, 1, 1, 1),
        ("finetune-structure", "tables/training.tsv", 1, 1, 3, 2),
        ("finetune-task", "threads.ndjson", 1, 2, 6, 2),
    ]
    assert found.notes == (
        "finetune-structure: and 1 general instructions (alpaca_mix), which are no rows of a corpus",
    )
    assert [row.record for row in taught_rows(follow(export))] == ["q1", "w1", "t1", "t2"]


def test_a_flipped_byte_of_any_file_is_named(export: Path, project: Project) -> None:
    """Every file of every artifact, and every input file: one bit each."""
    chain = follow(export)
    files = [path for link in chain.links for path in link.folder.rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert kinds >= {
        "manifest.json",
        "lineage.json",
        "records.parquet",
        "gates.json",
        TRAINED_RECORDS,
        "README.md",
    }
    config = project.config()
    inputs = [
        path
        for stage in project.registry.values()
        if stage.applies(config)
        for path in stage.inputs(config).values()
    ]
    assert {path.name for path in inputs} >= {"threads.ndjson", "model.safetensors", "1.csv"}
    for path in (*files, *inputs):
        before = path.read_bytes()
        damage(path, "flip", seed=len(before))
        found = follow(export)
        name = path.name if path in inputs else path.relative_to(path.parents[1]).name
        assert found.damaged and any(name in one.what for one in found.findings), path
        if path in files:
            folder = next(link.folder for link in chain.links if path.is_relative_to(link.folder))
            where = f"{folder.parent.name}/{folder.name[:12]}/{path.relative_to(folder).as_posix()}"
            assert where in [one.what for one in found.findings], said(found)
        path.write_bytes(before)
    assert said(follow(export)) == []


@pytest.mark.parametrize("kind", ["truncate", "delete"])
def test_other_damage_is_named(export: Path, project: Project, kind: str) -> None:
    adapter = project.artifact("finetune-task") / "adapter_model.safetensors"
    damage(adapter, kind, seed=1, place=3)
    (finding,) = follow(export).findings
    assert finding.what.endswith("adapter_model.safetensors")
    assert finding.detail == ("is missing" if kind == "delete" else "has other bytes than recorded")


def test_a_manifest_that_was_sealed_again_is_noticed(export: Path, project: Project) -> None:
    """Who changes a setting and its seal still cannot change the key, and not what was made from it."""
    path = project.artifact("finetune-structure") / "manifest.json"
    before = path.read_bytes()
    manifest = json.loads(before)
    manifest["config"]["seed"] = 77
    path.write_bytes(render_manifest(manifest))
    assert any("do not give its key" in line for line in said(follow(export)))
    # Other weights under a right seal: the phase after it was made from others.
    manifest = json.loads(before)
    weights = path.parent / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"other weights")
    digest = "4e8a8e6e1f3bd8f5f1c6d2a5be7e4d1e4b9a5d2c4a8d3e0f7b6c5a4938271605"
    manifest["outputs"]["adapter_model.safetensors"] = {"sha256": digest, "size": 13}
    path.write_bytes(render_manifest(manifest))
    assert any("finetune-task was made from other files" in line for line in said(follow(export)))
    weights.write_bytes(kept)
    # The copy in the export notices it too, whatever the rest says.
    manifest = json.loads(before)
    manifest["outputs"]["result.json"]["sha256"] = "0" * 64
    path.write_bytes(render_manifest(manifest))
    assert any("is another one than lineage.json" in line for line in said(follow(export)))


def test_a_copy_of_an_export_says_its_origin(export: Path, project: Project, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "my-model"
    shutil.copytree(export, copy)
    (copy / "manifest.json").unlink()
    text = (copy / "lineage.json").read_text()
    assert str(project.folder) not in text, "no path of this machine"
    alone = follow(copy)
    assert not alone.damaged
    assert {one.what.split("/")[0] for one in alone.findings if "/" in one.what} >= {
        "build-context",
        "evaluate",
    }
    assert [link.manifest["stage"] for link in alone.links][-1] == "export" and len(alone.links) == 7
    with_store = follow(copy, Store(project.folder / "runs"))
    assert said(with_store) == [] and taught(with_store) == taught(follow(export))
    damage(copy / "model" / "model.safetensors", "flip", seed=0)
    assert "damaged: model/model.safetensors: has other bytes than recorded" in said(follow(copy))
    # As on a hub, where the model's files are at the top.
    for path in (copy / "model").iterdir():
        path.rename(copy / path.name)
    assert "damaged: model.safetensors: has other bytes than recorded" in said(follow(copy))


def test_what_is_not_here_is_said(export: Path, project: Project) -> None:
    (project.folder / "threads.ndjson").unlink()
    shutil.rmtree(project.artifact("convert-model"))
    chain = follow(export)
    assert not chain.damaged and {one.state for one in chain.findings} == {"absent"}
    assert {one.what.split("/")[0] for one in chain.findings} == {"threads.ndjson", "convert-model"}
    moved = project.folder / "moved"
    moved.mkdir()
    assert len(follow(export, root=moved).findings) > len(chain.findings), "nothing lies below another root"


def test_a_changed_corpus_is_not_what_taught_it(export: Path, project: Project) -> None:
    with (project.folder / "threads.ndjson").open("a") as file:
        file.write("\n")
    (finding,) = follow(export).findings
    assert (finding.state, finding.what) == ("changed", "threads.ndjson")


def test_the_drawing_and_the_page(export: Path, project: Project) -> None:
    chain = follow(export)
    lines = draw(chain)
    assert lines[0].startswith(f"export {export.name[:12]}")
    drawn = "\n".join(lines)
    assert all(f"{link.manifest['stage']} {link.manifest['key'][:12]}" in drawn for link in chain.links)
    assert drawn.count(f"build-context {project.artifact('build-context').name[:12]}") == 1
    assert "└─ threads.ndjson" in drawn or "├─ threads.ndjson" in drawn
    page = lineage_page("x <y>", chain, taught(chain), list(taught_rows(chain)))
    assert "x &lt;y&gt;" in page and "<svg" in page and "tables/training.tsv" in page
    damage(project.artifact("evaluate") / "metrics.json", "flip", seed=0)
    broken = follow(export)
    assert any("evaluate" in line and "DAMAGED" in line for line in draw(broken))
    assert "metrics.json" in lineage_page("x", broken, taught(broken), [])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "no manifest.json"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=words):
            follow(folder)


def test_the_command(export: Path, project: Project) -> None:
    def jora(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "lineage", *arguments], capture_output=True, text=True
        )

    page = project.folder / "page.html"
    done = jora(str(export / "model"), "--rows", "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "all as recorded" in done.stdout and "threads.ndjson" in done.stdout and page.is_file()
    assert "finetune-task\tthreads.ndjson\t1\tthreads\tt2\t5" in done.stdout
    damage(export / "README.md", "flip", seed=0)
    done = jora(str(export), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["damaged"]
    assert found["findings"][0]["what"].endswith("README.md") and "rows" not in found
    refused = jora(str(project.folder))
    assert refused.returncode == 2 and "manifest.json" in refused.stderr
