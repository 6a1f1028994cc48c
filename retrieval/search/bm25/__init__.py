"""BM25 (Okapi) over sparse postings, with rank_bm25's weights.

Imports go one way: `builder` → `folder` → `index` → `postings`. `maxscore` is compiled code. It is imported
only when a large index is searched.
"""
