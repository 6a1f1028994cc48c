"""The limits of reading: how large a packed file or a single value may become in memory or on disk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

#: A similarity from which texts count as copies. YAML 1.1 reads `off` as false.
Threshold = Annotated[
    Annotated[float, Field(gt=0, le=1)] | Literal["off"],
    BeforeValidator(lambda value: "off" if value is False else value),
]


class SettingsModel(BaseModel):
    """Settings that never change and that refuse an unknown key."""

    # Forbid: a mistyped key would otherwise be ignored. Frozen: the settings are part of a key that is
    # computed once.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class InputLimits(SettingsModel):
    """Limits that stop damaged and hostile input before it fills the memory or the disk."""

    unpacked_ratio: int = Field(
        default=200,
        ge=1,
        title="Unpacked ratio",
        description="A packed file may unpack to at most so many times its size; 64 MB are always allowed.",
    )
    value_mb: int = Field(
        default=64,
        ge=1,
        le=2000,
        title="Largest value",
        description="Megabytes of one line, one JSON value or one text file.",
    )
