"""Which files of code a stage runs: the modules that its entry module can reach inside the rooms.

Reading the imports (`ast`, nothing is executed) instead of keeping lists by hand means that a new module is
part of the key of every stage that uses it from its first line on, and of no other stage's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def reachable_sources(
    entries: Iterable[str], rooms: tuple[str, ...], root: Path = REPOSITORY
) -> Mapping[str, Path]:
    """Return the files of `entries` (dotted module names) and of all they import inside `rooms`.

    Imports inside functions count, except those of a package's own `__init__`: there they make a public
    face lazy, and the stage does not use it. Keys are paths relative to `root` with forward slashes.

    Raises:
        FileNotFoundError: an entry is no module.
    """
    found: dict[str, Path] = {}
    waiting = [(name, True) for name in entries]
    while waiting:
        name, is_entry = waiting.pop()
        if not is_entry and name.partition(".")[0] not in rooms:
            continue
        files = _files_of(name, root)
        if is_entry and (not files or files[-1][0] != name):
            raise FileNotFoundError(f"{name} is no module below {root}")
        for module, path in files:
            label = path.relative_to(root).as_posix()
            if label in found:
                continue
            found[label] = path
            text = path.read_text(encoding="utf-8")
            waiting += [(imported, False) for imported in _imports(text, module, path.name == "__init__.py")]
    return dict(sorted(found.items()))


def stage_sources(stage_file: str, *entries: str) -> Mapping[str, Path]:
    """The code that decides a stage's output: its own file, and what `entries` reach in the rooms below."""
    own = Path(stage_file).resolve()
    reached = reachable_sources(entries, ("jora_core", "retrieval"))
    return {own.relative_to(REPOSITORY).as_posix(): own, **reached}


def _files_of(name: str, root: Path) -> list[tuple[str, Path]]:
    """Return (module name, file) of a dotted name and of the packages around it; names that are no module
    give none.

    `from jora_core.specs.train import TrainSpec` arrives as `jora_core.specs.train.TrainSpec`, of which the
    last part is no file.
    """
    parts = name.split(".")
    files: list[tuple[str, Path]] = []
    for length in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:length])
        module = ".".join(parts[:length])
        if (base / "__init__.py").is_file():
            files.append((module, base / "__init__.py"))
        elif base.with_suffix(".py").is_file():
            files.append((module, base.with_suffix(".py")))
    return files


@cache
def _imports(text: str, module: str, is_package: bool) -> tuple[str, ...]:
    """Dotted names that a module's text imports; relative imports are made absolute."""
    tree = ast.parse(text)
    nodes = ast.iter_child_nodes(tree) if is_package else ast.walk(tree)
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - (node.level - 1)]
                origin = ".".join([*package, origin]) if origin else ".".join(package)
            names += [f"{origin}.{alias.name}" for alias in node.names]
    return tuple(names)
