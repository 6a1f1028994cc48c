"""Children of the pipeline: results, refusals, crashes, and no orphan however either side dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from flows.children.run_child import ChildFailed, ChildInputError, ChildKilled, limit_silence, run_child

ROOT = Path(__file__).resolve().parents[3]
TOY = "tests.flows.toy_child"
DRIVER = """
import sys, threading
from pathlib import Path
from flows.children.run_child import children_end_with_block, run_child
from tests.flows.children.test_run_child import ToySpec
folder, where = Path(sys.argv[1]), sys.argv[2]
call = lambda: run_child("tests.flows.toy_child", ToySpec(output_dir=folder, act=sys.argv[3]), folder)
if where == "thread":
    thread = threading.Thread(target=call)
    with children_end_with_block():
        thread.start()
        thread.join()
else:
    call()
"""


class ToySpec(BaseModel):
    """What the toy child is asked to do."""

    output_dir: Path
    act: str


def run(folder: Path, act: str, **options: object) -> dict[str, object]:
    return run_child(TOY, ToySpec(output_dir=folder, act=act), folder / "work", **options)  # type: ignore[arg-type]


def driver(folder: Path, where: str, act: str = "long", **options: object) -> subprocess.Popen[bytes]:
    """Start a process of its own that calls run_child in its main thread or in another one."""
    command = [sys.executable, "-c", DRIVER, str(folder), where, act]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)  # type: ignore[call-overload]


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether ``pid`` runs; a zombie nobody reaps in a container does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(folder: Path) -> list[int]:
    """The supervisor, its child and the child's helper, once the child says so."""
    assert wait_for((folder / "pids").exists)
    return [int(word) for word in (folder / "pids").read_text().split()]


def test_result_and_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run(tmp_path, "bar", on_line=lines.append) == {"act": "bar"}
    # A bar redrawn over itself is one line of the log, in its last state.
    assert lines == ["step 3 of 3", "terminal: False"]


def test_standard_output_is_heard_while_it_is_said(tmp_path: Path) -> None:
    said: list[tuple[str, int]] = []
    noted: list[str] = []

    def hear(line: str) -> None:
        said.append((line, threading.get_ident()))
        (tmp_path / "heard").touch()

    assert run(tmp_path, "speak", on_output=hear, on_line=noted.append) == {"act": "speak"}
    assert said == [("one", threading.get_ident()), ("two, three", threading.get_ident())]
    assert noted == ["a note"]


def test_a_listener_that_has_had_enough_ends_the_child(tmp_path: Path) -> None:
    def leave(line: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(tmp_path, "speak", on_output=leave)
    assert not (tmp_path / "result.json").exists()


def test_refusal_is_one_line(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(ChildInputError) as refusal:
        run(tmp_path, "refuse", on_line=seen.append)
    assert str(refusal.value) == "records.parquet: column 'gold' is missing"
    assert not any("column 'gold'" in line for line in seen), "the line is the exception's alone"


def test_crash_tells_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="ZeroDivisionError: a bug") as crash:
        run(tmp_path, "crash")
    assert crash.value.status == 1 and "Traceback" in crash.value.tail
    with pytest.raises(ChildFailed, match="tokens_per_batch"):
        run(tmp_path, "memory")
    with pytest.raises(ChildFailed, match="left no readable"):
        run(tmp_path, "no-result")


def test_killed_child_is_worth_a_retry(tmp_path: Path) -> None:
    with pytest.raises(ChildKilled) as killed:
        run(tmp_path, "suicide")
    assert killed.value.status == 128 + signal.SIGKILL


def test_a_silent_child_is_ended_and_worth_a_retry(tmp_path: Path) -> None:
    limit_silence(2)
    try:
        with pytest.raises(ChildKilled, match=r"tests.flows.toy_child made no progress for 2 s"):
            run(tmp_path, "long")
    finally:
        limit_silence(0)


def test_helpers_end_with_the_child(tmp_path: Path) -> None:
    run(tmp_path, "leave-helper")
    helper = int((tmp_path / "helper").read_text())
    assert wait_for(lambda: not alive(helper))


@pytest.mark.parametrize("where", ["main", "thread"])
@pytest.mark.parametrize("victim", ["pipeline", "supervisor"])
def test_no_orphan_after_kill_9(tmp_path: Path, where: str, victim: str) -> None:
    process = driver(tmp_path, where, stderr=subprocess.DEVNULL)
    supervisor, child, helper = pids(tmp_path)
    os.kill(process.pid if victim == "pipeline" else supervisor, signal.SIGKILL)
    assert wait_for(lambda: not any(map(alive, (supervisor, child, helper))), 5)
    process.wait(10)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("where", ["main", "thread"])
def test_interrupt_lets_the_child_checkpoint(tmp_path: Path, where: str) -> None:
    process = driver(tmp_path, where, stderr=subprocess.DEVNULL)
    everyone = pids(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    process.wait(15)
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert not any(map(alive, everyone))


def test_bar_reaches_a_terminal(tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    process = driver(tmp_path, "main", "bar", stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        seen += chunk
    os.close(master)
    assert process.wait(10) == 0
    assert seen.count(b"\rstep ") == 4 and b"terminal: True" in seen
