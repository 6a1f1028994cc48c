"""Savings of shared contexts: token slots of a spec's records with and without sharing.

The records are tokenised, grouped and packed as in training, without a device. Token ids are read from the
token cache of an earlier run if there is one. Without cached ids, only the first records are counted, and
nothing is written to the cache.
"""

from __future__ import annotations

from typing import Any

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.batches import BatchStream
from jora_core.data.examples import cached, load_groups
from jora_core.data.records import selected_records
from jora_core.data.row_packing import batch_rows
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.planning import SharingSpec


def count_sharing(spec: SharingSpec) -> dict[str, Any]:
    """Count records, groups, token slots with and without sharing, and microbatches of the first epoch.

    Raises:
        InputError: the records or the tokenizer cannot be used, or nothing is selected.
    """
    config = ModelConfig.from_hf(spec.model)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    data = spec.data
    selected = selected_records(data)
    # Looked up before the selection is cut: the key of a cached file includes `max_records`.
    has_ids = cached(data, tokenizer)
    exact = has_ids or selected <= spec.most_records
    if not has_ids:
        # A plan writes no cache, and a training run could not use the token ids of a sample.
        data = data.model_copy(update={"cache_dir": None})
    if not exact:
        data = data.model_copy(update={"max_records": spec.most_records})
    found = load_groups(data, tokenizer, spec.seed, blocks=spec.mesh.data)
    stream = BatchStream(found.train, data.tokens_per_batch, seed=spec.seed, blocks=spec.mesh.data)
    plans = stream.plan(0)
    shapes = {plan.length for plan in plans}
    # The shape with the most slots takes the most memory: `jora plan` compiles a step for it.
    fullest = max(stream.row_lengths, key=lambda n: n * batch_rows(n, data.tokens_per_batch, spec.mesh.data))
    batch = stream.build(
        # A length may be chosen that no batch of this epoch has.
        next(plan for plan in plans if plan.length == fullest) if fullest in shapes else plans[0]
    )
    rows, length = batch.tokens.shape
    counts = found.counts
    return {
        "records": counts["records"],
        "records_selected": selected,
        "exact": exact,
        "groups": counts["groups"],
        "examples": counts["examples"],
        "tokens": counts["slots"],
        "tokens_apart": counts["slots_apart"],
        "factor": round(counts["slots_apart"] / max(counts["slots"], 1), 3),
        "microbatches": len(plans),
        "padded_tokens": sum(
            plan.length * batch_rows(plan.length, data.tokens_per_batch, spec.mesh.data) for plan in plans
        ),
        "row_lengths": list(stream.row_lengths),
        "fullest": {"rows": rows, "seq_len": length, "answer_tokens": -(-batch.index.size // rows)},
    }
