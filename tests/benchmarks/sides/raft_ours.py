"""Our side of `raft_epoch`: an epoch's microbatches through the real grouping, packing and training step.

A worker of `harness`: settings come on stdin, then requests. Not run by hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from harness import HostMemory, serve
from sides.ours import make_adapter, make_weights, order
from sides.workload import Tokenised, read_examples, systematic

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import Batch, BatchStream
from jora_core.data.examples import most_slots
from jora_core.data.shared_context import Example, Group, plain_group, share_contexts
from jora_core.model.blockwise_attention import fitting_block
from jora_core.parallel.mesh import make_mesh
from jora_core.training.optimizer import make_schedule
from jora_core.training.train_step import build_step


def grouped(settings: dict[str, Any], rows: Sequence[Tokenised]) -> list[Group]:
    """Examples shared as training shares them, or apart."""
    examples = [Example(r.id, r.context, r.prompt, r.answer) for r in rows]
    if settings["sharing"] == "off":
        return [plain_group(example) for example in examples]
    return share_contexts(examples, most_slots(order(settings).data))


class Epoch:
    """An epoch of some examples as training would plan it, and the microbatches that are timed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        spec = order(settings)
        self.rows = read_examples(Path(settings["examples"]))
        self.groups = grouped(settings, self.rows)
        self.stream = BatchStream(self.groups, spec.data.tokens_per_batch, seed=settings["seed"])
        # A row of 4,096 slots with a tenth less in it costs less attention, not less of anything else.
        self.plans = sorted(
            self.stream.plan(0),
            key=lambda p: (p.length, sum(len(self.groups[n].branches) for r in p.rows for n in r)),
        )
        self.chosen = systematic(len(self.plans), settings["rounds"], settings["per_round"])


def build(settings: dict[str, Any]) -> dict[str, Any]:
    """Make the model and plan an epoch; the sampled microbatches are the work of the turns."""
    memory = HostMemory()

    def device() -> dict[str, Any]:
        first = jax.devices()[0]
        return {"platform": first.platform, "name": first.device_kind}

    if settings.get("probe"):
        return {"device": device}
    config = ModelConfig.from_hf(Path(settings["folder"]))
    spec = order(settings)
    epoch = Epoch(settings)
    mesh = make_mesh()
    jax.set_mesh(mesh)
    frozen = make_weights(settings, config)
    adapter = make_adapter(settings, config, spec)
    block = fitting_block(epoch.stream.sample_of_until())
    functions = build_step(config, spec, mesh, make_schedule(spec.optim, 1000), adapter, block)
    state = functions.start(adapter)
    sums = functions.zero(state)

    def train(batch: Batch) -> float:
        nonlocal state, sums
        sums = functions.accumulate(sums, state, frozen, functions.place(batch), 0)
        state, sums, metrics = functions.update(state, sums)
        loss = float(metrics.loss)
        jax.block_until_ready(state)
        return loss

    def check(ids: Sequence[str]) -> dict[str, Any]:
        few = grouped(settings, [row for row in epoch.rows if row.id in ids])
        checked = BatchStream(few, spec.data.tokens_per_batch, seed=0)
        batches = [checked.build(plan) for plan in checked.plan(0)]
        found = [functions.evaluate(state, frozen, functions.place(batch)) for batch in batches]
        loss, weight = (sum(float(pair[i]) for pair in found) for i in (0, 1))
        return {"loss": loss / weight, "records": sum(len(batch.ids) for batch in batches)}

    def warm() -> dict[str, Any]:
        """One step of each shape, without a trace of it in the weights' later steps that anyone looks at."""
        for length in epoch.stream.row_lengths:
            plan = next((plan for plan in epoch.plans if plan.length == length), None)
            if plan is not None:
                train(epoch.stream.build(plan))
        return memory.warm()

    def step(step: int) -> dict[str, Any]:
        began = time.perf_counter()
        done = [epoch.stream.build(epoch.plans[number]) for number in epoch.chosen[step]]
        losses = [train(batch) for batch in done]
        return {
            "seconds": time.perf_counter() - began,
            "records": sum(len(batch.ids) for batch in done),
            "slots": sum(batch.slots for batch in done),
            "padded": sum(batch.tokens.size for batch in done),
            "loss": losses[-1],
        }

    def about() -> dict[str, Any]:
        return {
            "microbatches": len(epoch.plans),
            "records": sum(len(group.ids) for group in epoch.groups),
            "groups": len(epoch.groups),
            "slots": sum(group.slots for group in epoch.groups),
            "padded": int(sum(epoch.stream.build(plan).tokens.size for plan in epoch.plans)),
            "row_lengths": list(epoch.stream.row_lengths),
        }

    def report() -> dict[str, Any]:
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return memory.report() | ({} if peak is None else {"device_peak_bytes": peak})

    def use(**changes: Any) -> dict[str, Any]:
        """Go on with other examples, or another sharing, over the same weights."""
        nonlocal epoch
        settings.update(changes)
        epoch = Epoch(settings)
        return {}

    return {"check": check, "warm": warm, "step": step, "about": about, "memory": report, "use": use}


if __name__ == "__main__":
    serve(build)
