"""Values from the environment and credentials of URLs stand in no text that leaves the process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from jora_core.base import secrets
from jora_core.base.errors import InputError
from jora_core.base.secrets import child_environment, expand_variables, hide_credentials, mask, references

SECRET = "s3cr3t/päss word"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PLANTED", SECRET)
    monkeypatch.setattr(secrets, "_shown", {})
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


def filled(text: str) -> str:
    return expand_variables(text, lambda name: InputError(f"{name} is not set"))


def test_an_empty_variable_takes_its_default_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_VARIABLE", "")
    assert filled("${EMPTY_VARIABLE:-x}/y") == "x/y"
    assert filled("${EMPTY_VARIABLE}/y") == "/y"


def test_value_is_filled_in_and_masked_in_every_form() -> None:
    assert filled("/a/${PLANTED}/b/$PLANTED") == f"/a/{SECRET}/b/{SECRET}"
    assert filled("${NOT_THERE_AT_ALL:-x}/y") == "x/y"
    with pytest.raises(InputError, match="NOT_THERE_AT_ALL is not set"):
        filled("$NOT_THERE_AT_ALL")
    for form in (SECRET, quote(SECRET), quote(SECRET, safe=""), json.dumps(SECRET)[1:-1]):
        assert mask(f"cannot read /a/{form}/b") == "cannot read /a/${PLANTED}/b"
    assert str(InputError(f"{SECRET} is missing")) == "${PLANTED} is missing"
    assert references(filled("/a/${PLANTED}")) == "/a/${PLANTED}"


def test_short_values_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N", "12")
    assert filled("run-$N") == "run-12" and mask("12 of 123") == "12 of 123"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://bob:hunter2@host/a?x=1", "https://bob:***@host/a?x=1"),
        ("https://ghp_abcdef@host/a", "https://***@host/a"),
        ("s3://bucket/a?X-Amz-Credential=AK/2&X-Amz-Signature=ab12&v=3", None),
        ("https://host/a?token=abc#part", "https://host/a?token=***#part"),
        ("https://account.blob/x?sv=1&sig=abc%3D", "https://account.blob/x?sv=1&sig=***"),
        ("postgresql+asyncpg://me:pass@db/jora", "postgresql+asyncpg://me:***@db/jora"),
        ("https://host/a@b?page=2", "https://host/a@b?page=2"),
        ("https://${USER_TOKEN}@host/a", "https://${USER_TOKEN}@host/a"),
    ],
)
def test_credentials_in_urls(url: str, shown: str | None) -> None:
    shown = shown or "s3://bucket/a?X-Amz-Credential=***&X-Amz-Signature=***&v=3"
    assert mask(f"error: {url} cannot be read") == f"error: {shown} cannot be read"
    hidden = hide_credentials(url)
    if "***" in shown:
        assert hidden != url and mask(hidden) == shown
    assert expand_variables(hidden, lambda name: KeyError(name)) == url if "USER_TOKEN" not in url else True
    assert mask(f"error: {url} cannot be read") == f"error: {shown} cannot be read", "with the value noted"


def test_logs_and_tracebacks_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    filled("${PLANTED}")
    try:
        raise OSError(f"no such file {SECRET}")
    except OSError:
        logging.getLogger("some.library").exception("failed at %s", SECRET)
    assert caplog.text.count("${PLANTED}") >= 2 and SECRET not in caplog.text


def test_child_fills_in_what_its_parent_filled_in() -> None:
    filled("${PLANTED}")
    program = "\n".join(
        [
            "import json, sys",
            "from jora_core.base.secrets import expand_references, mask",
            "value = expand_references(json.loads(sys.argv[1]))",
            "print(len(value['path']), value['template'], mask(value['path']))",
        ]
    )
    spec = json.dumps({"path": references(SECRET), "template": "costs ${HOME}"})
    done = subprocess.run(
        [sys.executable, "-c", program, spec],
        capture_output=True,
        text=True,
        env={**os.environ, **child_environment()},
        check=True,
    )
    assert done.stdout.strip() == f"{len(SECRET)} costs ${{HOME}} ${{PLANTED}}"


@pytest.mark.parametrize(
    ("value", "text", "shown"),
    [
        ("/data/shared", "jora_core/data/shared_context.py", "jora_core/data/shared_context.py"),
        ("/data/shared", "cannot read /data/shared/a.txt", "cannot read ${PLANTED}/a.txt"),
        ("token", "tokenizer and tokens", "tokenizer and tokens"),
        ("token", 'https://host?k=token&x "a\\ntoken"', 'https://host?k=${PLANTED}&x "a\\n${PLANTED}"'),
        ("hf_0123456789", "Bearerhf_0123456789x", "Bearer${PLANTED}x"),
    ],
)
def test_longer_words_are_left(value: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", value)
    filled("$PLANTED")
    assert references(text) == shown
