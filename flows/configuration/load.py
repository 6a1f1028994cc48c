"""Load a configuration from a file, by default `jora.yaml` or the configuration of the embedded sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flows.configuration.files.yaml_file import apply_overrides, describe_error, read_yaml
from flows.configuration.hub_models import with_hub_models
from flows.configuration.path_fields import resolve_paths
from flows.configuration.sample import CONFIG_NAME, default_config
from flows.configuration.schedule import check_schedule
from flows.configuration.schema import ConfigSource, PipelineConfig
from jora_core.base.errors import InputError


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a configuration file and apply overrides to its values.

    Args:
        path: YAML file; None takes the result of `default_config`.
        overrides: `key.path=value`, the values in YAML. An item of a list is named by its number or, for
            phases, by its stage: `phases.finetune-task.max_steps=10`.

    Raises:
        InputError: no such file, broken YAML (with the line), an unknown key (with the nearest known one),
            a value of the wrong type, an environment variable that is not set.
    """
    file = default_config() if path is None else Path(path)
    # Links are followed, so that a linked configuration means the same as its target.
    folder = file.resolve().parent
    raw, changed = apply_overrides(read_yaml(file), overrides, PipelineConfig)
    # Written into the mapping, so that the checked configuration carries its root to Prefect and the
    # workers.
    root = raw.setdefault("root", ".")
    if not isinstance(root, str):
        raise InputError(f"{file}: root: expected text, got {root!r}")
    # Likewise: a worker has another working directory.
    raw.setdefault("store_cache", PipelineConfig.model_fields["store_cache"].default)
    raw.setdefault("project", file.stem if file.name != CONFIG_NAME else folder.name)
    if isinstance(raw.get("model"), str):
        raw["model"] = {"path": raw["model"]}
    if isinstance(raw.get("prompt"), str):
        raw["prompt"] = {"template": raw["prompt"]}
    # First, because the other paths count from it and it may hold `~` and variables.
    resolved = resolve_paths(root, folder, str(file), root_from=folder, at=("root",))
    raw = resolve_paths(raw, Path(resolved), str(file), root_from=folder)
    raw = with_hub_models(raw, str(file))
    try:
        config = PipelineConfig.model_validate(raw)
        _refuse_truth_values(raw, config, "")
    except ValidationError as error:
        # `from None`: pydantic's own text names classes and types, which does not help the author of a file.
        raise InputError(describe_error(error, PipelineConfig, str(file), changed)) from None
    except _TruthValue as error:
        key, expected, given = error.args
        source = "--set" if any(".".join(keys) == key for keys in changed) else file
        raise InputError(f"{source}: {key}: expected {expected}, got {str(given).lower()}") from None
    check_schedule(config.schedule, "--set" if any(key[0] == "schedule" for key in changed) else str(file))
    # Without CONFIG on the command line, a printed command needs none either.
    return config.loaded_from(ConfigSource(None if path is None else str(path), str(file), tuple(overrides)))


class _TruthValue(Exception):
    """A number was given as `true` or `false`: its key, what was expected, and the value."""


def _refuse_truth_values(given: Any, checked: Any, key: str) -> None:
    """Refuse `true` and `false` in place of numbers, which Pydantic would take for 1 and 0.

    Args:
        given: a value as the file has it.
        checked: the same value in the checked configuration.
        key: dotted key of the value; empty for the whole configuration.
    """
    if isinstance(given, Mapping) and isinstance(checked, BaseModel | Mapping):
        for name, child in given.items():
            value = checked.get(name) if isinstance(checked, Mapping) else getattr(checked, name, None)
            _refuse_truth_values(child, value, f"{key}.{name}" if key else name)
    elif isinstance(given, list) and isinstance(checked, list | tuple):
        for number, (child, value) in enumerate(zip(given, checked, strict=False)):
            _refuse_truth_values(child, value, f"{key}.{number}")
    elif isinstance(given, bool) and isinstance(checked, int | float) and not isinstance(checked, bool):
        raise _TruthValue(key, "a whole number" if isinstance(checked, int) else "a number", given)
