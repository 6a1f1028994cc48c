"""A LoRA run over the quantised base ends within 2 % of the run over the whole one, and predicts with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jora_core.specs.train import TrainSpec
from jora_core.training.train import train

DATA = Path(__file__).parents[3] / "data"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def records(write_rows: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's questions, each over its document."""
    documents = {row["id"]: row for row in lines(DATA / "sample" / "documents.jsonl")}
    rows = []
    for question in lines(DATA / "sample" / "questions.jsonl")[:300]:
        document = documents[question["document_id"]]
        rows.append(
            {
                "id": question["id"],
                "instruction": "Answer from the document.",
                "input": f"{document['title']}: {document['text']}\n\n{question['question']}",
                "output": question["answers"][0],
                "task": "qa",
                "split": "train",
                "context_id": document["id"],
                "context_ids": [document["id"]],
                "oracle_ids": [document["id"]],
            }
        )
    return write_rows(tmp_path_factory.mktemp("records") / "records.parquet", rows)


@pytest.mark.slow
def test_validation_loss_is_within_two_percent(records: Path, train_order: Callable[..., dict]) -> None:
    losses, first = {}, {}
    for kind in ("none", "int8", "nf4"):
        order = train_order(
            DATA / "tiny-llama",
            records,
            kind,
            quantization=kind,
            data={"validation_share": 0.3, "max_seq_len": 160, "tokens_per_batch": 1280},
            lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0.0},
            optim={"learning_rate": 4e-3},
            max_steps=30,
            checkpoint_every=30,
        )
        losses[kind] = train(TrainSpec.model_validate(order))["validation_loss"]
        first[kind] = lines(Path(order["output_dir"]) / "metrics.jsonl")[0]["loss"]
    assert losses["none"] < 0.93 * first["none"]  # it has learned
    for kind in ("int8", "nf4"):
        assert first[kind] != first["none"]  # and these are not the same weights
        assert losses[kind] == pytest.approx(losses["none"], rel=0.02)


def test_all_weights_are_not_trained_in_few_bits(records: Path, train_order: Callable[..., dict]) -> None:
    order = train_order(DATA / "tiny-llama", records, trainable="all", quantization="nf4")
    with pytest.raises(ValidationError, match="quantization is of a frozen base"):
        TrainSpec.model_validate(order)
