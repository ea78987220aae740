"""The values that travel between the stages: `Policy`, `Rollout`, `TokenStats`, `TrainBatch`,
`TrainState`.

Shapes: P prompts, G completions each, B = P*G rows (row b belongs to prompt b // G), S prompt
length, N new tokens, T = S + N, V vocabulary, D hidden size. In every mask True means "this
counts".
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct

Params = Any  # a nest of dicts of arrays

# The axes of a mesh: rows are split over the first two, parameters over the last two.
DATA_AXES = ("data", "fsdp")
FSDP_AXIS = "fsdp"
TENSOR_AXIS = "tensor"


def _short_repr(self: Any) -> str:
    """Name shapes and dtypes of arrays, and count those of a nest, instead of printing values."""
    parts = []
    for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        if hasattr(value, "shape"):
            shape = ", ".join(map(str, value.shape))
            parts.append(f"{field.name}={value.dtype}[{shape}]")
        elif value is not None:
            leaves = jax.tree.leaves(value)
            count = sum(getattr(leaf, "size", 1) for leaf in leaves)
            parts.append(f"{field.name}=<{len(leaves)} arrays, {count:,} numbers>")
    return f"{type(self).__name__}({', '.join(parts)})"


@struct.dataclass
class DecodeCache:
    """Decoding state of R rows, such as keys and values.

    Only the policy knows what the leaves hold. The decoding loop knows their leading axes, so that
    it can move rows: row r reads entry r // (R / Q) of the prompts. Q is the number of prompts if
    the rows of a group are contiguous, and R if every row has its own copy.
    """

    prompts: Any  # leaves [Q, ...]
    prompt_mask: jax.Array  # bool[Q, S]
    rows: Any  # leaves [R, ...], preallocated for new tokens


@struct.dataclass
class PackedTokens:
    """Sequence packing: the tokens of R rows, concatenated without padding to [C, M].

    The rows are sharded in C equal parts, one per group of devices with its own rows. A shard holds
    the tokens at positions first[r] <= t < last[r] of each of its rows r, one row after the other.
    If first[r] > 0, the keys and values of earlier positions are in `prefix`.
    """

    segment_ids: jax.Array  # int32[C, M], the token's row within its shard; R / C for padding
    positions: jax.Array  # int32[C, M]; 0 for padding
    first: jax.Array  # int32[R]
    last: jax.Array  # int32[R]
    shape_index: jax.Array  # int32[], the first of the shapes that holds all tokens
    # (tokens of a row, rows per shard) of the unpacked layouts that attention is compiled for
    shapes: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)
    prefix: Any = None  # leaves [L, P, ...] from `Policy.prefix`, P sharded like the rows
    prompt: jax.Array | None = None  # int32[R], the row's entry in its shard of `prefix`


class Policy(NamedTuple):
    """A language model as pure functions, in the manner of `optax.GradientTransformation`.

    Rows are right-padded: the model is causal, so real tokens never attend to padding and no mask
    is needed. No function returns logits: heads run on selected hidden states.

    Attributes:
      init: (key) -> params.
      apply: (params, ids int32[B, T]) -> hidden [B, T, D]. The differentiable forward pass.
      apply_packed: (params, ids int32[C, M], packed: PackedTokens) -> hidden [C, M, D]. The same
        for packed tokens; finite but undefined at padding.
      prefix: (params, ids int32[C, M], packed, columns) -> leaves f32[L, R, ...], differentiable.
        Keys and values in L layers of packed prompts of at most `columns` tokens, for
        `PackedTokens.prefix`.
      head: (params) -> head weights [V, D]; the logits of a token are `hidden @ weights.T`. Takes
        training or decoding parameters.
      to_decode: (params) -> decoding parameters: cast and rearranged once, outside of every loop.
      prefill: (decode_params, prompt_ids int32[P, S], prompt_mask bool[P, S]) -> (hidden [P, D] of
        each prompt's last token, leaves [P, ...] for `DecodeCache.prompts`).
      empty_rows: (rows, columns) -> leaves [R, ...] for `DecodeCache.rows`, without a token yet.
        Leaves grow to more columns by padding at the end of their axes.
      decode: (decode_params, ids int32[R], t int32[] or int32[R], cache) -> (hidden [R, D], cache).
        Appends the t-th new token (from 0) to every row; t < columns.
      extend: (decode_params, ids int32[R, C], t int32[R], count int32[R], cache) -> cache. Appends
        the first count[r] of C given tokens to row r, from its t-th new token on; the chunked
        prefill of observations. R is the number of prompts of the cache too. None for a policy
        without episodes of several turns.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    apply_packed: Callable[[Params, jax.Array, PackedTokens], jax.Array]
    prefix: Callable[[Params, jax.Array, PackedTokens, int], Any]
    head: Callable[[Params], jax.Array]
    to_decode: Callable[[Params], Params]
    prefill: Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Any]]
    empty_rows: Callable[[int, int], Any]
    decode: Callable[[Params, jax.Array, jax.Array, DecodeCache], tuple[jax.Array, DecodeCache]]
    extend: Callable[[Params, jax.Array, jax.Array, jax.Array, DecodeCache], DecodeCache] | None = (
        None
    )


class FinishReason(enum.IntEnum):
    """Why a completion ended."""

    EOS = 0  # it produced an end-of-sequence token, which is part of the completion
    LENGTH = 1  # it was cut off at the limit of new tokens
    STOP = 2  # its text came to contain a stop string, with whose last token it ends
    # Of an episode:
    DONE = 3  # its environment ended it
    TURNS = 4  # it had as many turns as it may have
    FAILED = 5  # its environment crashed or exceeded its time limit: no judgement


REWARD_EXTRA = "reward/"  # how the names of rewards in `TrainBatch.extras` begin
# In `TrainBatch.extras`, f32[B, 1] as `source/NAME`: 1 in rows of the source, 0 in others.
SOURCE_EXTRA = "source/"
# In `TrainBatch.extras`, f32[B, N]: statistics of each completion under the other prompt of its
# problem, of the policy before the first update on the rollout.
OTHER_LOG_PROBS, OTHER_ENTROPY = "other_log_probs", "other_entropy"
# In `TrainBatch.extras`, f32[B, N]: those of the teacher of a run.
TEACHER_LOG_PROBS = "teacher_log_probs"
# In `TrainBatch.extras`, f32[B, N]: rewards of the turns of an episode, each at its last token;
# they are part of `TrainBatch.rewards`.
TURN_REWARDS = "turn_rewards"


@struct.dataclass
class Rollout:
    """Sampled completions. Prompts and completions are right-padded.

    `log_probs` and `entropy` (nats) are those of the tempered, untruncated distribution, at the
    tokens that count; zero elsewhere.

    The completion of an episode has several turns, with the tokens of observations between them.
    These are in `completion_ids`, and `completion_mask` is False there: only sampled tokens count.
    A row ends with its last sampled token.
    """

    prompt_ids: jax.Array  # int32[P, S]
    prompt_mask: jax.Array  # bool[P, S]
    completion_ids: jax.Array  # int32[B, N]
    completion_mask: jax.Array  # bool[B, N]; True at sampled tokens, also at the one that ends it
    log_probs: jax.Array  # f32[B, N]
    entropy: jax.Array  # f32[B, N]
    finish_reason: jax.Array  # int32[B], a FinishReason

    __repr__ = _short_repr


@struct.dataclass
class TokenStats:
    """Statistics of tokens, which transforms, surrogates and token weights read.

    Entropies are of the full vocabulary, in nats. `has_reward` is False for a completion whose
    check timed out or crashed: it is in no baseline and has no loss.
    """

    # f32[B, N], of the policy that is being updated; None before its forward pass
    log_probs: jax.Array | None
    old_log_probs: jax.Array  # f32[B, N], of the policy before the first update on this rollout
    # f32[B, N], of the policy that is being updated; None before its forward pass
    entropy: jax.Array | None
    old_entropy: jax.Array  # f32[B, N]
    mask: jax.Array  # bool[B, N]; False on every token of a row that has no reward
    has_reward: jax.Array  # bool[B]
    sampler_log_probs: jax.Array | None = None  # f32[B, N], as recorded while sampling
    values: jax.Array | None = None  # f32[B, N], of the critic before the first update
    # f32[1, 1], or f32[B, N] with equal entries: coefficients of the controller of the loss
    coefficients: dict[str, jax.Array] = struct.field(default_factory=dict)
    greedy_rewards: jax.Array | None = None  # f32[B], of the completion of the most likely tokens
    extras: dict[str, jax.Array] = struct.field(default_factory=dict)  # `TrainBatch.extras`

    __repr__ = _short_repr


@struct.dataclass
class TrainBatch:
    """One mini-batch of scored completions, as whole groups.

    `ids` holds prompt and completion without a gap and right-padded; the t-th token of the
    completion is in column `prompt_length + t`. `completion_mask` is True at sampled tokens, see
    `Rollout`.
    """

    ids: jax.Array  # int32[B, T]
    prompt_length: jax.Array  # int32[B]
    completion_ids: jax.Array  # int32[B, N]
    completion_mask: jax.Array  # bool[B, N]
    old_log_probs: jax.Array  # f32[B, N]
    old_entropy: jax.Array  # f32[B, N]
    sampler_log_probs: jax.Array  # f32[B, N]
    rewards: jax.Array  # f32[B]
    has_reward: jax.Array  # bool[B]
    ref_log_probs: jax.Array | None = None  # f32[B, N]; of the reference policy, for the KL term
    values: jax.Array | None = None  # f32[B, N]; of the critic before the first update
    # bool[B], False for rows that count in the baseline and have no loss; None for all True
    loss_row_mask: jax.Array | None = None
    greedy_rewards: jax.Array | None = None  # f32[B], of the completion of the most likely tokens
    # f32[B, 1] or f32[B, N], over the whole rollout, of the part of the advantage that reads
    # recorded statistics; None to compute it from the rewards of the mini-batch
    rollout_advantages: jax.Array | None = None
    # f32[B, N] or f32[B, 1] each: arrays of the caller's own, which transforms read as
    # `TokenStats.extras`; the rewards of a section `rewards` are `reward/LABEL`, NaN for None
    extras: dict[str, jax.Array] = struct.field(default_factory=dict)

    __repr__ = _short_repr


@struct.dataclass
class CriticState:
    """The part of a `TrainState` that belongs to a critic."""

    params: Params  # those of its backbone, and value_head/kernel f32[D]
    opt_state: Any

    __repr__ = _short_repr


@struct.dataclass
class TrainState:
    """The state of a training run between two steps. All else is derived from it and the config."""

    params: Params
    opt_state: Any
    step: jax.Array  # int32[], rollouts done
    updates: jax.Array  # int32[], updates tried on the policy, those that were not applied included
    critic: CriticState | None = None
    controller: Any = None  # state of `Loss.controller`, a nest of scalars
    rounds: jax.Array | None = None  # int32[], rounds of sampling, where a step may have several
    replay_buffer: Any = None  # a `ReplayState`
    curriculum: Any = None  # state of a `Curriculum`, arrays by name

    __repr__ = _short_repr
