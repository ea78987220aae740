"""Checks of what a sampler is called with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def typed_key(key: Any, adapters: int = 1) -> jax.Array:
    """Return a random key of the new style, which `jax.random.key` makes.

    Args:
      key: key[], or key[K] for K > 1 adapters; or the uint32 data of one, as of
        `jax.random.PRNGKey`, which give the same random numbers.
      adapters: K.

    Raises:
      ValueError: It is no such key.
    """
    dtype = getattr(key, "dtype", None)
    if dtype == np.uint32:
        key = jax.random.wrap_key_data(key)
    shapes = [(), (1,)] if adapters == 1 else [(adapters,)]
    is_key = dtype is not None and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape not in shapes:
        wanted = f", stacked for {adapters} adapters" if adapters > 1 else ""
        raise ValueError(f"generate: key must be jax.random.key(SEED){wanted}, got {_shown(key)}")
    return key


def check_prompts(
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    prompt_index: jax.Array,
    limits: jax.Array,
    vocab_size: int,
) -> None:
    """Check the prompts of a rollout.

    Padding and tokens are read where they are at hand: not while they are traced, nor of a mesh,
    from where a training loop would have to wait for them.

    Raises:
      ValueError: A type or shape is wrong, a prompt is not right-padded or has no token, or a token
        is not in the vocabulary.
    """
    of_tokens = getattr(prompt_ids, "shape", ())
    if len(of_tokens) != 2 or 0 in of_tokens:
        must_be = "int32[P, S] with P, S >= 1"
        raise ValueError(f"generate: prompt_ids must be {must_be}, got {_shown(prompt_ids)}")
    for name, array, kind, shape in (
        ("prompt_ids", prompt_ids, np.integer, of_tokens),
        ("prompt_mask", prompt_mask, np.bool_, of_tokens),
        ("prompt_index", prompt_index, np.integer, of_tokens[:1]),
        ("limits", limits, np.integer, of_tokens[:1]),
    ):
        dtype = getattr(array, "dtype", None)
        if dtype is None or not np.issubdtype(dtype, kind) or array.shape != shape:
            must_be = f"{'bool' if kind is np.bool_ else 'int32'}{list(shape)}"
            raise ValueError(f"generate: {name} must be {must_be}, got {_shown(array)}")
    if _is_at_hand(prompt_mask):
        mask = np.asarray(prompt_mask)
        wrong = np.flatnonzero(~mask[:, 0] | (mask[:, 1:] & ~mask[:, :-1]).any(1))
        if wrong.size:
            raise ValueError(
                "generate: prompt_mask must be right-padded, with at least one token in each row, "
                f"got {mask[wrong[0]].astype(int).tolist()!s:.80} in row {wrong[0]}"
            )
        if _is_at_hand(prompt_ids):
            ids = np.asarray(prompt_ids)[mask]
            if ids.min() < 0 or ids.max() >= vocab_size:
                raise ValueError(
                    f"generate: prompt_ids must be tokens from 0 to {vocab_size - 1}, the "
                    f"vocabulary of the policy, got {ids.min()} to {ids.max()}"
                )


def _is_at_hand(array: jax.Array | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        return True
    return not isinstance(array, jax.core.Tracer) and len(array.devices()) == 1


def _shown(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{dtype}{list(value.shape)}"
