"""What the forward pass of a layer keeps for its backward pass, by name."""

from __future__ import annotations

from collections.abc import Callable

import jax

# `Dense` gives its product this name.
WEIGHT_PRODUCTS = "weight_products"
# Kernels give their residuals (the output and a number per head and token) this name.
ATTENTION_RESIDUALS = "attention_residuals"

_SAVED = jax.checkpoint_policies
_POLICIES = {
    "none": None,
    "dots": _SAVED.save_only_these_names(WEIGHT_PRODUCTS, ATTENTION_RESIDUALS),
    "full": _SAVED.nothing_saveable,
}


def rematerialize(layer: Callable, name: str) -> Callable:
    """A layer, to be scanned, whose backward pass computes again what its forward pass does not
    keep.

    name   kept per layer and token, beside its input             computed again
    none   everything                                             nothing
    dots   outputs of its 7 weight matrices, and of attention     norms, rotary positions,
    activations; and
           kernels that can                                       attention, where it is no such
           kernel
    full   nothing                                                the layer: a third more work in
      training

    Args:
      layer: The body of a scan over layers.
      name: none, dots or full.

    Returns:
      A function with the same values and gradients.

    Raises:
      ValueError: If there is no such name.
    """
    if not isinstance(name, str) or name not in _POLICIES:
        raise ValueError(f"model.remat: {name!r} is not allowed; allowed: {', '.join(_POLICIES)}")
    if name == "none":
        return layer
    # prevent_cse costs speed, and within a scan nothing has to be prevented.
    return jax.checkpoint(layer, policy=_POLICIES[name], prevent_cse=False)
