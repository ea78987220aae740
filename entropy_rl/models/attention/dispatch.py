"""Causal attention of whole rows, of training and of prompts: which implementation computes it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from entropy_rl.models.attention.cached import DecodeImplementation
from entropy_rl.models.attention.on_mesh import over_mesh
from entropy_rl.models.attention.splash import splash_attention
from entropy_rl.models.attention.xla import xla_attention

Implementation = Literal["xla", "cudnn", "splash"]

_BY_BACKEND = {"tpu": "splash", "gpu": "cudnn"}
_CUDNN_DTYPES = ("bfloat16", "float16")


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    lengths: jax.Array | None = None,
    window: int | jax.Array | None = None,
    implementation: Implementation = "xla",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Attention of every token of a row to itself and the tokens before it.

        out_t = Σ_s softmax_s(q_t · k_s / √h) v_s    over s <= t, and s > t - window where there is
        one

    Rows are right-padded, so that no real token sees padding, with or without `lengths`.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h]; K divides H.
      v: [B, T, K, h].
      lengths: int32[B] or None. The output is zero from there on; cudnn computes nothing there
        either.
      window: Tokens further back than window - 1 are not seen. An array, such as one of a scan over
        layers with different windows, is for xla only.
      implementation: `xla` runs everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs.
      mesh: Where q, k and v are sharded over a mesh, that mesh; splash and cudnn need it.

    Returns:
      [B, T, H, h].

    Raises:
      ValueError: If the implementation cannot compute this.
    """
    if implementation == "xla":
        out = xla_attention(q, k, v, window)
    else:
        _require_static(window, implementation)
        reason = _refusal(implementation, q.dtype, q.shape[-1], (window,))
        if reason is not None:
            raise ValueError(f"causal_attention: implementation: {reason}")
        attend = _cudnn_attention if implementation == "cudnn" else splash_attention
        out = attend(q, k, v, lengths=lengths, window=window, mesh=mesh)
    if lengths is None:
        return out
    # Not a product with the mask: what an implementation leaves behind the end may be NaN.
    real = jnp.arange(q.shape[1])[None] < lengths[:, None]
    return jnp.where(real[:, :, None, None], out, 0)


def resolve_attention(
    name: str,
    dtype: Any,
    head_dim: int,
    windows: tuple[int | None, ...] = (None,),
    backend: str | None = None,
) -> Implementation:
    """The implementation that a `model.attention` stands for, with a model that it can serve.

    `auto` is splash on TPUs, cudnn on GPUs and xla elsewhere; and xla where those cannot serve the
    model. Without a `backend` it starts that of this machine; the other names do not.

    Args:
      name: auto, xla, cudnn or splash.
      dtype: Type of activations.
      head_dim: h.
      windows: The window of each layer.
      backend: cpu, gpu or tpu; None for that of this machine.

    Returns:
      The name of the implementation.

    Raises:
      ValueError: If the implementation cannot serve the model.
    """
    if name == "auto":
        preferred = _BY_BACKEND.get(backend or jax.default_backend(), "xla")
        return preferred if _refusal(preferred, dtype, head_dim, windows) is None else "xla"
    reason = _refusal(name, dtype, head_dim, windows)
    if reason is not None:
        raise ValueError(f"model.attention: {reason}")
    return name


def check_backend(name: str, decode_name: str = "xla") -> None:
    """Checks that this machine has the devices that a `model.attention` and
    `model.decode_attention` are for.

    Raises:
      ValueError: If it has not.
    """
    backend = jax.default_backend()
    if name not in ("auto", "xla", _BY_BACKEND.get(backend)):
        allowed = ", ".join(filter(None, ("auto", "xla", _BY_BACKEND.get(backend))))
        raise ValueError(
            f"model.attention: {name!r} is not allowed on the backend {backend}; allowed: {allowed}"
        )
    if decode_name == "ragged" and backend not in _BY_BACKEND:
        raise ValueError(
            f"model.decode_attention: 'ragged' is not allowed on the backend {backend}; allowed: "
            "auto, xla"
        )


def resolve_decode_attention(
    name: str, head_dim: int, backend: str | None = None, *, whole_heads: bool = False
) -> DecodeImplementation:
    """The implementation that a `model.decode_attention` stands for.

    `auto` is ragged on GPUs, and xla elsewhere and where that cannot serve the model. Without a
    `backend` it starts that of this machine.

    Args:
      name: auto, xla or ragged.
      head_dim: h.
      backend: cpu, gpu or tpu; None for that of this machine.
      whole_heads: Whether each device has all KV heads, because they do not divide over the tensor
        axis.

    Returns:
      The name of the implementation.
    """
    if name != "auto":
        return name
    power_of_two = (
        head_dim >= 16 and head_dim & (head_dim - 1) == 0
    )  # what a block of the kernel must be
    served = power_of_two and not whole_heads
    return "ragged" if (backend or jax.default_backend()) == "gpu" and served else "xla"


def _refusal(name: str, dtype: Any, head_dim: int, windows: tuple[int | None, ...]) -> str | None:
    """Why an implementation cannot serve such layers, as 'found; allowed'; None if it can."""
    if name == "xla":
        return None
    if name not in _BY_BACKEND.values():
        return f"{name!r} is not allowed; allowed: auto, xla, cudnn, splash"
    if len(set(windows)) > 1:  # they are one compiled layer, whose window is then a traced number
        return (
            f"{name!r} is not allowed where the layers have different sliding windows "
            f"({', '.join(sorted({str(w) for w in windows}))}); allowed: auto, xla"
        )
    if name == "cudnn" and jnp.dtype(dtype).name not in _CUDNN_DTYPES:
        return (
            f"'cudnn' is not allowed with {jnp.dtype(dtype).name}; allowed: auto, xla, "
            "or model.compute_dtype bfloat16"
        )
    if name == "cudnn" and (head_dim > 256 or head_dim % 8):
        return (
            f"'cudnn' is not allowed with heads of {head_dim} dimensions; allowed: auto, xla, "
            "or multiples of 8 up to 256"
        )
    return None


def _require_static(window: int | jax.Array | None, implementation: str) -> None:
    if not (window is None or isinstance(window, int)):
        raise ValueError(
            f"causal_attention: window: a traced array is not allowed with {implementation}; "
            "allowed: None, an int, or implementation 'xla'"
        )


def _cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    lengths: jax.Array | None,
    window: int | None,
    mesh: Mesh | None,
) -> jax.Array:
    # Its custom call can be partitioned too, but not where KV heads lie otherwise than the queries.
    return over_mesh(partial(_cudnn, window=window), q, k, v, lengths, mesh)


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None, window: int | None
) -> jax.Array:
    # Never `mask`: it would become a [B, H, T, T] bias.
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
