"""How the tests compile: set before any of them imports JAX, and handed down to the processes they start."""

import os

import pytest

# Programs of tests run for a moment and take long to compile; this takes two fifths off.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def real_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of child processes are compiled as those of users are: where what comes out is tested."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
