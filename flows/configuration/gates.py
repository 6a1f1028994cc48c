"""Settings of the gates between evaluation and export."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jora_core.specs.common import SpecModel

# Names of the evaluated systems: the base model, the model after the first phase, and after both phases.
BASE = "base"
FIRST_PHASE = "phase1"
BOTH_PHASES = "both_phases"
# From the most to the least trained. The first of them that an evaluation has is the run's model.
TRAINED_FIRST = (BOTH_PHASES, FIRST_PHASE, BASE)
# In place of a system: the model that an earlier run has exported.
PREVIOUS = "previous"


class GateConfig(SpecModel):
    """A condition that the evaluation must meet, or nothing is exported."""

    metric: str = Field(
        title="Metric",
        description="Task and measure, such as threads.reply@1, threads.link_f1 or qa.f1",
    )
    system: str | None = Field(
        default=None,
        title="System",
        description="The judged system, as in the table of scores; empty: the model after the last phase",
    )
    at_least: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        title="At least",
        description="The smallest value that passes, 1 at most",
    )
    at_most: float | None = Field(
        default=None,
        ge=-1.0,
        le=1.0,
        title="At most",
        description="The largest value that passes, for measures that are better the smaller they are",
    )
    not_worse_than: str | None = Field(
        default=None,
        title="Not worse than",
        description="A system of the same evaluation, or 'previous': the model that the run before exported",
    )
    better_than: str | None = Field(
        default=None, title="Better than", description="A system, or 'previous', as in not_worse_than"
    )
    margin: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        title="Margin",
        description="Loss that not_worse_than allows, as a difference",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        default=0.95, title="Confidence", description="Of the interval of a difference"
    )

    @model_validator(mode="after")
    def _one_condition(self) -> GateConfig:
        conditions = ("at_least", "at_most", "not_worse_than", "better_than")
        given = [name for name in conditions if getattr(self, name) is not None]
        if not all(self.metric.partition(".")):
            raise ValueError(f"metric: expected TASK.MEASURE, such as qa.f1, got {self.metric!r}")
        if len(given) != 1:
            raise ValueError(
                "expected one of at_least, at_most, not_worse_than and better_than, got "
                + (" and ".join(given) or "none of them")
            )
        return self

    @property
    def rival(self) -> str | None:
        """The system that the judged one is compared with; None for a bound."""
        return self.not_worse_than or self.better_than
