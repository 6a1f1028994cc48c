"""Shared stores for tests: on a moto server, in memory and in a folder; and a machine as a process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.engine.run_stage import run_stages
from flows.engine.shared.remote_files import RemoteFiles
from flows.engine.shared.shared_store import open_store
from flows.orchestration.prefect_server import free_port
from tests.flows.toy_pipeline import TOY_STAGES, toy_config

ROOT = Path(__file__).resolve().parents[4]


@contextmanager
def moto_server(folder: Path) -> Iterator[dict[str, str]]:
    """A server that speaks S3, with the bucket `bucket`; yields the environment of its clients."""
    port = free_port()
    # A process of its own: clients of other processes, and a kill of one, must not touch it.
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=(folder / "moto.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test-access",
        "AWS_SECRET_ACCESS_KEY": "test-secret-of-nobody",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        code = (
            "import time, boto3\n"
            "for _ in range(300):\n"
            "    try:\n"
            "        boto3.client('s3').create_bucket(Bucket='bucket'); break\n"
            "    except Exception: time.sleep(0.2)\n"
            "else: raise SystemExit('moto does not answer')\n"
        )
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, check=True)
        yield environment
    finally:
        process.terminate()
        process.wait()


def machine(
    folder: Path, cache: str, url: str, *, environment: dict[str, str], term: float = 2.0
) -> subprocess.Popen[str]:
    """Start the toy pipeline over `folder` as another machine would: with a local folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.flows.engine.shared.shared_stores", str(folder), cache, url, str(term)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main(folder: str, cache: str, url: str, term: str) -> None:
    """Run the toy pipeline without Prefect; print its stages as JSON, and what it says as lines.

    With `HANG_BEFORE` in the environment, it hangs before it writes a file whose name begins so.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("jora").setLevel(logging.INFO)
    if before := os.environ.get("HANG_BEFORE"):
        write = RemoteFiles.write

        def hang(self: RemoteFiles, name: str, data: bytes) -> None:
            if name.startswith(before):
                print("hangs", file=sys.stderr, flush=True)
                time.sleep(1000)
            write(self, name, data)

        RemoteFiles.write = hang
    config = toy_config(
        Path(folder),
        store=url,
        store_cache=str(Path(folder) / cache),
        retries={"lease_seconds": float(term)},
    )
    done = run_stages(
        TOY_STAGES,
        config,
        open_store(config),
        TOY_STAGES,
        on_stage=lambda name, line: print(f"{name}: {line}", file=sys.stderr, flush=True),
    )
    print(json.dumps({item.stage: item.cached for item in done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
