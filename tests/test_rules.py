"""Rules of the repository that no linter knows: structure, what an import loads, recipes, paths."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import pytest

# The parser of `re` has no public name.
sre_parse: Any = importlib.import_module("re._parser")
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
# A file, an import that is forbidden there, and the contract that refuses it.
FORBIDDEN = [
    ("flows/engine/keys.py", "flows.stages", "Layers of flows"),
    ("retrieval/text/normalize.py", "retrieval.build", "Layers of retrieval"),
    ("jora_core/specs/common.py", "jora_core.training", "Layers of jora_core"),
    ("jora_core/base/errors.py", "flows.engine", "Rooms: flows above retrieval above jora_core"),
    (
        "flows/children/run_child.py",
        "jora_core.training",
        "Flows know specs and ground floor of the core alone",
    ),
    (
        "retrieval/corpus/types.py",
        "jora_core.specs",
        "Retrieval knows the ground floor of the training core and nothing else of it",
    ),
]


@pytest.fixture(scope="module")
def code_style() -> ModuleType:
    """The script that measures a source tree."""
    spec = importlib.util.spec_from_file_location("code_style", ROOT / "tests" / "code_style.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["code_style"] = module  # its dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def loaded_after(code: str) -> set[str]:
    """Top-level modules that an interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_structure(code_style: ModuleType) -> None:
    """No import circles, few levels, few imports inside functions, folders of a dozen files."""
    found = code_style.measure(code_style.read_modules(ROOT, ROOMS))
    assert found["import circles"] == 0
    assert found["import depth"] <= 16
    assert found["own imports inside functions"] <= 20
    assert found["files a folder, max"] <= 12
    assert not found["functions of 3+ arguments without Args"]
    assert not found["functions of more than 6 positional arguments"]


def test_folders_of_tests_and_scripts_hold_a_dozen_files() -> None:
    """The measure of `test_structure` leaves out tests, and knows the packages alone."""
    folders = Counter(
        path.parent.relative_to(ROOT).as_posix()
        for room in ("tests", "data", "deploy")
        for path in (ROOT / room).rglob("*.py")
    )
    assert folders["tests/benchmarks"], "no script was found"
    assert not {folder: files for folder, files in folders.items() if files > 12}


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


def test_broken_layers_are_noticed(tmp_path: Path) -> None:
    """Each contract refuses an import that is written against it on purpose."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, module, _ in FORBIDDEN:
        with (tmp_path / file).open("a", encoding="utf-8") as source:
            source.write(f"\nimport {module}\n")
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert found.returncode == 1, found.stdout
    kept = [contract for _, _, contract in FORBIDDEN if f"{contract} BROKEN" not in found.stdout]
    assert not kept, found.stdout


def test_recipes_begin_with_their_command() -> None:
    recipes = sorted((ROOT / "flows" / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
        assert header and f"jora run flows/configs/{path.name}" in header[0], path


def _holds(node: ast.AST, kind: type) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, kind)


def _possessive(source: str) -> list[int]:
    """Lines of the patterns in a source that repeat possessively: constants in calls of `re`, and bytes."""
    nodes = list(ast.walk(ast.parse(source)))
    calls = [
        node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.")
    ]
    texts = [part for call in calls for part in ast.walk(call) if _holds(part, str)]
    found: set[int] = set()
    for node in texts + [node for node in nodes if _holds(node, bytes)]:
        try:
            parsed = repr(sre_parse.parse(node.value, re.VERBOSE | re.DOTALL))
        except re.error:  # a piece of a pattern
            continue
        if "POSSESSIVE_REPEAT" in parsed or "ATOMIC_GROUP" in parsed:
            found.add(node.lineno)
    return sorted(found)


def test_no_possessive_repetitions() -> None:
    """Python before 3.11.5, such as Debian 12's, finds too little with them (python/cpython#106052)."""
    planted = "import re\nre.compile(r'(?:a|b)*+c')\nre.search('a++', x)\nB = rb'(?>a)'\n"
    assert _possessive(planted) == [2, 3, 4]
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert {path: lines for path in files if (lines := _possessive(path.read_text(encoding="utf-8")))} == {}


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
