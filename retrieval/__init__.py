"""Retrieval: from any corpus to records worth training on.

The way through the room: `readers` turn corpora into `corpus` objects, `bm25`, `dense` and `hybrid` rank,
`tasks` write Alpaca records, `build.build_context` does all of it for one config, and `scoring` judges
predictions. Nothing heavy is imported here, so that `import retrieval` costs nothing; take what you need from
its module.
"""
