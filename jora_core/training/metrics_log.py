"""The metrics of a run: a log with one JSON line for each step, and the progress display."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError
from jora_core.base.progress import SECONDS_BETWEEN_LINES, ProgressBars
from jora_core.training.reporting.reporters import Writer


class MetricsLog:
    """Log of metrics: ``metrics.jsonl`` in the output folder, and a copy beside the checkpoints.

    The output folder may be emptied between two attempts, the checkpoint folder is not. A resumed run starts
    from the copy and drops the rows after the checkpoint's step, so no step is written twice. All processes
    keep the rows in memory, and one process writes them.
    """

    def __init__(
        self, output: Path, kept: Path, steps_done: int, writers: Sequence[Writer] = (), writes: bool = True
    ) -> None:
        """Open the log and its copy.

        Args:
            output: path of the log in the output folder.
            kept: path of the copy beside the checkpoints.
            steps_done: step of the checkpoint; later rows of the copy are dropped.
            writers: further destinations of each row.
            writes: whether this process writes.

        Raises:
            InputError: a file cannot be written.
        """
        # A run from step 0 takes nothing from an earlier run in the same folder.
        rows = [row for row in _read_rows(kept) if row["step"] <= steps_done] if steps_done else []
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.rows: list[dict[str, Any]] = rows
        self._writers = tuple(writers)
        self._files: list[IO[str]] = []
        for path in (kept, output) if writes else ():
            try:
                # The file is rewritten first: a killed run may have logged steps after its last checkpoint.
                write_bytes(path, text.encode())
                self._files.append(path.open("a", encoding="utf-8"))
            except OSError as err:
                raise InputError(f"cannot write {path}: {err.strerror or err}") from None

    def write(self, row: dict[str, Any]) -> None:
        """Append one row. Readers of the file see each whole line at once."""
        self.rows.append(row)
        for file in self._files:
            file.write(json.dumps(row) + "\n")
            # Flushed, so that those who follow the file see the step. No fsync: each step would wait for the
            # disk.
            file.flush()
        for writer in self._writers:
            writer.write(row)

    def close(self) -> None:
        """Close the files and the writers."""
        for writer in self._writers:
            writer.close()
        for file in self._files:
            file.close()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a kill may cut the last line short
            break
    return rows


class StepProgress:
    """Progress display of a run's steps: a bar on a terminal, plain lines at intervals elsewhere."""

    def __init__(self, total: int, done: int, shown: bool = True) -> None:
        self._total = total
        # In the past of the monotonic clock, so the first step gives a line.
        self._next_line = 0.0
        self._bars = ProgressBars(shown=shown)
        self._bars.open()
        self._bars.start("training", total, done)

    def step(self, row: dict[str, Any]) -> None:
        """Show one row of metrics. Rows with a validation loss and the last row always give a plain line."""
        text = f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {row['tokens_per_s']:,.0f} tokens/s"
        if "validation_loss" in row:
            text += f"  validation {row['validation_loss']:.4f}"
        if self._bars.on_terminal:
            self._bars.show("training", row["step"], self._total, text)
        elif time.monotonic() >= self._next_line or row["step"] == self._total or "validation_loss" in row:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self._bars.say(f"step {row['step']}/{self._total}  {text}")

    def say(self, line: str) -> None:
        """Print a message line above the bar."""
        self._bars.say(line)

    def close(self) -> None:
        """Remove the bar."""
        self._bars.close()
