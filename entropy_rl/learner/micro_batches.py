"""Micro-batches of a mini-batch, in which a prompt may be computed once for its whole group.

Keys and values of the prompts, the prefix, are computed first and read by every micro-batch. Their
backward pass comes last, from the accumulated gradient of the prefix:

    ∂L/∂θ = Σᵢ ∂Lᵢ/∂θ|_prefix + (∂prefix/∂θ)ᵀ Σᵢ ∂Lᵢ/∂prefix        over micro-batches i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.learner.batch import loss_mask
from entropy_rl.learner.fold import MicroBatch, Rows, fold_micro_batches, micro_batch_shapes
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.models.packing import make_packing, pack_tokens
from entropy_rl.types import Params, Policy, TrainBatch


class PredictingHidden(NamedTuple):
    """The hidden states that predict the tokens of completions, as rows or packed."""

    hidden: jax.Array  # [R, N, D] or packed [C, M, D]
    pack: Callable[[jax.Array], jax.Array]  # from [R, N] to the layout of `hidden`
    unpack: Callable[[jax.Array], jax.Array]  # and back


ReadFn = Callable[[Params, PredictingHidden, TrainBatch], tuple[jax.Array, ...]]


class MicroBatches:
    """The micro-batches of one mini-batch: forward passes and gradients over them."""

    def __init__(self, policy: Policy, batch: TrainBatch, mask: jax.Array, settings: PassSettings):
        """
        Args:
          policy: The model.
          batch: The mini-batch.
          mask: bool[B, N], the tokens that are computed: all sampled tokens of a completion, or
            none. Tokens before them, such as those of observations, are computed up to the LM head.
          settings: Micro-batches, prompts and mesh.

        Raises:
          ValueError: The longest row does not fit into a micro-batch, or the rows are not divisible
            by the shards, in whole groups where these share a prompt.
        """
        rows, length = batch.ids.shape
        tokens, shards = settings.max_tokens_per_micro_batch, settings.shards
        self._policy, self._settings, self._shards = policy, settings, shards
        self._tokens, self._group_size = tokens, settings.group_size
        group_size = self._group_size
        needed = mask.any(-1)
        # The last token of a row predicts nothing; that of a prompt predicts the first token of
        # each completion.
        prompt_end = batch.prompt_length - 1
        columns = jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1)[None], 0), axis=-1)
        first, last = jnp.zeros_like(prompt_end), prompt_end + columns.astype(jnp.int32)
        if group_size is not None:
            first = prompt_end
        self._first, self._last = first, jnp.where(needed, last, first)
        self._rows, self._length = rows, length
        if tokens is None:
            return
        unit = shards * (group_size or 1)
        if rows % unit:
            raise ValueError(
                f"rows of a mini-batch: must be a multiple of {unit} on {shards} shards of "
                f"devices, got {rows}"
            )
        longest = length if group_size is None else batch.completion_ids.shape[1]
        self._shapes = micro_batch_shapes(rows // shards, longest, tokens, prompt=length - longest)
        # No longer than the tokens of the longest rows that fit: unused places are computed too.
        self._tokens = min(tokens, self._shapes[-1].rows * longest)
        if group_size is not None:
            prompts = batch.ids[::group_size, : length - batch.completion_ids.shape[1]]
            used = needed.reshape(-1, group_size).any(-1)
            ends = jnp.where(used, prompt_end[::group_size], 0)
            self._prompts = Rows(prompts, jnp.zeros_like(ends), ends)
            in_shard, columns = len(ends) // shards, prompts.shape[1]
            self._prompt_shapes = micro_batch_shapes(in_shard, columns, tokens, (1.0,))
            self._prompt_tokens = min(tokens, in_shard * columns)

    def count_tokens(self) -> tuple[jax.Array, jax.Array]:
        """Count the tokens of a forward pass.

        Returns:
          (those that are needed, those that are computed, padding included), f32[] each.
        """
        needed = (self._last - self._first).sum().astype(jnp.float32)
        if self._tokens is None:
            return needed, jnp.float32(self._rows * self._length)
        count = lambda total, part: total + part.packed.segment_ids.size  # noqa: E731
        computed = self._fold(count, jnp.float32(0), ())
        if self._group_size is not None:
            needed += self._prompts.last.sum()
            computed = self._fold_prompts(count, computed)
        return needed, computed

    def map_tokens(
        self, read: ReadFn, params: Params, batch: TrainBatch, outputs: int
    ) -> tuple[jax.Array, ...]:
        """Run a forward pass over all micro-batches.

        Args:
          read: (params, hidden states, rows of the mini-batch) -> arrays in the layout of the
            hidden states.
          params: The parameters.
          batch: The mini-batch.
          outputs: Number of arrays that `read` returns.

        Returns:
          The arrays as f32[B, N]; 0 in rows that are not computed.
        """
        prefix = self.prefix(params)

        def step(carry: tuple, part: MicroBatch) -> tuple:
            at = self.hidden(params, prefix, part, part.arrays)
            arrays = read(params, at, part.arrays)
            return tuple(
                part.put(whole, at.unpack(x)) for whole, x in zip(carry, arrays, strict=True)
            )

        return self._fold(step, (jnp.zeros(batch.completion_ids.shape),) * outputs, batch)

    def gradient(
        self,
        loss: Callable[[Params, Any, MicroBatch], tuple[jax.Array, Any]],
        params: Params,
        arrays: Any,
    ) -> tuple[Params, Any]:
        """Compute the gradient of a loss that is a sum over micro-batches.

        Args:
          loss: (params, prefix, micro-batch) -> (loss, a nest of sums).
          params: The parameters.
          arrays: A nest of [B, ...], of which each micro-batch gets its rows.

        Returns:
          (gradient, the sums over all micro-batches).
        """
        constrained = self._settings.constrained
        prefix = self.prefix(params)
        whole = MicroBatch(arrays, None, None)
        _, sums = _zeros(jax.eval_shape(loss, params, None, whole))
        # Backward passes add to mutable arrays, a layer at a time. A sum of what they return would
        # take the memory of two gradients.
        grads = jax.tree.map(jax.new_ref, constrained(_zeros(params)))
        of_prefix = jax.tree.map(jax.new_ref, _zeros(prefix))

        def step(sums: Any, part: MicroBatch) -> Any:
            total, pull, of_part = jax.vjp(
                lambda *at: loss(*at, part), params, prefix, has_aux=True
            )
            pull.with_refs(grads, of_prefix)(jnp.ones_like(total))
            return jax.tree.map(jnp.add, sums, of_part)

        sums = self._fold(step, sums, arrays)
        self._add_gradient_of_prefix(grads, params, jax.tree.map(jax.freeze, of_prefix))
        return constrained(jax.tree.map(jax.freeze, grads)), sums

    def hidden(
        self, params: Params, prefix: Any, part: MicroBatch, batch: TrainBatch
    ) -> PredictingHidden:
        """Run the backbone on a micro-batch.

        Args:
          params: The parameters.
          prefix: From `prefix`, for the same parameters.
          part: The micro-batch.
          batch: Its rows of the mini-batch.
        """
        new, packed = batch.completion_ids.shape[1], part.packed
        # The token at column c is predicted by the hidden state at column c - 1.
        begin = batch.prompt_length - 1
        if packed is None:
            hidden = self._policy.apply(params, batch.ids)
            columns = begin[:, None] + jnp.arange(new)[None]
            hidden = jnp.take_along_axis(hidden, columns[..., None], axis=1)
            return PredictingHidden(hidden, lambda x: x, lambda x: x)
        if prefix is not None:
            prompt = part.index.reshape(-1) // self._group_size
            packed = packed.replace(prefix=prefix, prompt=prompt)
        ids = make_packing(packed, batch.ids.shape[1]).pack(batch.ids)
        hidden = self._policy.apply_packed(params, ids, packed)
        packing = make_packing(packed, new, begin=begin)
        return PredictingHidden(hidden, packing.pack, packing.unpack)

    def prefix(self, params: Params) -> Any:
        """Compute keys and values of the prompts; None if each row computes its own."""
        if self._group_size is None:
            return None

        def step(carry: Any, part: MicroBatch) -> Any:
            return jax.tree.map(jax.vmap(part.put), carry, self._prefix_of(params, part))

        rows, shapes = self._prompts, self._prompt_shapes
        packed = pack_tokens(
            rows.first, rows.last, 0, shapes, room=self._prompt_tokens, shards=self._shards
        )
        like = jax.eval_shape(self._prefix_of, params, MicroBatch(rows.arrays, None, packed))
        return self._fold_prompts(step, _zeros(like))

    def _fold(self, step: Callable[[Any, MicroBatch], Any], start: Any, arrays: Any) -> Any:
        """`fold_micro_batches` over arrays of the mini-batch, a nest of [B, ...]."""
        if self._tokens is None:
            return step(start, MicroBatch(arrays, None, None))
        rows = Rows(arrays, self._first, self._last)
        return fold_micro_batches(step, start, rows, self._shapes, self._tokens, self._shards)

    def _fold_prompts(self, step: Callable[[Any, MicroBatch], Any], start: Any) -> Any:
        """`fold_micro_batches` over the prompts."""
        return fold_micro_batches(
            step, start, self._prompts, self._prompt_shapes, self._prompt_tokens, self._shards
        )

    def _prefix_of(self, params: Params, part: MicroBatch) -> Any:
        columns = part.arrays.shape[1]
        ids = make_packing(part.packed, columns).pack(part.arrays)
        return self._policy.prefix(params, ids, part.packed, columns)

    def _add_gradient_of_prefix(self, gradient: Any, params: Params, cotangent: Any) -> None:
        """Add the gradient through the prompts.

        Args:
          gradient: A nest of `jax.Ref`, to add to.
          params: The parameters.
          cotangent: The gradient with respect to `prefix(params)`.
        """
        if self._group_size is None:
            return

        def step(nothing: tuple, part: MicroBatch) -> tuple:
            _, pull = jax.vjp(lambda p: self._prefix_of(p, part), params)
            pull.with_refs(gradient)(jax.tree.map(jax.vmap(part.take), cotangent))
            return nothing

        self._fold_prompts(step, ())


def _zeros(like: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def make_micro_batch_fill(
    policy: Policy,
    settings: PassSettings,
    mask: Callable[[Any], jax.Array] = loss_mask,
) -> Callable[[Sequence[Any]], float]:
    """Build a function that counts the tokens of updates, without running the model.

    Args:
      policy: The model.
      settings: Those of the updates.
      mask: (mini-batch) -> bool[B, N], its computed tokens.

    Returns:
      (mini-batches) -> the fraction of useful tokens among those that their updates compute.
    """
    count = jax.jit(lambda batch: MicroBatches(policy, batch, mask(batch), settings).count_tokens())

    def micro_batch_fill(batches: Sequence[Any]) -> float:
        counts = jax.device_get([count(batch) for batch in batches])
        needed, computed = np.sum(counts, axis=0).tolist()
        return needed / computed if computed else 1.0

    return micro_batch_fill
