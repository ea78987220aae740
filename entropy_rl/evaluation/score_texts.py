"""Per-token entropies of plain texts, in one forward pass of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from entropy_rl.evaluation.load_samples import Row
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.learner.batch import make_batch
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.runs.load_model import Model, check_length
from entropy_rl.tasks.task import Problem
from entropy_rl.types import Rollout

_ROWS_AT_ONCE = 64
_LENGTH_MULTIPLE = 8


def score_rows(
    rows: Sequence[Row], model: Model, *, temperature: float, max_tokens_per_micro_batch: int
) -> list[Row]:
    """Encode texts and compute the entropy of the model at each token of the completions.

    Prompt and completion are encoded separately, and no end-of-sequence token is added. Padding is
    not computed, and no array [rows, tokens, vocab] is formed.

    Args:
      rows: Texts.
      model: Policy, parameters and tokenizer.
      temperature: Temperature of the distribution.
      max_tokens_per_micro_batch: Tokens per micro-batch; affects memory and speed, not the result.

    Returns:
      The rows with tokens and entropies (nats).

    Raises:
      ValueError: A prompt has no tokens, or a row does not fit into a micro-batch.
    """
    encoded = [_encode(row, model) for row in rows]
    prompt_length, length = (
        max(1, -(-max(map(len, part)) // _LENGTH_MULTIPLE)) * _LENGTH_MULTIPLE
        for part in zip(*encoded, strict=True)
    )
    check_length(model, prompt_length + length)
    settings = PassSettings(
        temperature=temperature, max_tokens_per_micro_batch=max_tokens_per_micro_batch
    )
    stats = jax.jit(make_stats_pass(model.policy, settings))
    scored = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = encoded[start : start + _ROWS_AT_ONCE]
        # Pad the last call with empty rows; padding is not computed.
        part += [([model.pad_id], [])] * (_ROWS_AT_ONCE - len(part))
        rollout = _as_rollout(part, prompt_length, length, model.pad_id)
        zeros = np.zeros(_ROWS_AT_ONCE, np.float32)
        batch = make_batch(rollout, zeros, zeros > 0, pad_id=model.pad_id)
        entropy = np.asarray(stats(model.params, batch)[1])
        scored += [
            dataclasses.replace(row, tokens=tokens, entropy=entropy[i, : len(tokens)].tolist())
            for i, (row, (_, tokens)) in enumerate(
                zip(rows[start : start + _ROWS_AT_ONCE], part, strict=False)
            )
        ]
    return scored


def _encode(row: Row, model: Model) -> tuple[list[int], list[int]]:
    prompt = encode_prompt(Problem(row.problem, row.prompt, ""), model.tokenizer)
    return prompt, model.tokenizer.encode(row.completion, add_special_tokens=False)


def _as_rollout(
    rows: Sequence[tuple[list[int], list[int]]], prompt_length: int, length: int, pad_id: int
) -> Rollout:
    prompts, prompt_mask = _pad([prompt for prompt, _ in rows], prompt_length, pad_id)
    completions, mask = _pad([completion for _, completion in rows], length, pad_id)
    zeros = np.zeros(mask.shape, np.float32)
    return Rollout(
        prompts, prompt_mask, completions, mask, zeros, zeros, np.zeros(len(rows), np.int32)
    )


def _pad(rows: Sequence[list[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask
