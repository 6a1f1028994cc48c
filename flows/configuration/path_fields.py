"""The settings that are paths, and how relative paths become absolute."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.configuration.fetched_models import MODELS
from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_variables, hide_credentials, references
from jora_core.specs.prompts.source import TEMPLATE_NAMES, is_inline
from retrieval.corpus.remote_sources import HUB_NAME, is_path, is_url, with_home

# The fields that name a file or a folder, as dotted keys; `*` is any one key.
PATH_KEYS = (
    "context.*.source",
    "context.*.test_source",
    "context.*.questions",
    "context.qa.synthetic_questions",
    "context.qa.generate.decisions",
    "context.qa.generate.teacher.model_folder",
    "context.qa.generate.teacher.adapter_folder",
    "context.embedding_cache",
    "phases.*.alpaca_path",
    "phases.*.init_adapter",
)
# A path, unless it is no folder and is the name of a fetched model, or looks like one of the hub.
PATH_OR_HUB_KEYS = ("model.path", "context.tokenizer")
# Addresses of servers, whose credentials are hidden like those in the URL of a source.
URL_KEYS = ("context.qa.generate.teacher.base_url",)
# A path if such a folder exists, else the name of a model for sentence-transformers.
PATH_OR_NAME_KEYS = ("context.embedder", "context.reranker")
# A path, unless it is one of the names, or the template itself.
PATH_OR_TEMPLATE_KEYS = ("prompt.template",)
# Paths, or `NAME=PATH`, among names and keys.
SYSTEMS_KEY = "evaluate.systems.*"
# Paths that count from folders of their own; see the module `schema`.
OTHER_ROOT_KEYS = (("store",), ("store_cache",), ("root",))
MOST_NAME_BYTES = 255  # of Linux's file systems, as are the next
MOST_PATH_BYTES = 4095


def resolve_paths(
    raw: Any, root: Path, source: str, root_from: Path | None = None, *, at: tuple[str, ...] = ()
) -> Any:
    """Make every path in a configuration absolute, and replace environment variables in the paths.

    Args:
        raw: a configuration as nested mappings and lists, or one value of a configuration.
        root: folder that relative paths count from. `store` and `store_cache` always count from the working
            directory.
        source: name of the origin of `raw`, for errors.
        root_from: folder that the key `root` itself counts from; None takes the working directory.
        at: key of `raw` in the configuration; empty for a whole configuration.

    Returns:
        A changed copy of `raw`.

    Raises:
        InputError: an environment variable is not set.
    """

    def visit(value: Any, key: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return {name: visit(child, (*key, str(name))) for name, child in value.items()}
        if isinstance(value, list):
            return [visit(child, (*key, str(number))) for number, child in enumerate(value)]
        if not isinstance(value, str):
            return value
        where = f"{source}: {'.'.join(key)}"
        if key in OTHER_ROOT_KEYS:
            filled = _expanded(value, where)
            if key == ("store",) and is_url(filled):
                return hide_credentials(value)  # as a URL of a source, below
            base = (root_from or Path.cwd()) if key == ("root",) else Path.cwd()
            _check_length(value, where)
            return _absolute(base / with_home(filled, where))
        if _is_one_of(key, (*PATH_KEYS, *PATH_OR_HUB_KEYS, *PATH_OR_NAME_KEYS)):
            _check_length(value, where)
        if _is_one_of(key, URL_KEYS):
            _expanded(value, where)
            return hide_credentials(value)
        if _is_one_of(key, PATH_KEYS):
            filled = _expanded(value, where)
            # `s3://bucket/a` would become a path below `root`. A URL keeps its references, and gets them for
            # its credentials: they are filled in where it is opened.
            return hide_credentials(value) if is_url(filled) else _absolute(root / with_home(filled, where))
        if _is_one_of(key, (SYSTEMS_KEY,)):
            name, mark, place = value.rpartition("=")
            # Names of systems and keys are no paths.
            if not is_path(place):
                return value
            return f"{name}{mark}{_absolute(root / with_home(_expanded(place, where), where))}"
        if _is_one_of(key, PATH_OR_TEMPLATE_KEYS):
            if value in TEMPLATE_NAMES or is_inline(value.replace("${", "")):
                return value
            return _absolute(root / with_home(_expanded(value, where), where))
        if _is_one_of(key, PATH_OR_HUB_KEYS):
            value = _expanded(value, where)
            folder = root / with_home(value, where)
            is_name = value in MODELS or HUB_NAME.match(value)
            return value if is_name and not folder.exists() else _absolute(folder)
        if _is_one_of(key, PATH_OR_NAME_KEYS):
            value = _expanded(value, where)
            folder = root / with_home(value, where)
            # `owner/name` can be a path or a model name, and an existing folder has priority. A text that
            # starts like a path stays a path even without such a folder, so that the error names the path.
            return _absolute(folder) if folder.exists() or value.startswith((".", "/", "~")) else value
        return value

    return visit(raw, at)


def _expanded(text: str, where: str) -> str:
    def missing(name: str) -> InputError:
        return InputError(
            f"{where}: environment variable {name} is not set; run `export {name}=FOLDER` first"
        )

    return expand_variables(text, missing)


def with_references(config: dict[str, Any]) -> dict[str, Any]:
    """Return a dumped configuration with `${NAME}` in its paths, where the value was filled in.

    Who reads it fills in the value again, so the value itself is in no database and no file.
    """

    def visit(value: Any, key: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {name: visit(child, (*key, str(name))) for name, child in value.items()}
        if isinstance(value, list):
            return [visit(child, (*key, str(number))) for number, child in enumerate(value)]
        is_path = key in OTHER_ROOT_KEYS or _is_one_of(
            key,
            (
                *PATH_KEYS,
                *URL_KEYS,
                *PATH_OR_HUB_KEYS,
                *PATH_OR_NAME_KEYS,
                *PATH_OR_TEMPLATE_KEYS,
                SYSTEMS_KEY,
            ),
        )
        return references(value) if isinstance(value, str) and is_path else value

    return visit(config, ())


def _check_length(text: str, where: str) -> None:
    """Refuse a path that no file system takes, at which every question about the file would be an error."""
    longest = max((len(os.fsencode(part)) for part in text.split("/")), default=0)
    if "\0" in text:
        raise InputError(f"{where}: the path contains a NUL character; remove it")
    if longest > MOST_NAME_BYTES or len(os.fsencode(text)) > MOST_PATH_BYTES:
        raise InputError(
            f"{where}: the path is too long ({len(text):,} characters, {text[:40]}…); a name has at most "
            f"{MOST_NAME_BYTES} bytes, a path {MOST_PATH_BYTES}"
        )


def _is_one_of(key: tuple[str, ...], patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        parts = pattern.split(".")
        if len(parts) == len(key) and all(part in ("*", name) for part, name in zip(parts, key, strict=True)):
            return True
    return False


def _absolute(path: Path) -> str:
    """Return `path` without `..`. Links stay, because a corpus keeps the path that the user gave."""
    return os.path.abspath(path)  # noqa: PTH100
