"""What README and docs say is true: commands run as printed, paths and configuration keys exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Printed commands that tests elsewhere run, or that nobody wants run in a test: why.
NOT_RUN = {
    "make demo": "the whole demo; CI's other tests run its parts",
    "make test": "this is it",
    "make lint": "CI runs it next",
    "jora run": "tests/flows runs pipelines",
    "jora doctor": "tests/flows/commands/test_cli.py",
    "jora serve": "tests/flows/orchestration/test_serve.py",
    "jora generate": "reads a model that the demo exports",
    "source .venv/bin/activate": "changes a shell",
}


def printed_commands(text: str) -> list[str]:
    """Lines of the shell blocks of a page, without their comments."""
    blocks = re.findall(r"^[ ]*```bash\n(.*?)^[ ]*```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def tree_paths(text: str) -> list[Path]:
    """Paths of the annotated tree: two spaces of indentation a level, folders end with a slash."""
    (block,) = re.findall(r"## What is where\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    folders: list[str] = []
    found = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        del folders[depth:]
        found.append(ROOT.joinpath(*folders, name))
        if name.endswith("/"):
            folders.append(name)
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder that looks like the repository, in which commands may write."""
    for name in ("data", "flows", "jora_core", "retrieval", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "flows").unlink()
    (tmp_path / "flows" / "configs").mkdir(parents=True)
    for recipe in (ROOT / "flows" / "configs").glob("*.yaml"):
        (tmp_path / "flows" / "configs" / recipe.name).write_bytes(recipe.read_bytes())
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one printed command with this interpreter's `jora`."""
    words = shlex.split(command)
    if words[0] == "jora":
        words = [sys.executable, "-m", "flows.cli", *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_cheap_commands_run_as_printed(copy: Path) -> None:
    commands = [
        line for line in printed_commands(README) if not any(line.startswith(name) for name in NOT_RUN)
    ]
    assert {"jora --help", "jora plan", "cp flows/configs/sample.yaml flows/configs/mine.yaml"} <= set(
        commands
    )
    for command in commands:
        done = run(command, copy)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_command_that_is_not_run_has_a_reason_and_known_options() -> None:
    commands = printed_commands(README)
    assert all(any(line.startswith(name) for line in commands) for name in NOT_RUN), (
        "a reason without a command"
    )
    from typer.main import get_command

    from flows.commands.app import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    for line in commands:
        words = shlex.split(line)
        if words[0] == "jora" and not words[1].startswith("-"):
            options = {option for parameter in known[words[1]].params for option in parameter.opts}
            assert {word for word in words[2:] if word.startswith("-")} - {"-"} <= options, line


def test_make_targets_exist() -> None:
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z]+)", page.read_text("utf-8"))}
    # "make" is a verb too: only what stands in code counts.
    in_code = {
        target
        for page in PAGES
        for code in re.findall(r"`[^`]*`|```.*?```", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\bmake ([a-z]+)", code)
    }
    assert in_code <= targets and {"demo", "test"} <= named & targets


def test_every_path_of_the_tree_exists() -> None:
    paths = tree_paths(README)
    missing = [str(path.relative_to(ROOT)) for path in paths if not path.exists()]
    assert not missing and len(paths) > 40
    assert all(path.is_dir() == line.endswith("/") for path, line in zip(paths, _tree_names(), strict=True))


def _tree_names() -> list[str]:
    (block,) = re.findall(r"## What is where\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    return [line.split()[0] for line in block.splitlines()]


def test_everything_at_the_top_is_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0 or not listed.stdout:
        pytest.skip("not a git checkout: cannot tell the project's files from others")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    named = {path.relative_to(ROOT).parts[0] for path in tree_paths(README)}
    assert top - named <= {".gitignore"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_named_in_the_docs_exist() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in re.findall(r"`((?:flows|jora_core|retrieval|data|tests|docs)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
        for module in re.findall(r"`(jora_core\.\w+)`", text):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), f"{page.name}: {module}"


def test_configuration_keys_in_the_docs_exist() -> None:
    config = load_config()
    readable = re.findall(r"`((?:model|context|mesh|schedule|evaluate|export)\.[\w.]+)`", README)
    assert readable
    for key in readable:
        value: object = config
        for part in key.split("."):
            assert hasattr(value, part), key
            value = getattr(value, part)
    mesh = re.search(r"`mesh: \{data: (\d+), tensor: (\d+)\}`", README)
    schedule = re.search(r'`schedule: \{cron: "([^"]+)", timezone: ([\w/]+)\}`', README)
    assert mesh and schedule
    raw = config.model_dump(mode="json")
    raw["mesh"] = {"data": int(mesh[1]), "tensor": int(mesh[2])}
    raw["schedule"] = {"cron": schedule[1], "timezone": schedule[2]}
    PipelineConfig.model_validate(raw)


def test_architecture_names_every_stage_and_every_column() -> None:
    from jora_core.base.record_columns import RECORD_COLUMNS

    for name in (*STAGES, *RECORD_COLUMNS):
        assert name in ARCHITECTURE, name
    picture = (ROOT / "docs" / "images" / "flow.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in picture for name in STAGES)


def test_orders_are_those_of_the_core() -> None:
    from jora_core.specs import answers, model_files, train

    for name in re.findall(r"`(\w+Spec)`", ARCHITECTURE):
        assert any(hasattr(module, name) for module in (train, answers, model_files)), name
