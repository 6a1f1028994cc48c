"""Synthetic artifacts of every stage in the store's real layout, for the report's tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.engine.artifact_store import ArtifactRef, Store
from flows.report.thread_sections import CONVERSATION_NAMES, LINK_NAMES

STAGES = ("build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate", "export")
UPSTREAM: dict[str, tuple[str, ...]] = {
    "build-context": (),
    "convert-model": (),
    "finetune-structure": ("build-context", "convert-model"),
    "finetune-task": ("build-context", "convert-model", "finetune-structure"),
    "evaluate": ("build-context", "convert-model", "finetune-structure", "finetune-task"),
    "export": ("build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate"),
}
NAMES = ("Marta", "Lena", "Jonas", "Aylin", "Pavel", "Ines")
VALUES = {
    "random": 0.11,
    "opening_post": 0.17,
    "previous_post": 0.19,
    "bm25": 0.44,
    "base": 0.12,
    "phase1": 0.14,
    "both_phases": 0.61,
}
# Text that would break a page or a table if it were not escaped.
NASTY = '<script>alert(1)</script> a | b `tick` & "quote"'


def key_of(stage: str) -> str:
    return (stage.encode().hex() * 8)[:64]


def thread_record(number: int, split: str) -> dict[str, Any]:
    choices = [f"#{i + 1} {NAMES[(number + i) % 6]}" for i in range(6)]
    posts = [f"I moved the tomatoes to pot {i}\n{choice}" for i, choice in enumerate(choices)]
    gold = [choices[number % 6]] if number % 9 else []
    question = f"Comment by Rosa: which pot, {number}? {NASTY if number % 4 == 0 else ''}"
    return {
        "id": f"threads:{number}",
        "instruction": "Read the posts and say which post the comment replies to.",
        "input": "\n\n".join([*posts, question]),
        "output": choices[number % 6],
        "task": "threads",
        "split": split,
        "context_id": f"t{number // 4}",
        "context_ids": [f"p{i}" for i in range(6)],
        "oracle_ids": [f"p{number % 6}"],
        "oracle_in_context": bool(gold),
        "gold": gold,
        "choices": choices,
        "source": "threads.ndjson",
        "source_row": number,
    }


def table_record(number: int) -> dict[str, Any]:
    return thread_record(number, "train") | {
        "id": f"tables:{number}",
        "instruction": "Answer the question from the table.",
        "input": "town | people\nKiel | 246,000\nJena | 111,000\n\nQuestion: which town has more people?",
        "output": "Kiel",
        "task": "tables",
        "gold": ["Kiel"],
        "choices": [],
    }


def score(value: float, n: int = 1200) -> dict[str, Any]:
    return {"value": value, "low": value - 0.024, "high": value + 0.026, "n": n}


def comparison(one: str, other: str, verdict: str) -> dict[str, Any]:
    value = round(VALUES[one] - VALUES[other], 6)
    p = 0.2 if verdict == "not separable" else 0.0001
    return {
        **{"one": one, "other": other, "value": value, "low": value - 0.03, "high": value + 0.03, "n": 1200},
        **{"contexts": 140, "p": p, "p_holm": 6 * p, "mcnemar_p": 0.012, "verdict": verdict},
        **{"only_one": 310, "only_other": 106},
    }


def calibrated(error: float) -> dict[str, Any]:
    places = [k / 10 for k in range(1, 11)]
    return {
        "n": 1200,
        "expected_calibration_error": error,
        "bins": [
            {"from": x - 0.1, "to": x, "n": 120, "probability": x - 0.05, "accuracy": x - 0.05 - error}
            for x in places[2:]
        ],
        "selective": [
            {"share": x, "n": round(1200 * x), "accuracy": 0.95 - x / 3 - error, "least_probability": 1 - x}
            for x in places
        ],
    }


def fill(stage: str, folder: Path) -> dict[str, Any]:
    """Write a stage's files; return its metrics."""
    if stage == "build-context":
        held_out = [thread_record(number, "test") for number in range(60)]
        rows = [thread_record(number, "train") for number in range(100, 140)]
        rows += [table_record(number) for number in range(40)]
        pq.write_table(pa.Table.from_pylist(held_out + rows), folder / "records.parquet")
        rankings = [{"id": row["id"], "bm25": [f"p{n % 7}", "p1"]} for n, row in enumerate(held_out)]
        pq.write_table(pa.Table.from_pylist(rankings), folder / "rankings.parquet")
        legs = {
            leg: {"n": 1200, "mrr": start, "ndcg@10": start + 0.05}
            | {f"recall@{k}": start + 0.2 * math.log10(k) for k in (1, 3, 5, 10, 20)}
            | {"interval": {"recall@1": [start - 0.02, start + 0.03], "mrr": [start - 0.01, start + 0.01]}}
            for leg, start in (("bm25", 0.44), ("dense", 0.31), ("recency", 0.19), ("fused", 0.52))
        }
        task = {"records": {"train": 40, "test": 60}, "oracle_in_context": {"train": 1.0, "test": 0.88}}
        group = {name: score(0.4) for name in ("recall@1", "recall@5", "recall@10", "mrr")}
        threads = task | {
            "contexts": {"train": 10, "test": 15},
            "dropped": {"comment_without_text": 3},
            "notes": {"train": {"context_shortened": 5}},
            "guards": {
                "records_searched": 101,
                "exact_duplicates_dropped": 2,
                "near_duplicates_dropped": 4,
                "leaks_dropped": {"quotelink": 1, "context_later_than_question": 0},
                "test_contexts_in_training_prompts": 0,
            },
            "prompt_words": {
                "mean": 120.0,
                "p50": 110,
                "p95": 200,
                "max": 300,
                "histogram": {"up_to": [32, 64, 128, None], "counts": [0, 10, 80, 10]},
            },
            "retrieval": {"test": legs},
            "learned_fusion": {
                "messages": 3210,
                "threads": 12,
                "without": {"mentions": {"link_f1": 0.61, "reply@1": 0.55, "start_f1": None}},
                "test": {"messages": 900, "link_f1": 0.751, "reply@1": 0.744, "start_f1": 0.8},
                **{"link_f1": 0.731, "reply@1": 0.752, "start_f1": 0.71},
            },
            "retrieval_groups": {
                "by_distance": [
                    {"from": 1, "to": 1, "n": 700} | group,
                    {"from": 51, "to": None, "n": 500} | group,
                ],
                "by_length": [{"from": 0, "to": 5, "n": 1200} | group],
            },
        }
        metrics = {
            "tasks": {
                "tables": {"records": {"train": 40, "test": 0}, "retrieval": {}},
                "threads": threads,
            }
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return metrics | {"peak_memory_bytes": 612_000_000}
    if stage.startswith("finetune"):
        rows = [
            {
                "step": step,
                "loss": 0.3 + 2.5 * math.exp(-step / 90) + 0.12 * math.sin(step * 1.7),
                "tokens": 4096,
                "supervised_tokens": 60,
                "learning_rate": 1e-3,
            }
            for step in range(1, 401)
        ]
        for row in rows[49::50]:
            row["validation_loss"] = row["loss"] + 0.1
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"seconds": 80.0, "mean_loss_last_10": 0.31, "peak_memory_bytes": 1_480_000_000}
    if stage == "evaluate":
        systems = {
            name: {
                "reply@1": score(v),
                "target@1": score(v + 0.08),
                "joint": score(v - 0.01),
                "p(reply|target)": score(v + 0.2, 700),
            }
            for name, v in VALUES.items()
        }
        systems["both_phases"]["denotation_accuracy"] = score(0.2, 200)
        systems["base"]["denotation_accuracy"] = score(0.05, 200)
        scores = {
            "systems": systems,
            "n": 1200,
            "contexts": 140,
            "drawn": {"threads": {"records": 1200, "of_records": 2479, "contexts": 140, "of_contexts": 141}},
            "combined": {
                "system": "both_phases",
                "weights": {"model": 0.41, "learned": 0.9, "fitted_on": 296},
            },
            "calibration": {"base": calibrated(0.151), "both_phases": calibrated(0.042)},
            "comparisons": {
                "threads": {
                    "reply@1": [
                        comparison("both_phases", "bm25", "better"),
                        comparison("both_phases", "base", "not separable"),
                        comparison("both_phases", "bm25", "better")
                        | {"one": "model_and_learned", "other": "learned"}
                        | {"value": 0.012, "low": -0.012, "high": 0.038, "only_one": 40, "only_other": 26},
                        # A system that comes after the shown one: the report turns the row.
                        {
                            **comparison("both_phases", "phase1", "better"),
                            "one": "new",
                            "other": "both_phases",
                        },
                    ]
                }
            },
            "generated": {"systems": {"base": systems["base"]}},
            "slices": {
                "parents": [
                    {"group": name, "n": n, "systems": {s: score(v, n) for s in systems}}
                    for name, v, n in (("one", 0.6, 1100), ("several", 0.3, 100))
                ]
            },
            "links": {
                **{"logs": 9, "of_logs": 10, "messages": 2300, "links": 2400},
                **{"second_parent": 0.31, "without_record": 4},
                "systems": {
                    name: {key: score(0.5, 2400) for key in (*LINK_NAMES, *CONVERSATION_NAMES)}
                    | {"adjusted_rand_index": {"value": None, "low": None, "high": None, "n": 2300}}
                    for name in ("addressed_then_previous", "both_phases")
                },
            },
        }
        (folder / "metrics.json").write_text(json.dumps(scores))
        rows = [
            {
                "id": f"threads:{number}",
                "system": system,
                "choice": f"#{pick + 1} {NAMES[(number + pick) % 6]}",
                "choice_logprob": -0.3,
                "text": "",
            }
            for number in range(60)
            for system, pick in (("base", 0), ("phase1", 1), ("both_phases", number % 6 if number % 2 else 2))
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
        return {"peak_memory_bytes": 900_000_000}
    (folder / "README.md").write_text(f"what {stage} wrote")
    return {"peak_memory_bytes": 700_000_000}


def commit(store: Store, stage: str) -> ArtifactRef:
    key = key_of(stage)
    metrics = fill(stage, store.begin(stage, key))
    inputs = {
        "build-context": {
            f"threads/{n}": {"path": f"data/sample/{n}.ndjson", "sha256": "ab" * 32} for n in range(15)
        },
        "convert-model": {"model/config.json": {"path": "data/tiny-llama/config.json", "sha256": "cd" * 32}},
    }.get(stage, {})
    manifest = {
        "stage": stage,
        "key": key,
        "version": 1,
        "config": {"seed": 0, "note": NASTY},
        "inputs": inputs,
        "upstream": {
            name: {"key": key_of(name), "digest": "ef" * 32, "reads": ["*"]} for name in UPSTREAM[stage]
        },
        "code": {f"flows/{stage}.py": "12" * 32},
        "metrics": metrics,
        "started": "2030-01-02T03:04:05+00:00",
        "ended": "2030-01-02T03:14:05+00:00",
        "seconds": 12.5 * (STAGES.index(stage) + 1),
        "environment": {"python": "3.11.9", "jax": "0.10.2"},
    }
    path = store.commit(stage, key, manifest)
    return ArtifactRef(stage=stage, key=key, path=str(path), cached=False, seconds=1.0, reason="")
