"""A child command of the tests: it does what ``act`` in its spec says."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    """Do the act of the spec; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    spec = json.loads(parser.parse_args().spec.read_text())
    out = Path(spec["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    act = spec["act"]
    if act == "bar":
        for step in range(4):
            print(f"\rstep {step} of 3", end="", file=sys.stderr, flush=True)
        print(f"\nterminal: {sys.stderr.isatty()}", file=sys.stderr)
    elif act == "speak":
        print("one\ntwo, ", end="", flush=True)
        # The first line is heard while this waits.
        while not (out / "heard").exists():
            time.sleep(0.01)
        print("three", flush=True)
        print("a note", file=sys.stderr)
    elif act == "refuse":
        print("some notice\nerror: records.parquet: column 'gold' is missing", file=sys.stderr)
        return 2
    elif act == "crash":
        raise ZeroDivisionError("a bug")
    elif act == "memory":
        print("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes", file=sys.stderr)
        return 1
    elif act == "suicide":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "leave-helper":
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (out / "helper").write_text(str(helper.pid))
    elif act == "long":

        def checkpoint(*_: object) -> None:
            (out / "checkpoint").write_text("saved")
            sys.exit(143)

        signal.signal(signal.SIGTERM, checkpoint)
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (out / "pids.tmp").write_text(f"{os.getppid()} {os.getpid()} {helper.pid}")
        (out / "pids.tmp").rename(out / "pids")
        time.sleep(600)
    if act != "no-result":
        (out / "result.json").write_text(json.dumps({"act": act}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
