"""Read a YAML configuration, apply `--set` overrides, and describe errors in one line.

No library such as OmegaConf applies the overrides, because an item of `phases` is named by its stage
(`phases.finetune-task.max_steps=10`), a path counts from the working directory, and an error names the
override.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from flows.configuration.files.other_names import hint_for
from flows.configuration.path_fields import resolve_paths
from jora_core.base.error_messages import field_annotation, first_problem, known_keys, near_name
from jora_core.base.error_messages import short as _short
from jora_core.base.errors import InputError

# No configuration has as many values. A few lines of aliases of aliases can mean billions of them.
MOST_VALUES = 100_000
# Levels of brackets. The parser calls itself for each, so its own limit depends on the caller's depth.
MOST_NESTED = 200
# Characters with a meaning of their own at the start of a YAML value.
_MARKS = ("*", "&", "%", "@", "`", "{{", "!")


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 text, in which `yes` and `1:30` are text, `010` is ten and `1e-4` is a number.

    Args:
        text: one YAML document. Its `<<` keys merge mappings.
        source: name of the text in errors, such as the path of a file.

    Raises:
        InputError: the YAML is broken or a key is given twice (with line and column), or an alias contains
            itself.
    """
    if _open_brackets(text) > MOST_NESTED:
        raise InputError(
            f"{source}: values are nested too deeply, or an alias contains itself; write them out"
        )
    try:
        # The pure loader, because the C loader follows YAML 1.1, in which `yes` is true and `010` is eight.
        # The copy removes aliases, so that an override changes one place only. It also finds an alias that
        # contains itself, on which every walk over the values would run for ever.
        return _plain(YAML(typ="safe", pure=True).load(text), [MOST_VALUES])
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        raise InputError(f"{source}{where}: broken YAML: {_problem(error)}{_advice(line, error)}") from None
    except YAMLError as error:
        raise InputError(f"{source}: broken YAML: {' '.join(str(error).split())}") from None
    # `a: &x [*x]` is valid YAML with an infinite value.
    except RecursionError:
        raise InputError(
            f"{source}: values are nested too deeply, or an alias contains itself; write them out"
        ) from None
    except OverflowError:
        raise InputError(
            f"{source}: more than {MOST_VALUES:,} values, counted with the copies that aliases make; "
            "write out fewer of them"
        ) from None
    # Python refuses whole numbers of thousands of digits, and dates such as 2024-13-01.
    except ValueError as error:
        raise InputError(
            f"{source}: a value cannot be read ({error}); correct it, or put it in quotes"
        ) from None


def _open_brackets(text: str) -> int:
    """Return the largest number of brackets that are open at once."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _problem(error: MarkedYAMLError) -> str:
    """Return the message of a YAML error in short words, without the quoted values of a repeated key."""
    text = str(error.problem or error.context)
    repeated = re.match(r'found duplicate key "?(.+?)"? with value ', text, re.DOTALL)
    if repeated:
        return f"key {repeated[1]!r} is given twice"
    if "another document" in text:
        return "a second document begins here; keep one"
    return text


def _advice(line: str, error: MarkedYAMLError) -> str:
    """Return what to change in a line whose value begins like a part of YAML's own syntax."""
    if "\t" in line[: len(line) - len(line.lstrip())] or line.startswith("\t"):
        return "; indent with spaces, not with tabs"
    # The value that begins with a mark, up to the end of a flow mapping or of the line.
    found = re.search(r"(?:^|[\s:\[{,-])\s*([\w.-]+)\s*:\s+((?:\{\{|[*&%@`!])[^#]*)", line)
    if found is None:
        return ""
    key, value = found[1], found[2].strip()
    if template := re.match(r"\{\{.*?\}\}[^\s,}\]]*", value):
        value = template[0]
    else:
        value = value.rstrip("}], ")
    if "'" in value:
        return f"; a value that begins with {value[:1]} needs quotes"
    return f"; the value needs quotes: {key}: '{value}'"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains one mapping.

    Raises:
        InputError: the file does not exist, is not text, is broken YAML, or contains no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = {
            FileNotFoundError: "; `jora init DIR` starts a project",
            IsADirectoryError: "; name the YAML file in it",
        }.get(type(error), "")
        raise InputError(f"cannot read configuration {path}: {reason}{advice}") from None
    # Most often a file in UTF-16 or Latin-1 from an editor on Windows.
    except UnicodeDecodeError as error:
        raise InputError(f"configuration {path} is not UTF-8 text: byte {error.start}") from None
    raw = parse_yaml(text, str(path))
    if raw is None:
        raise InputError(f"{path}: the file is empty; `jora init DIR` writes a configuration")
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, got {_short(raw)}")
    return raw


def apply_overrides(
    raw: Mapping[str, Any], overrides: Sequence[str], model: type[BaseModel] | None = None
) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """Return a configuration with overrides applied.

    Args:
        raw: content of the file, which is not changed.
        overrides: `key.path=value`, the values in YAML.
        model: schema of the configuration. A value of a text field that is no valid YAML, such as the cron
            fields `* * * * *`, is taken as it stands.

    Returns:
        The changed copy, and the key paths that were set, with list items by number.

    Raises:
        InputError: an override has no `=`, an empty key, a missing list index, or a key below a plain value.
    """
    result = _copy(dict(raw))
    changed: list[tuple[str, ...]] = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise InputError(f"--set {override}: expected key.path=value, for example --set seed=1")
        # Bytes of the command line that are not UTF-8, such as a name in Latin-1.
        if not _is_utf8(override):
            raise InputError(f"--set {override!a}: is not UTF-8; rename what it names")
        # As YAML, so that `--set a=[1, 2]`, `null` and `1e-4` mean the same as in the file.
        value = _override_value(text, dotted, model)
        # A relative path of the command line counts from the working directory, not from the file's folder.
        value = resolve_paths(value, Path.cwd(), "--set", at=tuple(keys))
        changed.append(_assign(result, keys, value, override))
    return result, changed


def _override_value(text: str, dotted: str, model: type[BaseModel] | None) -> Any:
    """Return the value of an override; see `apply_overrides`."""
    # There are no anchors and tags on a command line, so a value that begins like one is a text.
    if text.lstrip().startswith(_MARKS):
        return text.strip()
    try:
        return parse_yaml(text, f"--set {dotted}")
    except InputError:
        if model is not None and _is_text_field(model, dotted.strip().split(".")):
            return text.strip()
        raise


def _is_text_field(model: type[BaseModel], keys: Sequence[str]) -> bool:
    """Whether the field at `keys` holds text, or text or nothing."""
    current = field_annotation(model, keys)
    return current is str or (bool(get_args(current)) and set(get_args(current)) <= {str, type(None)})


def describe_error(
    error: ValidationError, model: type[BaseModel], source: str, overridden: Sequence[tuple[str, ...]] = ()
) -> str:
    """Return one line about the first problem: its place, the expected value and the given value.

    Args:
        error: error of the validation.
        model: schema with the known keys.
        source: name of the configuration's file.
        overridden: key paths that `--set` has changed. An error below such a key names `--set`, not the file.
    """
    place, message = first_problem(error, model)
    # A prefix, because `--set lora={r: x}` sets a mapping, and the error is below that key.
    if any(place[: len(keys)] == keys for keys in overridden):
        source = "--set"
    # The error is about values that do not fit together, one of which was set.
    elif below := [keys for keys in overridden if keys[: len(place)] == place]:
        source = f"{source} with --set {'.'.join(below[0])}"
    if message.startswith("unknown key; "):
        name, section = place[-1], place[:-1]
        # The table first: a similar name of ours may mean something else.
        hint = hint_for(name, section, model) if not near_name(name, known_keys(model, section)) else None
        if hint:
            more = re.search(r" \(and \d+ more\)$", message)
            message = f"unknown key; {hint}{more[0] if more else ''}"
    where = ".".join(place)
    return f"{source}: {where}: {message}" if where else f"{source}: {message}"


def _assign(target: Any, keys: Sequence[str], value: Any, override: str) -> tuple[str, ...]:
    """Set `value` at `keys` in nested mappings and lists; return the path with list items by number."""
    path: list[str] = []
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(target, list):
            index = _index(target, key, override)
            path.append(str(index))
            if last:
                target[index] = value
            target = target[index]
            continue
        path.append(key)
        if last:
            target[key] = value
            break
        # The file has no such section, or an empty one.
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, (dict, list)):
            raise InputError(
                f"--set {override}: {'.'.join(path)} is a plain value ({_short(target)}), it has no keys"
            )
    return tuple(path)


def _index(items: list[Any], key: str, override: str) -> int:
    """Return the index in a list for `key`, which is a number or the `stage` of an item."""
    stages = [item.get("stage") if isinstance(item, dict) else None for item in items]
    # The name comes before the number, because names stay the same when a phase is added in front.
    if key in stages:
        return stages.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    named = [str(stage) for stage in stages if stage]
    near = near_name(key, named)
    expected = (
        f"did you mean {near}?" if near else f"there are {', '.join([*map(str, range(len(items))), *named])}"
    )
    raise InputError(f"--set {override}: no item {key} in the list; {expected}")


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(child) for name, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def _plain(value: Any, left: list[int]) -> Any:
    """Copy a YAML value as mappings with text keys, lists and plain values.

    Args:
        value: what the parser returned.
        left: how many values may still be copied, as a list of one number that is counted down.

    Raises:
        OverflowError: there are more values.
        ValueError: a text cannot be written as UTF-8.
    """
    left[0] -= 1
    if left[0] < 0:
        raise OverflowError
    if isinstance(value, Mapping):
        # A key like `1` or `null` stays text: an error then names it as it stands in the file.
        return {_key_text(name): _plain(child, left) for name, child in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(child, left) for child in value]
    if isinstance(value, str) and not _is_utf8(value):
        raise ValueError(f"{value!a:.60} has half of a surrogate pair, which no text may have")
    # YAML has dates, our settings have none: `2024-01-01` is a text, such as the name of a folder.
    return str(value) if isinstance(value, datetime.date) else value


def _key_text(name: Any) -> str:
    if name is None:
        return "null"
    text = str(name).lower() if isinstance(name, bool) else str(name)
    return text if _is_utf8(text) else ascii(text)


def _is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8. An escape in YAML can make half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
