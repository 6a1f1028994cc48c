"""Settings of a LoRA adapter: rank, scale, dropout, targets."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from jora_core.architecture.tensor_names import PROJECTIONS
from jora_core.specs.common import SpecModel
from jora_core.specs.target_names import check_targets

# The form offers the names as a choice; `check_targets` is what refuses others.
LoraTarget = Annotated[str, WithJsonSchema({"type": "string", "enum": list(PROJECTIONS)})]
# Files of a PEFT folder that decide its answers.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class LoraSpec(SpecModel):
    """Settings of a low-rank adapter: rank, scale, dropout and target projections, named as in PEFT."""

    r: int = Field(default=16, ge=1, title="Rank", description="Inner width R of A [R, in] and B [out, R]")
    lora_alpha: float = Field(
        default=16,
        gt=0,
        title="Alpha",
        description="The update is scaled by alpha / r, or by alpha / sqrt(r) with rsLoRA",
    )
    lora_dropout: float = Field(
        default=0.05, ge=0, lt=1, title="Dropout", description="Dropout on the adapter's input"
    )
    target_modules: list[LoraTarget] | str = Field(
        default=["q_proj", "v_proj"],
        title="Targets",
        description="Projections that get an adapter, in every layer: a list of names, all-linear, or a "
        "regular expression for whole module names such as model.layers.0.self_attn.q_proj",
    )
    use_rslora: bool = Field(
        default=False,
        title="Rank-stabilised scale",
        description="rsLoRA: scale by alpha / sqrt(r), so that higher ranks keep learning",
    )
    use_dora: bool = Field(
        default=False,
        title="DoRA",
        description="Also train the length of each weight row: a slower step, better at low ranks",
    )

    exclude_modules: list[LoraTarget] | str | None = Field(
        default=None,
        title="Excluded",
        description="Targets that get no adapter after all: a list of names, or a pattern as above",
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        min_length=1,
        title="Layers",
        description="Numbers of the layers that get an adapter, from 0; all if empty",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={},
        title="Other ranks",
        description="By regular expression for the end of a module's name, such as down_proj or "
        "layers.0.self_attn.q_proj; the first that matches counts",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, title="Other alphas", description="By pattern, as the ranks"
    )
    init_lora_weights: Literal["default", "gaussian"] = Field(
        default="default",
        title="First weights",
        description="Of A: default as in PEFT (uniform), or gaussian; B is zero",
    )

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _known_start(cls, value: Any) -> Any:
        """Take PEFT's `true`, and refuse its other ways with what to do instead."""
        if value is True or value is None:
            return "default"
        if isinstance(value, str) and value.partition("_")[0] in ("pissa", "olora", "loftq", "corda", "lora"):
            raise ValueError(
                f"{value} changes the base weights, which stay as they are here; make such an adapter with "
                "peft, convert it with path_initial_model_for_weight_conversion, and begin with it as "
                "init_adapter"
            )
        return value

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _known_patterns(cls, value: Any) -> Any:
        """Take null for no patterns, and refuse a broken one."""
        for pattern in value if isinstance(value, dict) else ():
            try:
                re.compile(str(pattern))
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return {} if value is None else value

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        """Take a number for a list of one, as PEFT does, and put the layers in order."""
        if type(value) is int:
            return [value]
        whole = isinstance(value, list) and all(type(number) is int for number in value)
        return sorted({*value}) if whole else value

    @model_validator(mode="after")
    def _layers_fit_dora(self) -> LoraSpec:
        # A layer without an adapter is one whose update is zero; DoRA's magnitude would still train there.
        if self.use_dora and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform is for LoRA; with use_dora leave it out")
        return self

    @field_validator("target_modules", mode="before")
    @classmethod
    def _known_targets(cls, value: Any) -> Any:
        """Refuse wrong targets with one message; Pydantic's union would report one for each of its types."""
        # peft reads a list and keeps a set, whose order differs from run to run.
        if isinstance(value, tuple | set | frozenset):
            value = sorted(value, key=str)
        if not isinstance(value, str) and not (
            isinstance(value, list) and all(isinstance(v, str) for v in value)
        ):
            raise ValueError(f"expected a list of names or one pattern, found {type(value).__name__}")
        # `InputError` is a ValueError, which Pydantic reports with the name of the field.
        check_targets(value)
        return value

    @property
    def scale(self) -> float:
        """Factor s of the update s · B A: alpha / r, or alpha / √r with rsLoRA (arXiv:2312.03732)."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)
