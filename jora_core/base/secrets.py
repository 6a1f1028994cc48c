"""References to environment variables in paths and URLs, and the masking of their values in text.

A configuration keeps `${NAME}` as it is written. The value is filled in where a file is opened, by
:func:`expand_variables`, and never stored. Text that leaves the process (errors, logs, manifests) passes
:func:`mask`, which puts the reference in place of the value, and `***` in place of credentials in a URL.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from jora_core.base.errors import InputError, mask_errors_with

# $NAME, ${NAME}, ${NAME:-default}; the default ends at the first brace, so it cannot hold a variable.
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::-([^}]*))?\})")
# Environment variables with the credentials that a configuration has in its URLs.
_TYPED = "JORA_SECRET_"
_TYPED_REFERENCE = re.compile(r"\$\{" + _TYPED + r"\w+\}")
# Before the host: `user:password@`, or a token alone. And parameters whose name says what they are.
_USER_INFO = re.compile(r"(?<=://)([^\s/@:\"'<>]*:)?([^\s/@\"'<>]+)(?=@)")
_PARAMETER = re.compile(
    r"(?i)(?<=[?&])([\w.-]*(?:token|signature|secret|password|passwd|credential|apikey|api_key|accesskey|"
    r"access_key|auth)[\w.-]*|sig|key|pwd)=([^\s&#\"'<>]+)"
)
# A shorter value, such as a number, stands in many texts that have nothing to do with it.
_SHORTEST = 4
_LONG = 12
MASK = "***"
# Variable of a child process with the names of the variables that its spec refers to.
REFERENCES = "JORA_REFERENCES"

_shown: dict[str, str] = {}


def expand_variables(text: str, missing: Callable[[str], Exception]) -> str:
    """Replace `$NAME`, `${NAME}` and `${NAME:-default}` in a path or URL by values from the environment.

    Args:
        text: the path or URL.
        missing: makes the error for a variable that is not set, from its name.
    """
    # Here, because every path and URL comes by, and before an error can name it.
    mask_errors_with(mask)

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found, default = os.environ.get(name), match[3]
        # As in a shell, the default of `:-` also stands in for an empty variable.
        if not found and default is not None:
            return default
        if found is None:
            raise missing(name)
        _note(found, f"${{{name}}}")
        return found

    return _VARIABLE.sub(value, text)


def has_variables(text: str) -> bool:
    """Return whether a path or URL refers to an environment variable."""
    return _VARIABLE.search(text) is not None


def has_credentials(text: str) -> bool:
    """Return whether a text has a URL with a password or a token itself, not a reference to one."""
    found = [*_USER_INFO.finditer(text), *_PARAMETER.finditer(text)] if "://" in text else []
    return any(not has_variables(match[2]) for match in found)


def hide_credentials(url: str) -> str:
    """Move the credentials of a URL into environment variables of this process and its children.

    Returns:
        The URL with references in their place.
    """

    def hidden(value: str) -> str:
        return value if has_variables(value) else hide_value(value)

    url = _USER_INFO.sub(lambda found: (found[1] or "") + hidden(found[2]), url)
    return _PARAMETER.sub(lambda found: f"{found[1]}={hidden(found[2])}", url)


def hide_value(value: str) -> str:
    """Move a secret into an environment variable of this process and its children, and mask it in all text.

    Returns:
        A reference to the variable.
    """
    mask_errors_with(mask)
    name = _TYPED + hashlib.sha256(value.encode()).hexdigest()[:12]
    os.environ[name] = value
    _note(value, f"${{{name}}}")
    return f"${{{name}}}"


def references(text: str) -> str:
    """Return a text with `${NAME}` in place of each value that was filled in; the opposite of expanding."""
    # Longest first: one value may be the beginning of another.
    for value in sorted(_shown, key=len, reverse=True):
        if value in text:
            text = _pattern(value).sub(lambda _, shown=_shown[value]: shown, text)
    return text


def _pattern(value: str) -> re.Pattern[str]:
    """Return a pattern of a value that leaves longer words alone: `/data` is not in `x/database`."""
    found = re.escape(value)
    # A long value with a digit and without a slash may be a secret, which is masked wherever it stands.
    if len(value) >= _LONG and "/" not in value and any(map(str.isdigit, value)):
        return re.compile(found)
    # In JSON, a line break before a word is two characters of which the second is a letter.
    begin = r"(?:(?<!\w)|(?<=\\[nrt]))" if re.match(r"\w", value) else ""
    end = r"(?!\w)" if re.search(r"\w\Z", value) else ""
    return re.compile(begin + found + end)


def expand_references(value: Any) -> Any:
    """Fill in the variables that the process above put in place of values, at any depth of a JSON value."""
    names = set(filter(None, os.environ.get(REFERENCES, "").split(",")))
    if not names:
        return value
    if isinstance(value, dict):
        return {name: expand_references(child) for name, child in value.items()}
    if isinstance(value, list):
        return [expand_references(child) for child in value]
    if not isinstance(value, str):
        return value

    def filled(match: re.Match[str]) -> str:
        # Other texts with a dollar sign, such as a template, stay as they are.
        if match[2] not in names or match[2] not in os.environ:
            return match[0]
        _note(os.environ[match[2]], match[0])
        return os.environ[match[2]]

    return _VARIABLE.sub(filled, value)


def child_environment() -> dict[str, str]:
    """Return the variable that tells a child process which references its spec may have."""
    names = sorted({shown.strip("${}") for shown in _shown.values()})
    return {REFERENCES: ",".join(names)} if names else {}


def _note(value: str, reference: str) -> None:
    """Let `mask` and `references` put a reference in place of a value, also of one quoted for URL or JSON."""
    if len(value) < _SHORTEST:
        return
    if not _shown:
        _mask_log_records()
    for form in (value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1]):
        _shown.setdefault(form, reference)


def mask(text: str) -> str:
    """Return a text without the values of referenced variables and without credentials in URLs."""
    text = references(text)
    if "://" in text:
        text = _USER_INFO.sub(lambda found: (found[1] or "") + _masked(found[2]), text)
        text = _PARAMETER.sub(lambda found: f"{found[1]}={_masked(found[2])}", text)
    return _TYPED_REFERENCE.sub(MASK, text)


def _masked(value: str) -> str:
    # A reference is no secret, and says where the value comes from.
    return value if has_variables(value) else MASK


def _mask_log_records() -> None:
    """Let every log record of this process, of whatever library, pass `mask`."""
    make = logging.getLogRecordFactory()

    def masked_record(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.msg, record.args = mask(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = mask(logging.Formatter().formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(masked_record)


def refuse_credentials(changes: Sequence[str], where: str) -> None:
    """Refuse changes with a password or a token, which the server would keep and its UI would show.

    Args:
        changes: `key.path=value`.
        where: what the changes were given to, for the error.

    Raises:
        InputError: a change has one.
    """
    for change in changes:
        if has_credentials(change):
            raise InputError(
                f"{where}: {change.partition('=')[0]} has a password or a token, which the UI would "
                "show; set a variable where `jora serve` runs, and write ${NAME} in its place"
            )
