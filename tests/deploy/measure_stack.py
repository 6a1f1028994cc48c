"""Print what the processes of deploy/native/stack.py take: ``python -m tests.deploy.measure_stack``.

It starts the stack in a temporary folder, waits a minute, and prints the memory of each process with its
helpers (proportional set size, so shared pages count once) and the size of the databases. The table of
docs/operations.md has its output.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy" / "native"))
import stack  # pyright: ignore[reportMissingImports]

SETTLE_SECONDS = 60


def memory_by_command() -> dict[str, int]:
    """Proportional set size in bytes of our descendants, by the name of their log file."""
    found: dict[str, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            log = (folder / "fd" / "2").readlink()
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        if log.parent.name == "logs" and log.suffix == ".log":
            pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            found[log.stem] = found.get(log.stem, 0) + 1024 * pss
    return found


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Start the stack, measure it, and print a table."""
    folder = Path(tempfile.mkdtemp(prefix="jora-stack-"))
    folder.chmod(0o711)
    began = time.monotonic()
    try:
        with stack.stack(folder):
            print(f"started in {time.monotonic() - began:.0f} s")
            time.sleep(SETTLE_SECONDS)
            for name, taken in sorted(memory_by_command().items()):
                print(f"{name:12} {taken / 2**20:7.0f} MB of memory")
            for name in ("postgres", "redis"):
                print(f"{name:12} {size(folder / name) / 2**20:7.0f} MB on disk")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
