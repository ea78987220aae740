"""Rematerialization policies by name."""

from __future__ import annotations

from collections.abc import Callable

import jax

# Checkpoint name of the products of `Dense`.
WEIGHT_PRODUCTS = "weight_products"
# Checkpoint name of the output of attention, and of one number per head and token that kernels
# keep.
ATTENTION_RESIDUALS = "attention_residuals"

_SAVED = jax.checkpoint_policies
_POLICIES = {
    "none": None,
    "dots": _SAVED.save_only_these_names(WEIGHT_PRODUCTS, ATTENTION_RESIDUALS),
    "full": _SAVED.nothing_saveable,
}


def rematerialize(layer: Callable, name: str) -> Callable:
    """Wrap the body of a scan over layers in `jax.checkpoint` with a named policy.

    | name | saved per layer and token, besides its input | recomputed |
    | --- | --- | --- |
    | none | everything | nothing |
    | dots | outputs of the 7 weight matrices; of attention, with packed tokens or a kernel that
      supports it | norms, rotary embeddings, activations; attention otherwise |
    | full | nothing | the layer, about 1/3 more compute in training |

    Args:
      layer: Body of a scan over layers.
      name: none, dots or full.

    Returns:
      A function with the same values and gradients.

    Raises:
      ValueError: If the name is unknown.
    """
    if not isinstance(name, str) or name not in _POLICIES:
        raise ValueError(f"model.remat: must be one of {', '.join(_POLICIES)}, got {name!r}")
    if name == "none":
        return layer
    # prevent_cse costs speed, and is not needed within a scan.
    return jax.checkpoint(layer, policy=_POLICIES[name], prevent_cse=False)
