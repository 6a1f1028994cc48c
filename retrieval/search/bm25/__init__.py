"""BM25 (Okapi) over sparse postings, with rank_bm25's weights.

Imports have one direction: `builder` → `folder` → `index` → `postings`. `maxscore` is compiled code, which is
imported only when a large index is searched.
"""
