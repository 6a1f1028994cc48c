"""Conversion of base models of other layouts to model folders, in child processes of the training core."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.engine.code_files import reachable_sources
from flows.engine.errors import StageFailed, one_line_os_errors
from jora_core.base.atomic_files import atomic_folder
from jora_core.base.digests import file_digest, json_digest
from jora_core.specs.model_files import ConvertSpec, FolderSpec
from jora_core.specs.model_sources import SourceKind, source_files, source_kind

_COMMAND = "convert_model"
# The converter for each kind, whose code decides the folder.
_CONVERTERS: dict[SourceKind, str] = {
    "gguf": "jora_core.weights.gguf.convert_gguf",
    "meta": "jora_core.weights.meta.convert_meta",
}


def conversion_settings(source: Path) -> dict[str, Any]:
    """Return what decides the conversion of a base model beside its files; nothing for a model folder.

    The code of the converter is in it, and not among the sources of a stage: with a model folder, no change
    of a converter may train anything again.
    """
    kind = source_kind(source)
    if kind == "folder":
        return {}
    return {"conversion": {"kind": kind, "code": _code_digest(_CONVERTERS[kind])}}


@cache
def _code_digest(module: str) -> str:
    files = reachable_sources((module,), ("jora_core",))
    return json_digest({name: file_digest(path) for name, path in files.items()})


def convert_and_check(source: Path, folder: Path, check: ConvertSpec, work_dir: Path) -> dict[str, Any]:
    """Convert a base model to a model folder, then check the folder tensor by tensor.

    Args:
        source: GGUF file or one part of a split one, or a folder in Meta's layout.
        folder: folder to write.
        check: spec of the check, whose model is `folder`.
        work_dir: folder for the specs of the child processes.

    Returns:
        The result of the check.

    Raises:
        InputError: the source cannot be read, or its model is not supported.
        StageFailed: the folder does not hold the values that were converted.
    """
    kind = source_kind(source)
    spec = FolderSpec(source=source, folder=folder, output_dir=work_dir / "convert")
    converted = run_child(_COMMAND, spec, work_dir)["tensors"]
    result = run_child("check_model", check, work_dir)
    model = json.loads((check.output_dir / "model.json").read_text(encoding="utf-8"))
    found = {name: tensor["sha256"] for name, tensor in model["tensors"].items()}
    if wrong := [name for name in found if converted.get(name) != found[name]]:
        raise StageFailed(
            f"{folder}: tensor {wrong[0]} is not what was written; check the disk and run again"
        )
    return {**result, "converted_from": kind}


def converted_folder(source: Path, cache_dir: Path, work_dir: Path, say: Callable[[str], None]) -> Path:
    """Return a base model as a model folder, outside of a store; another layout is converted once.

    Args:
        source: base model of any layout.
        cache_dir: folder of the converted models.
        work_dir: folder for the specs of the child processes.
        say: called with a line before a conversion.

    Raises:
        InputError: the source cannot be read, or its model is not supported.
    """
    if source_kind(source) == "folder":
        return source
    files = {str(path.resolve()): path.stat() for path in source_files(source).values()}
    # By time and size and not by content, whose digest would take as long as an answer.
    states = [(name, found.st_size, found.st_mtime_ns) for name, found in files.items()]
    folder = cache_dir / json_digest([states, conversion_settings(source)])[:16]
    if not folder.is_dir():
        say(f"{source}: converting it once, into {folder}")
        with one_line_os_errors("write to", folder), atomic_folder(folder) as making:
            spec = ConvertSpec(model=making, output_dir=work_dir / "check")
            convert_and_check(source.resolve(), making, spec, work_dir)
    return folder


def tokenizer_folder(source: Path, cache_dir: Path, work_dir: Path) -> Path:
    """Return a folder with the tokenizer of a base model, which is converted once.

    Args:
        source: base model of any layout.
        cache_dir: cache folder of the store.
        work_dir: folder for the specs of the child process.

    Raises:
        InputError: the source has no tokenizer that can be read.
    """
    if source_kind(source) == "folder":
        return source
    files = source_files(source)
    digests = {name: file_digest(path) for name, path in files.items()}
    folder = cache_dir / "tokenizers" / json_digest([digests, conversion_settings(source)])
    if not folder.is_dir():
        with atomic_folder(folder) as making:
            spec = FolderSpec(
                source=source, folder=making, tokenizer_only=True, output_dir=work_dir / "tokenizer"
            )
            run_child(_COMMAND, spec, work_dir)
    return folder
