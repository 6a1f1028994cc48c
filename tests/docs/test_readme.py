"""README, CONTRIBUTING and docs are true: commands run as printed; paths, links, anchors and keys exist."""

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
from jora_core.base.record_columns import RECORD_COLUMNS
from retrieval.settings.legs import LEGS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PACKAGES = ("flows", "jora_core", "retrieval")
MOST_LINES_OF_THE_TREE = 40  # one screen

# Printed commands that no test here runs, by how they begin, and why not.
NOT_RUN = {
    "make demo": "the whole demo; the other tests run its parts",
    "make test": "this is it",
    "make lint": "CI runs it next",
    "make docs": "CI runs it after that",
    "jora run": "tests/flows runs pipelines",
    "jora doctor": "tests/flows/commands/test_cli.py",
    "jora watch": "tests/flows/housekeeping tests it; runs until Ctrl-C",
    "jora serve": "tests/flows/orchestration/test_serve.py",
    "jora ask": "tests/flows/commands/test_ask.py; reads a model that a run trains",
    "jora questions": "tests/flows/teachers; asks a teacher model",
    "jora push": "tests/flows/stages/test_push.py; uploads what a run exports",
    "jora fetch": "downloads a model from the package index; the slow tests of real models use it",
    "git clone": "downloads data",
    "ln -s . chats": "names what git has downloaded",
    "export JORA_SHARED": "changes a shell",
    "jora compare": "tests/flows/report/test_compare.py; reads runs that have ended",
    "jora lineage": "tests/flows/lineage; reads what a run exports",
    "jora generate": "reads a model that a run exports",
    "source .venv/bin/activate": "changes a shell",
    "pip install -c": "tests/flows/commands/test_project.py installs the wheel and runs the sample",
    "cd demo": "changes the folder of a shell",
}
# The same for the other pages, beside what README prints too.
NOT_RUN_ELSEWHERE = {
    "make install": "installs packages",
    'pip install "lm-eval': "installs packages",
    "lm_eval": "tests/jora_core/commands/test_write_task.py; reads a model that a run exports",
    "JORA_SHARED=../shared jora run": "needs the real data, and an hour",
    "make hooks": "changes the repository's git configuration",
    "jora memory": "tests/flows/commands runs it; compiles for a minute",
    "jora plan --memory": "tests/flows/commands runs it; compiles for a minute",
    "jora context": "tests/docs/test_data_page.py and test_tutorial.py",
    "python -m pytest": "tests in a test",
    "mkdir -p mine/guide": "tests/docs/test_data_page.py runs this block",
    "printf ": "tests/docs/test_data_page.py runs this block",
    "cat > mine/": "tests/docs/test_data_page.py runs this block",
    "python -c": "tests/docs/test_data_page.py runs this block",
    "sudo ": "tests/deploy/test_files.py checks the units with systemd",
    "printf 'operator": "writes a secret of this machine",
    "cat deploy/systemd/server.env": "writes settings of this machine",
    "cd deploy/compose": "changes the folder of a shell",
    "sh make_secrets.sh": "tests/deploy/test_files.py",
    "sh deploy/compose/make_secrets.sh": "tests/deploy/test_files.py",
    "docker compose": "tests/deploy/test_files.py checks the file; its processes run in test_native_stack.py",
    "kubectl ": "needs a cluster; tests/deploy/test_files.py builds and validates the manifests",
    "python deploy/native/stack.py": "tests/deploy/test_native_stack.py",
    "export PREFECT_API": "changes a shell",
    "export JORA_LAUNCHER": "changes a shell; tests/deploy/test_slurm.py",
    "python -m flows.orchestration.work_pool": "tests/deploy/test_native_stack.py",
    "prefect deployment run": "tests/deploy/test_native_stack.py submits runs",
    "prefect worker start": "tests/deploy/test_native_stack.py",
    "python -m flows.monitoring.store_metrics": "tests/flows/monitoring",
    "vllm serve": "another program; tests/jora_core/weights reads the exported folder with transformers",
    "ollama create": "another program",
    "rsync ": "tests/deploy/test_backup.py copies a store",
}
# Lines inside the quotes of a printed command.
CONTINUED = ("{", "END", "folder = ", "for row in ", "print(", "import ", '"')


def printed_commands(text: str) -> list[str]:
    """Lines of the shell blocks of a page, without their comments and the text inside a quotation."""
    blocks = re.findall(r"^[ ]*```bash\n(.*?)^[ ]*```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", *CONTINUED))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = set()
    for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", title.lower())
        names.add(plain.strip().replace(" ", "-"))
    return names


def tree_lines() -> list[str]:
    """The lines of README's annotated tree."""
    (block,) = re.findall(r"## What is where\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    return block.splitlines()


def tree_paths() -> list[str]:
    """Paths of the annotated tree. A line has names between commas; two spaces of indentation a level."""
    folders: list[str] = []
    found = []
    for line in tree_lines():
        names = re.match(r"[^,\s]+(?:, [^,\s]+)*", line.strip())
        assert names, line
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        found += ["".join([*folders, name]) for name in names[0].split(", ")]
        folders.append(names[0])
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
    assert {"jora --help", "jora plan", "cp flows/configs/qa.yaml flows/configs/mine.yaml"} <= set(commands)
    for command in commands:
        done = run(command, copy)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_command_that_is_not_run_has_a_reason() -> None:
    on_readme = printed_commands(README)
    elsewhere = {line for page in PAGES for line in printed_commands(page.read_text("utf-8"))} - {*on_readme}
    for reasons, commands in ((NOT_RUN, on_readme), (NOT_RUN_ELSEWHERE, elsewhere)):
        idle = [name for name in reasons if not any(line.startswith(name) for line in commands)]
        assert not idle, "reasons without a command"
    known = (*NOT_RUN, *NOT_RUN_ELSEWHERE)
    assert not [line for line in elsewhere if not line.startswith((*known, "jora plan flows/configs/"))]


@pytest.mark.parametrize("page", ["tutorial.md"])
def test_plans_of_other_pages_run_as_printed(copy: Path, page: str) -> None:
    commands = printed_commands((ROOT / "docs" / page).read_text(encoding="utf-8"))
    plans = [line for line in commands if line.startswith("jora plan flows/configs/")]
    assert plans
    for command in plans:
        done = run(command, copy)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_printed_commands_have_known_options() -> None:
    from typer.main import get_command

    from flows.cli import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        for line in printed_commands(page.read_text(encoding="utf-8")):
            if not line.startswith("jora "):
                continue
            words = shlex.split(line.split(" > ")[0])
            if not words[1].startswith("-"):
                options = {option for parameter in known[words[1]].params for option in parameter.opts}
                assert {word for word in words[2:] if word.startswith("-")} - {"-"} <= options, line


def test_make_targets_exist() -> None:
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    # "make" is a verb too: only what stands in code counts.
    in_code = {
        target
        for page in PAGES
        for code in re.findall(r"`[^`]*`|```.*?```", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\bmake ([a-z]+)", code)
    }
    assert {"demo", "test", "docs", "hooks"} <= in_code <= targets


def test_the_tree_is_true_and_fits_one_screen() -> None:
    for name in tree_paths():
        path = ROOT / name
        assert path.exists(), name
        assert path.is_dir() == name.endswith("/"), name
    assert len(tree_lines()) <= MOST_LINES_OF_THE_TREE


def test_every_package_is_in_the_tree() -> None:
    named = set(tree_paths())
    for package in PACKAGES:
        folders = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
        missing = {f"{package}/{name}/" for name in folders} - named
        assert not missing


def test_everything_at_the_top_is_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0 or not listed.stdout:
        pytest.skip("not a git checkout: cannot tell the project's files from others")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    named = {name.split("/")[0] for name in tree_paths()}
    assert top - named <= {".gitignore"}


def test_the_map_of_the_architecture_page_has_every_folder() -> None:
    part = ARCHITECTURE[ARCHITECTURE.index("## Map") : ARCHITECTURE.index("## From flows to the core")]
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", part, flags=re.MULTILINE))
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert listed == folders | {"flows/configs"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
            if target.startswith("http"):
                continue
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def test_files_named_in_the_docs_exist() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in re.findall(r"`((?:flows|jora_core|retrieval|data|tests|docs)/[\w./-]+)`", text):
            assert "NAME" in name or (ROOT / name).exists(), f"{page.name}: {name}"
        if page.name == "CHANGELOG.md":  # names old modules too
            continue
        for module in re.findall(r"`(jora_core(?:\.\w+)+)`", text):
            if not module.endswith(".InputError"):
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").exists() or path.is_dir(), f"{page.name}: {module}"


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
    schedule = re.search(r'schedule: \{cron: "([^"]+)", timezone: ([\w/]+)\}', README)
    assert mesh and schedule
    raw = config.model_dump(mode="json")
    raw["mesh"] = {"data": int(mesh[1]), "tensor": int(mesh[2])}
    raw["schedule"] = {"cron": schedule[1], "timezone": schedule[2]}
    PipelineConfig.model_validate(raw)


def test_architecture_names_every_stage_column_and_leg() -> None:

    for name in (*STAGES, *RECORD_COLUMNS, *LEGS):
        assert name in ARCHITECTURE, name
    picture = (ROOT / "docs" / "images" / "flow.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in picture for name in STAGES)


def test_specs_are_those_of_the_core() -> None:
    from jora_core.specs import answers, model_files, planning, train

    for name in re.findall(r"`(\w+Spec)`", ARCHITECTURE):
        assert any(hasattr(module, name) for module in (train, answers, model_files, planning)), name
