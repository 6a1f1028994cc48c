"""The other sides of `raft_epoch`: `transformers` + `peft` over padded batches, or over TRL's packed rows.

Padded: batches in random order, each as long as its longest example, with an attention mask. Packed: rows
made by TRL's own best-fit packing with its position ids, by which SDPA attention keeps their examples apart.
A worker of `harness`: settings come on stdin, then requests. Not run by hand.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import HostMemory, cores, serve
from sides.theirs import make_model
from sides.workload import Tokenised, read_examples, systematic

IGNORED = -100


def padded(rows: Sequence[Tokenised]) -> dict[str, torch.Tensor]:
    """Ids, labels and mask [B, longest] of a batch; labels only at answers."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), IGNORED, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        length = len(row.prompt) + len(row.answer)
        ids[number, :length] = np.concatenate([row.prompt, row.answer])
        labels[number, len(row.prompt) : length] = row.answer
        mask[number, :length] = 1
    found = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def padded_batches(
    rows: Sequence[Tokenised], size: int, seed: int
) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Batches of an epoch in random order, each with its number of records, the shortest first."""
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = [[rows[n] for n in order[start : start + size]] for start in range(0, len(rows), size)]
    batches = [batch for batch in batches if len(batch) == size]
    made = [(len(batch), padded(batch)) for batch in batches]
    return sorted(made, key=lambda batch: batch[1]["input_ids"].shape[1])


def packed_batches(rows: Sequence[Tokenised], length: int) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Rows of `length` tokens as TRL packs them, one a batch, each with its number of records."""
    # By name: they are of the extra `bench`, which type checking does without.
    pack_dataset = importlib.import_module("trl.data_utils").pack_dataset
    data = importlib.import_module("datasets").Dataset.from_list(
        [
            {
                "input_ids": np.concatenate([row.prompt, row.answer]).tolist(),
                "labels": [IGNORED] * len(row.prompt) + row.answer.tolist(),
            }
            for row in rows
        ]
    )
    made = []
    for row in pack_dataset(data, length, strategy="bfd"):
        sizes = row["seq_lengths"]
        labels = np.asarray(row["labels"], np.int64)
        starts = np.cumsum([0, *sizes[:-1]])
        labels[starts] = IGNORED  # the token before it is of another example
        found = {
            "input_ids": np.asarray(row["input_ids"], np.int64),
            "labels": labels,
            "position_ids": np.concatenate([np.arange(size) for size in sizes]),
        }
        made.append((len(sizes), {name: torch.from_numpy(values)[None] for name, values in found.items()}))
    return sorted(made, key=lambda batch: batch[1]["input_ids"].shape[1])


class Epoch:
    """The batches of an epoch, each with its number of records, and those that are timed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.rows = read_examples(Path(settings["examples"]))
        if settings["packed"]:
            self.batches = packed_batches(self.rows, settings["packed"])
        else:
            self.batches = padded_batches(self.rows, settings["batch"], settings["seed"])
        self.chosen = systematic(len(self.batches), settings["rounds"], settings["per_round"])


def build(settings: dict[str, Any]) -> dict[str, Any]:
    """Make the model and the batches of an epoch; the sampled ones are the work of the turns."""
    memory = HostMemory()
    torch.set_num_threads(cores())
    device = torch.device("cuda" if settings["device"] == "gpu" else "cpu")
    gpu = device.type == "cuda"
    epoch = Epoch(settings)
    model = make_model(settings, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=0.0, fused=gpu)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        there = {name: values.to(device) for name, values in batch.items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
            return model(**there, use_cache=False).loss

    def train(batch: dict[str, torch.Tensor]) -> float:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if gpu:
            torch.cuda.synchronize()
        return value

    def check(ids: Sequence[str]) -> dict[str, Any]:
        few = [row for row in epoch.rows if row.id in ids]
        made = (
            [batch for _, batch in packed_batches(few, settings["packed"])]
            if settings["packed"]
            else [padded(few)]
        )
        total = weight = 0.0
        with torch.no_grad():
            for batch in made:
                count = int((batch["labels"][:, 1:] != IGNORED).sum())
                total, weight = total + loss_of(batch).item() * count, weight + count
        return {"loss": total / weight, "records": len(few)}

    def warm() -> dict[str, Any]:
        train(epoch.batches[-1][1])  # the longest: what memory it takes is part of the epoch's peak
        return memory.warm()

    def step(step: int) -> dict[str, Any]:
        began = time.perf_counter()
        done = [epoch.batches[number] for number in epoch.chosen[step]]
        losses = [train(batch) for _, batch in done]
        return {
            "seconds": time.perf_counter() - began,
            "records": sum(count for count, _ in done),
            "padded": sum(batch["input_ids"].numel() for _, batch in done),
            "loss": losses[-1],
        }

    def about() -> dict[str, Any]:
        return {
            "microbatches": len(epoch.batches),
            "records": sum(count for count, _ in epoch.batches),
            "padded": sum(batch["input_ids"].numel() for _, batch in epoch.batches),
        }

    def report() -> dict[str, Any]:
        return memory.report() | ({"device_peak_bytes": torch.cuda.max_memory_allocated()} if gpu else {})

    def use(**changes: Any) -> dict[str, Any]:
        """Go on with other examples, or packed otherwise, over the same weights."""
        nonlocal epoch
        settings.update(changes)
        epoch = Epoch(settings)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        return {}

    return {"check": check, "warm": warm, "step": step, "about": about, "memory": report, "use": use}


if __name__ == "__main__":
    serve(build)
