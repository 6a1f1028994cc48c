"""Check every tensor of a Hugging Face model folder, and describe the model in a file.

``python -m jora_core.commands.check_model --spec FILE`` writes ``model.json`` (config; shape, type and
SHA-256 of each tensor) and ``result.json``. The weights are not copied: training and export read slices of
the same folder.
"""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jora_core.architecture.model_tensors import expected_tensors
from jora_core.base.atomic_files import write_json
from jora_core.base.progress import progress
from jora_core.commands.run_command import run_command
from jora_core.data.tokenizer import load_tokenizer
from jora_core.parallel.mesh import mesh_of_one_process
from jora_core.parallel.placements import check_mesh, check_quantization
from jora_core.specs.model_files import ConvertSpec
from jora_core.weights.checkpoint_folder import open_checkpoint
from jora_core.weights.model_folder import read_model

# Hashing releases Python's lock, so threads share the cores; more of them would only hold more tensors in
# memory.
_THREADS = 8


def convert(spec: ConvertSpec) -> dict[str, Any]:
    """Check a model folder and write its description, ``model.json``.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: config, tokenizer, a tensor, or the mesh cannot be used; the message names it.
    """
    began = time.perf_counter()
    config = read_model(spec.model)
    # What needs no weights is checked first: hashing a large model takes minutes.
    mesh = mesh_of_one_process(spec.mesh.data, spec.mesh.tensor)
    check_mesh(config, mesh)
    check_quantization(config, mesh, spec.quantization)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    store = open_checkpoint(spec.model, config)
    expected = expected_tensors(config)
    digests: dict[str, str] = {}
    bar = progress("check tensors", len(expected))
    with bar as shown, ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        # map keeps the sequence and raises here what a thread met, such as NaN in a tensor.
        for name, digest in zip(expected, pool.map(store.sha256, expected), strict=True):
            digests[name] = digest
            shown.advance()
    parameters = sum(math.prod(shape) for shape in expected.values())
    size = sum(path.stat().st_size for path in store.files())
    tensors = {
        name: {"shape": list(shape), "dtype": store.dtype(name), "sha256": digests[name]}
        for name, shape in expected.items()
    }
    description = {
        # As this core understood it, with defaults filled in, and not as the file spells it.
        "config": config.to_hf(),
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "tokens": tokenizer.vocab_size,
        "parameters": parameters,
        "bytes": size,
        "tensors": tensors,
    }
    write_json(spec.output_dir / "model.json", description)
    result = {
        "parameters": parameters,
        "tensors": len(tensors),
        "bytes": size,
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_json(spec.output_dir / "result.json", result)
    return result


def _main(spec: ConvertSpec) -> None:
    convert(spec)


if __name__ == "__main__":
    run_command(ConvertSpec, _main)
