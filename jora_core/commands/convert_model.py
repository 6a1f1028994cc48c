"""Write a base model of another layout, a GGUF file or Meta's folder, in Hugging Face layout.

``python -m jora_core.commands.convert_model --spec FILE`` writes the folder and ``result.json`` with the
SHA-256 of each tensor's values, which `jora_core.commands.check_model` finds again in the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.commands.run_command import run_command
from jora_core.specs.model_files import FolderSpec
from jora_core.specs.model_sources import SourceKind, source_kind
from jora_core.weights.gguf.convert_gguf import convert_gguf, convert_gguf_tokenizer
from jora_core.weights.meta.convert_meta import convert_meta, convert_meta_tokenizer

# Of each kind: source and folder -> the digests of the tensors; and the same for the tokenizer alone.
_Converter = tuple[Callable[[Path, Path], dict[str, str]], Callable[[Path, Path], None]]
_CONVERTERS: dict[SourceKind, _Converter] = {
    "gguf": (convert_gguf, convert_gguf_tokenizer),
    "meta": (convert_meta, convert_meta_tokenizer),
}


def convert(spec: FolderSpec) -> dict[str, Any]:
    """Convert a model, or its tokenizer alone.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: a file cannot be read, or the model is not supported; the message names the field.
    """
    kind = source_kind(spec.source)
    if kind not in _CONVERTERS:
        raise InputError(
            f"{spec.source}: expected a GGUF file or a folder in Meta's layout; see docs/models.md"
        )
    model, tokenizer = _CONVERTERS[kind]
    if spec.tokenizer_only:
        tokenizer(spec.source, spec.folder)
        result: dict[str, Any] = {"tensors": {}}
    else:
        result = {"tensors": model(spec.source, spec.folder)}
    write_json(spec.output_dir / "result.json", result)
    return result


def _main(spec: FolderSpec) -> None:
    convert(spec)


if __name__ == "__main__":
    run_command(FolderSpec, _main)
