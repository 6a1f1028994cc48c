"""How the tasks of a Slurm step find one another, without Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pytest

from jora_core.parallel.processes import join_processes

STEP = {"SLURM_JOB_ID": "70001", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The places at which this process joined, in the place of joining."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **_: calls.append(place))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    before = jax.config.jax_cpu_collectives_implementation  # type: ignore[attr-defined]
    yield calls
    jax.config.update("jax_cpu_collectives_implementation", before)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node3", "node3"),
        ("node3,node7", "node3"),
        ("node[3,7-9]", "node3"),
        ("node[003-004]", "node003"),
        ("gpu-a[01-04],gpu-b[01-02]", "gpu-a01"),
        ("node[3-4]-ib", "node3-ib"),
        ("a.b.example", "a.b.example"),
    ],
)
def test_the_first_host_is_the_coordinator(joined: list[Any], hosts: str, first: str) -> None:
    join_processes(None, {**STEP, "SLURM_STEP_NODELIST": hosts})
    assert joined == [(f"{first}:{61440 + 70001 % 4096}", 2, 1)]


@pytest.mark.parametrize("environment", [{}, {**STEP, "SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_JOB_ID": "7"}])
def test_one_task_joins_nothing(joined: list[Any], environment: dict[str, str]) -> None:
    join_processes(None, environment)
    assert joined == []


def test_own_variables_have_priority(joined: list[Any]) -> None:
    own = {"JORA_COORDINATOR": "h:1", "JORA_NUM_PROCESSES": "3", "JORA_PROCESS_ID": "2"}
    join_processes(None, {**STEP, "SLURM_STEP_NODELIST": "node3", **own})
    assert joined == [("h:1", 3, 2)]
