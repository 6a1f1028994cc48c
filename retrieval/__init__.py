"""Retrieval: build training records from a corpus.

`readers` turn files into the types of `corpus`, `search` ranks, `guards` keep held-out content out of
training, `prompts` writes the text of an example, `tasks` build records, `build` runs a whole configuration,
and `evaluation` scores answers. Nothing is imported here, so that `import retrieval` costs nothing.
"""
