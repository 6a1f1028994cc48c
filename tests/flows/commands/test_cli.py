"""The `jora` command: what it prints, its exit status, and that wrong input is one line."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer

import flows.orchestration.run_pipeline
from flows import cli
from flows.children import devices
from flows.children.run_child import ChildFailed
from flows.commands import doctor, merge, print_pipeline
from flows.commands.app import COMMANDS, app
from flows.commands.prompts import generate
from flows.engine.errors import StageFailed
from flows.engine.stage import Stage, StageContext
from flows.stages import STAGES
from jora_core.specs.answers import GenerateSpec
from jora_core.specs.model_files import ExportSpec
from retrieval.evaluation.threads.annotation_files import write_links
from tests.flows.changes import ALL
from tests.flows.conftest import Project, let_others_read

REPOSITORY = str(Path(cli.__file__).parent.parent)
METRICS = ("target@1", "reply@1", "joint", "p(reply|target)")
SCORES = {
    "systems": {
        "bm25": {name: {"value": 0.4, "low": 0.35, "high": 0.45, "n": 1000} for name in METRICS},
        "both_phases": {name: {"value": 0.6, "low": 0.55, "high": 0.65, "n": 1000} for name in METRICS},
    }
}


@dataclass(frozen=True)
class Said:
    """What one command left."""

    status: int
    out: str
    err: str


Jora = Callable[..., Said]


@pytest.fixture
def jora(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Run the command in this process, on the project's stages."""
    project.config()
    for name, stage in project.registry.items():
        monkeypatch.setitem(STAGES, name, stage)  # type: ignore[arg-type]
    scored = project.registry["evaluate"]

    def evaluate(context: StageContext) -> dict[str, Any]:
        metrics = scored.run(context)
        (context.output_dir / "metrics.json").write_text(json.dumps(SCORES))
        return metrics

    monkeypatch.setitem(STAGES, "evaluate", replace(scored, run=evaluate))  # type: ignore[arg-type]

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["jora", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, said.out, said.err)

    return run


def test_help_is_quick_and_light() -> None:
    """Less than half a second of processor time, and nothing heavy imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; sys.argv = ['jora', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "finally: print('imported', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    imported = set(done.stdout.rpartition("imported ")[2].split())
    assert not imported & {"jax", "torch", "numpy", "pydantic", "prefect", "transformers", "pyarrow", "rich"}


def test_help_teaches(jora: Jora) -> None:
    text = jora("--help").out
    assert len(COMMANDS) == 24
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z].*\.$", text, re.MULTILINE), f"{command}: no whole sentence"
        assert jora(command, "--help").status == 0
    assert "jora run my.yaml --from finetune-task" in text
    assert "0 done, 1 failed, 2 wrong input" in text


def test_lines_of_the_help_are_the_commands_own() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert COMMANDS[name].help == command.get_short_help_str(200)


def test_near_names_are_suggested(jora: Jora) -> None:
    said = jora("plam")
    assert said.status == 2 and "Did you mean 'plan'?" in said.err


def test_plan_as_json_and_text(jora: Jora, project: Project) -> None:
    said = jora("plan", "pipeline.yaml", "--json")
    assert said.status == 0
    stages = json.loads(said.out)["stages"]
    assert [stage["name"] for stage in stages] == ALL
    assert all(set(stage) == {"name", "action", "reason", "key"} for stage in stages)
    assert stages[0] == {
        "name": "build-context", "action": "run", "reason": "no artifact", "key": stages[0]["key"],
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{64}", stages[0]["key"])
    text = jora("plan", "pipeline.yaml").out
    assert all(stage["name"] in text and stage["key"][:12] in text for stage in stages)
    assert not (project.folder / "runs").exists()


def test_stages_alone_and_their_results(jora: Jora, project: Project) -> None:
    for command in ("context", "convert", "train", "evaluate"):
        said = jora(command, "pipeline.yaml")
        assert said.status == 0 and " ran " in said.out
    assert "0.600 [0.550, 0.650]" in said.out, "the evaluation prints its table"
    assert "n=1000" in said.out
    said = jora("export", "pipeline.yaml", "--json")
    result = json.loads(said.out)
    assert result["model"] == str(project.artifact("export") / "model")
    assert result["stages"][0]["stage"] == "export" and not result["stages"][0]["cached"]
    assert project.runs == ALL
    assert " cached " in jora("train", "pipeline.yaml", "--only", "finetune-task").out
    assert " ran " in jora("train", "pipeline.yaml", "--only", "finetune-task", "--force").out


def test_run_with_nothing_to_do(jora: Jora, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("context", "convert", "train", "evaluate", "export"):
        jora(command, "pipeline.yaml")
    project.runs.clear()
    monkeypatch.setattr(
        flows.orchestration.run_pipeline, "report_of", lambda *_: Path("/somewhere/report.html")
    )
    said = jora("run", "pipeline.yaml")
    assert said.status == 0 and project.runs == []
    lines = [line for line in said.out.splitlines() if " cached " in line]
    assert [line.split()[0] for line in lines] == ALL
    assert re.search(r"both_phases +0\.600 \[0\.550, 0\.650\]", said.out)
    assert f"exported model: {project.artifact('export') / 'model'}" in said.out
    assert "report: /somewhere/report.html" in said.out
    result = json.loads(jora("run", "pipeline.yaml", "--json").out)
    assert result["evaluation"] == SCORES and result["report"] == "/somewhere/report.html"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "no.yaml"), "cannot read configuration no.yaml: no such file or directory"),
        (("plan", "pipeline.yaml", "--set", "sed=1"), "--set: sed: unknown key; did you mean seed?"),
        (("run", "pipeline.yaml", "--set", "seed=x"), "--set: seed: expected a whole number, got 'x'"),
        (("run", "pipeline.yaml", "--only", "evalate"), "no stage evalate in this configuration"),
        (("plan", "pipeline.yaml", "--only", "export", "--from", "export"), "--only and --from exclude"),
        (("run", "pipeline.yaml", "--only", "export"), "run `jora run pipeline.yaml --from build-context`"),
        (("evaluate", "pipeline.yaml"), "reads the artifact of build-context, which does not exist"),
        (("train", "pipeline.yaml", "--only", "export"), "expected a phase of the configuration"),
        (("plan", "pipeline.yaml", "--set", "context.threads.source=gone"), "gone does not exist"),
        (("plan", "pipeline.yaml", "--set", "store=pipeline.yaml"), "is a file; choose a folder"),
        (("context", "pipeline.yaml", "--set", "store=/proc/runs"), "cannot write to store /proc/runs"),
        (("generate", "-i", "x", "--adapter", "a"), "--adapter needs --model"),
        (("generate", "-i", "x", "--temperature", "-1"), "--temperature -1.0: expected 0 (the likeliest"),
        (("generate", "-i", "x", "--temperature", "nan"), "--temperature nan: expected 0"),
        (("generate", "-i", "x", "--top-p", "0"), "--top-p 0.0: expected more than 0 and at most 1"),
        (("generate", "-i", "x", "--top-p", "1.5"), "--top-p 1.5: expected more than 0 and at most 1"),
        (("generate", "-i", "x", "--top-k", "-3"), "--top-k -3: expected 0 (all tokens) or a greater"),
        (("generate", "-i", "x", "--seed", "-1"), "--seed -1: expected a whole number from 0"),
        (("generate", "-i", "x", "--stop", "a", "--stop", ""), "--stop '': expected at least one character"),
        (("generate", "-i", "x", "--stop", "\udce9"), "--stop '\\udce9': is not UTF-8; write it as UTF-8"),
        (("generate", "-i", "x", "-t", "\udce9"), "--input '\\udce9': is not UTF-8; write it as UTF-8"),
        (("generate", "-i", "x", "--model", "\udce9"), "--model '\\udce9': is not UTF-8; rename what it"),
        (("generate", "-i", "x", "--max-new-tokens", "0"), "--max-new-tokens 0: expected 1 or a greater"),
        (("generate", "-i", "x", "-c", "pipeline.yaml"), "generate reads the artifact of finetune-task"),
        (("merge", "model", "adapter", "tables"), "tables exists already; give a new folder"),
        (("merge", "model", "adapter", "new", "--dtype", "int3"), "--dtype int3: expected float32"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    jora: Jora, project: Project, arguments: tuple[str, ...], words: str
) -> None:
    before = sorted(project.folder.rglob("*"))
    said = jora(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert words in said.err
    assert sorted(project.folder.rglob("*")) == before, "nothing half-written"


def test_links_are_written_as_annotations(
    jora: Jora, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("context", "convert", "train"):
        assert jora(command, "pipeline.yaml").status == 0
    command = ("evaluate", "pipeline.yaml", "--write-links", "annotations")
    said = jora(*command)
    assert said.status == 2 and "this evaluation has no links" in said.err
    scored = STAGES["evaluate"]

    def evaluate(context: StageContext) -> dict[str, Any]:
        metrics = scored.run(context)
        write_links(context.output_dir / "links.parquet", {"base": {"a/log": {(4, 4), (5, 4)}}})
        return metrics

    monkeypatch.setitem(STAGES, "evaluate", replace(scored, run=evaluate))  # type: ignore[arg-type]
    said = jora(*command, "--force")
    assert said.status == 0 and "annotations: 1 file" in said.err
    written = project.folder / "annotations" / "base" / "log.annotation.txt"
    assert written.read_text() == "4 4 -\n4 5 -\n"
    said = jora(*command, "--set", "evaluate.max_records=0")
    assert said.status == 2 and "--write-links: this configuration scores no threads" in said.err


def test_wrong_usage_is_status_2(jora: Jora) -> None:
    for arguments in (("plan", "--nonsense"), ("nonsense",), ("merge", "one")):
        said = jora(*arguments)
        assert said.status == 2 and "Traceback" not in said.err


def test_no_write_permission_without_traceback(project: Project) -> None:
    """The whole command, as a user who may not write."""
    project.config()
    let_others_read(project.folder)
    code = (
        "import os, sys\n"
        "from flows import cli\n"
        "import flows.configuration.schema, flows.engine.plan, flows.engine.run_stage\n"
        "import flows.commands.pipeline, flows.engine.artifact_store, flows.children.run_child\n"
        "import flows.configuration.load, flows.stages, encodings.utf_8_sig\n"
        "import retrieval.build.inputs, retrieval.readers.threads.message_tree, jora_core.base.errors\n"
        "import retrieval.readers.files.packed_lines, typer.main\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "context", "pipeline.yaml", "--set", "store=/usr/jora-runs"],
        capture_output=True,
        text=True,
        check=False,
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": REPOSITORY},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: cannot write to store /usr/jora-runs: permission denied; "
        "give this user the right, or choose another folder"
    ]


@pytest.mark.parametrize(
    "error", [StageFailed("the corpus changed"), ChildFailed("train failed\nlast line", 1, "last line")]
)
def test_failed_stage_is_status_1(jora: Jora, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(context: StageContext) -> dict[str, Any]:
        raise error

    stage: Stage = STAGES["build-context"]
    monkeypatch.setitem(STAGES, "build-context", replace(stage, run=fail))  # type: ignore[arg-type]
    said = jora("context", "pipeline.yaml")
    assert said.status == 1
    assert said.err.endswith(f"failed: {error}\n") and "Traceback" not in said.err


def test_generate_asks_the_core_for_one_answer(
    jora: Jora, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[GenerateSpec] = []

    def child(
        module: str, spec: GenerateSpec, workdir: Path, on_output: Callable[[str], None], **_: Any
    ) -> dict[str, Any]:
        specs.append(spec)
        for piece in (spec.instruction, "|", spec.input):
            on_output(json.dumps({"text": piece}))
        shortened = spec.max_new_tokens == 7
        return {"text": f"{spec.instruction}|{spec.input}", "context_shortened": shortened}

    monkeypatch.setattr(generate, "run_child", child)
    for command in ("context", "convert", "train"):
        jora(command, "pipeline.yaml")
    ask = ("generate", "-c", "pipeline.yaml", "-i", "Answer.", "-t", "a\nb")
    said = jora(*ask, "--max-new-tokens", "7")
    assert (said.status, said.out) == (0, "Answer.|a\nb\n")
    assert "note: the input was shortened to fit" in said.err and "evaluate.max_seq_len" in said.err
    (spec,) = specs
    assert (spec.model.name, spec.adapter) == ("model", project.artifact("finetune-task"))
    assert (spec.max_new_tokens, spec.stop, spec.stream) == (7, [], True)
    assert spec.sampling.temperature == 0
    options = ("--temperature", "0.7", "--top-p", "0.9", "--top-k", "50", "--seed", "3", "--stop", "\n\n")
    said = jora(*ask, *options, "--stop", "END", "--no-stream")
    assert (said.status, said.out) == (0, "Answer.|a\nb\n")
    assert specs[1].sampling.model_dump() == {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "seed": 3}
    assert (specs[1].stop, specs[1].stream) == (["\n\n", "END"], False)
    said = jora(*ask, "--json", "--model", "model")
    assert json.loads(said.out) == {"text": "Answer.|a\nb", "context_shortened": False}
    assert "shortened" not in said.err
    assert (specs[2].model, specs[2].adapter, specs[2].stream) == (Path("model"), None, False)


def test_generate_for_real(jora: Jora, project: Project) -> None:
    """Through the child process, with the sample's base model."""
    model = str(Path(REPOSITORY) / "data" / "tiny-llama")
    ask = ("generate", "-c", "pipeline.yaml", "--model", model, "-i", "Answer.", "--max-new-tokens", "8")
    streamed, whole = jora(*ask), jora(*ask, "--json")
    assert (streamed.status, whole.status) == (0, 0), streamed.err + whole.err
    result = json.loads(whole.out)
    assert streamed.out == result["text"] + "\n"
    assert result["new_tokens"] <= 8 and result["finish_reason"] in ("end", "length")


def test_merge_is_all_or_nothing(jora: Jora, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(module: str, spec: ExportSpec, workdir: Path, **_: Any) -> dict[str, Any]:
        if spec.adapter.name == "broken":
            raise ChildFailed("no space", 1, "")
        shutil.copytree(spec.model, spec.output_dir / "model")
        return {}

    monkeypatch.setattr(merge, "run_child", child)
    before = sorted(path.name for path in project.folder.iterdir())
    assert jora("merge", "model", "broken", "merged").status == 1
    assert sorted(path.name for path in project.folder.iterdir()) == before
    assert jora("merge", "model", "adapter", "merged").out == "merged\n"
    assert (project.folder / "merged" / "config.json").exists()
    assert sorted(path.name for path in project.folder.iterdir()) == sorted([*before, "merged"])


def test_doctor(jora: Jora, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda: doctor.Finding("devices", "ok", "1 × cpu"))
    said = jora("doctor", "pipeline.yaml", "--json")
    checks = {check["name"]: check for check in json.loads(said.out)["checks"]}
    assert checks["python"]["state"] == "ok"
    assert checks["input files"]["state"] == "ok" and checks["configuration"]["state"] == "ok"
    assert "can be written" in checks["store"]["detail"]
    assert not (project.folder / "runs").exists()
    (project.folder / "threads.ndjson").unlink()
    said = jora("doctor", "pipeline.yaml")
    assert said.status == 2 and "threads.ndjson does not exist" in " ".join(said.out.split())


def test_doctor_sees_the_devices_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CODE", 'print(\'{"backend": "gpu", "devices": ["H100", "H100"]}\')')
    assert doctor._devices().detail.startswith("2 × H100 (gpu)")
    monkeypatch.setattr(devices, "_CODE", "raise RuntimeError('no driver')")
    assert doctor._devices() == doctor.Finding(
        "devices", "fail", "JAX does not start: RuntimeError: no driver"
    )


def test_tables_of_all_kinds_of_records(capsys: pytest.CaptureFixture[str]) -> None:
    def value(number: float | None, n: int) -> dict[str, Any]:
        return {"value": number, "low": number, "high": number, "n": n}

    compared = {"one": "both_phases", "other": "bm25", "value": 0.021, "low": -0.01, "high": 0.052, "n": 1000}
    compared |= {"contexts": 140}
    compared |= {"p": 0.11, "p_holm": 0.22, "verdict": "not separable"}
    threads = {name: value(0.25, 1000) for name in ("target@1", "reply@1", "joint")}
    threads["p(reply|target)"] = value(None, 0)
    tables = {"denotation_accuracy": value(0.5, 77)}
    print_pipeline.print_scores(
        {
            "systems": {"bm25": threads, "both_phases": {**threads, **tables}},
            "generated": {"systems": {"both_phases": threads}},
            "comparisons": {"threads": {"reply@1": [compared]}},
        }
    )
    out = capsys.readouterr().out
    first, second = out.split("n=1000")
    assert re.search(r"bm25 +(0\.250 \[0\.250, 0\.250\] +){3}-", first), "one line, however many metrics"
    assert "both_phases, written freely" in first
    assert re.search(r"both_phases +0\.500 \[0\.500, 0\.500\]", second) and "n=77" in second
    second, third = second.split("both_phases against")
    assert re.search(r"bm25 +\+2\.1 \(-1\.0 to \+5\.2\) +0\.110 +not separable, ± 3\.1 points", third)
    assert "bm25" not in second and "exact_match" not in out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_that_it_goes_on_later(number, status, project, monkeypatch, capsys):
    """By the signal that a scheduler sends, and by that of Ctrl-C, the handlers are those of before."""
    before = signal.getsignal(number)

    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(flows.orchestration.run_pipeline, "run", interrupted)
    project.config()
    monkeypatch.setattr(sys, "argv", ["jora", "run", str(project.config_file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status and signal.getsignal(number) == before
    assert "the same command goes on from here" in capsys.readouterr().err
