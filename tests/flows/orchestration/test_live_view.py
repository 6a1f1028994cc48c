"""What a run shows in the UI: texts of the plan, the progress and the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.engine.plan import PlannedStage
from flows.orchestration.live_view import loss_markdown, plan_markdown, progress_markdown, read_rows


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 3.0 / step,
        "seconds": 2.0,
        "tokens_per_s": 1234.5,
        "peak_memory_bytes": 3 * 2**30,
        **more,
    }


def test_plan_names_reasons() -> None:
    plan = [
        PlannedStage("build-context", "run", "input changed: a|b.txt", "0" * 64),
        PlannedStage("evaluate", "cached", "up to date", "1" * 64),
    ]
    text = plan_markdown(plan)
    assert text.startswith("1 of 2 stages run")
    assert r"| build-context | run | input changed: a\|b.txt | `000000000000` |" in text


def test_progress() -> None:
    rows = [row(1), row(2, validation_loss=1.25), row(3)]
    text = progress_markdown(rows, 33)
    assert "3 of 33" in text and "1.0000" in text and "1.2500" in text and "1,234" in text
    assert "1\u00a0min\u00a000\u00a0s" in text and "3.0 GiB" in text  # thirty steps of two seconds
    assert "done" in progress_markdown(rows, 3)
    # The number of steps is unknown where epochs decide.
    assert "Time left" not in progress_markdown(rows, None)
    assert loss_markdown(rows).startswith(
        "![Loss over 3 steps, from 3.000 to 1.000.](data:image/svg+xml;base64,"
    )


def test_rows_of_a_file_in_the_middle_of_a_write(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2))[:10])
    assert [item["step"] for item in read_rows(path)] == [1]
