"""Numbers and names as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from retrieval.settings.legs import LEGS

SYSTEM_NAMES = {
    "random": "Random post",
    "opening_post": "Opening post",
    "previous_post": "Previous post",
    "bm25": "BM25",
    "base": "Base model",
    "phase1": "Phase 1 only",
    "both_phases": "Both phases",
}
# What is made of the legs' rankings; they stand after the legs themselves.
COMBINED = {"fused": "Fused", "reranked": "Reranked"}


def system_name(name: str) -> str:
    """A system of the evaluation."""
    return SYSTEM_NAMES.get(name, name.replace("_", " ").capitalize())


def leg_name(name: str) -> str:
    """The title of a leg, or of what is made of the legs."""
    return LEGS[name].title if name in LEGS else COMBINED.get(name, name)


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Legs in the order of their registry, then what is made of them, then names that are not known here."""
    known = [*LEGS, *COMBINED]
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def short_number(value: float) -> str:
    """A number with three significant digits and no trailing zeros."""
    # Learning rates and probabilities: 0.00002 is harder to read than 2.0e-05.
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        text = f"{seconds:.1f} s" if seconds < 10 and seconds != round(seconds) else f"{seconds:.0f} s"
    else:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    # A no-break space keeps number and unit in one line.
    return text.replace(" ", "\u00a0")


def byte_size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def score_value(score: Mapping[str, Any]) -> str:
    """The value of a {value, low, high, n}, as a percentage; a ratio over nothing is `none`."""
    return percent(score["value"]) if score.get("value") is not None else "none"


def score_bounds(score: Mapping[str, Any]) -> str:
    """The interval of a score, in percent; empty where it has none."""
    if score.get("low") is None or score.get("high") is None:
        return ""
    return f"{100 * score['low']:.1f}–{100 * score['high']:.1f}"


def score_text(score: Mapping[str, Any] | None) -> str:
    """Value and interval of a score; `none` where there is nothing to score."""
    if not score or score.get("value") is None:
        return "none"
    bounds = score_bounds(score)
    return f"{score_value(score)} ({bounds})" if bounds else score_value(score)


def score_note(score: Mapping[str, Any]) -> str:
    """The interval and count of a score as a remark below its value; empty where it has none."""
    bounds = score_bounds(score)
    return f"95 % interval {bounds}, n\u00a0=\u00a0{score['n']:,}" if bounds else ""
