"""The columns of `records.parquet`, the contract between building records and training on them.

`retrieval` and `jora_core` share only `jora_core.base`, so the column names are defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

#: Column → kind: "str", "bool", "int", "list" (of strings), "floats" or "ints" (lists). No value is null.
RECORD_COLUMNS: dict[str, str] = {
    "id": "str",
    "instruction": "str",
    "input": "str",
    "output": "str",
    "task": "str",
    "split": "str",
    "context_id": "str",
    "context_ids": "list",
    "oracle_ids": "list",
    "oracle_in_context": "bool",
    "gold": "list",
    "choices": "list",
    "source": "str",
    "source_row": "int",
}

#: Columns of records whose retriever learned how likely each choice is: the log-probabilities of `choices`.
#: They are empty for records without such a retriever.
LEARNED_RECORD_COLUMNS: dict[str, str] = {"choice_scores": "floats"}

#: Columns of channel records (Min et al. 2022, arXiv:2108.04106): what the model writes is the same for all
#: choices, `output`, and each of `choices` has an `input` of its own, before which `output` is more or less
#: likely. Empty for records whose answer names the choice.
CHANNEL_RECORD_COLUMNS: dict[str, str] = {"choice_inputs": "list"}

#: Columns that only some measures read, empty where the source does not have what they hold. `canonical` is
#: the canonical form of each of `gold` (tables). `facts` are supporting facts and `sentences` the numbered
#: sentences of the prompt with their places in `input` (documents), each as a JSON list.
EVIDENCE_RECORD_COLUMNS: dict[str, str] = {"canonical": "list", "facts": "list", "sentences": "list"}

#: Column of a build with questions that a model made: whether the record's question is one of them.
SYNTHETIC_RECORD_COLUMNS: dict[str, str] = {"synthetic": "bool"}

#: File of a training with the `id` of each record that the weights have learned from, and how many `times`.
TRAINED_RECORDS = "trained_records.parquet"

#: Columns that training needs, and those that it uses to find shared contexts where they are there.
TRAINING_COLUMNS = ("id", "instruction", "input", "output", "task", "split", "context_id")
TRAINING_OPTIONAL_COLUMNS = ("context_ids", "oracle_ids")

#: Columns that answering records needs, the one that choosing among answers needs beside them, those that are
#: used to find shared contexts where they are there, and those that channel records have.
ANSWERING_COLUMNS = ("id", "instruction", "input", "split", "task")
CHOICES_COLUMN = "choices"
ANSWERING_OPTIONAL_COLUMNS = ("context_id", "context_ids")
ANSWERING_CHANNEL_COLUMNS = ("output", *CHANNEL_RECORD_COLUMNS)


def is_channel(row: Mapping[str, Any]) -> bool:
    """Return whether a record is a channel record, see `CHANNEL_RECORD_COLUMNS`."""
    return bool(row.get("choice_inputs"))


def arrow_schema(columns: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the Arrow schema of columns by kind, with key-value metadata in sorted order.

    The metadata is sorted because it is part of the file, and equal records must give equal bytes.
    """
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "bool": pa.bool_(),
        "int": pa.int64(),
        "list": pa.list_(pa.string()),
        "floats": pa.list_(pa.float64()),
        "ints": pa.list_(pa.int64()),
    }
    fields = [pa.field(name, kinds[kind], nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=dict(sorted((metadata or {}).items())))


def answer_schema(*first: str) -> pa.Schema:
    """Return the Arrow schema of answers to records, with text columns of the names `first` behind the id.

    `choice_logprob` is the log-probability of the choice, and null without one. `choice_logprobs` are those
    of all choices of the record, in their order.
    """
    import pyarrow as pa

    kinds = {"choice_logprob": pa.float64(), "choice_logprobs": pa.list_(pa.float64())}
    names = ("id", *first, "system", "choice", "choice_logprob", "choice_logprobs", "text")
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])
