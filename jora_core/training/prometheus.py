"""Prometheus metrics of a training run, on the port of the variable `JORA_METRICS_PORT`.

The port belongs to the machine and not to the run, so it is no setting. Training is a child process: the
endpoint is there while it trains, and Prometheus keeps what it has read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from jora_core.base.errors import InputError
from jora_core.training.reporting.reporters import Writer

PORT_VARIABLE = "JORA_METRICS_PORT"
ADDRESS_VARIABLE = "JORA_METRICS_ADDRESS"
RUN_LETTERS = 16

# Field of a row of metrics, name of the gauge, help text.
GAUGES = (
    ("step", "jora_train_step", "Steps done"),
    ("loss", "jora_train_loss", "Mean loss of a supervised token of the last step"),
    ("validation_loss", "jora_train_validation_loss", "Loss of the last evaluation"),
    ("learning_rate", "jora_train_learning_rate", "Learning rate of the last step"),
    ("grad_norm", "jora_train_gradient_norm", "Norm of the last gradient, before clipping"),
    ("tokens_per_s", "jora_train_tokens_per_second", "Token slots a second, mean of the last steps"),
    ("seconds", "jora_train_step_seconds", "Time of the last step"),
    (
        "peak_memory_bytes",
        "jora_train_peak_memory_bytes",
        "Peak memory of a device, or of the process on a CPU",
    ),
)
COUNTERS = (
    ("tokens", "jora_train_tokens", "Token slots computed by this process"),
    ("supervised_tokens", "jora_train_supervised_tokens", "Tokens with a loss"),
    ("records", "jora_train_records", "Records trained on"),
)


def open_endpoint(
    run_id: str, steps: int, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> list[Writer]:
    """Start the endpoint of a run; return its writer, or nothing without a port in the environment.

    Args:
        run_id: id of the run, the value of the label `run`. A resumed run has the same id.
        steps: steps of the whole run.
        say: called with one line if the port is in use.
        environment: variables, of which JORA_METRICS_PORT and JORA_METRICS_ADDRESS (default:
            127.0.0.1) are read.

    Raises:
        InputError: the port is not a number.
    """
    text = environment.get(PORT_VARIABLE)
    if not text:
        return []
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise InputError(f"{PORT_VARIABLE}: {text!r} is no port; set a number from 1 to 65535, or unset it")
    try:
        return [_Endpoint(int(text), environment.get(ADDRESS_VARIABLE) or "127.0.0.1", run_id, steps)]
    except OSError as error:
        # Two runs on one machine, or a process of an earlier run: training must not fail for its curves.
        say(f"{PORT_VARIABLE}: no metrics, port {text} cannot be opened: {error.strerror or error}")
        return []


class _Endpoint:
    """Writer of rows of metrics to gauges, which a thread serves."""

    def __init__(self, port: int, address: str, run_id: str, steps: int) -> None:
        registry = CollectorRegistry()
        # Opened first, so that nothing is left over if the port is in use.
        self._server, self._thread = start_http_server(port, addr=address, registry=registry)
        label = {"run": run_id[:RUN_LETTERS]}
        self._gauges = {field: Gauge(name, text, ["run"], registry=registry) for field, name, text in GAUGES}
        self._counters = {
            field: Counter(name, text, ["run"], registry=registry) for field, name, text in COUNTERS
        }
        self._label = label
        Gauge("jora_train_steps", "Steps of the whole run", ["run"], registry=registry).labels(**label).set(
            steps
        )
        # An alert compares it with the time, and so notices a run that stands still.
        self._last = Gauge(
            "jora_train_last_step_timestamp_seconds", "Unix time of the last step", ["run"], registry=registry
        ).labels(**label)
        self._last.set_to_current_time()

    def write(self, row: Mapping[str, Any]) -> None:
        """Set the gauges to the values of a row, and add to the counters."""
        for field, gauge in self._gauges.items():
            if field in row:
                gauge.labels(**self._label).set(row[field])
        for field, counter in self._counters.items():
            counter.labels(**self._label).inc(row.get(field, 0))
        self._last.set_to_current_time()

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
