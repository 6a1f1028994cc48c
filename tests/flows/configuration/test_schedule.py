"""The schedule of a configuration: what is refused before anything starts, and printed commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from jora_core.base.errors import InputError


@pytest.mark.parametrize("cron", ["* * * * *", "*/5 0-6 * * MON-FRI", "0 2 * * *", "'0 2 1,15 * *'"])
def test_cron_of_an_override_needs_no_quotes(cron: str) -> None:
    """`* * * * *` is an alias in YAML, but the field holds text."""
    config = load_config(SAMPLE_CONFIG, [f"schedule.cron={cron}"])
    assert config.schedule.cron == cron.strip("'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("schedule.cron=99 * * * *", "--set: schedule.cron: '99 [*] .*bad minute.*expected five fields"),
        ("schedule.cron=every night", "--set: schedule.cron: 'every night': expected five fields"),
        ("schedule.cron=@daily", "expected five fields"),
        ("schedule.cron=* * * * * *", "expected five fields"),
        ("schedule.cron=0 0 31 2 *", "--set: schedule.cron"),
        ("schedule.timezone=Mars/Phobos", "--set: schedule.timezone: unknown time zone 'Mars/Phobos'"),
        ("schedule.timezone=../etc", "unknown time zone"),
        ("seed=[1", "broken YAML"),
    ],
)
def test_wrong_schedules_are_refused(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(SAMPLE_CONFIG, [change])


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(SAMPLE_CONFIG.read_text() + "schedule: {cron: 0 25 * * *}\n")
    with pytest.raises(InputError, match=r"nightly\.yaml: schedule\.cron"):
        load_config(path)


def test_printed_commands_name_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(SAMPLE_CONFIG, ["seed=3"])
    assert config.command("run", "--from", "evaluate") == (
        f"jora run {SAMPLE_CONFIG} --set seed=3 --from evaluate"
    )
    assert config.resolved().source == config.source
    monkeypatch.chdir(SAMPLE_CONFIG.parents[2])
    assert load_config().command("plan") == "jora plan"
