"""Write the embedded sample corpora: `python data/make_sample.py [--output data/sample] [--seed 0]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from make_documents import write_documents
from make_tables import write_tables
from make_threads import write_threads

SAMPLE_SEED = 0  # the base model's text is drawn with other seeds: see make_base_corpus.py

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "sample")
    parser.add_argument("--seed", type=int, default=SAMPLE_SEED)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write_threads(args.output / "threads.ndjson", args.seed, 700)
    write_tables(args.output / "tables", args.seed, 160)
    write_documents(args.output, args.seed, 420)
    print(f"wrote threads, tables and documents to {args.output}")
