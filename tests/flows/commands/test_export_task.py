"""`jora evaluate --export-task`: lm-evaluation-harness gets our score from the exported model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from flows.commands.export_task import check_task_folder, write_task_folder
from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from flows.engine.plan import select
from flows.engine.run_stage import run_stages
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES
from jora_core.base.errors import InputError
from tests.flows.conftest import Project

DATA = SAMPLE_CONFIG.parents[2] / "data"


def test_what_cannot_be_exported_is_refused(project: Project, tmp_path: Path) -> None:
    assert check_task_folder(tmp_path / "new", project.config()) == ["threads"]
    for override in ("evaluate.mode=generate", "evaluate.max_records=0"):
        with pytest.raises(InputError, match=r"--export-task: no evaluated task chooses among answers"):
            check_task_folder(tmp_path / "new", project.config(override))
    with pytest.raises(InputError, match="not empty"):
        check_task_folder(tmp_path, project.config())


@pytest.mark.slow
def test_lm_eval_gets_our_score(tmp_path: Path) -> None:
    """The whole pipeline, as small as it can be; then the other program on its export."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    lines = (DATA / "sample" / "threads.ndjson").read_text().splitlines()[:30]
    (tmp_path / "threads.ndjson").write_text("\n".join(lines) + "\n")
    sizes = {"max_seq_len": 512, "tokens_per_batch": 1024, "max_steps": 8, "optim": {"learning_rate": 3e-3}}
    raw: dict[str, Any] = {
        "model": {"path": str(DATA / "tiny-llama")},
        "context": {"threads": {"source": "threads.ndjson", "legs": ["bm25", "recency"], "n_contexts": 6}},
        "phases": [{"stage": "finetune-task", "tasks": ["threads"], **sizes}],
        "evaluate": {
            "max_records": 40,
            "bootstrap_samples": 50,
            "max_seq_len": 300,
            "tokens_per_batch": 2048,
        },
        "export": {"verify": False},
        "store": "runs",
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(raw))
    config = load_config(tmp_path / "small.yaml")
    references = run_stages(select(config, STAGES), config, open_store(config), STAGES)
    folders = {reference.stage: Path(reference.path) for reference in references}
    task = tmp_path / "task"
    (line,) = write_task_folder(task, config, folders["evaluate"])
    assert "jora_threads: 40 records, 0 of them with other tokens in lm_eval" in line
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "jora_threads"]
    command += ["--model_args", f"pretrained={folders['export'] / 'model'},dtype=float32,add_bos_token=False"]
    command += ["--include_path", ".", "--device", "cpu", "--batch_size", "8", "--log_samples"]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")], cwd=task, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["jora_threads"]["acc,none"]
    ours = json.loads((folders["evaluate"] / "metrics.json").read_text())["systems"]["phase1"]["reply@1"]
    assert found == pytest.approx(ours["value"], abs=1e-6) and ours["n"] == 40
    assert f"`acc` {found:.4f}" in (task / "README.md").read_text()
    # Record by record, too: equal sums would hide errors that cancel.
    rows = pq.read_table(folders["evaluate"] / "predictions.parquet").to_pylist()
    chosen = {row["id"]: row["choice_logprobs"] for row in rows if row["system"] == "phase1"}
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    for sample in map(json.loads, samples.read_text().splitlines()):
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        own = chosen[sample["doc"]["id"]]
        assert theirs.index(max(theirs)) == own.index(max(own))
        # The harness counts blanks at the prompt's end as a part of each answer, which shifts all alike.
        assert [x - theirs[0] for x in theirs] == pytest.approx([x - own[0] for x in own], abs=2e-3)
