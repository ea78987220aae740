"""Log-probs and entropies of the tokens of texts, in one forward pass of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from entropy_rl.evaluation.load_samples import Row
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.experience.padding import pad_rows, padded_length
from entropy_rl.learner.batch import make_batch
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.runs.load_model import Model, check_length
from entropy_rl.runs.logging import Progress
from entropy_rl.tasks.task import Problem
from entropy_rl.types import Rollout

# (prompt, completion, which of its tokens count), as ids.
TextRow = tuple[Sequence[int], Sequence[int], Sequence[bool]]

_ROWS_AT_ONCE = 64


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
    scores = score_tokens(
        [(prompt, tokens, [True] * len(tokens)) for prompt, tokens in encoded],
        model,
        temperature=temperature,
        max_tokens_per_micro_batch=max_tokens_per_micro_batch,
    )
    return [
        dataclasses.replace(row, tokens=tokens, entropy=entropy.tolist())
        for row, (_, tokens), (_, entropy) in zip(rows, encoded, scores, strict=True)
    ]


def score_tokens(
    rows: Sequence[TextRow],
    model: Model,
    *,
    temperature: float,
    max_tokens_per_micro_batch: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Compute log-probs and entropies of the tokens of completions, in one forward pass.

    Args:
      rows: (prompt, completion, which of its tokens count) as ids.
      model: Policy and parameters.
      temperature: Temperature of the distribution.
      max_tokens_per_micro_batch: As in `score_rows`.

    Returns:
      (log-probs f32[N], entropies f32[N]) of each completion, nats; 0 at tokens that do not count.

    Raises:
      ValueError: A row does not fit into a micro-batch.
    """
    prompt_length, length = padded_lengths(rows)
    check_length(model, prompt_length + length)
    settings = PassSettings(
        temperature=temperature, max_tokens_per_micro_batch=max_tokens_per_micro_batch
    )
    stats = jax.jit(make_stats_pass(model.policy, settings))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with Progress("texts", len(rows), every=len(rows) // 10 + 1) as progress:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = list(rows[start : start + _ROWS_AT_ONCE])
            # Pad the last call with empty rows; padding is not computed.
            padding = [([model.pad_id], [], [])] * (_ROWS_AT_ONCE - len(part))
            rollout = _as_rollout([*part, *padding], prompt_length, length, model.pad_id)
            zeros = np.zeros(_ROWS_AT_ONCE, np.float32)
            batch = make_batch(rollout, zeros, zeros > 0, pad_id=model.pad_id)
            log_probs, entropy = map(np.asarray, stats(model.params, batch))
            # Copies, because views would keep the padding of all rows in memory.
            found += [
                (log_probs[i, : len(tokens)].copy(), entropy[i, : len(tokens)].copy())
                for i, (_, tokens, _) in enumerate(part)
            ]
            progress.show(len(found), "scored")
    return found


def _encode(row: Row, model: Model) -> tuple[list[int], list[int]]:
    prompt = encode_prompt(Problem(row.problem, row.prompt, ""), model.tokenizer)
    return prompt, model.tokenizer.encode(row.completion, add_special_tokens=False)


def padded_lengths(rows: Sequence[TextRow]) -> tuple[int, int]:
    """Return the padded lengths of prompts and completions; a micro-batch holds their sum."""
    prompt, completion = (
        padded_length(max(1, *(len(row[part]) for row in rows))) for part in (0, 1)
    )
    return prompt, completion


def _as_rollout(
    rows: Sequence[TextRow],
    prompt_length: int,
    length: int,
    pad_id: int,
) -> Rollout:
    prompts, completions, counts = zip(*rows, strict=True)
    zeros = np.zeros((len(rows), length), np.float32)
    return Rollout(
        prompt_ids=pad_rows(prompts, prompt_length, pad_id, np.int32),
        prompt_mask=np.arange(prompt_length) < np.array([len(ids) for ids in prompts])[:, None],
        completion_ids=pad_rows(completions, length, pad_id, np.int32),
        completion_mask=pad_rows(counts, length, False, bool),
        log_probs=zeros,
        entropy=zeros,
        finish_reason=np.zeros(len(rows), np.int32),
    )
