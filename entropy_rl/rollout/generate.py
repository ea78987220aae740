"""`make_generate`: a sampler with continuous batching.

A `DecodingPlan` says how the rows of a rollout are decoded; all plans give the same samples:

  compact  every row has a slot; as rows finish, the others move into fewer slots
  refill   fewer slots than rows; a row of the queue takes the slot of a finished one
  static   every row is decoded until the longest has finished; one program, for tests

With `chunk_steps`, the rollout is a host loop over chunks of decode steps: the cache grows with
the rows, progress is reported, and stop strings are searched for. Otherwise it is one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from entropy_rl.config.checks import is_count, require
from entropy_rl.config.rollout import DecodingConfig, check_sampling
from entropy_rl.precision import check_32_bit
from entropy_rl.rollout.batching import DecodingPlan
from entropy_rl.rollout.checks import check_prompts, typed_key
from entropy_rl.rollout.chunks import DecodingProgress, StopRule, generate_in_chunks
from entropy_rl.rollout.episodes import Environments, generate_episodes
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Completions, Sampling
from entropy_rl.rollout.turns import TurnPrograms
from entropy_rl.types import Params, Policy, Rollout


class GenerateFn(Protocol):
    """A sampler of `make_generate`: prompts -> completions."""

    def __call__(
        self,
        params: Params,
        prompt_ids: jax.Array | np.ndarray,
        prompt_mask: jax.Array | np.ndarray,
        prompt_index: jax.Array | np.ndarray,
        key: jax.Array,
        first_sample: jax.Array | int = 0,
        *,
        limits: jax.Array | np.ndarray | None = None,
        on_chunk: Callable[[DecodingProgress], None] | None = None,
        on_tokens: Callable[[Completions], None] | None = None,
        environments: Environments | None = None,
    ) -> Rollout:
        """Sample G completions of each prompt.

        A sample depends on (key, prompt_index, sample index, t) and the parameters alone. A rollout
        that is one program can be traced as part of a jitted function.

        Args:
          params: Those of the policy.
          prompt_ids: int32[P, S], right-padded.
          prompt_mask: bool[P, S], True at tokens.
          prompt_index: int32[P], the numbers of the prompts, such as the ids of their problems.
          key: That of `jax.random.key`; key[K] with K stacked adapters.
          first_sample: Index of the first of the G samples of a prompt.
          limits: int32[P], limits of new tokens; None for `max_new_tokens`, which they only lower.
          on_chunk: Receives a `DecodingProgress` before every chunk, or once before a rollout that
            is one program; an exception ends the rollout.
          on_tokens: Receives host copies of the `Completions` so far, likewise.
          environments: Answers the turns of episodes (`episodes.Environments`), with
            `max_turn_tokens`; `max_new_tokens` is then the limit of an episode, the tokens of
            observations included.

        Returns:
          P*G rows.

        Raises:
          ValueError: A shape or type is wrong, a prompt is not right-padded (where the mask is on
            the host or one device), a token of the prompts is not in the vocabulary (likewise), or
            there is no key.
        """
        ...


def make_generate(
    policy: Policy,
    *,
    group_size: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    decoding: DecodingConfig = DecodingConfig(),
    stop: StopRule | None = None,
    constrain: Callable[[Any], Any] = lambda tree: tree,
    shards: int = 1,
    static: bool = False,
    max_turn_tokens: int | None = None,
    adapters: int = 1,
) -> GenerateFn:
    """Make a sampler. Its programs are compiled on first use.

    Args:
      policy: The model.
      group_size: Completions per prompt (G).
      max_new_tokens: Columns of a completion (N), the end-of-sequence token included.
      eos_ids: Tokens that end a completion, of which they are part.
      pad_id: Fills the columns after the end.
      temperature: Divides the logits; 0 is greedy.
      top_p: Nucleus mass.
      greedy: Add one greedy completion per prompt, as the last of its group, which then has
        G + 1 rows; the other rows are unaffected.
      decoding: How rows share the device. Affects memory and speed only; log-probs and entropies
        agree up to rounding.
      stop: Ends completions at stop strings; needs `decoding.chunk_steps`.
      constrain: Applies sharding constraints to rows and their caches, as
        `Placement.constrain_rows` does.
      shards: Equal shards of the prompts on the mesh. Affects communication only.
      static: Decode every row until the longest has finished, in one program (the reference of
        the tests); `decoding` is then ignored.
      max_turn_tokens: For episodes of several turns, the limit of tokens of a turn; the function
        then takes `environments`. Needs `decoding.chunk_steps`.
      adapters: Stacked adapters K in the parameters (`models.lora.stack_adapters`). Each samples
        for an equal, contiguous part of the prompts, all of which are decoded side by side.

    Returns:
      A function `(params, prompt_ids int32[P, S], prompt_mask bool[P, S], prompt_index int32[P],
      key, first_sample=0, ...) -> Rollout` of P*G rows: see `GenerateFn`.

    Raises:
      ValueError: If a number is out of range, `eos_ids` is empty, `stop` or `max_turn_tokens` is
        given for a rollout that is one program, or `max_turn_tokens` with several adapters.
    """
    check_32_bit()
    check_sampling("", temperature, top_p)
    counts = dict(
        group_size=group_size, max_new_tokens=max_new_tokens, shards=shards, adapters=adapters
    )
    for name, count in counts.items():
        require(is_count(count, 1), name, count, "an integer >= 1")
    if not eos_ids:
        raise ValueError("eos_ids: must have at least one end-of-sequence token, got none")
    if stop is not None and (decoding.chunk_steps is None or static):
        raise ValueError("stop: must be None where decoding.chunk_steps is None, got a stop rule")
    if max_turn_tokens is not None and (decoding.chunk_steps is None or static):
        raise ValueError(
            "max_turn_tokens: must be None where decoding.chunk_steps is None, got "
            f"{max_turn_tokens}"
        )
    if max_turn_tokens is not None and adapters > 1:
        raise ValueError(f"adapters: must be 1 for episodes of several turns, got {adapters}")
    eos = tuple(sorted(set(eos_ids)))
    sampling = Sampling(
        group_size + greedy, max_new_tokens, eos, pad_id, temperature, top_p, shards, greedy,
        max_turn_tokens, adapters,
    )  # fmt: skip
    programs = SamplerPrograms(policy, sampling, constrain)
    turns = None if max_turn_tokens is None else TurnPrograms(policy, sampling, constrain)

    def generate(
        params: Params,
        prompt_ids: jax.Array,
        prompt_mask: jax.Array,
        prompt_index: jax.Array,
        key: jax.Array,
        first_sample: jax.Array | int = 0,
        *,
        limits: jax.Array | None = None,
        on_chunk: Callable[[DecodingProgress], None] | None = None,
        on_tokens: Callable[[Completions], None] | None = None,
        environments: Environments | None = None,
    ) -> Rollout:
        if limits is None:
            limits = np.full(len(prompt_ids), max_new_tokens, np.int32)
        vocab_size = jax.eval_shape(policy.head, params).shape[0]
        check_prompts(prompt_ids, prompt_mask, prompt_index, limits, vocab_size)
        key = typed_key(key, adapters)
        rows = len(prompt_ids) * sampling.group_size
        plan = DecodingPlan("static", rows, None)
        if not static:
            plan = programs.plan(decoding, params, prompt_ids)
        prompts = (prompt_ids, prompt_mask, prompt_index, limits)
        if plan.chunk_steps is None:
            if on_chunk is not None:
                on_chunk(DecodingProgress(0, rows, 0, plan.slots, max_new_tokens))
            return programs.run(plan, params, prompts, key, first_sample)
        if turns is not None:
            return generate_episodes(
                programs, turns, plan, params, prompts, key, first_sample, environments,
                on_chunk, on_tokens, stop,
            )  # fmt: skip
        return generate_in_chunks(
            programs, plan, params, prompts, key, first_sample, on_chunk, on_tokens, stop
        )

    return generate
