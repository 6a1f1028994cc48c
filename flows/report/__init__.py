"""The report of a run, as one self-contained HTML page and as markdown with the same content.

`facts` reads the artifacts of a run. The `*sections` modules turn the facts into sections of blocks, with
charts from `svg_charts`. `page` and `template.html` turn the blocks into HTML, and `blocks` into markdown.
"""
