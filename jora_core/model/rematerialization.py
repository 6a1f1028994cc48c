"""Rematerialization policies (arXiv:1604.06174): which results of a layer are kept, which are recomputed.

============  =====================================================================================
``none``      keeps everything: fastest, most memory
``dots``      keeps the results of matrix products (q, k, v, attention, gate, up) and both residuals;
              recomputes norms, rotations and activations, but no product and no collective
``attention`` keeps q, k, v, the output of attention and both residuals; recomputes the MLP
``full``      keeps the two residuals of a layer and recomputes all others
``offload``   like ``full``, with the residuals in the host's memory between the passes
============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jora_core.specs.common import Remat

# Names that `jax.ad_checkpoint.checkpoint_name` gives to the intermediate results of a layer.
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
    """Wrap a layer's function so that only the results named by the policy are kept for the backward pass.

    Args:
        step: the function that is scanned over layers.
        remat: the rematerialization policy.
    """
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
    # Inside a scan XLA cannot merge the recomputation with the first computation, so the barriers of
    # `prevent_cse`, which hinder fusion, are not needed.
    return jax.checkpoint(step, policy=policy, prevent_cse=False)
