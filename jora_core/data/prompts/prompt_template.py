"""The template that frames records and conversations, and the tokens that begin and end what it frames.

A template's own control tokens, such as ``<|im_start|>``, become tokens; the same characters in a document,
a question or an answer stay characters. So the filled template is a *marked* text: it holds the private text
of `TextTokenizer.mark` in place of each control token that the template itself wrote. The text between two
control tokens is encoded in one piece, so the ids are those of `transformers.apply_chat_template`.

A record becomes a user's turn: the instruction, a blank line, and the input, whose question is last. So
examples of one context begin with the same tokens, and the end of the template follows the question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.data.tokenizer import PRIVATE, TextTokenizer
from jora_core.specs.prompts.jinja_template import compile_template, within_seconds
from jora_core.specs.prompts.messages import Message, as_messages
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.specs.prompts.source import TemplateSource, check_format, format_parts, template_source

# Noncharacters of Unicode, which no text holds: around the id of a control token that is a message's text,
# and at the beginning and the end of an assistant's turn.
_ESCAPE, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_FORBIDDEN = re.compile(f"[{_ESCAPE}{_BEGIN}{_END}{PRIVATE}]")
_ESCAPED = re.compile(f"{_ESCAPE}(\\d+){_ESCAPE}")
_ALIAS = re.compile(f"{PRIVATE[0]}(\\d+){PRIVATE[1]}")
# Marks the place of the input in a filled template; texts do not contain NUL.
_HERE = "\x00input\x00"
# Words that no template changes or compares with.
_USER, _ANSWER, _SYSTEM = "Quixotic user text", "Quixotic answer text", "Quixotic system text"


class AnswerEnd(NamedTuple):
    """What stands beside an answer: text before it, text behind it, and the token that ends it."""

    before: str
    behind: str
    token: int


@dataclass(frozen=True)
class PromptTemplate:
    """A template for one tokenizer. All texts that it returns are marked.

    Attributes:
        name: alpaca, or the file of the template.
        digest: SHA-256 of the template's text and of the system message.
        prompt: (instruction, input) → the prompt, up to the first token of the answer.
        answer_end: what stands beside an answer.
        bos: int32 [0 or 1], the BOS token, if the template does not write it itself.
        turns: messages → texts that are alternately given and answered, from a given one to an answered one.
    """

    name: str
    digest: str
    prompt: Callable[[str, str], str]
    answer_end: AnswerEnd
    bos: np.ndarray
    turns: Callable[[Sequence[Message]], list[str]]
    plain: Callable[[str], str]

    def frame(self, instruction: str) -> tuple[str, str, bool]:
        """Return the texts before and behind a prompt's input, and whether control tokens are in them."""
        before, _, behind = self.prompt(instruction, _HERE).partition(_HERE)
        return before, behind, _ALIAS.search(before + behind) is not None

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.answer_end.token

    def answer(self, output: str) -> str:
        """Return the text of an answer, without the token that ends it."""
        return self.answer_end.before + self.plain(output) + self.answer_end.behind


def load_template(prompt: PromptSpec, tokenizer: TextTokenizer) -> PromptTemplate:
    """Return the template that a setting names, for the tokenizer of a model folder.

    Raises:
        InputError: no such template, or one that fails, does not end, or leaves out what it is given.
    """
    source = template_source(prompt, tokenizer.folder)
    if source.kind == "jinja":
        return _ChatTemplate(source, prompt.system, tokenizer).template()
    return _format_template(source, prompt.system, tokenizer)


def unmarked(text: str, tokenizer: TextTokenizer) -> str:
    """Return a marked text with the texts of its control tokens, as other programs write it."""
    return _ALIAS.sub(lambda found: tokenizer.text_of(int(found[1])), text)


def jinja_of_format(text: str, system: str = "", bos: bool = False) -> str:
    """Return the chat template that gives the prompts of a template with {instruction} and {input}.

    Its system message is the instruction and its user's message the input; without a system message, the
    user's is the instruction. So a server of chats can give an exported model the prompts of its training.

    Args:
        text: format string with {instruction} and {input}.
        system: the fixed text before all prompts, "" for none.
        bos: whether conversations begin with the BOS token.

    Raises:
        InputError: the text is no such format string.
    """
    before, _, behind = _with_system(text, system).partition("{output}")
    names = {"instruction": "instruction", "input": "text"}
    parts = [
        json.dumps(literal, ensure_ascii=False) + (f" ~ {names[field]}" if field else "")
        for literal, field in format_parts(before)
    ]
    end = json.dumps("".join(literal for literal, _ in format_parts(behind)), ensure_ascii=False)
    # A text without {output} ends with the tokenizer's own end.
    end = "eos_token" if end == '""' else end
    return (
        "{%- if messages and messages[0]['role'] == 'system' %}"
        "{%- set first = messages[0]['content'] %}{%- set rest = messages[1:] %}"
        "{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}"
        + ("{{- bos_token }}" if bos else "")
        + "{%- for message in rest %}{%- if message['role'] == 'user' %}"
        "{%- set instruction = first or message['content'] %}"
        "{%- set text = message['content'] if first else '' %}"
        "{{- " + " ~ ".join(parts) + " }}"
        "{%- elif message['role'] == 'assistant' %}{{- message['content'] ~ " + end + " }}"
        "{%- else %}{{- raise_exception('unknown role ' ~ message['role']) }}{%- endif %}{%- endfor %}"
    )


def _with_system(text: str, system: str) -> str:
    escaped = system.replace("{", "{{").replace("}", "}}")
    return f"{escaped}\n\n{text}" if system else text


def _format_template(source: TemplateSource, system: str, tokenizer: TextTokenizer) -> PromptTemplate:
    """Return the template of a text with {instruction} and {input}."""
    check_format(source.text, source.origin)
    marks = _Marks(tokenizer)
    before, has_output, behind = _with_system(source.text, system).partition("{output}")
    parts = [(marks.mark(literal), field) for literal, field in format_parts(before)]
    text, end = marks.first_token(marks.mark("".join(literal for literal, _ in format_parts(behind))))
    # Texts stay as they are where no control token is in the template: then nothing is to be told apart.
    plain = marks.plain if any(_ALIAS.search(literal) for literal, _ in parts) or end is not None else str

    def prompt(instruction: str, input: str) -> str:
        values = {"instruction": plain(instruction), "input": plain(input)}
        return "".join(literal + (values[field] if field else "") for literal, field in parts)

    begins = parts[0][0] if parts else ""
    bos = tokenizer.bos_id is not None
    chat = TemplateSource("jinja", jinja_of_format(source.text, system, bos), source.origin)

    def turns(messages: Sequence[Message]) -> list[str]:
        return _ChatTemplate(chat, "", tokenizer).turns(messages)

    return PromptTemplate(
        name=source.origin,
        digest=_digest(source, system),
        prompt=prompt,
        answer_end=AnswerEnd("", text if has_output else "", tokenizer.eos_id if end is None else end),
        bos=_bos(tokenizer, begins),
        turns=turns,
        plain=plain,
    )


def _digest(source: TemplateSource, system: str) -> str:
    return source._replace(text=f"{source.text}\0{system}").digest if system else source.digest


def _bos(tokenizer: TextTokenizer, begins: str) -> np.ndarray:
    """Return the BOS token, or nothing for a tokenizer without one and a text that begins with it."""
    found = _ALIAS.match(begins)
    written = found is not None and int(found[1]) == tokenizer.bos_id
    return np.asarray([] if tokenizer.bos_id is None or written else [tokenizer.bos_id], np.int32)


class _Marks:
    """Control tokens within texts: told apart by who wrote them, the template or a message."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        # The longest first: one control token may begin with another.
        texts = sorted(filter(None, tokenizer.controls), key=lambda text: (-len(text), text))
        self._controls = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._texts = {number: text for text, number in tokenizer.controls.items()}

    def plain(self, text: str) -> str:
        """Return a text without the private characters, so that it cannot become a control token."""
        return _FORBIDDEN.sub("\ufffd", text)

    def escape(self, text: str) -> str:
        """Return a message's text in which no control token is found until `restore`."""
        text = self.plain(text)
        if self._controls is None:
            return text
        ids = self._tokenizer.controls
        return self._controls.sub(lambda found: f"{_ESCAPE}{ids[found[0]]}{_ESCAPE}", text)

    def mark(self, text: str) -> str:
        """Return a text with the private text of each control token in it."""
        if self._controls is None:
            return text
        return self._controls.sub(lambda found: self._tokenizer.mark(found[0]), text)

    def token(self, number: int) -> str:
        """Return the marked text of a control token."""
        return self._tokenizer.mark(self._texts[number])

    def restore(self, text: str) -> str:
        """Return a text with the characters of the control tokens that `escape` hid."""
        return _ESCAPED.sub(lambda found: self._texts[int(found[1])], text)

    def first_token(self, text: str) -> tuple[str, int | None]:
        """Return a marked text up to its first control token, and that token; None if it has none."""
        found = _ALIAS.search(text)
        return (text, None) if found is None else (text[: found.start()], int(found[1]))


class _ChatTemplate:
    """A chat template in Jinja for one tokenizer."""

    def __init__(self, source: TemplateSource, system: str, tokenizer: TextTokenizer) -> None:
        """Compile the template and find out how it frames turns.

        Args:
            source: the template.
            system: system message of all prompts, "" for none.
            tokenizer: the model's.

        Raises:
            InputError: the template fails, does not end, or leaves out what it is given.
        """
        self._source = source
        self._system = system
        self._tokenizer = tokenizer
        self._marks = _Marks(tokenizer)
        self._template = compile_template(source.text, source.origin)
        user = {"role": "user", "content": _USER}
        # Also the check that the template ends, and before the check of the rest, which could not tell.
        asked = within_seconds(lambda: self._render([user], True), source.origin)
        answered = self._render([user, {"role": "assistant", "content": f" {_ANSWER} "}], False)
        for what, text, where in (("user's", _USER, asked), ("assistant's", _ANSWER, answered)):
            if text not in where:
                raise InputError(
                    f"prompt.template: {source.origin} leaves out the {what} message; expected a template "
                    "that writes the content of all `messages`"
                )
        self._strips = f" {_ANSWER} " not in answered
        self._takes_system = self._writes_system(user)
        answered = self._render([user, {"role": "assistant", "content": _ANSWER}], False)
        before, _, behind = answered.partition(_ANSWER)
        text, token = self._marks.first_token(behind)
        # Qwen 3 writes another beginning of the answer before than after it was given.
        lead = before[len(asked) :] if before.startswith(asked) else ""
        ends = tokenizer.eos_id if token is None else token
        self._answer_end = AnswerEnd(lead, text if token is not None else "", ends)

    def template(self) -> PromptTemplate:
        """Return the template in the form that all kinds share."""

        def prompt(instruction: str, input: str) -> str:
            return self._render(self._usable(as_messages(instruction, input, self._system)), True)

        return PromptTemplate(
            name=self._source.origin,
            digest=_digest(self._source, self._system),
            prompt=prompt,
            answer_end=self._answer_end,
            # As in transformers: what the template does not write is not there.
            bos=np.zeros(0, np.int32),
            turns=self.turns,
            plain=self._marks.plain,
        )

    def turns(self, messages: Sequence[Message]) -> list[str]:
        """Return a conversation as texts that are alternately given and answered.

        Each answer has the control token that ends it. What follows the last answer is left out.

        Raises:
            InputError: no turn of the assistant, or a template that refuses the messages or rewrites answers.
        """
        last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
        if last < 0:
            raise InputError("a conversation without a turn of the assistant teaches nothing")
        messages = self._usable(messages[: last + 1])
        if self._system and messages[0]["role"] != "system":
            messages = self._usable([{"role": "system", "content": self._system}, *messages])
        text = self._render(messages, False, bounds=True)
        given, *rest = text.split(_BEGIN)
        texts = [given]
        token: int | None = None
        for part in rest:
            answer, found, behind = part.partition(_END)
            if not found or _END in behind:
                break
            upto, token = self._marks.first_token(behind)
            ends = upto + self._marks.token(token) if token is not None else ""
            # The given text ends where a prompt ends: what a template writes between is a part of the answer.
            lead = self._answer_end.before
            if lead and texts[-1].endswith(lead):
                texts[-1] = texts[-1].removesuffix(lead)
                answer = lead + answer
            texts += [answer + ends, behind[len(ends) :]]
        if len(texts) != 2 * sum(m["role"] == "assistant" for m in messages) + 1:
            raise InputError(
                f"prompt.template: {self._source.origin} rewrites turns of the assistant, so that answers "
                "cannot be told from the rest; leave out what it removes (such as thoughts), or give another "
                "template"
            )
        if token is None:
            texts[-2] += self._marks.token(self._tokenizer.eos_id)
        return texts[:-1]

    def _usable(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages without a system message, where the template has no place for one."""
        if self._takes_system or not messages or messages[0]["role"] != "system":
            return list(messages)
        first, *rest = messages
        notice(
            f"prompt: {self._source.origin} has no place for a system message; it stands before the first "
            "message of the user"
        )
        if not rest or rest[0]["role"] != "user":
            return [{"role": "user", "content": first["content"]}, *rest]
        joined = f"{first['content']}\n\n{rest[0]['content']}"
        return [{"role": "user", "content": joined}, *rest[1:]]

    def _writes_system(self, user: Message) -> bool:
        try:
            return _SYSTEM in self._render([{"role": "system", "content": _SYSTEM}, user], True)
        except InputError:
            return False

    def _render(self, messages: Sequence[Message], prompt: bool, bounds: bool = False) -> str:
        """Return the marked text of messages.

        Args:
            messages: the messages.
            prompt: whether the beginning of an answer follows them.
            bounds: whether the assistant's texts stand between `_BEGIN` and `_END`.
        """
        safe: list[dict[str, Any]] = []
        for message in messages:
            text = self._marks.escape(message["content"])
            if bounds and message["role"] == "assistant":
                text = f"{_BEGIN}{text.strip() if self._strips else text}{_END}"
            safe.append({**message, "content": text})
        text = self._template(
            messages=safe,
            add_generation_prompt=prompt,
            tools=None,
            documents=None,
            # Qwen 3 and others: answers come without thoughts, as those that are taught.
            enable_thinking=False,
            **self._tokenizer.names,
        )
        return self._marks.restore(self._marks.mark(text))
