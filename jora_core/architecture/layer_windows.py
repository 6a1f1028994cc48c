"""The sliding attention window of each layer, in each spelling of a ``config.json``."""

from __future__ import annotations

import json
from typing import Any

from jora_core.architecture.families import FULL_ATTENTION, SLIDING_ATTENTION, Family, Fields, no_layer
from jora_core.base.errors import InputError


def read_windows(family: Family, fields: Fields, layers: int, where: str) -> tuple[int, ...]:
    """Return the attention window of each layer, or () if no layer has a window.

    A window counts tokens, the query's own token included. 0 means that the layer has no window.

    Args:
        family: family of the model, whose rule selects the layers with a window if there is no layer_types.
        fields: fields of the ``config.json``, completed with the family's defaults.
        layers: number of layers.
        where: name of the file, for error messages.

    Raises:
        InputError: layer_types does not fit the model, or the width or pattern of windows is not valid.
    """
    # A pattern of 0 would be a division by zero, and a bool is an int for Python: true would pass for 1.
    for name, least in (("max_window_layers", 0), ("sliding_window_pattern", 1)):
        value = fields.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{where}: {name} must be an integer from {least} on, found {json.dumps(value)}")
    kinds = fields.get("layer_types") if family.names_layers else None
    if kinds is None:
        has_window = [family.has_window(layer, fields) for layer in range(layers)]
    elif not isinstance(kinds, list) or len(kinds) != layers:
        raise InputError(f"{where}: layer_types must list {layers} layers, found {json.dumps(kinds)}")
    elif unknown := [kind for kind in kinds if kind not in (FULL_ATTENTION, SLIDING_ATTENTION)]:
        raise InputError(
            f"{where}: layer_types entry {json.dumps(unknown[0])} is not supported; "
            f"expected {FULL_ATTENTION} or {SLIDING_ATTENTION}"
        )
    else:
        has_window = [kind == SLIDING_ATTENTION for kind in kinds]
    # One value for "no windows": a tuple of zeros would make equal models have unequal configs.
    if not any(has_window):
        return ()
    width = fields["sliding_window"]
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise InputError(
            f"{where}: {sum(has_window)} layers attend within a window, but sliding_window is "
            f"{json.dumps(width)}; expected a positive integer"
        )
    return tuple(width if windowed else 0 for windowed in has_window)


def write_windows(family: Family, windows: tuple[int, ...], layers: int) -> dict[str, Any]:
    """Return the ``config.json`` fields that describe attention windows. `read_windows` reads them.

    Args:
        family: family of the model, which determines the spelling.
        windows: attention window of each layer in tokens, or () if no layer has one.
        layers: number of layers.
    """
    if family.has_window is no_layer:
        return {}
    width = max(windows, default=0) or None
    if not family.names_layers:
        return {"sliding_window": width}
    each = windows or (0,) * layers
    fields = {"layer_types": [SLIDING_ATTENTION if window else FULL_ATTENTION for window in each]}
    if "use_sliding_window" not in family.defaults:
        # Gemma has no switch for windows: the width is always set, and layer_types names the layers.
        return fields | {"sliding_window": width or family.defaults["sliding_window"]}
    # Releases of transformers from before layer_types derive Qwen's windows from max_window_layers.
    first = next((layer for layer, window in enumerate(each) if window), layers)
    return fields | {
        "use_sliding_window": width is not None,
        "sliding_window": width,
        "max_window_layers": first,
    }
