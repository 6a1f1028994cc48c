"""What small teachers make of real documents: accepted questions, and the count of each refusal.

    jora fetch smollm2-135m
    jora fetch gemma3-270m
    python tests/benchmarks/generation/made_questions.py --json out.json    # ten minutes on an idle core

Each teacher is a fetched model as GGUF (q8_0), behind the server of llama.cpp on one thread. It is asked for
one fact about each of the same drawn chunks of docs/, with a JSON schema, as `jora questions --sample` asks.
Seconds are of the server's processor, because other programs may use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result

RECIPE = ROOT / "flows" / "configs" / "docs-only.yaml"
MODELS = ("smollm2-135m", "gemma3-270m")
SETTINGS: dict[str, Any] = {
    "context.qa.answer_style": "direct",
    "context.qa.chunk_tokens": 128,
    "context.qa.generate.kinds": "[fact]",
    "context.qa.generate.questions_per_chunk": 1,
    "context.qa.generate.teacher.max_answer_tokens": 128,
    "context.qa.generate.teacher.answer_attempts": 1,
    "context.qa.generate.teacher.timeout_seconds": 600,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--chunks", type=at_least_one, default=24, help="chunks to ask about (default 24)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N accepted ones")
    parser.add_argument("--store", type=Path, help="folder of the artifacts, to go on where a run ended")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    return parser.parse_args()


def write_gguf_file(name: str, path: Path) -> None:
    """Write a fetched model as GGUF with matrices of eight bits.

    Args:
        name: name of the fetched model.
        path: the file to write.

    Raises:
        SystemExit: the model is not fetched.
    """
    from flows.configuration.hub_models import fetched_folder
    from jora_core.weights.gguf.write_gguf import write_gguf
    from jora_core.weights.model_folder import read_model

    folder = fetched_folder(name)
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{name} is not fetched; run `jora fetch {name}`")
    write_gguf(folder, read_model(folder), path, "q8_0", name)


def ask(url: str, model: str, chunks: int, store: Path) -> dict[str, Any]:
    """Return what `jora questions --sample` writes about a teacher.

    Args:
        url: address of its server.
        model: its name.
        chunks: number of requests.
        store: folder of the artifacts.
    """
    changes = {**SETTINGS, "store": store, "context.qa.generate.teacher.model": model}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "flows.cli", "questions", str(RECIPE), "--json"),
            *("--sample", str(chunks)),
            *(word for name, value in changes.items() for word in ("--set", f"{name}={value}")),
        ],
        env={**os.environ, "TEACHER_URL": url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def result(model: str, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the counts of one teacher, without its texts.

    Args:
        model: its name.
        found: what `ask` returned.
        seconds: processor time of the server.
    """
    asked, made = found["asked"], found["made"]
    tokens = {name: asked[name] for name in ("requests", "prompt_tokens", "answer_tokens")}
    # One question is asked for in each request.
    without = asked["requests"] - made["questions"] - sum(made["refused"].values())
    return {
        "side": model,
        "accepted": made["questions"],
        "refused": made["refused"] | ({"no question in the answer": without} if without else {}),
        "seconds": round(seconds, 1),
        **tokens,
    }


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """Print a line for each teacher, then the counts of its refusals."""
    print_table(
        [
            {
                "teacher": r["side"],
                "asked": str(r["requests"]),
                "accepted": f"{r['accepted']} ({r['accepted'] / r['requests']:.3f})",
                "tokens of prompts": f"{r['prompt_tokens']:,}",
                "of answers": f"{r['answer_tokens']:,}",
                "seconds": f"{r['seconds']:.0f}",
            }
            for r in results
        ]
    )
    for r in results:
        counts = ", ".join(
            f"{name.replace('_', ' ')} {count}" for name, count in sorted(r["refused"].items())
        )
        print(f"{r['side']} refused: {counts or 'none'}")


def main() -> None:
    """Ask each teacher, and print the counts."""
    given = arguments()
    sys.path.insert(0, str(ROOT))
    from tests.flows.teachers.llama_server import llama_server

    about = machine()
    results = []
    with tempfile.TemporaryDirectory() as name:
        for model in given.models:
            path = Path(name) / f"{model}.gguf"
            write_gguf_file(model, path)
            with llama_server(path) as server:
                store = given.store or Path(name) / "store"
                found = ask(server.url, model, given.chunks, store)
                results.append(result(model, found, server.processor_seconds()))
            for row in [row for row in found["questions"] if not row["checks"]][: given.show]:
                print(f"{model}: {row['question']}\n    {row['answer']}\n    {row['evidence']}")
            path.unlink()
    print_results(results)
    shares = {f"accepted:{r['side']}": r["accepted"] / r["requests"] for r in results}
    write_result(given.json, about, {**SETTINGS, "chunks": given.chunks}, results, shares)


if __name__ == "__main__":
    main()
