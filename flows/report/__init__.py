"""The report of a run: one self-contained HTML page, and the same content as markdown.

Artifacts → facts (`data`) → sections of blocks (`sections`, `examples`, `lineage`, with charts from `charts`)
→ HTML (`page`, `template.html`) or markdown (`blocks`).
"""

from flows.report.page import markdown_sections, write_report

__all__ = ["markdown_sections", "write_report"]
