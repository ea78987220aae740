"""One policy update: token stats -> advantage -> loss -> gradient -> optimizer, jitted and donated.

What is computed does not depend on the micro-batches: counts are those of the whole mini-batch and
are taken first, sums travel, baselines are finished before the gradient pass begins, and so is all
of an advantage that needs the whole mini-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from entropy_rl.advantages import NotYetKnown, Transform, baseline_and_shaping
from entropy_rl.config.train import LossConfig
from entropy_rl.distributed.sharding import row_shards
from entropy_rl.learner.metrics import metric_sums, metrics_of
from entropy_rl.learner.micro_batches import BatchParts, PredictingHidden
from entropy_rl.learner.token_loss import (
    KnownOfToken,
    check_fused_loss,
    make_token_loss,
    needs_whole_batch,
    of_single_tokens,
)
from entropy_rl.lm_head.fused_loss import fused_head_loss
from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.losses.build import loss_controller, update_controller
from entropy_rl.losses.build_surrogate import build_surrogate
from entropy_rl.losses.build_token_weights import build_token_weighting
from entropy_rl.losses.controller import Coefficients, Controller
from entropy_rl.losses.policy import aggregation_weights, counts
from entropy_rl.types import (
    FinishReason,
    Params,
    Policy,
    Rollout,
    TokenStats,
    TrainBatch,
    TrainState,
)

StatsFn = Callable[[Params, TrainBatch], tuple[jax.Array, jax.Array]]
GradientFn = Callable[..., tuple[Params, dict[str, jax.Array]]]
UpdateFn = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    constrain: Callable[[Any], Any] | None = None,
    *,
    controller: Controller | None = None,
    several_rounds: bool = False,
) -> TrainState:
    """The state before the first step, with a copy of the parameters: updates donate the state.

    Args:
      params: The parameters.
      optimizer: The optimizer.
      constrain: As of `make_gradient`.
      controller: From `loss_controller`, for a loss that has one.
      several_rounds: Whether a step may have several rounds of sampling, which are then counted.
    """

    def init(params: Params) -> TrainState:
        params = jax.tree.map(jnp.copy, params)
        counts = dict(step=jnp.int32(0), updates=jnp.int32(0))
        if several_rounds:
            counts["rounds"] = jnp.int32(0)
        new_controller = None if controller is None else controller.init()
        return TrainState(
            params=params, opt_state=optimizer.init(params), controller=new_controller, **counts
        )

    return (
        init(params)
        if constrain is None
        else jax.jit(lambda params: constrain(init(params)))(params)
    )


@functools.partial(jax.jit, static_argnames=("pad_id", "mask_truncated"))
def make_batch(
    rollout: Rollout,
    rewards: jax.Array,
    has_reward: jax.Array,
    *,
    pad_id: int,
    mask_truncated: bool = False,
) -> TrainBatch:
    """A judged rollout as a batch to train on, with the sampler's log-probs as the old ones.

    Those of the trainer come from `make_stats_pass`, with the parameters as they are before the
    first update; only with them can a weight against the sampler correct anything.

    Args:
      rollout: P prompts with G completions each.
      rewards: f32[B].
      has_reward: bool[B], False for rows without a judgement.
      pad_id: Fills the end of the rows.
      mask_truncated: Whether rows that were cut off at the limit have no loss, as
        `loss.mask_truncated`.

    Returns:
      The batch.
    """
    ids, prompt_length = join_prompt_and_completion(
        rollout.prompt_ids, rollout.prompt_mask, rollout.completion_ids, pad_id
    )
    return TrainBatch(
        ids=ids,
        prompt_length=prompt_length,
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        old_log_probs=rollout.log_probs,
        old_entropy=rollout.entropy,
        sampler_log_probs=rollout.log_probs,
        rewards=rewards,
        has_reward=has_reward,
        loss_row_mask=rollout.finish_reason != FinishReason.LENGTH if mask_truncated else None,
    )


def join_prompt_and_completion(
    prompt_ids: jax.Array, prompt_mask: jax.Array, completion_ids: jax.Array, pad_id: int
) -> tuple[jax.Array, jax.Array]:
    """Moves each completion right behind its prompt, so that a row is padded at its end only.

    Args:
      prompt_ids: int32[P, S], right-padded.
      prompt_mask: bool[P, S].
      completion_ids: int32[B, N], right-padded.
      pad_id: Fills the end.

    Returns:
      (ids int32[B, S + N], prompt_length int32[B]).
    """
    rows, new = completion_ids.shape
    prompts, length = prompt_ids.shape
    prompt_length = jnp.repeat(prompt_mask.sum(-1, dtype=jnp.int32), rows // prompts)
    ids = jnp.full((rows, length + new), pad_id, jnp.int32)
    ids = ids.at[:, :length].set(
        jnp.repeat(jnp.where(prompt_mask, prompt_ids, pad_id), rows // prompts, axis=0)
    )
    columns = prompt_length[:, None] + jnp.arange(new)[None]
    return ids.at[jnp.arange(rows)[:, None], columns].set(completion_ids), prompt_length


def make_stats_pass(
    policy: Policy,
    *,
    temperature: float,
    max_tokens_per_micro_batch: int | None = None,
    group_size: int | None = None,
    mesh: Mesh | None = None,
) -> StatsFn:
    """Builds the forward-only pass `(params, batch) -> (log_probs, entropy)` over a whole
    mini-batch.

    Args:
      policy: The model.
      temperature: That of the sampler.
      max_tokens_per_micro_batch: As of `make_gradient`.
      group_size: As of `make_gradient`.
      mesh: As of `make_gradient`.

    Returns:
      A function of arrays, to be jitted by the caller; it looks at every row, judged or not.
    """
    shards = row_shards(mesh)

    def read(params: Params, at: PredictingHidden, rows: TrainBatch) -> tuple[jax.Array, jax.Array]:
        ids, mask = at.pack(rows.completion_ids), at.pack(rows.completion_mask)
        head = policy.head(params)
        return log_prob_and_entropy(at.hidden, head, ids, mask, temperature=temperature, mesh=mesh)

    def stats_pass(params: Params, batch: TrainBatch) -> tuple[jax.Array, jax.Array]:
        parts = BatchParts(
            policy, batch, batch.completion_mask, max_tokens_per_micro_batch, group_size, shards
        )
        return parts.map_tokens(read, params, batch, outputs=2)

    return stats_pass


def make_gradient(
    policy: Policy,
    advantage: Transform,
    loss: LossConfig = LossConfig(),
    *,
    temperature: float = 1.0,
    max_tokens_per_micro_batch: int | None = None,
    group_size: int | None = None,
    max_new_tokens: int | None = None,
    fused_loss: bool = False,
    mesh: Mesh | None = None,
    constrain: Callable[[Any], Any] | None = None,
) -> GradientFn:
    """Builds the gradient of the loss of one mini-batch.

    The entropy that shapes the advantage is that of the policy as it stands at this update.

    Args:
      policy: The model.
      advantage: From `rewards[:, None]` to f32[B, 1] or f32[B, N]. A chain of baselines that read
        what was recorded, and then of transforms of token or row scope, is evaluated as the
        gradient is; any other costs a forward pass before.
      loss: The loss; a token_weighting of batch scope costs that forward pass as well.
      temperature: That of the sampler.
      max_tokens_per_micro_batch: The gradient is added up over parts of so many tokens, on each
        device that rows are split over; None for all rows at once, padding included. Changes memory
        and speed, and no result.
      group_size: Rows that stand together and have the same prompt, which is then computed once for
        them;
        None: with each row. Only with `max_tokens_per_micro_batch`. Changes memory and speed, and
          no result.
      max_new_tokens: Limit of new tokens; the aggregation "constant" divides by it.
      fused_loss: Compute the loss in the loop of the head, with `fused_head_loss`; what is
        evaluated as the gradient is must then be of token scope, the surrogate among it. Changes
        speed and controller, and no result.
      mesh: The mesh that the arrays are sharded over; None for one device.
      constrain: Says how a tree with the names of the parameters lies on the mesh, and returns it,
        as `Placement.constrain` does; None leaves it to the compiler.

    Returns:
      A function `(params, batch: TrainBatch, coefficients=None) -> (gradient, metrics: dict of
      f32[])`, to be jitted; a loss with a controller needs its coefficients, which are metrics as
      well.

    Raises:
      ValueError: If the aggregation needs `max_new_tokens` and it is not given, if what `loss`
        names cannot be built, or if something does not admit a fused loss.
    """
    surrogate = build_surrogate(loss.surrogate)
    token_weighting = build_token_weighting(loss.token_weights, surrogate)
    if fused_loss:
        check_fused_loss(advantage, surrogate, token_weighting)
    if max_new_tokens is None and loss.aggregation == "constant":
        raise ValueError("make_gradient: the aggregation 'constant' needs max_new_tokens")
    stats_pass = make_stats_pass(
        policy,
        temperature=temperature,
        max_tokens_per_micro_batch=max_tokens_per_micro_batch,
        group_size=group_size,
        mesh=mesh,
    )
    shards = row_shards(mesh)
    baseline, shaping = baseline_and_shaping(advantage)
    whole_batch = needs_whole_batch(baseline, shaping, token_weighting)
    token_loss = make_token_loss(shaping, surrogate, token_weighting, loss)
    constrain = constrain or (lambda tree: tree)

    def gradient(
        params: Params, batch: TrainBatch, coefficients: Coefficients | None = None
    ) -> tuple[Params, dict[str, jax.Array]]:
        learned = loss_mask(batch)
        tokens, sequences = counts(learned)
        of_tokens = coefficients and {
            name: jnp.reshape(x, (1, 1)) for name, x in coefficients.items()
        }
        if whole_batch:
            stats = token_stats(batch, *stats_pass(params, batch)).replace(coefficients=of_tokens)
            base = baseline(batch.rewards[:, None], stats)
            stats = stats.replace(mask=learned)
            shaped = shaping(base, stats)
            select_now = token_weighting is not None and token_weighting.scope == "batch"
            finished = base, shaped, token_weighting(shaped, stats) if select_now else None
        else:
            unknown = NotYetKnown()
            stats = token_stats(batch, log_probs=unknown, entropy=unknown)
            finished = baseline(batch.rewards[:, None], stats), None, None

        parts = BatchParts(policy, batch, learned, max_tokens_per_micro_batch, group_size, shards)

        def part_loss(params, prefix, of_batch):
            part, (base, shaped, selected) = of_batch.arrays
            mask = loss_mask(part)
            weights = aggregation_weights(
                mask,
                loss.aggregation,
                tokens=tokens,
                sequences=sequences,
                max_tokens=max_new_tokens,
            )
            known = KnownOfToken(
                old_log_probs=part.old_log_probs,
                old_entropy=part.old_entropy,
                sampler_log_probs=part.sampler_log_probs,
                ref_log_probs=part.ref_log_probs,
                values=part.values,
                mask=mask,
                has_reward=part.has_reward[:, None],
                weights=weights,
                base=base,
                shaped=shaped,
                selected=selected,
                coefficients=of_tokens,
                external_weights=part.external_weights,
            )
            at = parts.hidden(params, prefix, of_batch, part)
            of_head = at.hidden, policy.head(params), at.pack(part.completion_ids), at.pack(mask)
            if fused_loss:
                known = jax.tree.map(lambda x: at.pack(jnp.broadcast_to(x, mask.shape)), known)
                total, *values = fused_head_loss(
                    *of_head,
                    of_single_tokens(token_loss),
                    known,
                    temperature=temperature,
                    mesh=mesh,
                )
                log_probs, entropy, terms = jax.tree.map(at.unpack, tuple(values))
            else:
                values = log_prob_and_entropy(*of_head, temperature=temperature, mesh=mesh)
                log_probs, entropy = (at.unpack(value) for value in values)
                per_token, terms = token_loss(log_probs, entropy, known)
                total = jnp.sum(per_token)
            sums = metric_sums(part, mask, log_probs, entropy, *terms)
            return total, {"loss": total} | sums

        grads, sums = parts.gradient(part_loss, params, (batch, finished), constrain)
        return grads, metrics_of(sums, tokens, optax.global_norm(grads)) | (coefficients or {})

    return gradient


def make_update(
    policy: Policy,
    advantage: Transform,
    optimizer: optax.GradientTransformation,
    loss: LossConfig = LossConfig(),
    **settings: Any,
) -> UpdateFn:
    """Builds the update on one mini-batch: its gradient, applied by an optimizer.

    An update whose gradient is not finite, or without a judged token, leaves parameters, optimizer
    and controller alone.

    Args:
      policy: The model.
      advantage: As of `make_gradient`.
      optimizer: Its state lives in `TrainState.opt_state`.
      loss: The loss. If it has a controller, its state lives in `TrainState.controller`.
      **settings: The others of `make_gradient`.

    Returns:
      A jitted function `(state, batch: TrainBatch) -> (state, metrics: dict of f32[])`; the state
      is donated.

    Raises:
      ValueError: As of `make_gradient`.
    """
    gradient = make_gradient(policy, advantage, loss, **settings)
    controller = loss_controller(loss)
    constrain = settings.get("constrain") or (lambda tree: tree)

    def update(state: TrainState, batch: TrainBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        new_controller, coefficients = update_controller(
            controller, state.controller, state.step, batch
        )
        with jax.named_scope("gradient"):
            grads, metrics = gradient(state.params, batch, coefficients)
        with jax.named_scope("optimizer"):
            params, opt_state = apply_gradient(
                optimizer, grads, state.params, state.opt_state, metrics
            )
        new_controller = _if_learned(metrics, new_controller, state.controller)
        state = state.replace(
            params=params, opt_state=opt_state, updates=state.updates + 1, controller=new_controller
        )
        return constrain(state), metrics

    return jax.jit(update, donate_argnums=0)


def apply_gradient(
    optimizer: optax.GradientTransformation,
    grads: Params,
    params: Params,
    opt_state: Any,
    metrics: Mapping[str, jax.Array],
) -> tuple[Params, Any]:
    """One step of an optimizer, or none if the gradient is not finite or there was no token.

    Args:
      optimizer: The optimizer.
      grads: The gradient.
      params: The parameters.
      opt_state: The optimizer's state.
      metrics: `grad_norm` f32[] and `tokens` int32[] of the gradient.

    Returns:
      (params, opt_state).
    """
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    stepped = (optax.apply_updates(params, updates), new_opt_state)
    return _if_learned(metrics, stepped, (params, opt_state))


def _if_learned(metrics: Mapping[str, jax.Array], new: Any, old: Any) -> Any:
    """What a mini-batch makes of a part of the state."""
    # Without a token there is nothing to learn from; momentum and weight decay would move all the
    # same.
    learn = (metrics["tokens"] > 0) & jnp.isfinite(metrics["grad_norm"])
    return jax.tree.map(lambda new, old: jnp.where(learn, new, old), new, old)


def loss_mask(batch: TrainBatch) -> jax.Array:
    """bool[B, N], the tokens that have a loss: of rows with a judgement, unless they are not
    learned from.
    """
    rows = (
        batch.has_reward if batch.loss_row_mask is None else batch.has_reward & batch.loss_row_mask
    )
    return batch.completion_mask & rows[:, None]


def token_stats(batch: TrainBatch, log_probs: Any, entropy: Any) -> TokenStats:
    """What was recorded of a mini-batch, and what the policy that is being updated says of it.

    As the baseline sees it, in which every judged row counts; the rest sees `loss_mask` instead of
    the mask.
    """
    return TokenStats(
        log_probs=log_probs,
        old_log_probs=batch.old_log_probs,
        entropy=entropy,
        old_entropy=batch.old_entropy,
        mask=batch.completion_mask & batch.has_reward[:, None],
        has_reward=batch.has_reward,
        sampler_log_probs=batch.sampler_log_probs,
        values=batch.values,
        greedy_rewards=batch.greedy_rewards,
        external_weights=batch.external_weights,
    )
