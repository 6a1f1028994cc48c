"""The endpoint of a training run, read over HTTP as Prometheus does."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jora_core.base.errors import InputError
from jora_core.training.prometheus import open_endpoint

ROW = {"step": 3, "loss": 1.5, "tokens": 100, "supervised_tokens": 10, "records": 4, "seconds": 0.5}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read(port: int) -> dict[str, float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["run"] for sample in samples} == {"0123456789abcdef"}
    return {sample.name: sample.value for sample in samples}


def endpoint(port: int | str, said: list[str]):
    variables = {"JORA_METRICS_PORT": str(port), "JORA_METRICS_ADDRESS": "127.0.0.1"}
    return open_endpoint("0123456789abcdef0123", 8, said.append, variables)


def test_rows_become_metrics() -> None:
    port, said = free_port(), []
    (writer,) = endpoint(port, said)
    try:
        assert read(port)["jora_train_steps"] == 8
        writer.write(ROW)
        writer.write({**ROW, "step": 4, "loss": 1.25, "validation_loss": 2.0})
        found = read(port)
    finally:
        writer.close()
    assert found["jora_train_step"] == 4 and found["jora_train_loss"] == 1.25
    assert found["jora_train_validation_loss"] == 2.0 and found["jora_train_tokens_total"] == 200
    assert found["jora_train_last_step_timestamp_seconds"] > 1.7e9 and not said
    # Closed: the next training of the same worker opens the same port.
    (again,) = endpoint(port, said)
    again.close()
    assert not said


def test_no_port_no_endpoint() -> None:
    assert open_endpoint("x", 8, print, {}) == []


def test_a_port_in_use_stops_no_training() -> None:
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert endpoint(taken.getsockname()[1], said) == []
    assert len(said) == 1 and "JORA_METRICS_PORT: no metrics" in said[0] and "in use" in said[0]


@pytest.mark.parametrize("text", ["eighty", "0", "65536", "-1"])
def test_a_wrong_port_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no port"):
        endpoint(text, [])
