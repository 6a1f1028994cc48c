"""Dense retrieval: embeddings, their cache on disk, and FAISS indexes."""
