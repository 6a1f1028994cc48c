"""The template of a configuration's prompts: what decides it, for keys, and the setting for specs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.specs.prompts.source import TemplateSource, inlined, template_source


def prompt_source(config: PipelineConfig, model: Path | None = None) -> TemplateSource | None:
    """Return the template of a configuration; None while the model that has it is not converted yet.

    Args:
        config: the configuration.
        model: the model folder; None takes that of the configuration.

    Raises:
        InputError: no such file, or a model without the chat template that is asked for.
    """
    folder = model or Path(config.model.path)
    if not folder.is_dir() and config.prompt.template in ("auto", "chat"):
        return None
    return template_source(config.prompt, folder if folder.is_dir() else None)


def prompt_settings(config: PipelineConfig, model: Path | None = None) -> dict[str, Any]:
    """Return what decides the prompts, for keys and lineage: name and digest of the template, system message.

    `auto` is the template that it chooses, so a configuration that names it has the same key. The template of
    a model that is not converted yet is a part of the model, whose stage has the key.

    Args:
        config: the configuration.
        model: the model folder; None takes that of the configuration.

    Raises:
        InputError: as `prompt_source`.
    """
    source = prompt_source(config, model)
    found = {"template": config.prompt.template, "system": config.prompt.system}
    return found if source is None else {**found, "template": source.origin, "digest": source.digest}


def prompt_spec(config: PipelineConfig) -> PromptSpec:
    """Return the setting for a spec, with the content of a template file in place of its path."""
    return inlined(config.prompt)
