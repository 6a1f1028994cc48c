"""The template that a setting names: one of the names, a file, or the template itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from string import Formatter
from typing import Literal, NamedTuple

from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.specs.common import ALPACA_SHORT
from jora_core.specs.prompts.settings import PromptSpec

# Values of `template` that name no file.
TEMPLATE_NAMES = ("auto", "alpaca", "chat")
# In this order `transformers` looks for the template of a tokenizer.
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
# Longer values are texts: no file system has such a name.
_LONGEST_PATH = 1024


class TemplateSource(NamedTuple):
    """A template's kind and text, and where it comes from.

    Attributes:
        kind: `format` for text with {instruction} and {input}, `jinja` for a chat template.
        text: the template itself.
        origin: file or setting, for messages.
    """

    kind: Literal["format", "jinja"]
    text: str
    origin: str

    @property
    def digest(self) -> str:
        """SHA-256 of kind and text."""
        return hashlib.sha256(f"{self.kind}\0{self.text}".encode()).hexdigest()


def template_source(prompt: PromptSpec, model: Path | None) -> TemplateSource:
    """Find the template that a setting names.

    Args:
        prompt: the setting.
        model: the model folder, whose tokenizer may have a chat template; None for no folder.

    Raises:
        InputError: no such file, or no chat template where `chat` asks for one.
    """
    name = prompt.template
    if name in ("auto", "chat"):
        own = None if model is None else own_chat_template(model)
        if own is not None:
            return own
        if name == "chat":
            raise InputError(
                f"prompt.template: chat: {model} has no chat template ({', '.join(CHAT_TEMPLATE_FILES)}); "
                "write alpaca, or the path of a template file"
            )
    if name in ("auto", "alpaca"):
        return TemplateSource("format", ALPACA_SHORT, "alpaca")
    if is_inline(name):
        return TemplateSource(_kind(name), name, "prompt.template")
    return _read_file(Path(name))


def is_inline(template: str) -> bool:
    """Return whether a value of `template` is a template itself, and neither a name nor a path."""
    return any(sign in template for sign in "{\n") or len(template) > _LONGEST_PATH


def inlined(prompt: PromptSpec) -> PromptSpec:
    """Return the setting with the content of its file in place of the path.

    A spec is then whole: its digest covers the template, and a moved file changes nothing.

    Raises:
        InputError: no such file.
    """
    if prompt.template in TEMPLATE_NAMES or is_inline(prompt.template):
        return prompt
    return prompt.model_copy(update={"template": _read_file(Path(prompt.template)).text})


def own_chat_template(model: Path) -> TemplateSource | None:
    """Return the chat template of a model folder's tokenizer; None for a tokenizer without one.

    Raises:
        InputError: a file of the folder cannot be read, or has a template that is no text.
    """
    for name in CHAT_TEMPLATE_FILES:
        path = model / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            return TemplateSource("jinja", _text_of(path), name)
        found = read_json_object(path, f"model folder {model}").get("chat_template")
        if isinstance(found, list):
            # Several by name: the others are for tools and retrieval, whose data has another shape.
            named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
            found = named.get("default")
        if found is None:
            continue
        if not isinstance(found, str):
            raise InputError(f"{path}: chat_template must be text, found {type(found).__name__}")
        return TemplateSource("jinja", found, name)
    return None


def format_parts(text: str) -> list[tuple[str, str | None]]:
    """Return the literal texts of a format string, each with the field behind it; None behind the last.

    Raises:
        InputError: stray braces, or a field other than {instruction}, {input} and {output}.
    """
    try:
        found = [(literal, field) for literal, field, _, _ in Formatter().parse(text)]
    except ValueError as err:
        raise InputError(f"prompt.template: {err}; write {{{{ for a brace") from None
    for _, field in found:
        if field is not None and field not in ("instruction", "input", "output"):
            raise InputError(
                f"prompt.template: bad field {{{field}}}; only {{instruction}}, {{input}} and {{output}} are "
                "known"
            )
    return found


def check_format(text: str, origin: str) -> None:
    """Check a template with {instruction} and {input}.

    Raises:
        InputError: stray braces, an unknown field, or neither of the two.
    """
    fields = {field for _, field in format_parts(text)}
    if not fields & {"instruction", "input"}:
        raise InputError(
            f"prompt.template: {origin} has neither {{instruction}} nor {{input}}; give at least one"
        )


def _read_file(path: Path) -> TemplateSource:
    if not path.is_file():
        raise InputError(
            f"prompt.template: no such file: {path}; expected {', '.join(TEMPLATE_NAMES)} or the path of a "
            "template"
        )
    text = _text_of(path)
    if not is_inline(text):
        raise InputError(
            f"prompt.template: {path} is no template: expected Jinja over `messages`, or text with "
            "{instruction} and {input}"
        )
    return TemplateSource(_kind(text), text, path.name)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror or err}") from None
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not UTF-8 text: {err.reason} at byte {err.start}") from None


def _kind(text: str) -> Literal["format", "jinja"]:
    # `{{` alone is no sign: it is one brace in a format text.
    return "jinja" if "{%" in text or ("{{" in text and "messages" in text) else "format"
