"""The server of llama.cpp in a process of its own, and a proxy before it that counts what is asked.

The package xllamacpp (extra `dev`) has llama.cpp and its server compiled in its wheels.

    python tests/flows/teachers/llama_server.py FILE.gguf --port 8000

serves a GGUF file until its standard input ends.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from jora_core.base.digests import json_digest

#: Requests that the server answers at once. A token of four answers takes little longer than that of one.
SLOTS = 4
#: Tokens of a prompt and its answer.
_CONTEXT = 2048
_SECONDS = 600


def main() -> None:
    """Serve the file of the command line, and print the address."""
    # Here: the tests import this module for its other functions, and may not have the package. It is a
    # compiled one without types.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.port = str(given.file), given.port
    params.n_parallel, params.n_ctx, params.n_gpu_layers = SLOTS, SLOTS * _CONTEXT, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.warmup, params.verbosity = False, -1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@dataclass(frozen=True)
class LlamaServer:
    """A running server.

    Attributes:
        url: its address, which ends in /v1.
        process: its process.
    """

    url: str
    process: subprocess.Popen[str]

    def processor_seconds(self) -> float:
        """Return the processor time of the server so far (Linux)."""
        # Behind the name in brackets, which may hold blanks: fields 14 and 15 of proc(5).
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def llama_server(file: Path) -> Iterator[LlamaServer]:
    """Serve a GGUF file in a child process.

    Args:
        file: the GGUF file.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        # Printed when the model is loaded; empty if the process has ended.
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"llama.cpp cannot serve {file}: exit status {process.wait()}")
        yield LlamaServer(f"{address}/v1", process)
    finally:
        process.kill()
        process.wait()


@dataclass
class Counted:
    """What a proxy has seen.

    Attributes:
        url: address of the proxy.
        requests: requests of each prompt, by the id that the store gives it.
        answered: replies of each prompt that were sent to their ends.
        with_schema: requests with a JSON schema.
        statuses: replies of the server by status.
    """

    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    with_schema: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _handler(server: str, counted: Counted) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(content)
            # As the store names a request.
            prompt = json_digest([message["content"] for message in body["messages"]])
            with counted.lock:
                counted.requests[prompt] += 1
                counted.with_schema += "response_format" in body
            reply = httpx.post(
                f"{server}{self.path.removeprefix('/v1')}",
                content=content,
                headers={"Content-Type": "application/json"},
                timeout=_SECONDS,
            )
            with counted.lock:
                counted.statuses[reply.status_code] += 1
            try:
                self.send_response(reply.status_code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)
            except OSError:  # the client is gone
                return
            with counted.lock:
                counted.answered[prompt] += 1

    return Handler


@contextmanager
def counting_proxy(server: str) -> Iterator[Counted]:
    """Forward requests to a server and count them; yield the counts.

    Args:
        server: its address, which ends in /v1.
    """
    counted = Counted()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server, counted))
    proxy.daemon_threads = True
    counted.url = f"http://127.0.0.1:{proxy.server_address[1]}/v1"
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield counted
    finally:
        proxy.shutdown()
        proxy.server_close()


if __name__ == "__main__":
    main()
