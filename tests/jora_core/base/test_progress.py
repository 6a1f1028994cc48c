"""The plain lines of the progress display."""

from __future__ import annotations

import re

import pytest

from jora_core.base.progress import ProgressBars, progress


def test_what_an_earlier_process_has_done_is_not_in_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("jora_core.base.progress.time.monotonic", lambda: now[0])
    with progress("ask", 200, done=150) as bar:
        now[0] += 20
        bar.advance(10, note="12 tokens/s")
        now[0] += 20
        bar.update(200)
    # Ten in twenty seconds: forty more take eighty.
    assert capsys.readouterr().err.splitlines() == [
        "ask: 160 of 200 (0.5/s, 1 min 20 s left) 12 tokens/s",
        "ask: 200 of 200 (1.2/s, 40.0 s)",
    ]


def test_slow_work_is_counted_by_the_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("jora_core.base.progress.time.monotonic", lambda: now[0])
    with progress("ask", 5) as bar:
        now[0] += 40
        bar.advance(1)
        now[0] += 80
        bar.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "ask: 1 of 5 (1.5/min)",  # the first ones take longer: no time is guessed by them
        "ask: 3 of 5 (1.5/min, 1 min 20 s left)",
    ]


def test_lines_go_where_they_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with progress("ask", 2, write=lines.append) as bar:
        bar.update(2)
    assert len(lines) == 1 and lines[0].startswith("ask: 2 of 2") and capsys.readouterr().err == ""


def test_a_step_without_a_begin_counts_from_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars(seconds_between_lines=0)
    bars.show("records", 0, 10)
    bars.show("records", 10, 10)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "records: 10 to do" and re.fullmatch(r"records: 10 of 10 \(\d+/s, \d+\.\d s\)", last)
