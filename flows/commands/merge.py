"""The command `jora merge`, which merges adapters into a base model in a child process, outside the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.children.run_child import run_child
from flows.commands.models.new_folder import workspace_beside
from flows.engine.errors import one_line_os_errors
from jora_core.base.errors import InputError
from jora_core.specs.model_files import ExportSpec


def merge(
    huggingface_path: Annotated[Path, typer.Argument()],
    jax_path: Annotated[Path, typer.Argument()],
    save_path: Annotated[Path, typer.Argument()],
    dtype: Annotated[str | None, typer.Option("--dtype")] = None,
    then: Annotated[list[Path] | None, typer.Option("--then", metavar="ADAPTER")] = None,
) -> None:
    """Merge an adapter, or several in order, into its base model.

    The new folder has the Hugging Face layout and can be loaded with `transformers`.

    Args:
        huggingface_path: Base model folder in Hugging Face layout.
        jax_path: Adapter folder that training wrote (PEFT layout).
        save_path: New folder of the merged model.
        dtype: Number type of the merged weights, float32 or bfloat16; else that of the base.
        then: Another adapter, merged after it; repeatable.
    """
    print(merge_adapter(huggingface_path, jax_path, save_path, dtype, then or []))


def merge_adapter(
    base: Path, adapter: Path, target: Path, dtype: str | None = None, then: Sequence[Path] = ()
) -> Path:
    """Merge a PEFT adapter into its base model, and write a complete new model folder or none.

    Args:
        base: model folder in Hugging Face layout.
        adapter: folder in PEFT layout.
        target: new model folder.
        dtype: number type of the merged weights, float32 or bfloat16; None takes that of the base model.
        then: adapters that are merged after `adapter`, in this order.

    Raises:
        InputError: `target` exists, or the model or an adapter cannot be read.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"--dtype {dtype}: expected float32 or bfloat16")
    with workspace_beside(target) as folder:
        # By `model_validate`, because `dtype` is plain text here and a `Literal` there.
        spec = ExportSpec.model_validate(
            {
                "model": base,
                "adapter": adapter,
                "then": list(then),
                "dtype": dtype,
                "output_dir": folder / "export",
            }
        )
        run_child("export", spec, folder)
        with one_line_os_errors("write", target):
            (folder / "export" / "model").rename(target)
    return target
