"""Write a model in Meta's layout as a model folder in Hugging Face layout.

``python -m jora_core.commands.convert_meta --spec FILE`` writes the folder and ``result.json`` with the
SHA-256 of each tensor's values, which `jora_core.commands.check_model` finds again in the folder.
"""

from __future__ import annotations

from typing import Any

from jora_core.base.atomic_files import write_json
from jora_core.commands.run_command import run_command
from jora_core.specs.model_files import FolderSpec
from jora_core.weights.meta.checkpoint import EMBEDDING, MetaModel
from jora_core.weights.meta.convert_meta import convert_meta, has_scaled_rope
from jora_core.weights.meta.tokenizer import write_meta_tokenizer


def convert(spec: FolderSpec) -> dict[str, Any]:
    """Convert a model in Meta's layout, or its tokenizer alone.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: a file cannot be read, or the model is not supported; the message names the field.
    """
    if spec.tokenizer_only:
        model = MetaModel(spec.source)
        write_meta_tokenizer(spec.source, spec.folder, model.shape(EMBEDDING)[0], has_scaled_rope(model))
        result: dict[str, Any] = {"tensors": {}}
    else:
        result = {"tensors": convert_meta(spec.source, spec.folder)}
    write_json(spec.output_dir / "result.json", result)
    return result


def _main(spec: FolderSpec) -> None:
    convert(spec)


if __name__ == "__main__":
    run_command(FolderSpec, _main)
