"""Write what leaves the house: a merged Hugging Face model, the PEFT adapter, and a card that says where both
come from.

``python -m jora_core.export --spec FILE`` writes ``model/`` (merged weights; config, tokenizer and generation
settings as the base has them), ``adapter/``, ``README.md`` and ``result.json``. With `verify`, the written
model is read back and compared with base plus adapter, and ``reference.safetensors`` keeps token ids and
logits, so that another library can be held against them. Weights are merged tensor by tensor and compared
layer by layer: no model is ever whole in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.command import run_command
from jora_core.config import ModelConfig
from jora_core.families import FAMILIES
from jora_core.layerwise import hidden_states, logits
from jora_core.lora import Adapter, load_adapter
from jora_core.merge import MergedWeights, copy_file, write_merged
from jora_core.model_spec import ExportSpec
from jora_core.spec import LoraSpec
from jora_core.storage import atomic_path, write_json, write_tensors
from jora_core.weights import expected_tensors, open_checkpoint

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Merging adds W and scale·BA before the product instead of after it: equal but for rounding.
_TOLERANCE = 1e-3


def export(spec: ExportSpec) -> dict[str, Any]:
    """Do what a spec orders.

    Returns:
        What ``result.json`` says.

    Raises:
        InputError: the base model or the adapter cannot be used, or the folder not written.
        RuntimeError: the written model does not compute what base and adapter do.
    """
    began = time.perf_counter()
    config = ModelConfig.from_hf(spec.model)
    folders = (spec.adapter, *spec.then)
    adapters, loras = zip(*(load_adapter(folder, config) for folder in folders), strict=True)
    written = spec.output_dir / "model"
    dtype = write_merged(spec.model, config, adapters, written, spec.dtype, spec.max_shard_size)
    names = [_adapter_folder(number) for number in range(len(folders))]
    for folder, target in zip(folders, names, strict=True):
        for name in _ADAPTER_FILES:
            copy_file(folder / name, spec.output_dir / target / name)
    parameters = sum(math.prod(shape) for shape in expected_tensors(config).values())
    result: dict[str, Any] = {"dtype": dtype, "parameters": parameters}
    if spec.verify:
        result["largest_logit_difference"] = _verify(spec, config, adapters, dtype)
    result["files"] = {
        str(path.relative_to(spec.output_dir)): _sha256(path)
        for folder in ("model", *names)
        for path in sorted((spec.output_dir / folder).iterdir())
    }
    card = model_card(spec, config, loras, result)
    with atomic_path(spec.output_dir / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    result["seconds"] = round(time.perf_counter() - began, 3)
    write_json(spec.output_dir / "result.json", result)
    return result


def model_card(
    spec: ExportSpec, config: ModelConfig, loras: Sequence[LoraSpec], result: dict[str, Any]
) -> str:
    """The README.md of an export: how to load it, how it was made, digests of all files."""
    made = "; then with ".join(_described(lora) for lora in loras)
    use = 'or the adapter over its base: `peft.PeftModel.from_pretrained(base_model, "adapter")`.'
    if len(loras) > 1:
        order = ", ".join(f"`{_adapter_folder(number)}`" for number in range(len(loras)))
        use = f"The adapters, in the order in which they were merged, each over the one before: {order}."
    base = spec.model.name
    verified = ""
    if "largest_logit_difference" in result:
        verified = (
            f"Read back after writing; largest difference of a logit from base plus adapter: "
            f"{result['largest_logit_difference']:.2e}.\n"
        )
    files = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in result["files"].items())
    return f"""---
base_model: {json.dumps(base)}
library_name: transformers
pipeline_tag: text-generation
tags: [lora, raft, jora-raft]
---

# {base}, fine-tuned

{result["parameters"]:,} parameters in {result["dtype"]}: a {FAMILIES[config.family].title} decoder of
{config.num_layers} layers and hidden width {config.hidden_size}, fine-tuned with {made}.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")  # the adapter is merged in
tokenizer = AutoTokenizer.from_pretrained("model")
```

{use}

{verified}
## Origin

```json
{json.dumps(spec.lineage, indent=2, sort_keys=True, ensure_ascii=False)}
```

## Files

| File | SHA-256 |
|---|---|
{files}
"""


def _adapter_folder(number: int) -> str:
    """Where an export keeps its adapters: adapter, adapter-2, adapter-3."""
    return "adapter" if number == 0 else f"adapter-{number + 1}"


def _described(lora: LoraSpec) -> str:
    kind = ("an rs" if lora.use_rslora else "a ") + ("DoRA" if lora.use_dora else "LoRA")
    return (
        f"{kind} adapter (rank {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}, on "
        f"{', '.join(lora.target_modules)})"
    )


def _verify(spec: ExportSpec, config: ModelConfig, adapters: Sequence[Adapter], dtype: str) -> float:
    """Compare the written model with base plus adapter on seeded token ids; keep ids and logits.

    Both are computed in float32, layer by layer from their files; of several adapters the last stands beside
    the base, the others are merged into it as they were when it was trained.

    Returns:
        Largest difference between two logits: of the order of rounding in float32; in a narrower type, where
        rounding the weights moves logits, it is reported and not judged.
    """
    length = min(24, config.max_positions)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (4, length), dtype=np.int32)
    if config.bos_token_id is not None:
        tokens[:, 0] = config.bos_token_id
    base = MergedWeights(open_checkpoint(spec.model, config), config, tuple(adapters[:-1]))
    written = MergedWeights(open_checkpoint(spec.output_dir / "model", config), config)
    expected = hidden_states(base, tokens, adapters[-1])
    found = hidden_states(written, tokens)
    merged = np.empty((*tokens.shape, config.vocab_size), np.float32)
    done, differences = 0, []
    for theirs, ours in zip(logits(base, expected), logits(written, found), strict=True):
        merged[..., done : done + ours.shape[-1]] = ours
        done += ours.shape[-1]
        differences.append(float(np.abs(ours - theirs).max()))
    difference = float(np.max(differences))  # NaN stays NaN
    if dtype == "float32" and not difference <= _TOLERANCE:
        raise RuntimeError(
            f"the merged model's logits differ from base plus adapter by {difference:.2e}, "
            f"more than {_TOLERANCE}"
        )
    write_tensors(spec.output_dir / "reference.safetensors", {"tokens": tokens, "logits": merged})
    return difference


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _main(spec: ExportSpec) -> None:
    export(spec)


if __name__ == "__main__":
    run_command(ExportSpec, _main)
