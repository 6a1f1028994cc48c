"""Becomes `sitecustomize` of the processes that a test starts: toy stages, and only loopback to reach."""

import os
import sys
from pathlib import Path

sys.path.insert(0, os.environ["TOY_ROOT"])

if "TOY_NETWORK_LOG" in os.environ:
    attempts = Path(os.environ["TOY_NETWORK_LOG"])

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        """Note and refuse whatever would leave this machine: connections, datagrams, look-ups of names."""
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
                note(event, address)
        elif event == "socket.getaddrinfo" and arguments[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
            None,
            "",
        ):
            note(event, arguments)

    def note(event: str, what: object) -> None:
        """Write one line for an attempt, then refuse it."""
        with attempts.open("a") as lines:
            lines.write(f"{event} {what} by {sys.argv}\n")
        raise OSError(f"refused: {event} {what}")

    sys.addaudithook(refuse)
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # it connects without Python's audit events

from flows import stages
from flows.orchestration import run_pipeline
from tests.flows.toy_pipeline import TOY_STAGES

stages.STAGES.clear()  # type: ignore[attr-defined]
stages.STAGES.update(TOY_STAGES)  # type: ignore[attr-defined]
run_pipeline.pipeline_references = lambda *_: None
