"""MkDocs hooks: the pages of the site that are made from other files.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site, with changed links, so that each text
exists once. Each package of the project becomes a page of the API reference, made from its docstrings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jora_core", "retrieval", "flows")
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LICENSE = "https://www.apache.org/licenses/LICENSE-2.0"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API reference into the navigation."""
    reference = [{package: [{name: page} for name, page, _ in api_pages(package)]} for package in PACKAGES]
    config.nav = [
        {"API reference": reference} if "API reference" in item else item for item in config.nav or []
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_links_of_the_site(text, "docs/")))
    for package in PACKAGES:
        for _, page, text in api_pages(package):
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Change links from pages in `docs/` to the files above it, and the indentation of numbered lists."""
    return _indented_for_mkdocs(_links_of_the_site(markdown, "../"))


def api_pages(package: str) -> Iterator[tuple[str, str, str]]:
    """Yield title, path and Markdown of the API page of each folder of a package that holds public names."""
    folders = [ROOT / package, *(path for path in sorted((ROOT / package).rglob("*")) if path.is_dir())]
    for folder in folders:
        modules = [path for path in sorted(folder.glob("*.py")) if _has_public_names(path)]
        if modules:
            name = ".".join(folder.relative_to(ROOT).parts)
            described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
            text = f"# {name}\n\n{described or ''}\n\n"
            text += "\n".join(f"::: {name}.{path.stem}\n" for path in modules)
            yield name.removeprefix(f"{package}."), f"api/{name}.md", text


def _has_public_names(path: Path) -> bool:
    """Whether a module other than a package's own defines a public function or class."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return path.stem != "__init__" and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        for node in body
    )


def _indented_for_mkdocs(text: str) -> str:
    """Indent what belongs to a numbered item by one more space.

    In CommonMark, and so on GitHub, three spaces put a paragraph, a list or code into the item `1. `.
    Python-Markdown needs four; with three, code ends the list, and the next item has the number 1 again.
    """
    lines, in_list = [], False
    for line in text.split("\n"):
        if line.strip() and not line.startswith("   "):
            in_list = re.match(r"\d+\. ", line) is not None
        lines.append(f" {line}" if in_list and line.startswith("   ") else line)
    return "\n".join(lines)


def _links_of_the_site(text: str, removed: str) -> str:
    """Remove the prefix `removed` from links, and point links to README.md and its like at their pages."""

    def target(match: re.Match[str]) -> str:
        path = match[1].removeprefix(removed)
        if path == "LICENSE":  # the site has no page of it
            return f"]({LICENSE})"
        return f"]({PAGES.get(path, path)}{match[2] or ''})"

    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", target, text)
