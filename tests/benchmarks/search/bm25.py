"""BM25 side by side: ours, rank_bm25, bm25s with numba and without, tantivy.

    python tests/benchmarks/search/bm25.py --sizes 10000 100000 --json out.json
    python tests/benchmarks/search/bm25.py --sizes 1000000

Corpora are seeded: documents of 6 to 18 words, frequencies after Zipf; queries are eight words drawn
likewise; the best ten are wanted. Each side is a process of its own; they build one after the other and then
take turns, A B A B. Ratios are ours over theirs in queries per second, from the medians of the turns. Peers
are the extra `bench`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import SIDE_SCRIPTS, Worker, at_least_one, machine, print_table, write_result
from sides.bm25_side import QUERY, SIDES, VOCABULARY, K, write_corpus

PACKAGES = {"rank_bm25": "rank-bm25", "bm25s": "bm25s", "bm25s_numba": "bm25s", "tantivy": "tantivy"}
#: rank_bm25 takes seconds a query and gigabytes beyond this.
RANK_BM25_MOST = 200_000
CHECKED = 5


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=at_least_one, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--turns", type=at_least_one, default=7, help="turns of each kind that each side has")
    parser.add_argument("--turn", type=float, default=0.3, help="seconds that a turn takes about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def size_name(documents: int) -> str:
    """10000 → 10k, 1000000 → 1M."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if documents % unit == 0:
            return f"{documents // unit}{name}"
    return str(documents)


def present(sides: Sequence[str], documents: int) -> list[str]:
    """The sides that can be measured; says why others are not."""
    out = []
    for side in sides:
        if side in PACKAGES and find_spec(side.removesuffix("_numba")) is None:
            print(f"not measured: {side} is not installed (pip install '.[bench]')")
        elif side == "rank_bm25" and documents > RANK_BM25_MOST:
            print(f"not measured: rank_bm25 at {size_name(documents)}, seconds a query")
        else:
            out.append(side)
    return out


def check(workers: Sequence[Worker]) -> None:
    """Stops where rank_bm25 ranks or scores otherwise than we do."""
    found = {worker.name: worker.ask("found", count=CHECKED) for worker in workers}
    ours, theirs = found.get("ours"), found.get("rank_bm25")
    if not ours or not theirs:
        return
    pairs = zip(chain(*ours["scores"]), chain(*theirs["scores"]), strict=True)
    if ours["places"] != theirs["places"] or not all(math.isclose(a, b, abs_tol=1e-5) for a, b in pairs):
        raise SystemExit(f"the sides disagree: ours {ours}, rank_bm25 {theirs}")
    print(f"ours and rank_bm25 agree on {CHECKED} queries, places and scores")


def measure(documents: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides at one size."""
    sides = present(options.sides, documents)
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        n_words = write_corpus(Path(folder) / "corpus.txt", documents, options.seed)
        try:
            settings = {"folder": folder, "seed": options.seed, "turn": options.turn}
            results = []
            for side in sides:  # one after the other: a build is measured alone
                worker = Worker(side, SIDE_SCRIPTS / "bm25_side.py", {"side": side, **settings}, {})
                workers.append(worker)
                worker.answer()
                results.append(
                    {"side": side, "documents": documents, "words": n_words, **worker.ask("about")}
                )
            check(workers)
            for kind in ("single", "batch"):
                turns: list[list[Any]] = [[] for _ in workers]
                for number in range(-1, options.turns):  # the first is for warming up
                    for mine, worker in zip(turns, workers, strict=True):
                        mine.append(worker.ask("turn", kind=kind, number=number + 1)["per_second"])
                for result, mine in zip(results, turns, strict=True):
                    result[f"{kind}_per_second"] = None if mine[0] is None else median(mine[1:])
        finally:
            for worker in workers:
                worker.close()
    return results


def ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ours over theirs in queries per second, by side, kind and size."""
    ours = {row["documents"]: row for row in results if row["side"] == "ours"}
    out = {}
    for row in results:
        if row["side"] == "ours" or row["documents"] not in ours:
            continue
        for kind, mark in (("single", ""), ("batch", "_batch")):
            if theirs := row[f"{kind}_per_second"]:
                name = f"{row['side']}{mark}@{size_name(row['documents'])}"
                out[name] = ours[row["documents"]][f"{kind}_per_second"] / theirs
    return out


def table(results: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows that are printed."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    compared = ratios(results)
    rows = []
    for row in results:
        name = size_name(row["documents"])
        single = row["single_per_second"]
        ratio = [compared.get(f"{row['side']}{mark}@{name}") for mark in ("", "_batch")]
        rows.append(
            {
                "Documents": name,
                "Side": row["side"],
                "Build, s": number(row["build_seconds"], ".2f"),
                "Load, s": number(row["load_seconds"], ".4f"),
                "Peak above imports, MiB": number(row["peak_above_imports_bytes"] / 2**20, ",.0f"),
                "Single, queries/s": number(single, ",.0f" if single >= 100 else ".2f"),
                "Batch, queries/s": number(row["batch_per_second"], ",.0f"),
                "Single, ours/theirs": number(ratio[0], ",.1f"),
                "Batch, ours/theirs": number(ratio[1], ",.1f"),
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    about = machine()
    packages = {name for name in ("bm25s", "tantivy", "numba") if find_spec(name)}
    about["packages"] |= {name: version(name) for name in sorted(packages | {"rank-bm25"})}
    results = [row for documents in options.sizes for row in measure(documents, options)]
    print_table(table(results))
    settings = {name: getattr(options, name) for name in ("sizes", "sides", "turns", "turn", "seed")}
    settings |= {"vocabulary": VOCABULARY, "query_words": QUERY, "k": K}
    write_result(options.json, about, settings, results, ratios(results))


if __name__ == "__main__":
    main()
