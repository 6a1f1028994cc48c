"""Short templates of our own in the chat formats of known models, and a small tokenizer for each.

The formats: https://www.llama.com/docs/model-cards-and-prompt-formats (Llama 3), ChatML as in
https://qwen.readthedocs.io (Qwen, SmolLM2), https://ai.google.dev/gemma/docs/core/prompt-structure (Gemma).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

WORDS = ["lamp", "river", "copper", "seven", "market", "window", "garden", "paper", "silver", "bread"]


class ChatFormat(NamedTuple):
    """A chat template, its control tokens, the first of all tokens, and the token that ends a turn."""

    template: str
    controls: tuple[str, ...]
    bos: str
    end: str
    takes_system: bool = True


_LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_CHATML = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Thoughts of earlier turns are removed, and an answer without thoughts begins with an empty pair.
_QWEN3 = """{%- for message in messages %}
    {%- set text = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + text + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
_GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('no system role') }}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

FORMATS = {
    "llama3": ChatFormat(
        _LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "smollm2": ChatFormat(_CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "", "<|im_end|>"),
    "qwen3": ChatFormat(_QWEN3, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "", "<|im_end|>"),
    "gemma": ChatFormat(
        _GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<end_of_turn>", False
    ),
}


def write_tokenizer(folder: Path, chat: ChatFormat) -> Path:
    """Write a small byte-level tokenizer with a chat template into a folder, and return the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(chat.controls),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "user assistant system model Question:"] * 4, trainer)
    if chat.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{chat.bos} $A", special_tokens=[(chat.bos, tokenizer.token_to_id(chat.bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": chat.controls[0] if not chat.bos else chat.controls[-1],
        "chat_template": chat.template,
        **({"bos_token": chat.bos} if chat.bos else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
