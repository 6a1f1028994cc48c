"""Building records at scale: a synthetic corpus of a million documents and a hundred thousand questions.

    python tests/benchmarks/search/retrieval_scale.py [--documents N] [--questions N] [--backends single dask]
        [--workers N] [--dense] [--json FILE]

Makes a seeded corpus in a temporary folder (documents of about thirty words, drawn by Zipf's law; a question
is four rare words of its document and two common ones), then runs the real `build_record_files` over it, each
backend in a process of its own: `single` builds one shard after the other, `threads` on threads, `dask` on
worker processes. Prints the time of each step, records a second, and the largest memory of all its processes
together, sampled every fifth of a second; pages of mapped files that processes share count once (PSS). All
backends must write the same bytes, or the run ends with an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result

VOCABULARY = 200_000
WORDS = 30
SPREAD = 10
CHUNK = 20_000
SAMPLE_SECONDS = 0.2
BACKENDS = ("single", "threads", "dask")
EMBEDDER = ROOT / "data" / "tiny-embedder"


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description="Time and memory of building records")
    parser.add_argument("--documents", type=at_least_one, default=1_000_000)
    parser.add_argument("--questions", type=at_least_one, default=100_000)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["single", "dask"])
    parser.add_argument("--workers", type=at_least_one, default=2, help="threads or Dask workers")
    parser.add_argument("--dense", action="store_true", help="also the dense leg, with data/tiny-embedder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the corpus is made (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        build_one(json.loads(args.one))
        return
    about = machine()
    with tempfile.TemporaryDirectory(prefix="retrieval-scale-", dir=args.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        write_corpus(folder, args.documents, args.questions, args.seed)
        print(f"corpus of {args.documents} documents and {args.questions} questions: "
              f"{time.perf_counter() - start:.1f} s")  # fmt: skip
        results = [measure(folder, backend, args.workers, args.dense) for backend in args.backends]
    digests = {json.dumps(result.pop("sha256"), sort_keys=True) for result in results}
    if len(digests) > 1:
        raise SystemExit("the backends wrote different bytes, so their times mean nothing")
    print_table([_row(result) for result in results])
    for result in results:
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in result["steps"].items())
        print(f"{result['backend']}: {steps}")
    first = results[0]
    settings = {"documents": args.documents, "questions": args.questions, "workers": args.workers,
                "dense": args.dense, "seed": args.seed}  # fmt: skip
    ratios = {f"{r['backend']}/{first['backend']}": first["seconds"] / r["seconds"] for r in results[1:]}
    write_result(args.json, about, settings, results, ratios)


def write_corpus(folder: Path, documents: int, questions: int, seed: int) -> None:
    """Writes documents.jsonl and questions.jsonl; the questions' documents are spread over all of them."""
    import numpy as np

    rng = np.random.default_rng(seed)
    words = np.array([f"w{n:x}" for n in range(VOCABULARY)])
    weights = 1.0 / np.arange(1, VOCABULARY + 1)
    bounds = np.cumsum(weights / weights.sum())
    asked = set(rng.choice(documents, size=min(questions, documents), replace=False).tolist())
    number = 0
    with (folder / "documents.jsonl").open("w") as texts, (folder / "questions.jsonl").open("w") as asks:
        for start in range(0, documents, CHUNK):
            n = min(CHUNK, documents - start)
            lengths = rng.integers(WORDS - SPREAD, WORDS + SPREAD + 1, size=n)
            drawn = np.searchsorted(bounds, rng.random(int(lengths.sum())))
            ends = np.cumsum(lengths)
            for i in range(n):
                ids = drawn[ends[i] - lengths[i] : ends[i]]
                document = start + i
                row = {"id": f"d{document}", "title": f"Title {document}", "text": " ".join(words[ids])}
                texts.write(json.dumps(row) + "\n")
                if document not in asked:
                    continue
                # The rarest words of a document are what one would ask with.
                rare = np.sort(ids)[-4:]
                query = [words[k] for k in rare] + [words[k] for k in rng.integers(0, 50, size=2)]
                answer = {"id": f"q{number}", "document_id": f"d{document}",
                          "question": " ".join(query) + "?", "answers": [str(words[rare[-1]])]}  # fmt: skip
                asks.write(json.dumps(answer) + "\n")
                number += 1


def measure(folder: Path, backend: str, workers: int, dense: bool) -> dict[str, Any]:
    """Builds in a process of its own, watched for memory, and reads what it says."""
    order = {"folder": str(folder), "backend": backend, "workers": workers, "dense": dense}
    child = subprocess.Popen(
        [sys.executable, __file__, "--one", json.dumps(order)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    peak = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], sum(map(_memory, _tree(child.pid))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said, _ = child.communicate()
    ended.set()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"the {backend} build ended with exit code {child.returncode}")
    return {"backend": backend, **json.loads(said.splitlines()[-1]), "peak_bytes": peak[0]}


def build_one(order: dict[str, Any]) -> None:
    """The measured process: build, then say times and digests as one line of JSON."""
    from jora_core.base.progress import ProgressBars
    from retrieval.build.build import build_record_files
    from retrieval.settings.context import ContextConfig
    from retrieval.settings.tasks import QaTask

    folder = Path(order["folder"])
    config = ContextConfig(
        embedder=str(EMBEDDER) if order["dense"] else None,
        backend="dask" if order["backend"] == "dask" else "threads",
        workers=1 if order["backend"] == "single" else order["workers"],
        qa=QaTask(
            source=str(folder / "documents.jsonl"),
            questions=str(folder / "questions.jsonl"),
            legs=["bm25", "dense"] if order["dense"] else ["bm25"],
        ),
    )
    steps: dict[str, float] = {}
    now = ["start", time.perf_counter()]
    bars = ProgressBars()

    def told(step: str, done: int, total: int) -> None:
        if step != now[0]:
            moment = time.perf_counter()
            steps[str(now[0])] = steps.get(str(now[0]), 0.0) + moment - float(now[1])
            now[:] = [step, moment]
        if step != "end":
            bars.show(step, done, total)

    start = time.perf_counter()
    with bars:
        metrics = build_record_files(config, folder / order["backend"], told)
    told("end", 0, 0)
    names = ("records.parquet", "rankings.parquet", "metrics.json")
    digests = {n: hashlib.sha256((folder / order["backend"] / n).read_bytes()).hexdigest() for n in names}
    steps.pop("start", None)
    found = {"seconds": time.perf_counter() - start, "records": metrics["records"], "steps": steps}
    print(json.dumps({**found, "sha256": digests}), flush=True)


def _tree(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:
                continue
    return found


def _memory(pid: int) -> int:
    """Bytes of a process, its part of shared pages only; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _row(result: dict[str, Any]) -> dict[str, str]:
    return {
        "backend": result["backend"],
        "seconds": f"{result['seconds']:.1f}",
        "records": str(result["records"]),
        "records/s": f"{result['records'] / result['seconds']:.0f}",
        "peak memory": f"{result['peak_bytes'] / 1e9:.2f} GB",
    }


if __name__ == "__main__":
    main()
