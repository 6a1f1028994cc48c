"""The key of a teacher from a Prefect Secret block."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.teachers.teacher import key_of
from jora_core.base.errors import InputError
from jora_core.base.secrets import mask
from tests.flows.teachers.project import config_of, write_documents

pytest_plugins = ["tests.flows.prefect_session"]
KEY = "planted-block-key-41c7f0a2"


def test_the_key_is_read_from_the_block_and_masked(prefect_url: str, tmp_path: Path) -> None:
    from prefect.blocks.system import Secret

    Secret(value=KEY).save("teacher-key", overwrite=True)
    write_documents(tmp_path / "documents.jsonl", 3)
    config = config_of(tmp_path, "http://127.0.0.1:9/v1", teacher={"api_key_block": "teacher-key"})
    assert key_of(config) == KEY
    assert KEY not in mask(f"the server said {KEY}") and KEY not in config.model_dump_json()
    missing = config_of(tmp_path, "http://127.0.0.1:9/v1", teacher={"api_key_block": "no-such-block"})
    with pytest.raises(InputError, match="no Secret block no-such-block"):
        key_of(missing)
