"""Write the model of a GGUF file as a model folder in Hugging Face layout.

``python -m jora_core.commands.convert_gguf --spec FILE`` writes the folder and ``result.json`` with the
SHA-256 of each tensor's values, which `jora_core.commands.check_model` finds again in the folder.
"""

from __future__ import annotations

from typing import Any

from jora_core.base.atomic_files import write_json
from jora_core.commands.run_command import run_command
from jora_core.specs.model_files import FolderSpec
from jora_core.weights.gguf.convert_gguf import convert_gguf
from jora_core.weights.gguf.gguf_file import GgufModel
from jora_core.weights.gguf.read_tokenizer import write_tokenizer


def convert(spec: FolderSpec) -> dict[str, Any]:
    """Convert a GGUF file, or its tokenizer alone.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: the file cannot be read, or its model is not supported; the message names the field.
    """
    if spec.tokenizer_only:
        write_tokenizer(GgufModel(spec.source), spec.folder)
        result: dict[str, Any] = {"tensors": {}}
    else:
        result = {"tensors": convert_gguf(spec.source, spec.folder)}
    write_json(spec.output_dir / "result.json", result)
    return result


def _main(spec: FolderSpec) -> None:
    convert(spec)


if __name__ == "__main__":
    run_command(FolderSpec, _main)
