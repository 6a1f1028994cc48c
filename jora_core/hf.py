"""Merge a trained adapter into its base: ``python -m jora_core.hf HUGGINGFACE_PATH JAX_PATH SAVE_PATH``.

The command of JORA's README: the result is a Hugging Face folder that `transformers` loads. Further adapters,
each over the result of those before it, are given with ``--then ADAPTER``, once for each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jora_core.base.errors import InputError
from jora_core.weights.adapter_folder import load_adapter
from jora_core.weights.merge_adapters import write_merged
from jora_core.weights.model_folder import read_model


def merge_to_huggingface(
    huggingface_path: Path, jax_path: Path, save_path: Path, then: Sequence[Path] = ()
) -> None:
    """Merge one or more adapters into a base model, and write the result as a Hugging Face folder.

    Args:
        huggingface_path: base model folder in Hugging Face layout. The result has the same dtype.
        jax_path: PEFT folder, or the `checkpoint_dir` of `train_lora`.
        save_path: folder to write; must not be the base.
        then: adapters merged after the first one, in this order.

    Raises:
        InputError: a folder is missing, an adapter does not fit the base, or `save_path` is the base itself.
    """
    # Resolved, since a link may lead to the same folder: the base is read while the result is written.
    if save_path.resolve() == huggingface_path.resolve():
        raise InputError(f"SAVE_PATH {save_path} is the base model itself; choose another folder")
    config = read_model(huggingface_path)
    # All adapters are read first: a wrong folder must fail before gigabytes are written.
    adapters = [load_adapter(find_adapter(path), config)[0] for path in (jax_path, *then)]
    write_merged(huggingface_path, config, adapters, save_path)


def find_adapter(folder: Path) -> Path:
    """Return the PEFT folder at `folder`: `folder` itself, or the one ``*_final`` folder below it.

    Raises:
        InputError: no PEFT folder, or several ``*_final`` folders.
    """
    if (folder / "adapter_config.json").is_file():
        return folder
    # Users of the original pass the checkpoint folder. It holds an adapter for each prefix.
    found = sorted(p.parent for p in folder.glob("*_final/adapter_config.json"))
    if len(found) == 1:
        return found[0]
    many = f"{len(found)} adapters: {', '.join(p.name for p in found)}" if found else "no adapter_config.json"
    raise InputError(f"{folder} holds {many}; give one PEFT folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 for success, 2 for bad input."""
    parser = argparse.ArgumentParser(
        # `python -OO` leaves no docstring.
        prog="python -m jora_core.hf",
        description=(__doc__ or "").split("\n")[0],
    )
    # Capitals as in the README of JORA.
    parser.add_argument("HUGGINGFACE_PATH", type=Path, help="base model in Hugging Face layout")
    parser.add_argument("JAX_PATH", type=Path, help="trained adapter, or train_lora's checkpoint folder")
    parser.add_argument("SAVE_PATH", type=Path, help="folder for the merged model")
    parser.add_argument(
        "--then",
        type=Path,
        action="append",
        default=[],
        metavar="ADAPTER",
        help="merged after it; repeatable",
    )
    given = parser.parse_args(argv)
    try:
        merge_to_huggingface(given.HUGGINGFACE_PATH, given.JAX_PATH, given.SAVE_PATH, given.then)
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print(f"merged model: {given.SAVE_PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
