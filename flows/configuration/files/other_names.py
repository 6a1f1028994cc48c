"""The names that other tools give to our settings, for hints about unknown keys.

The tools are Hugging Face's Trainer, PEFT and TRL, axolotl, LLaMA-Factory, and the script of the RAFT paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from pydantic import BaseModel

from jora_core.base.error_messages import known_keys


class OurName(NamedTuple):
    """A setting of ours, as a dotted key in which `*` is any list index, and how its values differ."""

    key: str
    note: str = ""


_SEQUENCE = OurName("phases.*.max_seq_len", "in tokens of prompt and answer")
_BATCH = OurName("phases.*.tokens_per_batch", "in tokens, not in rows")
_EPOCHS = OurName("phases.*.n_epochs")
_RATE = OurName("phases.*.optim.learning_rate")
_RANK = OurName("phases.*.lora.r")
_TARGETS = OurName("phases.*.lora.target_modules")
_MODEL = OurName("model.path", "a folder")
_DTYPE = OurName("model.dtype", "float32 or bfloat16")
_REMAT = OurName("phases.*.remat", "none, dots, attention, full or offload")
_SHARING = OurName("phases.*.sharing", "auto packs examples and shares their contexts")
_VALIDATION = OurName("phases.*.validation_share", "a share from 0 to 1")
_STORE = OurName("store")
_CONTEXT = OurName("context", "one section for each task: tables, threads or qa")
_TENSOR = OurName("mesh.tensor")
_DATA = OurName("mesh.data")
_WARMUP = OurName("phases.*.optim.warmup_ratio", "a share of all steps")
_REPORT = OurName("phases.*.report_to", "[wandb] or [tensorboard]")
_KERNEL = OurName("model.attention", "auto or blockwise")
_TEMPLATE = OurName("prompt.template", "auto, alpaca, chat, or a file")
_SYSTEM = OurName("prompt.system")
_INSTRUCTIONS = OurName("phases.*.alpaca_path")

OTHER_NAMES: Mapping[str, OurName] = {
    "noisy_embedding_alpha": OurName("phases.*.neftune_noise_alpha"),
    "lr": _RATE,
    "learn_rate": _RATE,
    "base_lr": _RATE,
    "lr_scheduler": OurName("phases.*.optim.schedule"),
    "lr_scheduler_type": OurName("phases.*.optim.schedule"),
    "scheduler": OurName("phases.*.optim.schedule"),
    "warmup": _WARMUP,
    "warmup_steps": _WARMUP,
    "num_warmup_steps": _WARMUP,
    "cosine_min_lr_ratio": OurName("phases.*.optim.min_lr_ratio"),
    "adam_beta1": OurName("phases.*.optim.beta1"),
    "adam_beta2": OurName("phases.*.optim.beta2"),
    "adam_epsilon": OurName("phases.*.optim.eps"),
    "gradient_clipping": OurName("phases.*.optim.max_grad_norm"),
    "grad_clip": OurName("phases.*.optim.max_grad_norm"),
    "optimizer": OurName("phases.*.optim"),
    "num_epochs": _EPOCHS,
    "num_train_epochs": _EPOCHS,
    "epochs": _EPOCHS,
    "epoch": _EPOCHS,
    "num_steps": OurName("phases.*.max_steps"),
    "steps": OurName("phases.*.max_steps"),
    "cutoff_len": _SEQUENCE,
    "max_length": _SEQUENCE,
    "max_seq_length": _SEQUENCE,
    "sequence_len": _SEQUENCE,
    "sequence_length": _SEQUENCE,
    "model_max_length": _SEQUENCE,
    "seq_len": _SEQUENCE,
    "batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "per_device_eval_batch_size": OurName("evaluate.tokens_per_batch", "in tokens, not in rows"),
    "eval_batch_size": OurName("evaluate.tokens_per_batch", "in tokens, not in rows"),
    "grad_accum": OurName("phases.*.gradient_accumulation_steps"),
    "grad_accumulation_steps": OurName("phases.*.gradient_accumulation_steps"),
    "gradient_accumulation": OurName("phases.*.gradient_accumulation_steps"),
    "accumulation_steps": OurName("phases.*.gradient_accumulation_steps"),
    "gradient_checkpointing": _REMAT,
    "activation_checkpointing": _REMAT,
    "use_gradient_checkpointing": _REMAT,
    "packing": _SHARING,
    "sample_packing": _SHARING,
    "eval_packing": OurName("evaluate.sharing"),
    "neat_packing": _SHARING,
    "pad_to_sequence_len": _SHARING,
    "group_by_length": OurName("phases.*.curriculum", "length: short examples first"),
    "lora_r": _RANK,
    "lora_rank": _RANK,
    "rank": _RANK,
    "alpha": OurName("phases.*.lora.lora_alpha"),
    "dropout": OurName("phases.*.lora.lora_dropout"),
    "lora_target": _TARGETS,
    "lora_target_modules": _TARGETS,
    "lora_target_linear": _TARGETS,
    "peft_config": OurName("phases.*.lora"),
    "lora_plus_lr_ratio": OurName("phases.*.optim.loraplus_lr_ratio"),
    "loraplus_ratio": OurName("phases.*.optim.loraplus_lr_ratio"),
    "init_weights": OurName("phases.*.lora.init_lora_weights"),
    "peft_layers_to_transform": OurName("phases.*.lora.layers_to_transform"),
    "rslora": OurName("phases.*.lora.use_rslora"),
    "peft_use_rslora": OurName("phases.*.lora.use_rslora"),
    "lora_use_rslora": OurName("phases.*.lora.use_rslora"),
    "base_model": _MODEL,
    "base_model_name_or_path": _MODEL,
    "model_name": _MODEL,
    "model_name_or_path": _MODEL,
    "pretrained_model_name_or_path": _MODEL,
    "model_path": _MODEL,
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "torch_dtype": _DTYPE,
    "precision": _DTYPE,
    "mixed_precision": _DTYPE,
    "load_in_4bit": OurName("model.quantization", "nf4"),
    "load_in_8bit": OurName("model.quantization", "int8"),
    "quantization_bit": OurName("model.quantization", "int8 or nf4"),
    "bnb_4bit_quant_type": OurName("model.quantization", "nf4"),
    "flash_attn": _KERNEL,
    "flash_attention": _KERNEL,
    "attn_implementation": _KERNEL,
    "sdp_attention": _KERNEL,
    "val_size": _VALIDATION,
    "val_set_size": _VALIDATION,
    "eval_ratio": _VALIDATION,
    "validation_split": _VALIDATION,
    "test_size": OurName("context.test_share", "a share from 0 to 1"),
    "eval_steps": OurName("phases.*.evaluate_every"),
    "save_steps": OurName("phases.*.checkpoint_every"),
    "checkpoint_steps": OurName("phases.*.checkpoint_every"),
    "load_best_model_at_end": OurName("phases.*.keep_best"),
    "early_stopping": OurName("phases.*.early_stopping_patience"),
    "use_wandb": _REPORT,
    "wandb_project": _REPORT,
    "logging_dir": _REPORT,
    "output_dir": _STORE,
    "save_dir": _STORE,
    "save_path": _STORE,
    "dataset": _CONTEXT,
    "datasets": _CONTEXT,
    "dataset_dir": _CONTEXT,
    "dataset_name": _CONTEXT,
    "data_path": _CONTEXT,
    "train_file": _CONTEXT,
    "max_samples": OurName("phases.*.max_records"),
    "max_train_samples": OurName("phases.*.max_records"),
    "max_eval_samples": OurName("evaluate.max_records"),
    "mix_dataset": _INSTRUCTIONS,
    "random_seed": OurName("seed"),
    "data_seed": OurName("seed"),
    "tensor_parallel": _TENSOR,
    "tensor_parallel_size": _TENSOR,
    "tp": _TENSOR,
    "num_gpus": _DATA,
    "data_parallel": _DATA,
    "dp": _DATA,
    "fsdp": _TENSOR,
    "deepspeed": _TENSOR,
    "adapter_name_or_path": OurName("phases.*.init_adapter", "a PEFT folder"),
    "lora_model_dir": OurName("phases.*.init_adapter", "a PEFT folder"),
    "resume_from_checkpoint": OurName(
        "phases.*.continue_from", "for more steps of a finished phase; a killed run continues by itself"
    ),
    "chat_template": _TEMPLATE,
    "prompt_template": _TEMPLATE,
    "prompt_format": _TEMPLATE,
    "default_system": _SYSTEM,
    "default_system_message": _SYSTEM,
    "system_prompt": _SYSTEM,
    "chunk_size": OurName("context.qa.chunk_tokens", "in tokens"),
    "num_distract": OurName("context.qa.n_contexts", "the right document and its distractors"),
    "distractors": OurName("context.qa.n_contexts", "the right document and its distractors"),
    "embedding_model": OurName("context.embedder"),
    "rerank_model": OurName("context.reranker"),
}

# Settings of other tools that have no counterpart here, and what happens instead.
_WITHOUT = {
    "loss": "the loss is always the cross-entropy of the answers",
    "finetuning_type": "all phases train LoRA",
    "peft_type": "all phases train LoRA",
    "modules_to_save": "only LoRA is trained; embeddings and head stay as they are",
    "layers_pattern": "layers have one name in all families; lora.layers_to_transform takes their numbers",
    "num_proc": "context.workers is the number of record builders",
}


def hint_for(name: str, location: Sequence[str], model: type[BaseModel]) -> str | None:
    """Return a hint for an unknown key that is another tool's name, or is a key of another section.

    Args:
        name: the unknown key.
        location: keys of the section in which it stands.
        model: the configuration's model.

    Returns:
        The hint; None if nothing is known about the name.
    """
    plain = name.replace("-", "_").lower()
    if ours := OTHER_NAMES.get(plain):
        note = f" ({ours.note})" if ours.note else ""
        return f"its name here is {_filled(ours.key, location)}{note}"
    if plain in _WITHOUT and plain not in known_keys(model, location):
        return f"there is no such setting; {_WITHOUT[plain]}"
    # A key of ours in the wrong section: the section that shares the most keys with its place.
    elsewhere = [key for key in _all_keys(model) if key.split(".")[-1] == plain]
    if not elsewhere:
        return None
    nearest = max(elsewhere, key=lambda key: _shared(key, location))
    return f"it belongs to another section: {_filled(nearest, location)}"


def _filled(key: str, location: Sequence[str]) -> str:
    """Put the list index of a location in place of `*`."""
    parts = key.split(".")
    same_list = len(location) > 1 and location[0] == parts[0] and location[1].isdigit()
    return ".".join((location[1] if same_list else "0") if part == "*" else part for part in parts)


def _shared(key: str, location: Sequence[str]) -> int:
    count = 0
    for part, given in zip(key.split("."), location, strict=False):
        if part not in (given, "*"):
            break
        count += 1
    return count


def _all_keys(model: type[BaseModel], at: tuple[str, ...] = ()) -> list[str]:
    """Return every dotted key of a model, with `*` for the items of a list."""
    found: list[str] = []
    for name in known_keys(model, at):
        here = (*at, name)
        found.append(".".join(here))
        # `known_keys` skips numbers, so an index stands for the items of a list.
        nested = known_keys(model, here)
        if nested:
            inner = (*here, "0") if _is_list(model, here) else here
            found += _all_keys(model, inner)
    return [key.replace(".0.", ".*.") for key in found]


def _is_list(model: type[BaseModel], location: Sequence[str]) -> bool:
    current: type[BaseModel] = model
    annotation: object = model
    for part in location:
        if part.isdigit():
            continue
        annotation = current.model_fields[part].annotation
        nested = _first_model(annotation)
        if nested is None:
            break
        current = nested
    return str(annotation).startswith("list[")


def _first_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for item in get_args(annotation) if (found := _first_model(item))), None)
