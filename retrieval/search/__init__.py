"""Retrieval: BM25, dense vectors, conversation legs, their fusion, and a reranker."""
