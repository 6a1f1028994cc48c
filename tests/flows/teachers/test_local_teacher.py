"""A teacher that runs here, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("py3langid", reason="py3langid is not installed; run `make install`")

from jora_core.base.errors import InputError
from tests.flows.teachers.project import config_of, run_stage, write_documents


def metrics_of(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {**manifest["metrics"], **json.loads((folder / "metrics.json").read_text())}


def test_a_tiny_model_answers_every_request_once(tmp_path: Path) -> None:
    """Its answers are no questions, which is counted; nothing is asked again."""
    write_documents(tmp_path / "documents.jsonl", 3)
    local = {"kind": "local", "base_url": None, "model": None, "max_answer_tokens": 16}
    config = config_of(tmp_path, "", teacher=local)
    found = metrics_of(run_stage(config))
    assert found["teacher"] == "tiny-llama" and found["questions"] == 0
    assert found["asked"]["answered"] == found["asked"]["asked"] == 3
    assert found["asked"]["unreadable"] == {"no_questions_in_it": 3}
    assert metrics_of(run_stage(config, force=True))["asked"]["asked"] == 0


def test_a_teacher_that_is_no_model_folder(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 3)
    local = {"kind": "local", "base_url": None, "model": None, "model_folder": str(tmp_path)}
    with pytest.raises(InputError, match=r"is no model folder with a config\.json"):
        run_stage(config_of(tmp_path, "", teacher=local))
