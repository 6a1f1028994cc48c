"""Export a merged Hugging Face model, its PEFT adapter, and a model card with their lineage.

``python -m jora_core.commands.export --spec FILE`` writes ``model/`` (merged weights; config, tokenizer and
generation settings of the base), ``adapter/``, ``gguf/`` (if asked for), ``README.md`` and ``result.json``.
With `verify`, the written model is read back and compared with base plus adapter. ``reference.safetensors``
then keeps token ids and logits for a comparison with another library. Weights are merged tensor by tensor
and compared layer by layer, so no model is ever whole in memory.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.digests import file_digest
from jora_core.commands.model_card import GGUF_FOLDER, adapter_folder_name, base_name, model_card
from jora_core.commands.run_command import run_command
from jora_core.data.tokenizer import load_tokenizer
from jora_core.parameters.freed_memory import release_freed_memory
from jora_core.parameters.trees import Adapter
from jora_core.specs.lora import ADAPTER_FILES
from jora_core.specs.model_files import ExportSpec
from jora_core.weights.adapter_folder import load_adapter
from jora_core.weights.checkpoint_folder import open_weights
from jora_core.weights.companion_files import PromptFiles, copy_file, prompt_files, write_prompt_files
from jora_core.weights.gguf.modelfile import write_modelfile
from jora_core.weights.gguf.write_gguf import write_gguf
from jora_core.weights.gguf.write_tokenizer import tokenizer_fields
from jora_core.weights.layerwise_logits import hidden_states, logits
from jora_core.weights.merge_adapters import MergedWeights, write_merged
from jora_core.weights.model_folder import read_model
from jora_core.weights.tensor_store import write_tensors

# Ollama keeps a cache for so many tokens; a user can raise it in the Modelfile.
_MOST_CONTEXT = 8192
# Rows of the verification's sequences, and logits of all of them.
_ROWS, _MOST_LOGITS = 4, 1 << 23
# Merging adds W and scale·BA before the product instead of after it: equal but for rounding.
_TOLERANCE = 1e-3


def export(spec: ExportSpec) -> dict[str, Any]:
    """Write the exported folder.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: the base model or the adapter cannot be used, or the folder cannot be written.
        RuntimeError: the logits of the written model differ from those of base plus adapter.
    """
    began = time.perf_counter()
    config = read_model(spec.model)
    # Before JAX starts its device: a large vocabulary comes and goes while little else is in memory.
    texts = _read_texts(spec, config)
    _release_memory()
    folders = (spec.adapter, *spec.then)
    # All adapters are read before the first byte is written: a wrong one leaves no half export.
    adapters, loras = zip(*(load_adapter(folder, config) for folder in folders), strict=True)
    written = spec.output_dir / "model"
    _release_memory()
    dtype = write_merged(spec.model, config, adapters, written, spec.dtype, spec.max_shard_size)
    _release_memory()
    names = [adapter_folder_name(number) for number in range(len(folders))]
    # Copied and not written again: the export holds the bytes that were trained.
    for folder, target in zip(folders, names, strict=True):
        for name in ADAPTER_FILES:
            copy_file(folder / name, spec.output_dir / target / name)
    parameters = sum(math.prod(shape) for shape in expected_tensors(config).values())
    result: dict[str, Any] = {"dtype": dtype, "parameters": parameters}
    if texts.prompts is not None:
        write_prompt_files(texts.prompts, written)
        result["prompts"] = texts.prompts.description
    if "gguf" in spec.formats:
        result["gguf"] = _write_gguf(spec, written, texts)
    # The tokenizer's fields are in the file now; the comparison needs their memory.
    del texts
    _release_memory()
    # Before the digests and the card, which say that the files were compared.
    if spec.verify:
        result["largest_logit_difference"] = _verify(spec, config, adapters, dtype)
    for kind, unwanted in (("hf", ["model"]), ("peft", names)):
        for name in unwanted if kind not in spec.formats else []:
            shutil.rmtree(spec.output_dir / name)
    result["files"] = {
        str(path.relative_to(spec.output_dir)): file_digest(path)
        for folder in ("model", *names, GGUF_FOLDER)
        for path in sorted((spec.output_dir / folder).rglob("*"))
        if path.is_file()
    }
    # The card lists the digests, so it cannot be among the files that they cover.
    card = model_card(spec, config, loras, result)
    with atomic_path(spec.output_dir / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    result["seconds"] = round(time.perf_counter() - began, 3)
    write_json(spec.output_dir / "result.json", result)
    return result


@dataclass(frozen=True)
class _Texts:
    """What an export takes from the base's tokenizer.

    Attributes:
        prompts: what the written folder lacks to give the prompts of the training; None if not asked for.
        end: text of the end token.
        gguf: fields of a GGUF file; None if not asked for.
    """

    prompts: PromptFiles | None = None
    end: str = ""
    gguf: dict[str, Any] | None = None


def _read_texts(spec: ExportSpec, config: ModelConfig) -> _Texts:
    writes_gguf = "gguf" in spec.formats
    if spec.prompt is None and not writes_gguf:
        return _Texts()
    tokenizer = load_tokenizer(spec.model, config.vocab_size, encodes=False)
    prompts = None if spec.prompt is None else prompt_files(spec.prompt, spec.model, tokenizer)
    end = tokenizer.text_of(tokenizer.eos_id)
    del tokenizer
    if not writes_gguf:
        return _Texts(prompts, end)
    return _Texts(prompts, end, tokenizer_fields(spec.model, config.vocab_size))


def _release_memory() -> None:
    """Free what the step before has compiled and kept, so that the steps' peaks do not add up."""
    jax.clear_caches()
    release_freed_memory()


def _write_gguf(spec: ExportSpec, written: Path, texts: _Texts) -> str:
    """Write the merged model as a GGUF file with its Modelfile; return the file's name.

    Args:
        spec: the export's.
        written: folder of the merged model, with the base's tokenizer.
        texts: what was read of this tokenizer.
    """
    config = read_model(written)
    name = f"model-{spec.gguf}.gguf"
    folder = spec.output_dir / GGUF_FOLDER
    title = f"{base_name(spec)}, fine-tuned"
    write_gguf(written, config, folder / name, spec.gguf, title, tokenizer=texts.gguf)
    context = min(config.max_positions, _MOST_CONTEXT)
    write_modelfile(written, folder / "Modelfile", name, texts.end, context)
    return name


def _verify(spec: ExportSpec, config: ModelConfig, adapters: Sequence[Adapter], dtype: str) -> float:
    """Compare the written model with base plus adapter on seeded token ids, and save ids and logits.

    Both models are computed in float32, layer by layer from their files. Of several adapters, the last one is
    computed beside the base. The others are merged into the base, as they were when the last was trained.

    Returns:
        The largest difference between two logits. In float32 it must be as small as rounding errors. In a
        narrower type the rounded weights change the logits, so the difference is only reported.
    """
    # Logits of all rows are kept for the reference file: 33 MB at 262,144 tokens of vocabulary.
    length = min(24, config.max_positions, max(4, _MOST_LOGITS // (_ROWS * config.vocab_size)))
    # A fixed seed: two exports of one model have references that can be compared.
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (_ROWS, length), dtype=np.int32)
    # A row begins as a prompt does; some models give no sensible logits without their first token.
    if config.bos_token_id is not None:
        tokens[:, 0] = config.bos_token_id
    # Opened again, as any reader would: the comparison includes what was written to disk.
    base = MergedWeights.of(open_weights(spec.model, config), config, adapters[:-1])
    written = MergedWeights.of(open_weights(spec.output_dir / "model", config), config)
    expected = hidden_states(base, tokens, adapters[-1])
    _release_memory()
    found = hidden_states(written, tokens)
    _release_memory()
    merged = np.empty((*tokens.shape, config.vocab_size), np.float32)
    done, differences = 0, []
    # Both yield the same rows of the vocabulary: their number depends on the shape and not on the type.
    for theirs, ours in zip(logits(base, expected), logits(written, found), strict=True):
        merged[..., done : done + ours.shape[-1]] = ours
        done += ours.shape[-1]
        differences.append(float(np.abs(ours - theirs).max()))
    # Written so that NaN, which np.max keeps, is an error as well.
    difference = float(np.max(differences))
    if dtype == "float32" and not difference <= _TOLERANCE:
        raise RuntimeError(
            f"the merged model's logits differ from base plus adapter by {difference:.2e}, "
            f"more than {_TOLERANCE}"
        )
    write_tensors(spec.output_dir / "reference.safetensors", {"tokens": tokens, "logits": merged})
    return difference


def _main(spec: ExportSpec) -> None:
    export(spec)


if __name__ == "__main__":
    run_command(ExportSpec, _main)
