"""The model card of an export."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jora_core.architecture.families import FAMILIES
from jora_core.architecture.model_config import ModelConfig
from jora_core.base.json_fields import read_json_object
from jora_core.specs.lora import LoraSpec
from jora_core.specs.model_files import ExportSpec
from jora_core.weights.companion_files import GGUF_SOURCE

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
    own = spec.license or base_license(spec.model)
    # Paths are relative to the card, so that the folder can be moved or uploaded as it is.
    files = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in result["files"].items())
    # YAML reads a JSON string: a name with a colon or a quote stays one value.
    return f"""---
base_model: {json.dumps(base)}
library_name: transformers
pipeline_tag: text-generation
tags: [lora, raft, jora-raft]{f"{chr(10)}license: {json.dumps(own)}" if own else ""}
---

# {base}, fine-tuned

{result["parameters"]:,} parameters in {result["dtype"]}: a {FAMILIES[config.family].title} decoder of
{config.num_layers} layers and hidden width {config.hidden_size}, fine-tuned with {made}.

## Use

{_commands(result)}
{use if "peft" in spec.formats else ""}
{prompts}
{verified}
{_measures(spec)}## Licences

{_licences(spec, own, result)}

{_synthetic(spec)}## Origin

`jora lineage DIR` verifies this folder and all that it was made from, and names the rows that taught it.

```json
{json.dumps(spec.lineage, indent=2, sort_keys=True, ensure_ascii=False)}
```

## Files

| File | SHA-256 |
|---|---|
{files}
"""


def base_license(folder: Path) -> str | None:
    """Return the licence that a model folder names: in its card, or in what its conversion wrote."""
    card = folder / "README.md"
    if card.is_file():
        # The head of a card is YAML between two lines of dashes; one line of it is asked for.
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found = re.search(r"^license: *['\"]?([^'\"\n]+)", head[1], re.MULTILINE) if head else None
        if found:
            return found[1].strip()
    source = folder / GGUF_SOURCE
    if source.is_file():
        return read_json_object(source, f"model folder {folder}").get("license")
    return None


def _licences(spec: ExportSpec, own: str | None, result: dict[str, Any]) -> str:
    """Return a line for the model, its base and each corpus: a user must keep the terms of all of them."""
    base = base_license(spec.model)
    files = [name for name in result["files"] if name.startswith(("model/LICENSE", "model/NOTICE"))]
    kept = f" ({', '.join(f'`{name}`' for name in files)})" if files else ""
    lines = [
        f"- This model: {own or 'not stated'}",
        f"- Base model: {base or 'not stated in its folder'}{kept}",
    ]
    lines += [f"- Data, {name}: {licence}" for name, licence in spec.data_licenses.items()]
    return "\n".join(lines if spec.data_licenses else [*lines, "- Data: not stated (`export.data_licenses`)"])


def _synthetic(spec: ExportSpec) -> str:
    """Return the section about data that a model made, or "" if there is none."""
    return f"## Synthetic data\n\n{spec.synthetic}\n\n" if spec.synthetic else ""


def _measures(spec: ExportSpec) -> str:
    """Return the scores of the evaluation with their intervals, a table for each group of measures."""
    tables: list[str] = []
    groups: dict[tuple[str, ...], list[str]] = {}
    for system, scores in spec.measures.items():
        # Systems that answered the same tasks have the same measures.
        groups.setdefault(tuple(scores), []).append(system)
    for names, systems in groups.items():
        rows = [f"| System | {' | '.join(names)} | n |", f"|---|{'---:|' * (len(names) + 1)}"]
        for system in systems:
            scores = spec.measures[system]
            n = max((score["n"] or 0 for score in scores.values()), default=0)
            cells = " | ".join(_score(scores[name]) for name in names)
            rows.append(f"| {system} | {cells} | {n:,.0f} |")
        tables.append("\n".join(rows))
    if not tables:
        return ""
    return "\n\n".join(
        [
            "## Measures",
            "On held-out records, with 95 % intervals from resampling whole contexts. "
            f"This model is `{spec.system}`, `base` is the model before fine-tuning.",
            *spec.measure_warnings,
            *tables,
            "",
        ]
    )


def _score(score: dict[str, Any]) -> str:
    if score.get("value") is None:
        return "-"
    if score["low"] is None:  # all records are of one context
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


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
