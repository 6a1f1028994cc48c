"""Copying of a model folder's other files: tokenizer, generation settings, licence."""

from __future__ import annotations

import json
import shutil
from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path

from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.json_fields import read_json_object
from jora_core.data.prompts.prompt_template import jinja_of_format, load_template
from jora_core.data.tokenizer import TOKENIZER_FILES, TextTokenizer
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.specs.prompts.source import CHAT_TEMPLATE_FILES, own_chat_template, template_source

# Patterns of the files that a derived model keeps: special tokens, padding and chat template are the base's.
# Beside the files that this core reads there are those of slow tokenizers, which transformers falls back to.
COMPANION_PATTERNS = (
    *TOKENIZER_FILES,
    "tokenizer*",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)

# In a model folder that was a GGUF file: what the file said of itself, its licence too.
GGUF_SOURCE = "gguf_source.json"


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files of a model folder other than weights and config, each file atomically.

    Args:
        source: the base model's folder.
        folder: the derived model's folder. If it is `source`, nothing is done.
    """
    if source.resolve() == folder.resolve():
        return
    # A set, because a file can match several patterns.
    found = {path for pattern in COMPANION_PATTERNS for path in source.glob(pattern)}
    # Bytes are copied, because a tokenizer that is loaded and saved again may come out different.
    for path in sorted(found):
        if path.is_file():
            copy_file(path, folder / path.relative_to(source))


@dataclass(frozen=True)
class PromptFiles:
    """What a derived model's folder lacks to give the prompts of its training.

    Attributes:
        template: text of the chat template; None if the base's is the one.
        end: id of the token that ends an answer.
        eos: id of the tokenizer's end token.
        description: what the prompts were, for a card.
    """

    template: str | None
    end: int
    eos: int
    description: str


def prompt_files(prompt: PromptSpec, model: Path, tokenizer: TextTokenizer) -> PromptFiles:
    """Find what a derived model's folder lacks to give the prompts of its training.

    Args:
        prompt: the setting of the training's prompts.
        model: the base model's folder.
        tokenizer: its tokenizer.

    Raises:
        InputError: the template cannot be used.
    """
    source = template_source(prompt, model)
    template = load_template(prompt, tokenizer)
    own = own_chat_template(model)
    if source.kind == "format":
        text = jinja_of_format(source.text, prompt.system, len(template.bos) > 0)
    else:
        text = source.text
    system = (
        f", after the system message {json.dumps(prompt.system, ensure_ascii=False)}" if prompt.system else ""
    )
    return PromptFiles(
        template=None if own is not None and text == own.text else text,
        end=template.end_id,
        eos=tokenizer.eos_id,
        description=f"template of {template.name}{system}; "
        f"answers end with {tokenizer.text_of(template.end_id)}",
    )


def write_prompt_files(files: PromptFiles, folder: Path) -> None:
    """Let a derived model's folder, which has the base's files, give the prompts of its training.

    A template that is not the tokenizer's own becomes ``chat_template.jinja``, which has priority over the
    base's. A token that ends answers and that no file names as an end is added to ``generation_config.json``.
    """
    if files.template is not None:
        with atomic_path(folder / CHAT_TEMPLATE_FILES[0]) as temporary:
            temporary.write_text(files.template, encoding="utf-8")
    path = folder / "generation_config.json"
    settings = read_json_object(path, f"model folder {folder}") if path.is_file() else {}
    named = settings.get("eos_token_id")
    ends = named if isinstance(named, list) else [] if named is None else [named]
    # Without a file, transformers takes the end that config.json or the tokenizer names.
    if files.end not in (*ends, files.eos):
        write_json(path, {**settings, "eos_token_id": [*(ends or [files.eos]), files.end]})


def copy_file(source: Path, target: Path) -> None:
    """Copy one file atomically. A byte order mark of a JSON file is left out: `transformers` refuses it."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        if source.suffix == ".json":
            raw = temporary.read_bytes()
            if raw.startswith(BOM_UTF8):
                temporary.write_bytes(raw.removeprefix(BOM_UTF8))
