"""What `jora plan` counts is what training then does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jora_core.data.batches import BatchStream
from jora_core.data.examples import load_groups
from jora_core.data.tokenizer import load_tokenizer
from jora_core.planning.sharing_savings import count_sharing
from jora_core.specs.planning import SharingSpec


@pytest.fixture()
def order(
    tiny_model: Path, alpaca_rows: Callable[..., Any], write_rows: Callable[..., Path], tmp_path: Path
) -> Callable[..., SharingSpec]:
    """A maker of orders over 48 records of 12 contexts, half of the file of another task."""
    rows = alpaca_rows(contexts=12, questions=4)
    others = [row | {"id": f"other {row['id']}", "task": "qa"} for row in rows]
    records = write_rows(tmp_path / "records.parquet", [*others, *rows])

    def make(most_records: int = 1000, **data: Any) -> SharingSpec:
        given = {"records": records, "tasks": ["threads"], "max_seq_len": 128, "tokens_per_batch": 512}
        return SharingSpec.model_validate(
            {
                "model": tiny_model,
                "data": given | {"cache_dir": tmp_path / "tokens"} | data,
                "most_records": most_records,
                "output_dir": tmp_path / "out",
            }
        )

    return make


def test_counts_are_those_of_training(order: Callable[..., SharingSpec], tiny_model: Path) -> None:
    spec = order()
    counts = count_sharing(spec)
    assert spec.data.cache_dir is not None and not spec.data.cache_dir.exists(), "a plan writes nothing"
    data = load_groups(spec.data, load_tokenizer(tiny_model))
    stream = BatchStream(data.train, 512, seed=0)
    batches = [stream.build(plan) for plan in stream.plan(0)]
    assert counts["records"] == counts["records_selected"] == 48 and counts["exact"]
    assert counts["groups"] == len(data.train) == 12
    assert counts["tokens"] == sum(batch.slots for batch in batches)
    assert counts["tokens_apart"] == sum(batch.slots_apart for batch in batches) > 2 * counts["tokens"]
    assert counts["padded_tokens"] == sum(batch.tokens.size for batch in batches)
    fullest = counts["fullest"]
    assert fullest["rows"] * fullest["seq_len"] == max(batch.tokens.size for batch in batches)
    assert fullest["rows"] * fullest["answer_tokens"] >= max(batch.supervised for batch in batches)


def test_sharing_off_saves_nothing(order: Callable[..., SharingSpec]) -> None:
    counts = count_sharing(order(sharing="off"))
    assert counts["tokens"] == counts["tokens_apart"] == count_sharing(order())["tokens_apart"]
    assert counts["factor"] == 1


def test_many_records_without_token_ids_are_counted_in_part(
    order: Callable[..., SharingSpec], tiny_model: Path
) -> None:
    counts = count_sharing(order(most_records=20))
    assert (counts["records"], counts["records_selected"], counts["exact"]) == (20, 48, False)
    load_groups(order().data, load_tokenizer(tiny_model))  # what training leaves in the cache
    counts = count_sharing(order(most_records=20))
    assert (counts["records"], counts["exact"]) == (48, True)
