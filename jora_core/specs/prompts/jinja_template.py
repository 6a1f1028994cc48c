"""Rendering of chat templates in Jinja, with the variables, filters and functions that `transformers` gives.

`transformers` itself takes three seconds to import, so a prompt would wait for it. A test compares both.
Templates come with models of strangers: they run in Jinja's sandbox, and a template that does not end is an
error.

Format: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar

from jora_core.base.errors import InputError
from jora_core.base.notices import notice

# The date that templates see as today's: Llama 3.1 and 3.2 write it themselves where no clock is there.
TODAY = datetime(2024, 7, 26)
# A template takes a millisecond. The first rendering of a template is given this time on a busy machine.
LONGEST_SECONDS = 20.0


def compile_template(text: str, origin: str) -> Callable[..., str]:
    """Return a function that renders a chat template from keyword arguments (`messages`, ...).

    Args:
        text: the template.
        origin: file or setting of the template, for messages.

    Raises:
        InputError: the text is no Jinja. The returned function raises it for everything that goes wrong.
    """
    from jinja2 import TemplateSyntaxError

    try:
        template = _environment(origin).from_string(text)
    except TemplateSyntaxError as err:
        raise InputError(
            f"prompt.template: {origin}, line {err.lineno}: {err.message}; correct the Jinja template"
        ) from None
    except RecursionError:
        raise InputError(f"prompt.template: {origin} nests too deep; correct the Jinja template") from None

    def render(**values: Any) -> str:
        try:
            return template.render(**values)
        # Whatever its code does wrong, from an unknown name to an unending recursion.
        except Exception as err:
            line = str(err).splitlines()[0] if str(err) else type(err).__name__
            raise InputError(f"prompt.template: {origin} refuses the messages: {line:.200}") from None

    return render


def check_template(text: str, origin: str) -> None:
    """Render a chat template once, for the errors that it gives without a tokenizer.

    Args:
        text: the template.
        origin: file or setting of the template, for messages.

    Raises:
        InputError: the text is no Jinja, refuses a message of the user, or does not end.
    """
    render = compile_template(text, origin)
    values = {
        "messages": [{"role": "user", "content": "text"}],
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    within_seconds(lambda: render(**values), origin)


def within_seconds(render: Callable[[], str], origin: str, seconds: float = LONGEST_SECONDS) -> str:
    """Return the result of a rendering that may not end.

    Args:
        render: renders a template.
        origin: file or setting of the template, for messages.
        seconds: longest time.

    Raises:
        InputError: the rendering takes longer, or raises it.
    """
    found: list[str] = []
    failed: list[InputError] = []

    def work() -> None:
        try:
            found.append(render())
        except InputError as err:
            failed.append(err)

    # A thread that cannot be ended ends with the process, which the error below ends.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise InputError(f"prompt.template: {origin} does not end within {seconds:g} s; correct its loops")
    if failed:
        raise failed[0]
    return found[0]


def _environment(origin: str) -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `{% generation %}` around an assistant's text, which renders as its content."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Sequence[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(format: str) -> str:
        notice(f"{origin} writes the date; it is always {TODAY:%d %b %Y}, so that a prompt stays the same")
        return TODAY.strftime(format)

    def tojson(value: Any, **options: Any) -> str:
        # Jinja's own filter escapes for HTML.
        return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment
