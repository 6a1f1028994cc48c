"""The model card of an export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jora_core.architecture.families import FAMILIES
from jora_core.architecture.model_config import ModelConfig
from jora_core.specs.lora import LoraSpec
from jora_core.specs.model_files import ExportSpec

GGUF_FOLDER = "gguf"  # of an export
_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")  # the adapter is merged in
tokenizer = AutoTokenizer.from_pretrained("model")
```

```bash
vllm serve model    # an OpenAI-compatible server
```
"""
_LLAMA_CPP = """```bash
llama-server -m {file} --jinja                    # llama.cpp
ollama create my-model -f gguf/Modelfile && ollama run my-model
```
"""


def model_card(
    spec: ExportSpec, config: ModelConfig, loras: Sequence[LoraSpec], result: dict[str, Any]
) -> str:
    """Return the README.md of an export: how to load the model, its lineage, and digests of all files.

    Args:
        spec: spec of the export, for the base's name and the lineage.
        config: config of the base model.
        loras: settings of the merged adapters, in the sequence of merging.
        result: content of ``result.json``, with the digest of each file.
    """
    made = "; then with ".join(_describe_adapter(lora) for lora in loras)
    use = 'or the adapter over its base: `peft.PeftModel.from_pretrained(base_model, "adapter")`.'
    # peft loads one adapter over one base: the second of two needs the first one merged.
    if len(loras) > 1:
        order = ", ".join(f"`{adapter_folder_name(number)}`" for number in range(len(loras)))
        use = f"The adapters, in the order in which they were merged, each over the one before: {order}."
    base = base_name(spec)
    # What a user must know to ask as the training did; `apply_chat_template` does it.
    prompts = f"\nPrompts of the training: {result['prompts']}.\n" if "prompts" in result else ""
    verified = ""
    if "largest_logit_difference" in result:
        verified = (
            f"Read back after writing; largest difference of a logit from base plus adapter: "
            f"{result['largest_logit_difference']:.2e}.\n"
        )
    # Paths are relative to the card, so that the folder can be moved or uploaded as it is.
    files = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in result["files"].items())
    # YAML reads a JSON string: a name with a colon or a quote stays one value.
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

{_commands(result)}
{use if "peft" in spec.formats else ""}
{prompts}
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


def _commands(result: dict[str, Any]) -> str:
    """Return how to load the files that the export has."""
    parts = []
    if any(name.startswith("model/") for name in result["files"]):
        parts.append(_TRANSFORMERS)
    if "gguf" in result:
        parts.append(_LLAMA_CPP.format(file=f"{GGUF_FOLDER}/{result['gguf']}"))
    return "\n".join(parts)


def base_name(spec: ExportSpec) -> str:
    """Return the name of the base model: the given one, or that of its folder."""
    return spec.base_name or spec.model.name


def adapter_folder_name(number: int) -> str:
    """Return the folder name of an export's adapter by its number: adapter, adapter-2, adapter-3."""
    return "adapter" if number == 0 else f"adapter-{number + 1}"


def _describe_adapter(lora: LoraSpec) -> str:
    kind = ("an rs" if lora.use_rslora else "a ") + ("DoRA" if lora.use_dora else "LoRA")
    others = " and others by pattern" if lora.rank_pattern or lora.alpha_pattern else ""
    return (
        f"{kind} adapter (rank {lora.r}, alpha {lora.lora_alpha:g}{others}, dropout {lora.lora_dropout:g}, "
        f"on {', '.join(lora.target_modules)})"
    )
