"""The scanner of imports: equal to Python's own parser, and safe beside other threads that parse."""

from __future__ import annotations

import ast
import asyncio
import email
import threading
import time
from pathlib import Path

import pytest

from flows.engine.code_files import REPOSITORY, imported_names

ROOMS = ("flows", "jora_core", "retrieval", "data", "tests")
OURS = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
LIBRARY = sorted(
    path for package in (asyncio, email) for path in Path(str(package.__file__)).parent.rglob("*.py")
)


def names_of_the_parser(text: str, top_level_only: bool) -> list[tuple[int, str]]:
    tree = ast.parse(text)
    found: list[tuple[int, str]] = []
    for node in ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = [node.module] if node.module else []
            found += [(node.level, ".".join([*origin, alias.name])) for alias in node.names]
    return found


@pytest.mark.parametrize("top_level_only", [False, True])
def test_equal_to_the_parser_on_real_files(top_level_only: bool) -> None:
    assert len(OURS) > 150 and len(LIBRARY) > 40
    for path in (*OURS, *LIBRARY):
        text = path.read_text(encoding="utf-8")
        expected = sorted(names_of_the_parser(text, top_level_only))
        assert sorted(imported_names(text, top_level_only=top_level_only)) == expected, path


@pytest.mark.parametrize(
    "text",
    [
        "import a, b.c as d, e\n",
        "import a; import b\nx = 1; from c import d\n",
        "from a import (b,  # not (this)\n    c as d,\n)\nimport e\n",
        "from a import b, \\\n    c\nfrom \\\n    d import e\n",
        "from . import a\nfrom .. import b\nfrom ...c.d import e\nfrom .f import *\n",
        "if x: import a\ntry: import b\nexcept ImportError: import c\nelse: from d import e\n",
        "def f():\n    import a\n    yield from (b)\nasync def g(): import c\n",
        "try:\n    f()\nexcept E as error:\n    raise V from error\nimport a\n",
        'text = """\nimport a\n"""\nimport b\n',
        "text = '''it's\nfrom a import b'''\nimport c\n",
        "x = 'import a' \"from b import c\" r'\\\\' # import d\nimport e\n",
        'x = "\\\\"; import a\ny = "\\""\nimport b\n',
        "important = 1\nfrom_a = important\nx.important(from_a)\nimport a\n",
        "class A:\n    import a\n    x = 1\nimport b\n",
    ],
)
def test_equal_to_the_parser_on_hard_cases(text: str) -> None:
    for top_level_only in (False, True):
        found = imported_names(text, top_level_only=top_level_only)
        assert sorted(found) == sorted(names_of_the_parser(text, top_level_only))


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_safe_beside_threads_that_parse(seconds: float) -> None:
    """Prefect's threads parse sources at the same time; `ast.parse` in the scanner's place failed there."""
    texts = [path.read_text(encoding="utf-8") for path in OURS[:60]]
    expected = [imported_names(text) for text in texts]
    ended = threading.Event()

    def parse() -> None:
        while not ended.is_set():
            for text in texts:
                try:
                    ast.parse(text)
                except SystemError:
                    pass  # CPython's bug, in the thread of another library
                if ended.is_set():
                    return

    others = [threading.Thread(target=parse, daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert [imported_names(text) for text in texts] == expected
    ended.set()
    for thread in others:
        thread.join(30)
