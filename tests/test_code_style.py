"""The script that measures source trees counts a small tree right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent

FILES = {
    "pack/__init__.py": '"""A package."""\n',
    "pack/top.py": '"""Top."""\n\nfrom pack import left\n\n\ndef go(a: int, b: int, c: int) -> int:\n'
    '    """Go.\n\n    Args:\n        a: one.\n    """\n    # Why.\n    return left.VALUE + a + b + c\n',
    "pack/left.py": "from pack.right import other\n\nVALUE = 1\n\n\ndef more(a, b, c):\n    return other()\n",
    "pack/right.py": "def other() -> int:\n    from pack.left import VALUE\n\n    return VALUE\n",
    "pack/deep/__init__.py": "",
    "pack/deep/floor.py": "from typing import TYPE_CHECKING\n\nfrom ..left import VALUE  # a comment\n\n"
    "if TYPE_CHECKING:\n    from pack import top\n",
    "pack/tests/test_top.py": "import pack.top\n",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script writes about `FILES`."""
    tree = tmp_path_factory.mktemp("tree")
    for name, text in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, str(HERE / "code_style.py"), str(tree), "--json", str(tree / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "import depth" in done.stdout
    written = json.loads((tree / "out.json").read_text(encoding="utf-8"))
    assert written["packages"] == ["pack"]
    return written["measures"]


def test_files_and_functions(measured: dict[str, Any]) -> None:
    assert measured["files"] == 6 and measured["files a folder, max"] == 4
    assert measured["lines a function, max"] == 8
    assert measured["fully typed, %"] == pytest.approx(66.7)
    assert measured["public functions with a docstring, %"] == pytest.approx(33.3)
    assert measured["functions of 3+ arguments with Args, %"] == 50.0
    assert measured["functions of 3+ arguments without Args"] == ["pack.left.more"]


def test_comments(measured: dict[str, Any]) -> None:
    # Two comments in 20 lines that hold code, docstrings included.
    assert measured["comments in 100 lines"] == pytest.approx(100 * 2 / 20, abs=1)


def test_imports(measured: dict[str, Any]) -> None:
    assert measured["import circles"] == 1
    assert measured["modules of each circle"] == [["pack.left", "pack.right"]]
    assert measured["own imports inside functions"] == 1
    # top -> {left, right} -> nothing; `from pack import left` names the module, not the package.
    assert measured["import depth"] == 2
