"""Optional writers of the metrics beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Each is an optional extra of this package and imported only when a spec names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from jora_core.base.errors import InputError
from jora_core.specs.common import REPORTER_PACKAGES, Reporter
from jora_core.specs.train import TrainSpec
from jora_core.training.reporting.mlflow_run import MLflowRun, attach_files
from jora_core.training.reporting.scalars import scalars

_MODULES = dict(REPORTER_PACKAGES)
_ID_LENGTH = 16
NOTHING: Mapping[str, str] = {}


class Writer(Protocol):
    """Destination of rows of metrics."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Record one row of metrics."""
        ...

    def close(self) -> None:
        """Write or send all recorded rows, and close the destination."""
        ...


def require_reporters(names: Sequence[Reporter]) -> None:
    """Check that the packages of the writers are installed, before any work is done.

    Raises:
        InputError: a package is missing. The message says what to install.
    """
    for name in names:
        # Found without importing it: wandb takes seconds to import, and may be needed only hours later.
        if find_spec(_MODULES[name]) is None:
            raise InputError(
                f"report_to: {name} needs the package {_MODULES[name]}; pip install 'jora-raft[{name}]'"
            )


def open_reporters(
    names: Sequence[Reporter],
    folder: Path,
    run_id: str,
    steps_done: int,
    settings: Mapping[str, Any],
    tags: Mapping[str, str] = NOTHING,
) -> list[Writer]:
    """Open the writers of a run.

    Args:
        names: names of the writers.
        folder: folder for the writers' files.
        run_id: id of the run, by which a resumed run continues its curves.
        steps_done: step of the checkpoint; later rows of a killed run are written again.
        settings: the spec, shown beside the curves.
        tags: what the training was made from, for a writer that keeps tags.

    Raises:
        InputError: a package is missing, or the service refuses the run.
    """
    require_reporters(names)
    make: dict[Reporter, Callable[[], Writer]] = {
        "tensorboard": lambda: _TensorBoard(folder / "tensorboard" / run_id[:_ID_LENGTH], steps_done),
        "wandb": lambda: _WandB(folder, run_id[:_ID_LENGTH], settings),
        "mlflow": lambda: MLflowRun(folder / "mlflow", run_id, steps_done, settings, tags),
    }
    return [make[name]() for name in dict.fromkeys(names)]


def report_folder(spec: TrainSpec) -> Path:
    """Return the folder of the curves of a training."""
    return spec.report_dir or spec.output_dir / "reports"


def report_outputs(spec: TrainSpec, run_id: str) -> None:
    """Hand the files of a finished training to the writers that keep files.

    Args:
        spec: spec of the training.
        run_id: id of the run, as for `open_reporters`.

    Raises:
        InputError: a service refuses a file.
    """
    if "mlflow" in spec.report_to:
        files = sorted(path for path in spec.output_dir.iterdir() if path.is_file())
        attach_files(report_folder(spec) / "mlflow", run_id, files)


class _TensorBoard:
    def __init__(self, folder: Path, steps_done: int) -> None:
        module = import_module(_MODULES["tensorboard"])
        try:
            # TensorBoard ignores what an earlier process wrote from `purge_step` on. Names of its files hold
            # the time in seconds: two processes within one second would share a file, and the second would
            # empty it, so the name gets the step and the process id too.
            self._writer = module.SummaryWriter(
                str(folder),
                purge_step=steps_done + 1,
                flush_secs=10,
                filename_suffix=f".{steps_done}.{os.getpid()}",
            )
        except OSError as err:
            raise InputError(f"cannot write to report folder {folder}: {err.strerror or err}") from None

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        wandb = import_module(_MODULES["wandb"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "jora"),
                id=run_id,
                dir=str(folder),
                # Continues the run of this id, or begins it.
                resume="allow",
                config=dict(settings),
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as err:
            line = " ".join(str(err).split())
            raise InputError(f"report_to: wandb: {line}; log in, or set WANDB_MODE=offline") from None

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()
