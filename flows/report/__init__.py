"""The report of a run: one self-contained HTML page, and the same content as markdown.

Artifacts become facts (`facts`), facts become sections of blocks (the `*sections` modules, with charts from
`svg_charts`), and blocks become HTML (`page`, `template.html`) or markdown (`blocks`).
"""
