"""Damaged configurations and overrides: read, or refused in one line that names the file or the override."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from flows.configuration.schema import PipelineConfig
from jora_core.base.errors import InputError
from tests.retrieval.readers.fuzz_damage import BYTE_CHANGES, BYTES, JUNK, VALUE_CHANGES, damage

#: A fifth of the cases that the fuzzer of the readers runs.
CASES = int(os.environ.get("JORA_FUZZ_CASES", "500")) // 5
RECIPE = yaml.safe_load(SAMPLE_CONFIG.with_name("qa.yaml").read_text())
TEXTS = [
    "*a",
    "&a [*a]",
    "{{ x }}",
    "!x y",
    "yes",
    "010",
    "1:30",
    "~",
    "$HOME",
    "${NO_SUCH}",
    "\t",
    "- : -",
    "é\ud83d",
]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from((*VALUE_CHANGES, *BYTE_CHANGES)),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, max(len(JUNK), len(BYTES)) - 1),
    ),
    max_size=2,
)
KEYS = st.sampled_from(
    ["model.path", "context.qa.source", "context.qa.columns", "phases.finetune-task.max_steps",
     "phases.0.lora.r", "phases", "schedule.cron", "context", "seed", "store", "evaluate.mode", "model..path",
     "", "mesh.data"]
)  # fmt: skip
VALUES = st.sampled_from(TEXTS) | st.sampled_from(JUNK).map(str) | st.text(max_size=6)
#: A text with half of a surrogate pair.
HALF = JUNK.index("half \ud83d")
OVERRIDES = st.lists(st.tuples(KEYS, VALUES), max_size=2)


def as_yaml(value: Any) -> bytes:
    """A recipe with one thing changed, as YAML."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


@pytest.mark.timeout(max(300, CASES))
def test_damaged_configurations_are_read_or_refused_in_one_line() -> None:
    outcomes = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "case.yaml"

        @settings(
            max_examples=max(20, CASES),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(CHANGES, OVERRIDES)
        @example([("replace", 0.5625, HALF)], [])
        @example([("replace", 0.0, HALF)], [])
        @example([], [("model.path", "caf\udce9")])
        def check(changes: list[tuple[str, float, int]], overrides: list[tuple[str, str]]) -> None:
            file.write_bytes(damage(RECIPE, as_yaml, changes))
            try:
                config = load_config(file, [f"{key}={value}" for key, value in overrides])
            except InputError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 2000
                assert str(file) in text or "--set" in text
                text.encode()
                outcomes["refused"] += 1
                return
            # What was read can be written down for Prefect and read again.
            dumped = config.model_dump(mode="json")
            assert PipelineConfig.model_validate(dumped).model_dump(mode="json") == dumped
            outcomes["read"] += 1

        check()
    assert min(outcomes.values()) > 0, outcomes
