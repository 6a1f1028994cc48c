"""The run form: what it accepts and refuses at the field, and the words of the refusal."""

from __future__ import annotations

from typing import Any

import pytest

from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from flows.configuration.schema import PHASE_STAGES, ConfigSource, PipelineConfig
from flows.orchestration.serving.deployments import served
from flows.orchestration.serving.run_form import EXPECTED, NO_CREDENTIALS, changes_schema
from flows.orchestration.serving.run_request import RunRequest
from flows.orchestration.serving.stage_choice import ALL_STAGES, selection_of, stage_choices
from jora_core.base.errors import InputError


def refusals(*changes: str) -> list[str]:
    """Messages of Prefect's own validation, as the form shows them."""
    from prefect.utilities.schema_tools.validation import validate

    field = changes_schema({}, PipelineConfig, {"phases": PHASE_STAGES})
    schema: Any = {"type": "object", "properties": {"changes": field}}
    return [error.message for error in validate({"changes": list(changes)}, schema)]


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        " seed = 1",
        "phases.finetune-task.max_steps=500",
        "phases.0.optim.learning_rate=1e-4",
        "phases.0.optim.learning_rate=2",
        "phases.finetune-task={stage: finetune-task, tasks: [threads], max_steps: 3}",
        "phases.0.lora={r: 8}",
        "context.threads.legs=[bm25, dense]",
        "context.threads.weights.bm25=2",
        "model.dtype=float32",
        "evaluate.max_records=null",
        "export.verify=false",
        "store=/tmp/a b",
        "context.qa.source=https://bob:${PASSWORD}@host/a.zip?token=${TOKEN}",
        "context.qa.source=https://host/a@b/c.zip?page=2",
    ],
)
def test_valid_changes(change: str) -> None:
    assert refusals(change) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seed=seven", "seed=<a whole number>"),
        ("seed=1.5", "seed=<a whole number>"),
        ("export.verify=yes", "export.verify=<true or false>"),
        ("phases.finetune-task.max_steps=ten", "phases.*.max_steps=<a whole number or nothing>"),
        ("phases.0.optim.learning_rate=fast", "phases.*.optim.learning_rate=<a number>"),
        ("seed", EXPECTED),
        ("sed=1", EXPECTED),
        ("phases.finetune.max_steps=1", EXPECTED),
        # A run has no schedule of its own.
        ("schedule.cron=* * * * *", EXPECTED),
        ("context.qa.source=https://bob:s3cret@host/a.zip", NO_CREDENTIALS),
        ("context.qa.source=https://s3cret@host/a.zip", NO_CREDENTIALS),
        ("context.qa.source=https://host/a.zip?v=1&X-Amz-Signature=s3cret", NO_CREDENTIALS),
        ("context.qa.source=https://host/a.zip?sig=s3cret", NO_CREDENTIALS),
    ],
)
def test_wrong_changes_are_refused_in_words(change: str, expected: str) -> None:
    assert refusals("seed=1", change) == [f"{expected!r} was expected"]


@pytest.mark.parametrize("change", ["https://bob:s3cret@host/a.zip", "https://host/a.zip?token=s3cret"])
def test_a_run_with_a_typed_password_is_refused(change: str) -> None:
    """By the API, which has no form; and by `jora serve --set`, whose changes the deployments would show."""
    change = f"context.qa.source={change}"
    request = RunRequest(str(SAMPLE_CONFIG), [change], None, force=False, dry_run=False)
    with pytest.raises(InputError, match=r"^changes: context.qa.source has a password or a token"):
        request.settings()
    source = ConfigSource(str(SAMPLE_CONFIG), str(SAMPLE_CONFIG), (change,))
    with pytest.raises(InputError, match=r"^--set: context.qa.source has a password or a token"):
        served(load_config(SAMPLE_CONFIG).loaded_from(source))


def test_the_form_accepts_what_the_configuration_accepts() -> None:
    """Every plain value of the sample, given as a change of itself."""
    config = load_config(SAMPLE_CONFIG)
    changes = [
        f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
        for key, value in leaves(config.model_dump(mode="json", exclude={"schedule"}))
    ]
    assert len(changes) > 100 and refusals(*changes) == []


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        return [(prefix, value)]
    return [
        leaf for name, child in items for leaf in leaves(child, f"{prefix}.{name}" if prefix else f"{name}")
    ]


def test_choices_of_stages() -> None:
    assert stage_choices(["a", "b"]) == [ALL_STAGES, "only a", "only b", "from b on"]
    assert [selection_of(choice) for choice in stage_choices(["a", "b"])] == [
        (None, None),
        ("a", None),
        ("b", None),
        (None, "b"),
    ]
    with pytest.raises(InputError, match="got 'evaluate'"):
        selection_of("evaluate")
