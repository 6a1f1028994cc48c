"""Records as Prefect tasks: the same bytes as without Prefect, on threads and on Dask; one shard a task."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from flows.children.build_records import main
from flows.children.build_records_spec import BuildContextSpec
from flows.configuration.schema import RetryConfig
from jora_core.base.errors import InputError
from jora_core.base.spec_command import run_spec_command
from jora_core.specs.read_spec import read_spec
from retrieval.build.build import build_record_files
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask

pytest_plugins = ["tests.flows.prefect_session"]

FILES = ("records.parquet", "rankings.parquet", "links.parquet", "metrics.json")
RETRIES = RetryConfig(max_retries=1, delay_seconds=0.1, jitter=0)


@pytest.fixture
def context(tmp_path: Path) -> ContextConfig:
    """Twelve threads of six posts, cut into shards of a quarter of their records."""
    lines = []
    for start in range(100, 1300, 100):
        posts = [{"no": start, "resto": 0, "time": start, "name": "Ann", "com": f"Opening {start}."}]
        for number in range(start + 1, start + 6):
            link = f'<a href="#p{number - 1}" class="quotelink">&gt;&gt;{number - 1}</a><br>'
            said = f"Words of {number} about {number * 7 % 13}."
            posts.append({"no": number, "resto": start, "time": number, "name": "Bob", "com": link + said})
        lines.append(json.dumps({"posts": posts}))
    (tmp_path / "threads.ndjson").write_text("\n".join(lines) + "\n")
    task = ThreadsTask(source=str(tmp_path / "threads.ndjson"), legs=["bm25", "recency"], n_contexts=3)
    return ContextConfig(test_share=0.3, threads=task, workers=2, shard_records=20)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("backend", ["threads", "dask"])
def test_mapped_tasks_write_the_same_bytes(
    backend: str, context: ContextConfig, tmp_path: Path, prefect_url: str
) -> None:
    if backend == "dask" and importlib.util.find_spec("prefect_dask") is None:
        pytest.skip("prefect-dask (extra scale) is not installed")
    from flows.orchestration.tasks.records_flow import build_records

    build_record_files(context, tmp_path / "plain")
    changed = context.model_copy(update={"backend": backend})
    result = build_records(changed, tmp_path / "out", tmp_path / "work", RETRIES)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert result["records"] == json.loads(contents(tmp_path / "out")["metrics.json"])["records"]
    assert result["peak_memory_bytes"] > 10_000_000
    if backend == "threads":  # a Dask worker may end before it has told the server of its last tasks
        deadline = time.monotonic() + 30
        while shard_runs(prefect_url) < 3:  # the server notes task runs a moment later
            assert time.monotonic() < deadline
            time.sleep(0.5)


def shard_runs(url: str) -> int:
    """How many shard tasks of the newest `build-records` run the server saw completed."""
    import urllib.request

    def ask(path: str, body: dict[str, object]) -> list[dict[str, object]]:
        request = urllib.request.Request(
            f"{url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    flows = {"flows": {"name": {"any_": ["build-records"]}}}
    (newest,) = ask("flow_runs/filter", {**flows, "sort": "EXPECTED_START_TIME_DESC", "limit": 1})
    runs = ask("task_runs/filter", {"flow_runs": {"id": {"any_": [newest["id"]]}}})
    return sum(str(run["name"]).startswith("shard ") and run["state_type"] == "COMPLETED" for run in runs)


def test_wrong_input_is_one_line_and_not_retried(
    context: ContextConfig, tmp_path: Path, prefect_url: str
) -> None:
    from flows.orchestration.tasks.records_flow import build_records

    assert context.threads is not None
    Path(context.threads.source).write_text("{broken\n")
    with pytest.raises(InputError, match=r"threads\.ndjson:1: broken JSON"):
        build_records(context, tmp_path / "out", tmp_path / "work", RETRIES)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_dask_that_is_not_installed_is_one_line(
    context: ContextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.orchestration.tasks.records_flow import build_records

    monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)
    changed = context.model_copy(update={"backend": "dask"})
    with pytest.raises(InputError, match=r"jora-raft\[scale\]"):
        build_records(changed, tmp_path / "out", tmp_path / "work", RETRIES)


def test_the_child_says_how_far_it_is(
    context: ContextConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = BuildContextSpec(
        context=context,
        work_dir=tmp_path / "work",
        records_dir=tmp_path / "out",
        output_dir=tmp_path / "specs",
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    with pytest.raises(SystemExit) as ended:
        run_spec_command(
            lambda path: read_spec(path, BuildContextSpec), main, ["--spec", str(tmp_path / "spec.json")]
        )
    assert ended.value.code == 0
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("threads: index: 72 of 72 (") for line in said), said
    assert any(line.startswith("threads: records: 60 of 60 (") and "/s" in line for line in said), said
    assert json.loads((tmp_path / "specs" / "result.json").read_text())["records"] == 60
