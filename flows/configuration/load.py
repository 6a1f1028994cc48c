"""Load a configuration from a file, by default `jora.yaml` or the configuration of the embedded sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from flows.configuration.path_fields import resolve_paths
from flows.configuration.sample import default_config
from flows.configuration.schedule import check_schedule
from flows.configuration.schema import ConfigSource, PipelineConfig
from flows.configuration.yaml_file import apply_overrides, describe_error, read_yaml
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
    raw = resolve_paths(raw, folder / root, str(file), root_from=folder)
    try:
        config = PipelineConfig.model_validate(raw)
    except ValidationError as error:
        # `from None`: pydantic's own text names classes and types, which does not help the author of a file.
        raise InputError(describe_error(error, PipelineConfig, str(file), changed)) from None
    check_schedule(config.schedule, "--set" if any(key[0] == "schedule" for key in changed) else str(file))
    # Without CONFIG on the command line, a printed command needs none either.
    return config.loaded_from(ConfigSource(None if path is None else str(path), str(file), tuple(overrides)))
