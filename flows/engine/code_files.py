"""Find the source files that a stage runs, by following the imports of its entry modules.

The source text is scanned for import statements, and no code is executed. No list of files is kept by hand: a
new module becomes part of the key of every stage that imports it, and of no other stage.

The scanner is our own, because `ast.parse` is not safe here. CPython 3.11 turns a syntax tree into Python
objects with a depth counter that all threads share. If two threads parse at once, it fails at random ("AST
constructor recursion depth mismatch", https://github.com/python/cpython/issues/106905). Prefect's client
threads parse sources while the tasks of a run compute their stages' keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# `import` is a keyword, so outside of strings and comments it stands in import statements only. Strings and
# comments are therefore matched first, as a whole. The rest of the text needs no parser.
_STATEMENT = re.compile(
    r"""
    \"{3} (?: [^\\] | \\. )*? \"{3}  |  '{3} (?: [^\\] | \\. )*? '{3}
    | " (?: [^"\\\n] | \\. )* "  |  ' (?: [^'\\\n] | \\. )* '
    | \# [^\n]*
    | (?: \b from \b (?P<origin> (?: [.\w \t\f] | \\\n )*? ) )? \b import \b
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
    if known is not None and known[0] == _stamps(known[1]):
        return dict(known[1])
    found = _walk(*question)
    _walks[question] = (_stamps(found), found)
    return dict(found)


_walks: dict[
    tuple[tuple[str, ...], tuple[str, ...], Path], tuple[list[tuple[int, int]], dict[str, Path]]
] = {}


def _stamps(files: Mapping[str, Path]) -> list[tuple[int, int]]:
    """Return time and size of each file, and zeros for a file that is gone."""
    stamps = []
    for path in files.values():
        try:
            state = path.stat()
        except OSError:
            stamps.append((0, 0))
        else:
            stamps.append((state.st_mtime_ns, state.st_size))
    return stamps


def _walk(entries: tuple[str, ...], packages: tuple[str, ...], root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    # A list, not recursion: import chains can be circular, and `found` ends the walk.
    waiting = [(name, True) for name in entries]
    seen: set[str] = set()  # most names are imported by many modules
    while waiting:
        name, is_entry = waiting.pop()
        if not is_entry and (name in seen or name.partition(".")[0] not in packages):
            continue
        seen.add(name)
        files = _files_of(name, root)
        # A misspelled entry would otherwise leave its code out of the key without an error.
        if is_entry and (not files or files[-1][0] != name):
            raise FileNotFoundError(f"{name} is no module below {root}")
        for module, path in files:
            # Relative with forward slashes: the key is the same on every machine and in every checkout.
            label = path.relative_to(root).as_posix()
            if label in found:
                continue
            found[label] = path
            text = path.read_text(encoding="utf-8")
            waiting += [(imported, False) for imported in _imports(text, module, path.name == "__init__.py")]
    # The order of the walk depends on the order of import statements, which formatters change.
    return dict(sorted(found.items()))


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


def _files_of(name: str, root: Path) -> list[tuple[str, Path]]:
    """Return (module name, file) for a dotted name and for each package that contains it.

    Parts of the name that are not modules give no pair. For example, `from jora_core.specs.train import
    TrainSpec` arrives as `jora_core.specs.train.TrainSpec`, whose last part is not a file.
    """
    parts = name.split(".")
    files: list[tuple[str, Path]] = []
    # Importing `a.b.c` runs `a/__init__.py` and `a/b/__init__.py` first, so they are part of the code.
    for length in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:length])
        module = ".".join(parts[:length])
        if (base / "__init__.py").is_file():
            files.append((module, base / "__init__.py"))
        elif base.with_suffix(".py").is_file():
            files.append((module, base.with_suffix(".py")))
    return files


# The stages share most modules. The cache is indexed by the text, so a file that changes during the process
# is scanned again.
@cache
def _imports(text: str, module: str, is_package: bool) -> tuple[str, ...]:
    """Return the absolute dotted names of the imports in a module's text."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    return tuple(
        ".".join([*package[: len(package) - (level - 1)], name]) if level else name
        for level, name in imported_names(text, top_level_only=is_package)
    )


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
        # No names: the match is a string or a comment, which is skipped as a whole.
        if match["names"] is None or (top_level_only and _in_block(text, match.start())):
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
