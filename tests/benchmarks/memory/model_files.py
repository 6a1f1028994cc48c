"""Peak host memory of converting a GGUF file, of writing a folder as GGUF, and of exports.

    python tests/benchmarks/memory/model_files.py                    # Gemma 3 270M: 1.07 GB in float32
    python tests/benchmarks/memory/model_files.py --model smollm2-135m --json out.json

The model is fetched once (`jora fetch`). Each work is a process of its own; its peak is what the kernel
recorded since the process began (VmHWM), less that of an interpreter that does nothing. The exports merge an
adapter of rank 8 on all linear layers, with the verification that `jora run` does in the same process.
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
_EXPORT = """
from pathlib import Path
import jax
from jora_core.commands.export import export
from jora_core.specs.model_files import ExportSpec
export(ExportSpec(model=Path(sys.argv[1]), adapter=Path(sys.argv[2]), prompt={}, output_dir=Path(sys.argv[3]),
    formats=sys.argv[4].split(","), verify=sys.argv[5] == "verified"))
"""
_ADAPTER = """
from pathlib import Path
import jax
from jora_core.parameters.initialize import init_adapter
from jora_core.specs.lora import LoraSpec
from jora_core.weights.adapter_folder import save_adapter
from jora_core.weights.model_folder import read_model
spec = LoraSpec(r=8, target_modules="all-linear")
adapter = init_adapter(read_model(Path(sys.argv[1])), spec, jax.random.key(0))
save_adapter(jax.tree.map(lambda x: x + 0.01, adapter), Path(sys.argv[2]), spec, "base")
"""
# Of the process since it began: what `wait4` reports may be the peak of the process that has started it.
_REPORT = """
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def peak_megabytes(code: str, *arguments: str) -> float:
    """The largest resident memory of a Python process that runs some code, in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"import sys\n{code}{_REPORT}", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: a measured process ended with status {done.returncode}")
    return int(done.stdout.split()[-1]) / 1024


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
        peak_megabytes(_ADAPTER, str(folder), f"{name}/adapter")
        for formats, verified in (("hf,peft", ""), ("hf,peft", "verified"), ("hf,peft,gguf", "verified")):
            words = (str(folder), f"{name}/adapter", f"{name}/export", formats, verified)
            peaks[f"export {formats} {verified}".strip()] = peak_megabytes(_EXPORT, *words) - idle
    size = (folder / "model.safetensors").stat().st_size / 1e6
    for work, peak in peaks.items():
        print(f"{work:28} {peak:8.0f} MB above the interpreter's {idle:.0f} MB; the model has {size:,.0f} MB")
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
