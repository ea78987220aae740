"""Sampling completions: prefill once per prompt, then one jitted loop that ends when every row has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from entropy_rl.sampling import sample
from entropy_rl.types import FinishReason, Params, Policy, Rollout

GenerateFn = Callable[..., Rollout]


def sample_keys(key: jax.Array, prompt_index: jax.Array, sample_index: jax.Array) -> jax.Array:
    """One key per row from what the row is, not from where it stands.

    Args:
      key: The key of the step: fold_in(key(seed), step).
      prompt_index: int32[P], which problem each prompt is.
      sample_index: int32[G], which of its samples.

    Returns:
      key[P*G]. The key of the t-th token is fold_in(row key, t).
    """
    fold = jax.random.fold_in
    keys = jax.vmap(lambda p: jax.vmap(lambda s: fold(fold(key, p), s))(sample_index))(prompt_index)
    return keys.reshape(-1)


def make_generate(
    policy: Policy,
    *,
    group_size: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> GenerateFn:
    """Compiles a sampler.

    Args:
      policy: The model.
      group_size: Completions per prompt (G).
      max_new_tokens: Columns of a completion (N), the end-of-sequence token included.
      eos_ids: Tokens that end a completion. The token is part of it.
      pad_id: Fills the columns after the end.
      temperature: Divides the logits; 0 takes the most likely token.
      top_p: Nucleus mass.

    Returns:
      A jitted function `(params, prompt_ids int32[P, S], prompt_mask bool[P, S], prompt_index int32[P], key,
      first_sample=0) -> Rollout` of P*G rows. A sample depends on (key, prompt_index, sample index, t) and
      the parameters alone; `first_sample` is the index of the first of the G samples.

    Raises:
      ValueError: If nothing can end a completion.
    """
    if not eos_ids:
        raise ValueError("eos_ids: at least one end-of-sequence token is needed")
    eos = jnp.array(sorted(set(eos_ids)), jnp.int32)

    @jax.jit
    def generate(
        params: Params,
        prompt_ids: jax.Array,
        prompt_mask: jax.Array,
        prompt_index: jax.Array,
        key: jax.Array,
        first_sample: jax.Array | int = 0,
    ) -> Rollout:
        rows = prompt_ids.shape[0] * group_size
        keys = sample_keys(key, prompt_index, first_sample + jnp.arange(group_size))
        decode_params = policy.to_decode(params)
        head = policy.head(decode_params)

        def draw(hidden, t, alive, out):
            """Samples column t of the rows that are alive; returns the tokens and who goes on."""
            logits = jax.lax.dot_general(
                hidden, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )
            uniforms = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t)))(keys)
            uniforms += 2.0**-24  # the middle of its cell: an exact 0 would draw a token of any small mass
            ids, log_probs, entropy = sample(logits, uniforms, temperature=temperature, top_p=top_p)
            ids = jnp.where(alive, ids, pad_id)
            column = (ids, alive, jnp.where(alive, log_probs, 0), jnp.where(alive, entropy, 0))
            out = tuple(
                jax.lax.dynamic_update_slice(o, c[:, None], (0, t)) for o, c in zip(out, column, strict=True)
            )
            return ids, alive & ~jnp.isin(ids, eos), out

        shape = (rows, max_new_tokens)
        out = (jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape), jnp.zeros(shape))
        with jax.named_scope("prefill"):
            hidden, cache = policy.prefill(decode_params, prompt_ids, prompt_mask, group_size, max_new_tokens)
        ids, alive, out = draw(jnp.repeat(hidden, group_size, axis=0), 0, jnp.ones(rows, bool), out)

        def go_on(carry):
            t, _, alive, _, _ = carry
            return (t < max_new_tokens) & alive.any()

        def step(carry):
            t, ids, alive, out, cache = carry
            hidden, cache = policy.decode(decode_params, ids, t - 1, cache)
            ids, alive, out = draw(hidden, t, alive, out)
            return t + 1, ids, alive, out, cache

        with jax.named_scope("decode"):
            _, _, alive, out, _ = jax.lax.while_loop(go_on, step, (jnp.int32(1), ids, alive, out, cache))
        completion_ids, completion_mask, log_probs, entropy = out
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids,
            completion_mask=completion_mask,
            log_probs=log_probs,
            entropy=entropy,
            finish_reason=jnp.where(alive, FinishReason.LENGTH, FinishReason.EOS).astype(jnp.int32),
        )

    return generate
