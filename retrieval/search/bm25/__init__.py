"""BM25 (Okapi) over sparse postings, with rank_bm25's weights."""
