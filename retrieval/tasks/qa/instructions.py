"""Records of instructions with answers (the Alpaca layout), taught verbatim and without retrieval.

The records belong to the `qa` task, but each has its own instruction instead of that of the task. The prompt
has no retrieved text, so `context_ids` and `oracle_ids` are empty, and each record is a context of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.corpus.mapped_items import Items, load_array, save_array, write_items
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.guards.splits import cap, require_training, split_of
from retrieval.readers.documents.instructions import Triple, read_triples
from retrieval.settings.context import ContextConfig
from retrieval.tasks.qa.inputs import document_files
from retrieval.text.normalize import duplicate_key

TRIPLES = "triples.arrow"


def prepare(config: ContextConfig, folder: Path, report: TaskReport, progress: Progress) -> int:
    """Read, split and limit the instructions, and write them to `folder`. Return the number of records to
    build.

    Args:
        config: the configuration, with a `qa` section.
        folder: folder of the prepared files.
        report: counts what was read and dropped.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.qa
    assert task is not None
    progress("qa: read", 0, 0)
    triples = write_items(
        folder / TRIPLES, Triple, read_triples(document_files(task), report.tally, task.format)
    )
    prompts = zip(triples.column("instruction"), triples.column("input"), strict=True)
    # By content, so that an instruction that comes twice is on one side of the split.
    splits = [split_of(config.seed, duplicate_key(*pair).hex(), config.test_share) for pair in prompts]
    require_training(splits, "qa", "instructions")
    kept = cap(
        range(len(triples)),
        split=lambda number: splits[number],
        context=lambda number: triples.value("id", number),
        name=lambda number: triples.value("id", number),
        limits=(task.max_records, task.max_test_records),
        seed=config.seed,
        tally=report.tally,
    )
    save_array(folder / "kept.npy", np.array(kept, dtype=np.int64))
    # "U5" holds "train" and "test".
    save_array(folder / "split.npy", np.array(splits, dtype="U5"))
    return len(kept)


def is_prepared(folder: Path) -> bool:
    """Return whether `prepare` has filled the folder."""
    return (folder / TRIPLES).is_file()


@dataclass(frozen=True)
class InstructionsWork:
    """The prepared files of the instructions, opened to build records."""

    triples: Items[Triple]
    kept: np.ndarray
    split: np.ndarray

    def build(self, low: int, high: int, report: TaskReport) -> Iterator[tuple[dict[str, Any], None]]:
        """Yield (record, None) of the instructions `low` to `high - 1`, in source order.

        Args:
            low: number of the first instruction.
            high: number after the last instruction.
            report: counts the records. None is dropped here.
        """
        for place in self.kept[low:high].tolist():
            yield _record(self.triples[place], str(self.split[place])), None


def open_work(folder: Path) -> InstructionsWork:
    """Open the files that `prepare` wrote."""
    arrays = [load_array(folder / f"{name}.npy") for name in ("kept", "split")]
    return InstructionsWork(Items(folder / TRIPLES, Triple), *arrays)


def _record(triple: Triple, split: str) -> dict[str, Any]:
    return {
        "id": f"qa:{triple.id}",
        "instruction": triple.instruction,
        "input": triple.input,
        "output": triple.output,
        "task": "qa",
        "split": split,
        "context_id": triple.id,
        "context_ids": [],
        "oracle_ids": [],
        # There is no context, so the record does not count as one with the right document.
        "oracle_in_context": False,
        "gold": [triple.output],
        "choices": [],
        "source": triple.source,
        "source_row": triple.row,
    }
