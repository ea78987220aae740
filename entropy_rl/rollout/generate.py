"""`make_generate`: samplers that differ in how the work is scheduled, and in nothing that they
return.

  static   all rows to the end of the longest; one program, and the reference of the others
  shrink   all rows from the start; those that are still alive move into fewer slots as others end
  refill   fewer slots than rows; a slot whose row has ended takes the next one that waits

One step of decoding serves all of them (`decode.py`). With `chunk_steps` the host looks at the
state now and then: it lets the cache grow with the rows instead of attending to all of it, reports
how far things are, and looks for stop strings. Without, everything is one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.rollout.chunks import Stage, StopRule, generate_in_chunks
from entropy_rl.rollout.programs import Programs
from entropy_rl.rollout.state import Columns, Sampling
from entropy_rl.types import Params, Policy, Rollout

GenerateFn = Callable[..., Rollout]


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
) -> GenerateFn:
    """Makes a sampler. Its programs are compiled when they are first needed.

    Args:
      policy: The model.
      group_size: Completions per prompt (G).
      max_new_tokens: Columns of a completion (N), the end-of-sequence token included.
      eos_ids: Tokens that end a completion. The token is part of it.
      pad_id: Fills the columns after the end.
      temperature: Divides the logits; 0 takes the most likely token.
      top_p: Nucleus mass.
      greedy: Whether each prompt gets one more completion, of the most likely tokens at any
        temperature. It is the last of its group, which then has G + 1 rows; the others are as they
        are without.
      decoding: Which rows are decoded when. Changes memory and speed, and no result but the last
        digits.
      stop: Ends completions at strings of the user; needs `decoding.chunk_steps`.
      constrain: Says how rows and their caches lie on a mesh, and returns them, as
        `Placement.constrain_rows` does.
      shards: Equal shards in which prompts lie on that mesh. Changes what travels, and no result.

    Returns:
      A function `(params, prompt_ids int32[P, S], prompt_mask bool[P, S], prompt_index int32[P],
      key, first_sample=0, *, limits=None, on_chunk=None, on_tokens=None) -> Rollout` of P*G rows. A
      sample depends on (key, prompt_index, sample index, t) and the parameters alone;
      `first_sample` is the index of the first of the G samples. `limits` int32[P] gives each prompt
      a limit of new tokens of its own, at most N.
      `on_chunk` is called with a `Stage` whenever the host has a look, and `on_tokens` with host
      copies of what all rows have by then, as `Columns`; what they raise ends the rollout. A
      decoding that is one program can itself be part of a jitted function.

    Raises:
      ValueError: If nothing can end a completion, or stop strings would have to be found by the
        device.
    """
    if not eos_ids:
        raise ValueError("eos_ids: at least one end-of-sequence token is needed")
    if stop is not None and (decoding.chunk_steps is None or decoding.kind == "static"):
        raise ValueError("stop: stop strings need a decoding with chunk_steps, which is not static")
    eos = tuple(sorted(set(eos_ids)))
    sampling = Sampling(
        group_size + greedy, max_new_tokens, eos, pad_id, temperature, top_p, shards, greedy
    )
    programs = Programs(policy, sampling, constrain)

    def generate(
        params: Params,
        prompt_ids: jax.Array,
        prompt_mask: jax.Array,
        prompt_index: jax.Array,
        key: jax.Array,
        first_sample: jax.Array | int = 0,
        *,
        limits: jax.Array | None = None,
        on_chunk: Callable[[Stage], None] | None = None,
        on_tokens: Callable[[Columns], None] | None = None,
    ) -> Rollout:
        if limits is None:
            limits = np.full(len(prompt_ids), max_new_tokens, np.int32)
        plan = programs.plan(decoding, params, prompt_ids)
        prompts = (prompt_ids, prompt_mask, prompt_index, limits)
        if plan.chunk_steps is None:
            return programs.whole(plan, params, prompts, key, first_sample)
        return generate_in_chunks(
            programs, plan, params, prompts, key, first_sample, on_chunk, on_tokens, stop
        )

    return generate
