"""Measure the style of a Python source tree: sizes, types, docstrings, comments and imports.

    python tests/code_style.py                             # this project's packages
    python tests/code_style.py ../other --packages other   # packages of another project
    python tests/code_style.py --json out.json

Only the source text is read and no module is imported, so any project can be measured without its
dependencies. Tests are not counted: folders `tests` and `test`, files `test_*.py`, `*_test.py`,
`conftest.py`.

What each measure means:

- files a folder: Python files directly in a folder, `__init__.py` included; folders without any are left out.
- lines a file: `__init__.py` is left out, because most of them hold a docstring only.
- lines a function: from `def` to the last line, docstring included, decorators not.
- fully typed: every argument (but `self` and `cls`) and the result have an annotation.
- public functions: functions and methods whose name, and whose class's name, begins with no underscore.
- functions of 3+ arguments with Args: public functions with three or more arguments (`self` and `cls` not
  counted) whose docstring has an `Args:` section, or a `Parameters` section in NumPy's form.
- comments in 100 lines: comment tokens for every 100 lines that hold code.
- import depth: the number of modules on the longest chain of imports; the modules of a circle count as one.
- import circles: groups of modules that import one another, directly or through others.
- own imports inside functions: import statements of the measured packages inside function bodies.

The three measures of imports leave out those under `if TYPE_CHECKING:`, because they do not run.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OWN_PACKAGES = ("flows", "jora_core", "retrieval")
_NOT_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file, read and parsed."""

    name: str
    path: Path
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class ImportStatement:
    """One import of a module of the measured tree."""

    importer: str
    imported: str
    line: int
    inside_function: bool


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tree", type=Path, nargs="?", default=ROOT, help="folder that holds the packages")
    parser.add_argument(
        "--packages", nargs="+", help="packages to measure; default: this project's, else all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write packages and measures")
    return parser.parse_args()


def read_modules(tree: Path, packages: Sequence[str]) -> list[Module]:
    """Read all source files of the packages, without tests.

    Raises:
        SystemExit: a package does not exist, or a file has a syntax error.
    """
    modules = []
    for package in packages:
        folder = tree / package
        if not folder.is_dir():
            raise SystemExit(f"error: {folder} is no folder; name the packages with --packages")
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(tree)
            if _is_test(relative):
                continue
            text = path.read_text(encoding="utf-8")
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            try:
                modules.append(Module(name, path, text, ast.parse(text)))
            except SyntaxError as error:
                raise SystemExit(f"error: {path}: {error}") from error
    return modules


def import_statements(modules: Sequence[Module]) -> list[ImportStatement]:
    """Find all imports of the modules from one another."""
    known = {module.name for module in modules}
    found = []
    for module in modules:
        package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
        for node, inside in _imports(module.tree, inside_function=False):
            for name in _imported_modules(node, package, known):
                if name != module.name:
                    found.append(ImportStatement(module.name, name, node.lineno, inside))
    return found


def import_circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of an import graph, imported ones first (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            start = stack.index(name)
            components.append(sorted(stack[start:]))
            del stack[start:]

    # The recursion is as deep as the longest chain of imports.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * len(graph) + 1000))
    for name in sorted(graph):
        if name not in index:
            visit(name)
    return components


def import_depth(graph: Mapping[str, set[str]], components: Sequence[Sequence[str]]) -> int:
    """Count the modules on the longest chain of imports, a circle as one module.

    `components` must come with the imported ones first, as `import_circles` returns them.
    """
    component_of = {name: number for number, names in enumerate(components) for name in names}
    depth: list[int] = []
    for number, names in enumerate(components):
        below = {component_of[other] for name in names for other in graph[name]} - {number}
        depth.append(1 + max((depth[other] for other in below), default=0))
    return max(depth, default=0)


def measure(modules: Sequence[Module]) -> dict[str, Any]:
    """Return all measures of a tree by name."""
    functions = [function for module in modules for function in _functions(module.tree)]
    public = [function for module in modules for function in _public_functions(module.tree)]
    wide = [function for function in public if len(_own_arguments(function)) >= 3]
    statements = import_statements(modules)
    graph: dict[str, set[str]] = {module.name: set() for module in modules}
    for statement in statements:
        graph[statement.importer].add(statement.imported)
    components = import_circles(graph)
    circles = [names for names in components if len(names) > 1]
    lazy = {(statement.importer, statement.line) for statement in statements if statement.inside_function}
    comments, code = map(sum, zip(*(_comments_and_code(module.text) for module in modules), strict=True))
    folders = list(Counter(module.path.parent for module in modules).values())
    lines = [module.text.count("\n") for module in modules if module.path.name != "__init__.py"]
    lengths = [(function.end_lineno or function.lineno) - function.lineno + 1 for function in functions]
    return {
        "files": len(modules),
        "lines": sum(lines),
        "files a folder, median": statistics.median(folders),
        "files a folder, max": max(folders),
        "lines a file, median": statistics.median(lines),
        "lines a file, max": max(lines),
        "lines a function, median": statistics.median(lengths),
        "lines a function, p90": sorted(lengths)[int(0.9 * (len(lengths) - 1))],
        "lines a function, max": max(lengths),
        "fully typed, %": _percent(sum(map(_is_typed, functions)), len(functions)),
        "public functions with a docstring, %": _percent(
            sum(ast.get_docstring(function) is not None for function in public), len(public)
        ),
        "functions of 3+ arguments": len(wide),
        "functions of 3+ arguments with Args, %": _percent(sum(map(_has_args, wide)), len(wide)),
        "functions of 3+ arguments without Args": [
            f"{module.name}.{function.name}"
            for module in modules
            for function in _public_functions(module.tree)
            if len(_own_arguments(function)) >= 3 and not _has_args(function)
        ],
        "functions of more than 6 positional arguments": [
            f"{module.name}.{function.name}"
            for module in modules
            for function in _functions(module.tree)
            if len(_own_arguments(function)) - len(function.args.kwonlyargs) > 6
        ],
        "comments in 100 lines": round(100 * comments / code, 1),
        "import depth": import_depth(graph, components),
        "import circles": len(circles),
        "modules of each circle": circles,
        "own imports inside functions": len(lazy),
    }


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    packages = args.packages or [name for name in OWN_PACKAGES if (args.tree / name).is_dir()]
    packages = packages or sorted(path.parent.name for path in args.tree.glob("*/__init__.py"))
    result = measure(read_modules(args.tree, packages))
    values = {name: f"{value:,}" for name, value in result.items() if not isinstance(value, list)}
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value}")
    for circle in result["modules of each circle"]:
        print(f"circle: {', '.join(circle)}")
    if args.json is not None:
        args.json.write_text(json.dumps({"packages": packages, "measures": result}, indent=1) + "\n")
    return 0


def _is_test(path: Path) -> bool:
    name = path.name
    return (
        bool({"tests", "test"} & set(path.parts[:-1]))
        or name.startswith("test_")
        or name.endswith("_test.py")
        or name == "conftest.py"
    )


def _imports(node: ast.AST, inside_function: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements below a node, each with whether a function holds it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside_function
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other, inside_function)
        else:
            yield from _imports(child, inside_function or isinstance(child, Function))


def _imported_modules(node: ast.Import | ast.ImportFrom, package: str, known: set[str]) -> set[str]:
    """Modules of the tree that a statement loads; any other name counts for the module that holds it."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    else:
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        names = {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return names & known


def _functions(tree: ast.AST) -> Iterator[Function]:
    """All functions, methods and functions inside functions."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from _public_functions(node)
            else:
                yield node


def _own_arguments(function: Function) -> list[ast.arg]:
    """Named arguments of a function without `self` and `cls`."""
    named = [*function.args.posonlyargs, *function.args.args]
    if named and named[0].arg in {"self", "cls"}:
        named = named[1:]
    return [*named, *function.args.kwonlyargs]


def _is_typed(function: Function) -> bool:
    starred = [argument for argument in (function.args.vararg, function.args.kwarg) if argument]
    return function.returns is not None and all(
        argument.annotation is not None for argument in [*_own_arguments(function), *starred]
    )


def _has_args(function: Function) -> bool:
    lines = [line.strip() for line in (ast.get_docstring(function) or "").splitlines()]
    return "Args:" in lines or "Arguments:" in lines or "Parameters" in lines


def _comments_and_code(text: str) -> tuple[int, int]:
    """Comment tokens of a file, and lines that hold code."""
    comments = 0
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in _NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return comments, len(code)


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


if __name__ == "__main__":
    raise SystemExit(main())
