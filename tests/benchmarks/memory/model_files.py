"""Peak host memory of converting a GGUF file to a model folder and of writing a folder as GGUF.

    python tests/benchmarks/memory/model_files.py                    # Gemma 3 270M: 1.07 GB in float32
    python tests/benchmarks/memory/model_files.py --model smollm2-135m --json out.json

The model is fetched once (`jora fetch`). Each work is a process of its own; its peak is what the kernel
recorded, less that of an interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from flows.commands.models.fetch import fetch_model  # noqa: E402
from flows.configuration.fetched_models import MODELS  # noqa: E402

_CONVERT = """
from pathlib import Path
from jora_core.weights.gguf.convert_gguf import convert_gguf
convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
"""
_WRITE = """
from pathlib import Path
from jora_core.weights.gguf.write_gguf import write_gguf
from jora_core.weights.model_folder import read_model
write_gguf(Path(sys.argv[1]), read_model(Path(sys.argv[1])), Path(sys.argv[2]), "q8_0", "measured")
"""


def peak_megabytes(code: str, *arguments: str) -> float:
    """The largest resident memory of a Python process that runs some code, in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", f"import sys\n{code}", *arguments], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: a measured process ended with status {status}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="gemma3-270m")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    given = parser.parse_args()
    folder = fetch_model(given.model)
    file = folder.parent / MODELS[given.model].file
    idle = peak_megabytes("")
    with tempfile.TemporaryDirectory() as name:
        peaks = {
            "convert": peak_megabytes(_CONVERT, str(file), f"{name}/hf") - idle,
            "write q8_0": peak_megabytes(_WRITE, str(folder), f"{name}/model.gguf") - idle,
        }
    size = (folder / "model.safetensors").stat().st_size / 1e6
    for work, peak in peaks.items():
        print(f"{work:12} {peak:8.0f} MB above the interpreter's {idle:.0f} MB; the model has {size:,.0f} MB")
    if given.json:
        result: dict[str, Any] = {
            "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
            "settings": {"model": given.model, "model_mb": round(size)},
            "results": [{"work": work, "peak_mb": round(peak)} for work, peak in peaks.items()],
            "ratios": {work: round(peak / size, 3) for work, peak in peaks.items()},
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
