"""docs/dependencies.md, pyproject.toml, constraints.txt and the imports of the code tell the same story."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("flows", "jora_core", "retrieval")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")

# Declared, and needed, but never imported by name; the page says why.
NOT_IMPORTED = {"jaxlib", "fastapi", "sqlalchemy"}

# Packages whose import name is another than their own.
DISTRIBUTIONS = {
    "faiss": "faiss-cpu",
    "orbax": "orbax-checkpoint",
    "Stemmer": "pystemmer",
    "ruamel": "ruamel-yaml",
}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name."""
    return {canonicalize_name(item.name): item for item in map(Requirement, lines)}


def imported(folder: Path) -> set[str]:
    """Top-level names that the files below a folder import, also inside functions."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def pins() -> dict[str, list[Requirement]]:
    """The lines of constraints.txt by canonical name."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            item = Requirement(line)
            found.setdefault(canonicalize_name(item.name), []).append(item)
    return found


def test_every_dependency_has_its_line_and_every_line_its_dependency() -> None:
    runtime, _, rest = PAGE.partition("\n## Extras")
    extras, _, _ = rest.partition("\n## Choices")
    listed = re.findall(r"^\| ([\w.-]+) \| \S", runtime, flags=re.MULTILINE)
    named = {canonicalize_name(name) for name in listed} - {"package"}
    assert named == requirements(PROJECT["dependencies"]).keys()
    pairs = set(re.findall(r"^\| ([\w-]+) \| (\w+) \|", extras, flags=re.MULTILINE)) - {("Package", "Extra")}
    declared = {
        (canonicalize_name(Requirement(line).name), extra)
        for extra, lines in PROJECT["optional-dependencies"].items()
        for line in lines
    }
    assert pairs == declared


def test_every_third_party_import_is_declared_and_every_declaration_used() -> None:
    names = set().union(*(imported(ROOT / room) for room in ROOMS))
    third_party = names - sys.stdlib_module_names - set(ROOMS)
    used = {DISTRIBUTIONS.get(name, canonicalize_name(name)) for name in third_party}
    declared = set(requirements(PROJECT["dependencies"]))
    # peft proves an export where it is installed, and torch, which sentence-transformers brings, reads Meta's
    # files; lm-eval brings datasets and calls our function that imports it; google.protobuf and the like
    # would show up here.
    optional = PROJECT["optional-dependencies"]
    extras = requirements([*optional["scale"], *optional["spreadsheets"]])
    assert used - declared - {"peft", "torch", "datasets", *extras} == set()
    assert declared - used == NOT_IMPORTED


def test_everything_is_pinned_within_its_range() -> None:
    known = pins()
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for name, wanted in requirements([*lines, *PROJECT["optional-dependencies"]["scale"]]).items():
        assert name in known, f"{name} is not in constraints.txt"
        for pin in known[name]:
            (exact,) = pin.specifier
            assert exact.operator == "==" and wanted.specifier.contains(exact.version), (
                f"{pin} against {wanted}"
            )


def test_the_pins_that_prefect_needs() -> None:
    declared = requirements(PROJECT["dependencies"])
    assert not declared["fastapi"].specifier.contains("0.155.0")
    assert not declared["sqlalchemy"].specifier.contains("2.1.0")
    assert "asyncio" in declared["sqlalchemy"].extras


def test_no_cuda_in_the_cpu_setup() -> None:
    known = pins()
    assert [str(pin.specifier) for pin in known["torch"]] == ["==2.13.0"]
    assert not [name for name in known if name.startswith(("nvidia", "cuda")) or name == "triton"]
