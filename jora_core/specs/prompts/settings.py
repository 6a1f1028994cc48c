"""The setting that chooses the frame of all prompts."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from jora_core.specs.common import SpecModel


class PromptSpec(SpecModel):
    """The frame of all prompts: in training, evaluation, generation and in the exported model."""

    template: str = Field(
        default="auto",
        title="Template",
        description="auto: the tokenizer's own chat template, Alpaca's headings without one; alpaca; chat; "
        "or a file in Jinja, or one with {instruction} and {input}",
    )
    system: str = Field(
        default="",
        title="System message",
        description="Text before all prompts; empty: none, or the template's own",
    )

    @model_validator(mode="before")
    @classmethod
    def _template_alone(cls, raw: Any) -> Any:
        """Take a text for the template: `prompt: chat` means `prompt: {template: chat}`."""
        return {"template": raw} if isinstance(raw, str) else raw


class PromptSettings(SpecModel):
    """The group of settings with the frame of the prompts."""

    prompt: PromptSpec = Field(
        default_factory=PromptSpec, title="Prompt", description="The frame of all prompts"
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier_name(cls, raw: Any) -> Any:
        """Take the earlier name `prompt_template` for `prompt.template`."""
        if not isinstance(raw, dict) or "prompt_template" not in raw:
            return raw
        rest = {name: value for name, value in raw.items() if name != "prompt_template"}
        if "prompt" in rest:
            raise ValueError("prompt_template is the earlier name of prompt.template; give only the second")
        return {**rest, "prompt": {"template": raw["prompt_template"]}}
