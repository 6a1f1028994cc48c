"""A run that is killed at any moment goes on without asking again for what is answered."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("py3langid", reason="py3langid is not installed; run `make install`")

import pyarrow.parquet as pq

from tests.flows.teachers.fake_teacher import FakeTeacher, serve
from tests.flows.teachers.project import command, raw_config, write_config, write_documents

KILLS, CHUNKS, AT_ONCE = 10, 200, 4


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_ten_random_points_nothing_is_asked_twice(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", CHUNKS)
    draws = random.Random(11)
    with serve(FakeTeacher(delay=0.1)) as server:
        teacher = {"max_concurrency": AT_ONCE}
        path = write_config(tmp_path, raw_config(tmp_path, server.url, teacher=teacher))
        for kill in range(KILLS):
            process = command("questions", str(path))
            before = server.requests
            # A random number of requests of this run; in the first run some are also killed before the first.
            target = before + draws.randint(0, CHUNKS // KILLS)
            deadline = time.monotonic() + 120
            while server.requests < target and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(draws.random() * 0.15)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, f"run {kill} ended before it was killed"
        # Replies that were on their way when the process died are not received.
        time.sleep(0.5)
        process = command("questions", str(path))
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        # A request that is answered and stored is never made again. Those in flight at a kill are, once each.
        repeated = server.requests - CHUNKS
        assert 0 <= repeated <= KILLS * AT_ONCE
        assert len(server.answered) == CHUNKS and sum(server.answered.values()) == server.requests
        again = command("questions", str(path), "--force")
        _, err = again.communicate(timeout=300)
        assert again.returncode == 0 and server.requests == CHUNKS + repeated, err
    (made,) = (tmp_path / "runs" / "make-questions").glob("*/questions.parquet")
    assert len({row["request"] for row in pq.read_table(made).to_pylist()}) == CHUNKS
