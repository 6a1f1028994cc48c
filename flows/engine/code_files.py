"""Find the source files that a stage runs, by following the imports of its entry modules.

The source text is scanned for import statements, and no code is executed. No list of files is kept by hand: a
new module becomes part of the key of every stage that imports it, and of no other stage.

The scanner is our own, because `ast.parse` is not safe here. CPython 3.11 turns a syntax tree into Python
objects with a depth counter that all threads share. If two threads parse at once, it fails at random ("AST
constructor recursion depth mismatch", https://github.com/python/cpython/issues/106905). Prefect's client
threads parse sources while the tasks of a run compute their stages' keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# `import` is a keyword, so outside of strings and comments it stands in import statements only. Strings and
# comments are therefore matched first, as a whole. No possessive repetitions (`*+`): before Python 3.11.5
# they find too little (https://github.com/python/cpython/issues/106052). Every repetition goes on in one way
# only, so the time is linear in the text all the same.
_STATEMENT = re.compile(
    r"""
    \"\"\" [^"\\]* (?: (?: \\. | "(?!"") ) [^"\\]* )* \"\"\"
    | \'\'\' [^'\\]* (?: (?: \\. | '(?!'') ) [^'\\]* )* \'\'\'
    | " [^"\\\n]* (?: \\. [^"\\\n]* )* "
    | ' [^'\\\n]* (?: \\. [^'\\\n]* )* '
    | \# [^\n]*
    | (?P<start> from (?<!\wfrom) \b (?P<origin> (?: [.\w \t\f] | \\\n )*? ) \b import \b
      | import (?<!\wimport) \b )
      (?P<names> [ \t\f]* \( (?: [^)#] | \# [^\n]* )* \) | (?: [^\n;\#\\] | \\\n )* )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"#[^\n]*")
# First words of lines that begin a block. A statement in the same line is inside the block.
_BLOCK_WORDS = re.compile(
    r"(?:if|elif|else|for|while|try|except|finally|with|async|def|class|match|case)\b", re.ASCII
)


def reachable_sources(
    entries: Iterable[str], packages: tuple[str, ...], root: Path = REPOSITORY
) -> Mapping[str, Path]:
    """Return the source files of some modules and of all modules that they import.

    Imports inside functions count, except in the `__init__` of a package: those load names that the package
    offers to other projects, and no stage uses them.

    Args:
        entries: dotted names of the modules.
        packages: names of the top-level packages whose modules are followed.
        root: folder of these packages.

    Returns:
        Path relative to `root`, with forward slashes, to the path of the file.

    Raises:
        FileNotFoundError: no module has the name of an entry.
    """
    question = (tuple(entries), packages, root)
    # A run asks once for each stage and part. The walk opens hundreds of files, the stamps only look at them.
    known = _walks.get(question)
    if known is not None and known[0] == _stamps(known[1].values()):
        return dict(known[1])
    found = _walk(*question)
    _walks[question] = (_stamps(found.values()), found)
    return dict(found)


_walks: dict[
    tuple[tuple[str, ...], tuple[str, ...], Path], tuple[list[tuple[int, int]], dict[str, Path]]
] = {}


def _stamps(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Return time and size of each file, and zeros for a file that is gone."""
    stamps = []
    for path in files:
        try:
            state = path.stat()
        except OSError:
            stamps.append((0, 0))
        else:
            stamps.append((state.st_mtime_ns, state.st_size))
    return stamps


def _walk(entries: tuple[str, ...], packages: tuple[str, ...], root: Path) -> dict[str, Path]:
    modules = _modules({*packages, *(name.partition(".")[0] for name in entries)}, root)
    # A misspelled entry would otherwise leave its code out of the key without an error.
    if missing := [name for name in entries if name not in modules]:
        raise FileNotFoundError(f"{missing[0]} is no module below {root}")
    given = {part for name in entries for part in _with_packages(name)}
    found: dict[str, Path] = {}
    # A list, not recursion: import chains can be circular, and `seen` ends the walk.
    waiting = sorted(given)
    seen: set[str] = set()  # most names are imported by many modules
    while waiting:
        name = waiting.pop()
        if name in seen or not (name in given or name.partition(".")[0] in packages):
            continue
        seen.add(name)
        # A part of the name need not be a module: `from a.b import C` arrives as `a.b.C`.
        if (module := modules.get(name)) is not None:
            label, path = module
            found[label] = path
            waiting += _imports(path, name)
    # The order of the walk depends on the order of import statements, which formatters change.
    return dict(sorted(found.items()))


def _with_packages(name: str) -> list[str]:
    """Return a dotted name and the packages around it, which Python runs first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


# Package to its folders, their stamps, and its modules: dotted name to label and file. Valid while no stamp
# changes: a new, renamed or removed file changes the time of its folder.
_listed: dict[Path, tuple[list[Path], list[tuple[int, int]], dict[str, tuple[str, Path]]]] = {}


def _modules(packages: Iterable[str], root: Path) -> dict[str, tuple[str, Path]]:
    """Return the modules in some top-level packages: dotted name to path relative to `root`, and file.

    A listing of the folders, because a walk asks for thousands of names, most of which are no modules.
    """
    modules: dict[str, tuple[str, Path]] = {}
    for package in packages:
        folder = root / package
        known = _listed.get(folder)
        if known is None or known[1] != _stamps(known[0]):
            known = _listed[folder] = _listing(folder, root)
        modules |= known[2]
    return modules


def _listing(top: Path, root: Path) -> tuple[list[Path], list[tuple[int, int]], dict[str, tuple[str, Path]]]:
    """Return the folders below `top`, their stamps, and the modules in them."""
    folders: list[Path] = []
    stamps: list[tuple[int, int]] = []
    modules: dict[str, tuple[str, Path]] = {}
    prefix = f"{root}{os.sep}"
    for folder, inner, names in os.walk(top):
        inner[:] = [name for name in inner if name != "__pycache__"]
        folders.append(Path(folder))
        stamps += _stamps(folders[-1:])
        # Relative with forward slashes: the key is the same on every machine and in every checkout.
        label = folder[len(prefix) :].replace(os.sep, "/")
        parent = label.replace("/", ".")
        for name in names:
            entry = (f"{label}/{name}", Path(folder, name))
            if name == "__init__.py":
                modules[parent] = entry
            elif name.endswith(".py"):
                # A package goes before a module of the same name, as in Python.
                modules.setdefault(f"{parent}.{name.removesuffix('.py')}", entry)
    return folders, stamps, modules


def stage_sources(stage_file: str, *entries: str) -> Mapping[str, Path]:
    """Return the source files that decide the output of a stage.

    Args:
        stage_file: file of the stage itself, which is included.
        entries: dotted names of the modules that the stage runs, whose imports in the packages `jora_core`
            and `retrieval` are included.

    Returns:
        Repository path to file.
    """
    own = Path(stage_file).resolve()
    # `flows` is not followed: the engine decides when a stage runs, not what it computes, and a change of
    # the plan's wording must not train anything again.
    reached = reachable_sources(entries, ("jora_core", "retrieval"))
    return {own.relative_to(REPOSITORY).as_posix(): own, **reached}


# The stages share most modules. A file that changes during the process has another stamp and is read again.
_known_imports: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] = {}


def _imports(path: Path, module: str) -> tuple[str, ...]:
    """Return the absolute dotted names of the imports in a module's file, and of the packages around them."""
    (stamp,) = _stamps([path])
    known = _known_imports.get(path)
    if known is None or known[0] != stamp:
        is_package = path.name == "__init__.py"
        package = module.split(".") if is_package else module.split(".")[:-1]
        text = path.read_text(encoding="utf-8")
        names = (
            ".".join([*package[: len(package) - (level - 1)], name]) if level else name
            for level, name in imported_names(text, top_level_only=is_package)
        )
        # Without repetitions: most modules import several names of one module.
        found = dict.fromkeys(part for name in dict.fromkeys(names) for part in _with_packages(name))
        known = _known_imports[path] = (stamp, tuple(found))
    return known[1]


def imported_names(text: str, *, top_level_only: bool = False) -> list[tuple[int, str]]:
    """Return the names in the import statements of a module.

    Args:
        text: source code of a module that Python accepts.
        top_level_only: whether to leave out statements inside of functions and other blocks.

    Returns:
        (number of leading dots, dotted name), in the order of the text. `from a import b` gives `a.b`.
    """
    found: list[tuple[int, str]] = []
    for match in _STATEMENT.finditer(text):
        # No names: a string or a comment.
        if match["names"] is None or (top_level_only and _in_block(text, match.start("start"))):
            continue
        origin = _joined(match["origin"] or "")
        level = len(origin) - len(origin.lstrip("."))
        names = _COMMENT.sub("", match["names"]).strip().strip("()").replace("\\\n", " ")
        # A trailing comma inside parentheses leaves an empty name.
        for name in filter(str.strip, names.split(",")):
            parts = (origin[level:], _joined(name.split(" as ")[0]))
            found.append((level, ".".join(filter(None, parts))))
    return found


def _in_block(text: str, position: int) -> bool:
    """Whether the statement at `position` is indented or in a line that begins a block."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[:1].isspace() or _BLOCK_WORDS.match(line) is not None


def _joined(words: str) -> str:
    """Return the text without white space and line continuations."""
    return "".join(words.replace("\\\n", " ").split())
