"""Causal attention of full sequences (training, prefill), and the choice of implementation."""

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
    window: int | jax.Array | None = None,
    implementation: Implementation = "xla",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Compute causal, optionally sliding-window, attention.

        out_t = Σ_s softmax_s(q_t · k_s / √h) v_s    over t - window < s <= t

    Rows are right-padded, so that real tokens never attend to padding.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h]; K divides H.
      v: [B, T, K, h].
      window: Tokens further back than window - 1 are masked. A traced array, as in a scan over
        layers with different windows, is supported by xla only.
      implementation: `xla` runs everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs.
      mesh: The mesh that q, k and v are sharded over, needed by splash and cudnn.

    Returns:
      [B, T, H, h].

    Raises:
      ValueError: If the implementation does not support the arguments.
    """
    if implementation == "xla":
        return xla_attention(q, k, v, window)
    _require_static(window, implementation)
    reason = _unsupported(implementation, q.dtype, q.shape[-1], (window,))
    if reason is not None:
        raise ValueError(f"causal_attention: implementation: {reason}")
    attend = _cudnn_attention if implementation == "cudnn" else splash_attention
    return attend(q, k, v, window=window, mesh=mesh)


def resolve_attention(
    name: str,
    dtype: Any,
    head_dim: int,
    windows: tuple[int | None, ...] = (None,),
    backend: str | None = None,
) -> Implementation:
    """Resolve `model.attention` to an implementation that supports the model.

    `auto` is splash on TPUs and cudnn on GPUs, and xla elsewhere or where those do not support the
    model. Without `backend`, `auto` initializes that of this machine; other names do not.

    Args:
      name: auto, xla, cudnn or splash.
      dtype: Type of activations.
      head_dim: h.
      windows: Window of each layer.
      backend: cpu, gpu or tpu; None for that of this machine.

    Returns:
      The name of the implementation.

    Raises:
      ValueError: If the implementation does not support the model.
    """
    if name == "auto":
        preferred = _BY_BACKEND.get(backend or jax.default_backend(), "xla")
        return preferred if _unsupported(preferred, dtype, head_dim, windows) is None else "xla"
    reason = _unsupported(name, dtype, head_dim, windows)
    if reason is not None:
        raise ValueError(f"model.attention: {reason}")
    return name


def check_backend(name: str, decode_name: str = "xla") -> None:
    """Check that this machine's backend supports `model.attention` and
    `model.decode_attention`.

    Raises:
      ValueError: If it does not.
    """
    backend = jax.default_backend()
    if name not in ("auto", "xla", _BY_BACKEND.get(backend)):
        allowed = ", ".join(filter(None, ("auto", "xla", _BY_BACKEND.get(backend))))
        raise ValueError(
            f"model.attention: must be one of {allowed} on the backend {backend}, got {name!r}"
        )
    if decode_name == "ragged" and backend not in _BY_BACKEND:
        raise ValueError(
            "model.decode_attention: must be one of auto, xla on the backend "
            f"{backend}, got 'ragged'"
        )


def resolve_decode_attention(
    name: str, head_dim: int, backend: str | None = None, *, whole_heads: bool = False
) -> DecodeImplementation:
    """Resolve `model.decode_attention` to an implementation.

    `auto` is ragged on GPUs, and xla elsewhere or where ragged does not support the model. Without
    `backend`, `auto` initializes that of this machine.

    Args:
      name: auto, xla or ragged.
      head_dim: h.
      backend: cpu, gpu or tpu; None for that of this machine.
      whole_heads: Whether each device holds all KV heads, because the tensor axis does not divide
        their number.

    Returns:
      The name of the implementation.
    """
    if name != "auto":
        return name
    power_of_two = head_dim >= 16 and head_dim & (head_dim - 1) == 0  # a block of the kernel
    supported = power_of_two and not whole_heads
    return "ragged" if (backend or jax.default_backend()) == "gpu" and supported else "xla"


def _unsupported(
    name: str, dtype: Any, head_dim: int, windows: tuple[int | None, ...]
) -> str | None:
    """Return why an implementation does not support such layers, or None if it does."""
    if name == "xla":
        return None
    if name not in _BY_BACKEND.values():
        return f"must be one of auto, xla, cudnn, splash, got {name!r}"
    if len(set(windows)) > 1:  # the layers are one compiled layer, whose window is then traced
        return (
            "must be one of auto, xla where layers have different sliding windows "
            f"({', '.join(sorted({str(w) for w in windows}))}), got {name!r}"
        )
    if name == "cudnn" and jnp.dtype(dtype).name not in _CUDNN_DTYPES:
        return (
            f"must be one of auto, xla with model.compute_dtype {jnp.dtype(dtype).name}, got "
            "'cudnn', which needs bfloat16"
        )
    if name == "cudnn" and (head_dim > 256 or head_dim % 8):
        return (
            f"must be one of auto, xla with a head size of {head_dim}, got 'cudnn', which needs a "
            "multiple of 8 up to 256"
        )
    return None


def _require_static(window: int | jax.Array | None, implementation: str) -> None:
    if not (window is None or isinstance(window, int)):
        raise ValueError(
            f"causal_attention: window: must be None or an int with {implementation}, got a "
            "traced array"
        )


def _cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None,
    mesh: Mesh | None,
) -> jax.Array:
    # The custom call can be partitioned by XLA too, but not if KV heads and queries are sharded
    # differently.
    return over_mesh(partial(_cudnn, window=window), q, k, v, mesh)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, window: int | None) -> jax.Array:
    # No `mask`: it would become a [B, H, T, T] bias.
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
