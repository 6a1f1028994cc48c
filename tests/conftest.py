"""How the tests compile, what marks them, and what a run says that it left out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# Programs of tests run for a moment and take long to compile; this takes two fifths off. Set before
# JAX is imported, and handed down to the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

SHARED = Path(os.environ.get("JORA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MARKERS = ("slow", "corpus", "browser", "gpu", "service")
MARKED_BY_FIXTURE = {"shared": "corpus", "prefect_url": "service"}
_left_out: Counter[str] = Counter()


@pytest.fixture
def real_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of child processes are compiled as those of users are: where what comes out is tested."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real corpora and models; skips where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real corpora and models at {SHARED} (set JORA_SHARED)")
    return SHARED


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a fixture which needs something from outside."""
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that `-m` leaves out, by their markers."""
    for item in items:
        marks = [name for name in MARKERS if item.get_closest_marker(name)]
        _left_out[", ".join(marks) or "no marker"] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's counts to the process that prints the summary."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts of the workers: each of them collects all tests, so they agree."""
    _left_out.update(
        {k: v for k, v in getattr(node, "workeroutput", {}).get("left_out", {}).items() if k not in _left_out}
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which tests were left out or skipped, and why."""
    for marks, count in sorted(_left_out.items()):
        terminalreporter.write_line(f"left out by marker ({marks}): {count} tests; `make test-all` runs them")
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{reason.removeprefix('Skipped: ')}: {count} tests skipped")
