"""Format numbers and names for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jora_core.base import progress
from retrieval.evaluation.drawn_records import few_contexts
from retrieval.settings.legs import LEGS

SYSTEM_NAMES = {
    "random": "Random post",
    "opening_post": "Opening post",
    "previous_post": "Previous post",
    "previous_other_author": "Previous post by another author",
    "addressed_then_previous": "Addressed, then previous",
    "bm25": "BM25",
    "fused": "Fused legs",
    "learned": "Learned fusion",
    "base": "Base model",
    "phase1": "Phase 1 only",
    "both_phases": "Both phases",
    "model_and_learned": "Model and learned fusion",
}
# Rankings that are made from those of the legs. The report shows them after the legs.
COMBINED = {"fused": "Fused", "learned": "Learned", "reranked": "Reranked"}


def system_name(name: str) -> str:
    """Return the display name of an evaluated system."""
    return SYSTEM_NAMES.get(name, name.replace("_", " ").capitalize())


def leg_name(name: str) -> str:
    """Return the title of a retrieval leg or of a combined ranking."""
    return LEGS[name].title if name in LEGS else COMBINED.get(name, name)


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Sort names of rankings: legs in the order of their registry, combined rankings, unknown names."""
    known = [*LEGS, *COMBINED]
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def percent(value: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def short_number(value: float) -> str:
    """Return a number with three significant digits and no trailing zeros."""
    # Learning rates and probabilities: 0.00002 is harder to read than 2.0e-05.
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours, with a no-break space before each unit."""
    return progress.duration(seconds).replace(" ", "\u00a0")


def byte_size(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def score_value(score: Mapping[str, Any]) -> str:
    """Return the value of a score {value, low, high, n} as a percentage; `none` for a missing value."""
    return percent(score["value"]) if score.get("value") is not None else "none"


def score_bounds(score: Mapping[str, Any]) -> str:
    """Return the interval of a score in percent; empty text for a score without an interval."""
    if score.get("low") is None or score.get("high") is None:
        return ""
    return f"{100 * score['low']:.1f}–{100 * score['high']:.1f}"


def score_text(score: Mapping[str, Any] | None) -> str:
    """Return the value and the interval of a score; `none` for a missing score."""
    if not score or score.get("value") is None:
        return "none"
    bounds = score_bounds(score)
    return f"{score_value(score)} ({bounds})" if bounds else score_value(score)


def points(difference: Mapping[str, Any]) -> str:
    """Return a difference of two shares in percentage points, with its interval; `none` without records."""
    if difference["value"] is None:
        return "none"
    value = f"{100 * difference['value']:+.1f}"
    if difference["low"] is None:
        return value
    return f"{value} ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"


def verdict_text(comparison: Mapping[str, Any]) -> str:
    """Return whether a system is better or worse than another, and how certain the difference is."""
    verdict, value, low, high = (comparison[name] for name in ("verdict", "value", "low", "high"))
    if value is None or high is None:
        return f"{verdict}, fewer than two contexts"
    # An interval is wider on the side of a difference of 0, so its farther bound is said.
    margin = f"± {100 * max(high - value, value - low):.1f} points"
    warning = few_contexts(comparison["contexts"])
    said = (
        f"{verdict}, {margin}"
        if verdict == "not separable"
        else f"{verdict} by {100 * abs(value):.1f} {margin}"
    )
    return f"{said}; {warning}" if warning else said


def probability(p: float) -> str:
    """Return a p-value with three decimals; `< 0.001` for a smaller one."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def score_note(score: Mapping[str, Any]) -> str:
    """Return the interval and the count of a score as a note; empty text without an interval."""
    bounds = score_bounds(score)
    return f"95 % interval {bounds}, n\u00a0=\u00a0{score['n']:,}" if bounds else ""
