"""The MLflow run of a training: curves, settings as parameters, lineage as tags, and the written files.

Runs are kept where `MLFLOW_TRACKING_URI` says, else in a folder beside the curves. A training that continues
after a kill continues its run, which is found by the digest of the training in a tag.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from jora_core.training.reporting.scalars import scalars

EXPERIMENT = "jora"  # unless MLFLOW_EXPERIMENT_NAME names another one
RUN_TAG = "jora.training"
_LONGEST_VALUE = 500  # characters of a parameter, which every version of MLflow takes
_MOST_PARAMETERS = 100  # in one request


class MLflowRun:
    """The run of one training, open for writing."""

    def __init__(
        self,
        folder: Path,
        run_id: str,
        steps_done: int,
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Continue the run of a training, or begin it.

        Args:
            folder: folder of the runs where no server is named.
            run_id: digest of the training.
            steps_done: step of the checkpoint from which the training goes on.
            settings: the spec, whose values become parameters.
            tags: what the training was made from.

        Raises:
            InputError: the server cannot be reached, or refuses the run.
        """
        try:
            self._client = _client(folder)
            self._entities = import_module("mlflow.entities")
            found = _find(self._client, run_id)
            if found is None:
                found = self._client.create_run(
                    _experiment(self._client), tags={RUN_TAG: run_id, **tags}, run_name=run_id[:12]
                ).info.run_id
                self._log_parameters(found, settings)
            self._id = str(found)
            self._client.update_run(self._id, status="RUNNING")
            # MLflow keeps two values of one step. The steps after the checkpoint give the same values again.
            history = self._client.get_metric_history(self._id, "train/loss") if steps_done else []
            self._last_step = max((metric.step for metric in history), default=0)
        # Of the server, the network or the disk; each kind of store has its own.
        except Exception as error:
            raise _refused(error) from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Record one row of metrics."""
        if row["step"] <= self._last_step:
            return
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[
                self._entities.Metric(name, value, now, row["step"]) for name, value in scalars(row).items()
            ],
        )

    def close(self) -> None:
        """Note that no more rows come."""
        self._client.update_run(self._id, status="FINISHED")

    def _log_parameters(self, run: str, settings: Mapping[str, Any]) -> None:
        rows = [self._entities.Param(name, value) for name, value in _parameters(settings)]
        for start in range(0, len(rows), _MOST_PARAMETERS):
            self._client.log_batch(run, params=rows[start : start + _MOST_PARAMETERS])


def attach_files(folder: Path, run_id: str, files: Sequence[Path]) -> None:
    """Add the files that a training has written to its run.

    Args:
        folder: folder of the runs where no server is named.
        run_id: digest of the training.
        files: the files.

    Raises:
        InputError: the server cannot be reached, or refuses a file.
    """
    try:
        client = _client(folder)
        run = _find(client, run_id)
        for file in files if run is not None else ():
            client.log_artifact(run, str(file))
    except Exception as error:
        raise _refused(error) from None


def _client(folder: Path) -> Any:
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        # A folder of files needs no server and no database. MLflow advises against it for teams, and refuses
        # it unless it is asked for by this variable.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        folder.mkdir(parents=True, exist_ok=True)
        address = folder.resolve().as_uri()
    return import_module("mlflow.tracking").MlflowClient(tracking_uri=address)


def _experiment(client: Any) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id


def _find(client: Any, run_id: str) -> str | None:
    # A filter on a tag is a text of SQL; the digest has hexadecimal digits only.
    runs = client.search_runs([_experiment(client)], filter_string=f"tags.`{RUN_TAG}` = '{run_id}'")
    return runs[0].info.run_id if runs else None


def _parameters(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings by dotted name. A longer value is cut, and ends with three dots."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _parameters(child, f"{prefix}.{name}" if prefix else str(name))
        return
    text = str(value)
    yield prefix, text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _refused(error: Exception) -> InputError:
    line = " ".join(str(error).split())
    return InputError(f"report_to: mlflow: {line:.300}; check MLFLOW_TRACKING_URI, or unset it for a folder")
