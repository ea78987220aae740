"""Attention of full sequences, of packed tokens, and of new tokens to a KV cache."""

from entropy_rl.models.attention.cached import (
    PromptCache,
    RowCache,
    cached_attention,
    empty_row_cache,
)
from entropy_rl.models.attention.chunk import chunk_attention
from entropy_rl.models.attention.dispatch import (
    causal_attention,
    check_backend,
    resolve_attention,
    resolve_decode_attention,
)
from entropy_rl.models.attention.packed import packed_attention
from entropy_rl.models.attention.xla import Prefix, xla_attention

__all__ = [
    "Prefix",
    "PromptCache",
    "RowCache",
    "cached_attention",
    "causal_attention",
    "check_backend",
    "chunk_attention",
    "empty_row_cache",
    "packed_attention",
    "resolve_attention",
    "resolve_decode_attention",
    "xla_attention",
]
