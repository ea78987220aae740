"""A mini-batch of completions in parts, in which a prompt is computed once for its whole group.

The keys and values of the prompts come first; every part reads them; and when the parts have said
how the loss depends on them, the prompts have a backward pass of their own:

    ∂L/∂θ = Σ_parts ∂L_part/∂θ|_prefix  +  (∂prefix/∂θ)ᵀ Σ_parts ∂L_part/∂prefix
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.learner.parts import Part, Rows, fold_micro_batches, part_shapes
from entropy_rl.models.packing import make_packing, pack_tokens
from entropy_rl.types import Params, Policy, TrainBatch


class PredictingHidden(NamedTuple):
    """The hidden states that predict the tokens of completions, in rows [R, N] or in lists [C,
    M].
    """

    hidden: jax.Array  # [R, N, D] or [C, M, D]
    pack: Callable[
        [jax.Array], jax.Array
    ]  # an array of tokens in rows -> where the hidden states are
    unpack: Callable[[jax.Array], jax.Array]  # and back


ReadFn = Callable[[Params, PredictingHidden, TrainBatch], tuple[jax.Array, ...]]


class BatchParts:
    """The parts of one mini-batch. They are planned here, and run by `map_tokens` and
    `gradient`.
    """

    def __init__(
        self,
        policy: Policy,
        batch: TrainBatch,
        mask: jax.Array,
        tokens: int | None,
        group_size: int | None,
        shards: int,
    ):
        """Plans the parts.

        Args:
          policy: The model.
          batch: The mini-batch.
          mask: bool[B, N], the tokens of the completions that are needed: all of a row, or none.
          tokens: Live tokens of a part, in each share; None for the whole as one part, padding
            included.
          group_size: Rows that stand together and have one prompt, which is computed once; None:
            with each. Without parts it does not matter.
          shards: Equal shards of the rows that lie on different devices.

        Raises:
          ValueError: If the longest row does not fit into a part, or the rows into equal shards, of
            whole groups where they share prompts.
        """
        rows, length = batch.ids.shape
        self._policy, self._tokens, self._shares = policy, tokens, shards
        self._group_size = None if tokens is None else group_size
        if tokens is None:
            return
        unit = shards * (group_size or 1)
        if rows % unit:
            raise ValueError(
                f"rows: must be a multiple of {unit} for {shards} shards of devices, got {rows}"
            )
        self._shapes = part_shapes(rows // shards, length, tokens)
        # A list has no more room than its share has tokens: empty places are computed too.
        longest = length if group_size is None else batch.completion_ids.shape[1]
        self._tokens = min(tokens, rows // shards * longest)
        needed = mask.any(-1)
        # The last token of a row predicts nothing, and that of a prompt the first of each
        # completion.
        behind_prompt = batch.prompt_length - 1
        first, last = jnp.zeros_like(behind_prompt), behind_prompt + mask.sum(-1, dtype=jnp.int32)
        if group_size is not None:
            first = behind_prompt
            prompts = batch.ids[::group_size, : length - batch.completion_ids.shape[1]]
            used = needed.reshape(-1, group_size).any(-1)
            ends = jnp.where(used, behind_prompt[::group_size], 0)
            self._prompts = Rows(prompts, jnp.zeros_like(ends), ends)
            in_share, columns = len(ends) // shards, prompts.shape[1]
            self._prompt_shapes = part_shapes(in_share, columns, tokens, (1.0,))
            self._prompt_tokens = min(tokens, in_share * columns)
        self._first, self._last = first, jnp.where(needed, last, first)

    def fold(self, step: Callable[[Any, Part], Any], start: Any, arrays: Any) -> Any:
        """`fold_micro_batches` over arrays of the mini-batch, a nest of [B, ...]."""
        if self._tokens is None:
            return step(start, Part(arrays, None, None))
        rows = Rows(arrays, self._first, self._last)
        return fold_micro_batches(step, start, rows, self._shapes, self._tokens, self._shares)

    def map_tokens(
        self, read: ReadFn, params: Params, batch: TrainBatch, outputs: int
    ) -> tuple[jax.Array, ...]:
        """A forward pass over all parts.

        Args:
          read: (params, hidden states, their rows of the mini-batch) -> arrays of tokens, where the
            hidden states are.
          params: The parameters.
          batch: The mini-batch.
          outputs: How many arrays `read` returns.

        Returns:
          The arrays as f32[B, N]; 0 in rows that are not needed.
        """
        prefix = self.prefix(params)

        def step(carry: tuple, part: Part) -> tuple:
            at = self.hidden(params, prefix, part, part.arrays)
            arrays = read(params, at, part.arrays)
            return tuple(
                part.put(whole, at.unpack(x)) for whole, x in zip(carry, arrays, strict=True)
            )

        return self.fold(step, (jnp.zeros(batch.completion_ids.shape),) * outputs, batch)

    def gradient(
        self,
        loss: Callable[[Params, Any, Part], tuple[jax.Array, Any]],
        params: Params,
        arrays: Any,
        constrain: Callable[[Any], Any],
    ) -> tuple[Params, Any]:
        """The gradient of a loss that is a sum over parts.

        Args:
          loss: (params, prefix, part) -> (loss, a nest of sums), of one part.
          params: The parameters.
          arrays: What the parts take their rows from, a nest of [B, ...].
          constrain: Says how a tree with the names of the parameters lies on a mesh.

        Returns:
          (gradient, the sums over all parts).
        """
        prefix = self.prefix(params)
        of_part = jax.grad(loss, argnums=(0, 1), has_aux=True)
        shapes = jax.eval_shape(of_part, params, None, Part(arrays, None, None))
        (grads, _), sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        start = (constrain(grads), jax.tree.map(jnp.zeros_like, prefix)), sums
        (grads, of_prefix), sums = self.fold(
            lambda carry, part: jax.tree.map(jnp.add, carry, of_part(params, prefix, part)),
            start,
            arrays,
        )
        return constrain(self._add_gradient_of_prefix(grads, params, of_prefix)), sums

    def hidden(
        self, params: Params, prefix: Any, part: Part, batch: TrainBatch
    ) -> PredictingHidden:
        """A forward pass over a part.

        Args:
          params: The parameters.
          prefix: From `prefix`, for the same parameters.
          part: The part.
          batch: Its rows of the mini-batch.
        """
        new, live = batch.completion_ids.shape[1], part.live
        # The token at column c is predicted by the hidden state at column c - 1.
        begin = batch.prompt_length - 1
        if live is None:
            hidden = self._policy.apply(params, batch.ids)
            columns = begin[:, None] + jnp.arange(new)[None]
            hidden = jnp.take_along_axis(hidden, columns[..., None], axis=1)
            return PredictingHidden(hidden, lambda x: x, lambda x: x)
        if prefix is not None:
            live = live.replace(prefix=prefix, prompt=part.numbers.reshape(-1) // self._group_size)
        ids = make_packing(live, batch.ids.shape[1]).pack(batch.ids)
        hidden = self._policy.apply_packed(params, ids, live)
        packing = make_packing(live, new, begin=begin)
        return PredictingHidden(hidden, packing.pack, packing.unpack)

    def prefix(self, params: Params) -> Any:
        """Keys and values of the prompts; None if each row computes its own."""
        if self._group_size is None:
            return None

        def step(carry: Any, part: Part) -> Any:
            return jax.tree.map(part.put, carry, self._prefix_of(params, part))

        rows, shapes = self._prompts, self._prompt_shapes
        live = pack_tokens(
            rows.first, rows.last, 0, shapes, room=self._prompt_tokens, shards=self._shares
        )
        like = jax.eval_shape(self._prefix_of, params, Part(rows.arrays, None, live))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        return fold_micro_batches(step, zeros, rows, shapes, self._prompt_tokens, self._shares)

    def _prefix_of(self, params: Params, part: Part) -> Any:
        columns = part.arrays.shape[1]
        ids = make_packing(part.live, columns).pack(part.arrays)
        return self._policy.prefix(params, ids, part.live, columns)

    def _add_gradient_of_prefix(self, gradient: Params, params: Params, cotangent: Any) -> Params:
        """Adds what the loss owes to the parameters through the prompts.

        Args:
          gradient: To add to.
          params: The parameters.
          cotangent: The gradient with respect to `prefix(params)`.
        """
        if self._group_size is None:
            return gradient

        def step(carry: Params, part: Part) -> Params:
            _, pull = jax.vjp(lambda p: self._prefix_of(p, part), params)
            return jax.tree.map(jnp.add, carry, pull(jax.tree.map(part.take, cotangent))[0])

        return fold_micro_batches(
            step, gradient, self._prompts, self._prompt_shapes, self._prompt_tokens, self._shares
        )
