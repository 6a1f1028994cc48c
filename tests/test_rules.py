"""Rules of the repository that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("flows", "jora_core", "retrieval")
HEAVY = {
    "jax",
    "jaxlib",
    "torch",
    "prefect",
    "transformers",
    "faiss",
    "sentence_transformers",
    "pandas",
    "pyarrow",
}
MOST_LINES = 400
# Of the training core, the orchestrating process may import what starts no device runtime.
LIGHT_CORE = ("jora_core.base.", "jora_core.specs.")


def python_files(*folders: str) -> list[Path]:
    """Python files below the folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def loaded_after(code: str) -> set[str]:
    """Top-level modules that an interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_torch_or_pickle(room: str) -> None:
    for path in python_files(room):
        top = {name.split(".")[0] for name in imports(path)}
        assert not top & {"torch", "pickle", "cloudpickle", "dill", "bm25s"}, path


def test_importing_the_rooms_loads_nothing_heavy() -> None:
    modules = (
        *ROOMS,
        "jora_core.specs.train",
        "retrieval.settings.context",
        "flows.configuration.schema",
        "flows.report.page",
        "flows.cli",
        "flows.commands.pipeline",
        "flows.commands.doctor",
    )
    assert not loaded_after(f"import {', '.join(modules)}") & HEAVY


def test_help_loads_nothing_heavy() -> None:
    # That none of this is loaded is what makes the help appear at once; a clock would measure the machine.
    code = "import sys; from flows.cli import main; sys.argv = ['jora', '--help']\n"
    code += "try: main()\nexcept SystemExit: pass"
    assert not loaded_after(code) & (HEAVY | {"numpy", "scipy", "rich", "jora_core", "retrieval"})


def test_the_orchestrating_process_imports_only_the_light_part_of_the_core() -> None:
    for path in python_files("flows"):
        core = {name for name in imports(path) if name.split(".")[0] == "jora_core"}
        heavy = sorted(name for name in core if not f"{name}.".startswith(LIGHT_CORE))
        assert not heavy, f"{path.relative_to(ROOT)} imports {', '.join(heavy)}"


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in python_files(*ROOMS, "data", "tests")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


def test_every_public_function_is_typed_and_described() -> None:
    missing = []
    for path in python_files(*ROOMS):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}: {node.name} has no docstring")
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if node.returns is None or any(argument.annotation is None for argument in arguments):
                    missing.append(f"{path.relative_to(ROOT)}: {node.name} is not fully typed")
    assert not missing


def test_every_module_says_what_it_is() -> None:
    files = [path for path in python_files(*ROOMS, "data") if path.read_text(encoding="utf-8").strip()]
    assert not [
        str(path) for path in files if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_recipes_begin_with_their_command() -> None:
    recipes = sorted((ROOT / "flows" / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
        assert header and f"jora run flows/configs/{path.name}" in header[0], path


def test_no_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    places = "|".join(re.escape(f"{place}/") for place in (ROOT, Path.home()) if len(place.parts) > 1)
    one_machine = re.compile(rf"(?<![\w.])(?:{places})")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".json", ".svg"} and path.is_file():
            assert not one_machine.search(path.read_text(encoding="utf-8")), name
