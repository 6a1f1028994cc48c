"""What the backward pass keeps of each layer, and what it computes again (arXiv:1604.06174), by name.

============  =====================================================================================
``none``      keeps everything: fastest, most memory
``dots``      keeps what matrix products made (q, k, v, attention, gate, up) and both residuals;
              computes norms, rotations and activations again, and no product and no collective twice
``attention`` keeps q, k, v, attention's output and both residuals; computes the MLP again
``full``      keeps the two residuals of a layer and computes all else again
``offload``   as full, with the residuals in the host's memory between the passes
============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jora_core.specs.common import Remat

# Names that `jax.ad_checkpoint.checkpoint_name` gives to what a layer makes.
KEPT_INPUT = "layer_input"
KEPT_RESIDUAL = "residual"
KEPT_QKV = "qkv"
KEPT_ATTENTION = "attention"
KEPT_MLP = "mlp"

_KEPT: dict[str, tuple[str, ...]] = {
    "dots": (KEPT_RESIDUAL, KEPT_QKV, KEPT_ATTENTION, KEPT_MLP),
    "attention": (KEPT_RESIDUAL, KEPT_QKV, KEPT_ATTENTION),
    "full": (KEPT_RESIDUAL,),
}


def recomputed(step: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """A layer's step, to be scanned over, that keeps only what its policy names."""
    if remat == "none":
        return step
    policies = jax.checkpoint_policies
    if remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[KEPT_INPUT, KEPT_RESIDUAL],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.save_only_these_names(*_KEPT[remat])
    return jax.checkpoint(step, policy=policy, prevent_cse=False)
