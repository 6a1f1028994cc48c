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
        now[0] += 70
        bar.advance(2)
        now[0] += 10
        bar.advance(8, note="12 tokens/s")
        now[0] += 20
        bar.update(200)
    # The first two take longer, and no time is guessed by them. Eight in ten seconds: forty more take fifty.
    assert capsys.readouterr().err.splitlines() == [
        "ask: 152 of 200 (1.7/min)",
        "ask: 160 of 200 (0.1/s, 50 s left) 12 tokens/s",
        "ask: 200 of 200 (0.5/s, 100.0 s)",
    ]


def test_slow_work_is_counted_by_the_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("jora_core.base.progress.time.monotonic", lambda: now[0])
    with progress("ask", 5) as bar:
        now[0] += 80
        bar.advance(2)
    assert capsys.readouterr().err == "ask: 2 of 5 (1.5/min)\n"


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
