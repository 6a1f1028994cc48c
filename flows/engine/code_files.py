"""Which files of code a stage runs: the modules that its entry module can reach inside the rooms.

The imports are read, nothing is executed. So no list is kept by hand: a new module is part of the key of
every stage that uses it from its first line on, and of no other stage's.

A scanner of our own reads them, not `ast.parse`. CPython 3.11 turns a syntax tree into Python objects with a
depth counter that all threads share; beside another thread that parses, it fails at random ("AST constructor
recursion depth mismatch", https://github.com/python/cpython/issues/106905). Prefect's client threads parse
sources while the tasks of a run ask for their stages' keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# `import` is a keyword, so outside of strings and comments it stands in import statements only. Strings and
# comments are therefore matched first, as a whole; what is left over needs no parser.
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
# First words of lines whose statements are inside a block, also where they stand in the same line.
_BLOCK_WORDS = re.compile(
    r"(?:if|elif|else|for|while|try|except|finally|with|async|def|class|match|case)\b", re.ASCII
)


def reachable_sources(
    entries: Iterable[str], rooms: tuple[str, ...], root: Path = REPOSITORY
) -> Mapping[str, Path]:
    """Return the files of some modules and of all that they import.

    Imports inside functions count, except those of a package's own `__init__`: there they only delay what the
    package offers, and the stage does not use it.

    Args:
        entries: dotted names of the modules.
        rooms: top-level packages whose imports are followed.
        root: the folder that has these packages.

    Returns:
        Path relative to `root`, with forward slashes, to path.

    Raises:
        FileNotFoundError: an entry is no module.
    """
    found: dict[str, Path] = {}
    # A list, not recursion: import chains can be circular, and `found` ends the walk.
    waiting = [(name, True) for name in entries]
    while waiting:
        name, is_entry = waiting.pop()
        if not is_entry and name.partition(".")[0] not in rooms:
            continue
        files = _files_of(name, root)
        # A misspelled entry would otherwise leave its code out of the key without a word.
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
    """The code that decides a stage's output: its own file, and what `entries` reach in the rooms below."""
    own = Path(stage_file).resolve()
    # `flows` is not followed: the engine decides when a stage runs, not what it computes, and a change of
    # the plan's wording must not train anything again.
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
    # Importing `a.b.c` runs `a/__init__.py` and `a/b/__init__.py` first, so they are part of the code.
    for length in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:length])
        module = ".".join(parts[:length])
        if (base / "__init__.py").is_file():
            files.append((module, base / "__init__.py"))
        elif base.with_suffix(".py").is_file():
            files.append((module, base.with_suffix(".py")))
    return files


# The stages share most modules. The text is the key of the cache, so a file that changes during the
# process is scanned again.
@cache
def _imports(text: str, module: str, is_package: bool) -> tuple[str, ...]:
    """Return the dotted names that a module's text imports, relative ones made absolute."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    return tuple(
        ".".join([*package[: len(package) - (level - 1)], name]) if level else name
        for level, name in imported_names(text, top_level_only=is_package)
    )


def imported_names(text: str, *, top_level_only: bool = False) -> list[tuple[int, str]]:
    """Return what the import statements of a module name.

    Args:
        text: source code of a module that Python accepts.
        top_level_only: leave out statements inside of functions and other blocks.

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
    """Whether the statement at `position` is in a block: indented, or in the line that begins the block."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[:1].isspace() or _BLOCK_WORDS.match(line) is not None


def _joined(words: str) -> str:
    """Return the text without white space and joined lines."""
    return "".join(words.replace("\\\n", " ").split())
