"""Messages about runs reach a web hook, and a message that cannot be sent fails no run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows.orchestration.notifications import notified
from jora_core.base.errors import InputError
from tests.flows.conftest import Project


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Address of a local receiver, and the messages that it has got."""
    messages: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", messages
        server.shutdown()


def test_messages_reach_a_web_hook(
    project: Project,
    received: tuple[str, list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.blocks.core import Block
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    url, messages = received
    block = CustomWebhookNotificationBlock(
        name="hook", url=url, method="POST", json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    loaded: list[str] = []
    monkeypatch.setattr(Block, "load", lambda name: loaded.append(name) or block)
    config = project.config("notify=custom-webhook/hook")
    with notified(config):
        pass
    with pytest.raises(RuntimeError), notified(config):
        raise RuntimeError("the disk is gone\nand more")
    assert loaded == ["custom-webhook/hook"] * 2
    assert [message["subject"] for message in messages] == ["pipeline: run finished", "pipeline: run failed"]
    assert messages[1]["body"] == "the disk is gone"


def test_a_message_that_cannot_be_sent_fails_no_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.blocks.core import Block

    def load(name: str) -> None:
        raise ValueError(f"no block {name}")

    monkeypatch.setattr(Block, "load", load)
    with notified(project.config("notify=[slack-webhook/team]")):
        pass
    assert "slack-webhook/team: the message was not sent (no block slack-webhook/team)" in caplog.text
    with pytest.raises(InputError, match="expected the name of a Prefect block"):
        project.config("notify=team")
