from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.base.record_columns import TRAINED_RECORDS
from jora_core.data.batches import BatchStream
from jora_core.data.examples import load_groups
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.train import TrainSpec
from jora_core.training.loop import DivergedError
from jora_core.training.train import train
from jora_core.weights.adapter_folder import load_adapter


@pytest.fixture(scope="module")
def records(alpaca_rows, write_rows, tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("records") / "records.parquet", alpaca_rows())


def metrics(order: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(order["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_adapter_training_writes_what_it_promises(tiny_weights, records, train_order):
    order = train_order(
        tiny_weights, records, max_steps=12, gradient_accumulation_steps=2, data={"validation_share": 0.2}
    )
    result = train(TrainSpec.model_validate(order))
    rows = metrics(order)
    assert [row["step"] for row in rows] == list(range(1, 13))
    needed = ["loss", "supervised_tokens", "tokens", "tokens_per_s", "grad_norm", "learning_rate"]
    assert all(math.isfinite(row[name]) and row[name] > 0 for row in rows for name in needed)
    assert all(row["peak_memory_bytes"] > 1e6 for row in rows)
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6, 9, 12]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["validation_loss"] < rows[2]["validation_loss"]
    assert result == json.loads((Path(order["output_dir"]) / "result.json").read_text())
    assert result["steps"] == 12 and result["supervised_tokens"] == sum(r["supervised_tokens"] for r in rows)
    adapter, spec = load_adapter(order["output_dir"], ModelConfig.from_hf(tiny_weights))
    assert spec.r == 4 and float(abs(adapter.weights["q_proj"].b).max()) > 0

    # Phase 2: another order goes on from this adapter, and refuses one that does not fit.
    second = train_order(tiny_weights, records, "second", adapter=order["output_dir"], max_steps=1)
    train(TrainSpec.model_validate(second))
    assert metrics(second)[0]["loss"] < 0.9 * rows[0]["loss"]
    with pytest.raises(InputError, match=r"the adapter has r=4, the spec lora\.r=8"):
        train(TrainSpec.model_validate(second | {"lora": {"r": 8, "lora_alpha": 8}}))


def test_the_trained_records_are_those_of_the_batches(tiny_weights, records, train_order):
    """Against the ids of the batches themselves, built one by one: more than an epoch, and less."""
    for name, steps in (("few", 2), ("more", 15)):
        order = train_order(
            tiny_weights,
            records,
            name,
            max_steps=steps,
            gradient_accumulation_steps=2,
            data={"validation_share": 0.2},
        )
        spec = TrainSpec.model_validate(order)
        result = train(spec)
        groups = load_groups(
            spec.data, load_tokenizer(tiny_weights, ModelConfig.from_hf(tiny_weights).vocab_size), spec.seed
        )
        stream = BatchStream(groups.train, spec.data.tokens_per_batch, seed=spec.seed)
        walk = itertools.islice(stream.walk(), 2 * steps)
        expected = Counter(id for _, batch in walk for id in batch.ids)
        table = pq.read_table(Path(order["output_dir"]) / TRAINED_RECORDS).to_pylist()
        assert {row["id"]: row["times"] for row in table} == expected
        sums = {"records": len(expected), "times": sum(row["records"] for row in metrics(order))}
        assert result["trained_records"] == sums
        offered = {id for group in groups.train for id in group.ids}
        kept = {id for group in groups.validation for id in group.ids}
        assert kept and set(expected) <= offered and not kept & set(expected)
        assert (set(expected) == offered) is (name == "more"), "two steps do not reach all records"


def test_all_parameters_from_scratch(tiny_model, records, train_order):
    order = train_order(
        tiny_model,
        records,
        init="random",
        trainable="all",
        n_epochs=2.5,
        max_steps=None,
        checkpoint_every=1000,
    )
    result = train(TrainSpec.model_validate(order))
    epoch = result["microbatches_first_epoch"]
    assert abs(result["steps"] - 2.5 * epoch) <= 2
    assert result["final_loss"] < 0.7 * metrics(order)[0]["loss"]
    folder = Path(order["output_dir"])
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    # The written folder is a model that the next order can start from, where this one ended.
    again = train_order(folder, records, "again", trainable="all", max_steps=1)
    assert train(TrainSpec.model_validate(again))["final_loss"] < 0.8 * metrics(order)[0]["loss"]


def test_bf16_base_and_remat_train(tiny_weights, records, train_order):
    plain = train_order(tiny_weights, records, max_steps=3, lora={"lora_dropout": 0.0})
    half = train_order(tiny_weights, records, "half", dtype="bfloat16", remat="full", max_steps=3,
                       lora={"lora_dropout": 0.0})  # fmt: skip
    losses = [train(TrainSpec.model_validate(o))["final_loss"] for o in (plain, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_accumulation_equals_one_large_batch(tiny_weights, records, train_order):
    """Two microbatches of different token counts weigh by tokens: the sum equals one batch of both."""
    lora = {"lora_dropout": 0.0, "r": 4}
    whole = train_order(
        tiny_weights, records, "whole", max_steps=1, data={"tokens_per_batch": 4096}, lora=lora
    )
    train(TrainSpec.model_validate(whole))
    n = json.loads((Path(whole["output_dir"]) / "result.json").read_text())["microbatches_first_epoch"]
    assert n == 1
    parts = train_order(
        tiny_weights, records, "parts", max_steps=1, lora=lora, data={"tokens_per_batch": 256}
    )
    count = train(TrainSpec.model_validate(parts))["microbatches_first_epoch"]
    assert count > 2
    summed = train_order(
        tiny_weights, records, "summed", max_steps=1, lora=lora, gradient_accumulation_steps=count
    )
    train(TrainSpec.model_validate(summed))
    a, b = metrics(whole)[0], metrics(summed)[0]
    assert a["supervised_tokens"] == b["supervised_tokens"]
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_records(tiny_weights, records, train_order):
    order = train_order(
        tiny_weights, records, optim={"learning_rate": 3e38}, checkpoint_every=100, max_steps=20
    )
    with pytest.raises(DivergedError, match=r"step \d+: .*records: c\d+-q\d"):
        train(TrainSpec.model_validate(order))
    assert not (Path(order["output_dir"]) / "result.json").exists()
    assert not (Path(order["output_dir"]) / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("field,value,says", [
    ("model", "absent", "absent"),
    ("mesh", {"data": 64, "tensor": 1}, "needs 64 devices"),
    ("adapter", "nowhere", "adapter folder nowhere does not exist"),
])  # fmt: skip
def test_bad_orders_are_refused(tiny_weights, records, train_order, field, value, says):
    with pytest.raises(InputError, match=says):
        train(TrainSpec.model_validate(train_order(tiny_weights, records) | {field: value}))


def test_command_line(tiny_weights, records, train_order, tmp_path):
    """Exit code 2 with one line for a bad file, without a traceback; a run's output folder stays clean."""
    order = train_order(tiny_weights, tmp_path / "absent.parquet")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(order))
    done = subprocess.run(
        [sys.executable, "-m", "jora_core.commands.train", "--spec", str(spec)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no records file") and "absent.parquet" in line
    assert not list(Path(order["output_dir"]).iterdir())


def test_losses_equal_peft_and_torch(tiny_weights, records, train_order):
    """Six steps of LoRA in transformers and peft on the same examples: same losses, same adapter."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    import jora_core.training.train as module
    from jora_core.data.batches import BatchStream
    from jora_core.data.examples import load_groups
    from jora_core.data.tokenizer import load_tokenizer

    first = train_order(tiny_weights, records, "first", max_steps=1, lora={"r": 4, "lora_dropout": 0.0})
    train(TrainSpec.model_validate(first))
    start = Path(first["output_dir"])
    order = train_order(tiny_weights, records, "ours", adapter=str(start), lora={"r": 4, "lora_dropout": 0.0})
    spec = TrainSpec.model_validate(order)
    train(spec)

    base = AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, start, is_trainable=True)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    data = spec.data.model_copy(update={"sharing": "off"})
    examples = {g.ids[0]: g.branches[0].piece for g in load_groups(data, load_tokenizer(tiny_weights)).train}
    shared = load_groups(spec.data, load_tokenizer(tiny_weights)).train
    walk = BatchStream(shared, spec.data.tokens_per_batch, seed=spec.seed).walk()
    rate = module.make_schedule(spec.optim, 6)
    for step, row in enumerate(metrics(order)):
        _, batch = next(walk)
        total, weight = torch.zeros(()), 0.0
        for id in batch.ids:
            tokens = torch.tensor(examples[id].tokens, dtype=torch.long)[None]
            weights = torch.tensor(examples[id].weights[1:])
            logits = theirs(input_ids=tokens).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            total = total + (losses * weights).sum()
            weight += float(weights.sum())
        loss = total / weight
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.optim.max_grad_norm)
        optimizer.param_groups[0]["lr"] = float(rate(np.int32(step)))
        optimizer.step()
    theirs.save_pretrained(Path(order["output_dir"]) / "peft")
    expected = load_file(Path(order["output_dir"]) / "peft" / "adapter_model.safetensors")
    found = load_file(Path(order["output_dir"]) / "adapter_model.safetensors")
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4)
