"""A planted secret is in no file of the store, no message and no parameter."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.configuration.schema import PipelineConfig
from flows.engine.keys import identify
from flows.engine.plan import make_plan, select
from flows.engine.run_stage import run_stages
from jora_core.base import secrets
from tests.flows.conftest import Project

SECRET = "pl4nted-s3cret"


@pytest.fixture
def planted(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project with its threads and documents in a folder whose name is the secret."""
    monkeypatch.setattr(secrets, "_shown", {})
    factory = logging.getLogRecordFactory()
    monkeypatch.setenv("PLANTED", str(project.folder / SECRET))
    (project.folder / SECRET).mkdir()
    for name in ("threads.ndjson", "documents.jsonl", "questions.jsonl"):
        (project.folder / name).rename(project.folder / SECRET / name)
    context = project.raw["context"]
    context["threads"]["source"] = "${PLANTED}/threads.ndjson"
    context["qa"] = {"source": "${PLANTED}/documents.jsonl", "questions": "${PLANTED}/questions.jsonl"}
    yield project
    logging.setLogRecordFactory(factory)


def test_full_run_keeps_references(planted: Project, caplog: pytest.LogCaptureFixture) -> None:
    config = planted.config()
    before = {name: identity.key for name, identity in identify(config, planted.registry).items()}
    run_stages(select(config, planted.registry), config, planted.store, planted.registry)
    files = [path for path in (planted.folder / "runs").rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    manifest = json.loads((planted.artifact("build-context") / "manifest.json").read_text())
    shown = {name: item["path"] for name, item in manifest["inputs"].items() if "threads" in name}
    assert list(shown.values()) == ["${PLANTED}/threads.ndjson"]
    assert SECRET not in caplog.text
    # The corpus under another name of the variable: the content decides the key.
    with (planted.folder / SECRET / "threads.ndjson").open("a") as file:
        file.write("\n")
    changed = make_plan(config, planted.store, planted.registry)
    assert changed[0].key != before["build-context"] and SECRET not in str(changed)
    assert "input changed: ${PLANTED}/threads.ndjson" in changed[0].reason


def test_parameters_of_deployments_are_references(planted: Project) -> None:
    config = planted.config()
    dumped = json.dumps(config.model_dump(mode="json"))
    assert SECRET not in dumped and "${PLANTED}/threads.ndjson" in dumped
    again = PipelineConfig.model_validate(json.loads(dumped)).resolved()
    assert again == config


def test_error_lines_are_masked(planted: Project) -> None:
    (planted.folder / SECRET / "threads.ndjson").unlink()
    with pytest.raises(ValueError, match=r"\$\{PLANTED\}/threads\.ndjson") as caught:
        identify(planted.config(), planted.registry)
    assert SECRET not in str(caught.value)


def test_typed_credentials_become_references(planted: Project) -> None:
    url = f"https://bob:{SECRET}@host.example/x.jsonl?token={SECRET}2"
    config = planted.config(f"context.qa.source={url}")
    dumped = json.dumps(config.model_dump(mode="json"))
    assert SECRET not in dumped.replace("${PLANTED}", "") and "JORA_SECRET_" in dumped
    assert Path(config.store).is_absolute()


def test_context_alone_keeps_references_too(planted: Project) -> None:
    """It is a parameter of the flow that builds the records, and part of a child's spec."""
    context = planted.config().context
    assert SECRET not in context.model_dump_json() and SECRET in str(context.qa)
