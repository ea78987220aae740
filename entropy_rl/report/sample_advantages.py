"""Advantages of evaluation samples: what the transforms of the training run would assign them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from entropy_rl.advantages import build_advantage
from entropy_rl.config.rewards import RewardConfig
from entropy_rl.experience.records import Row
from entropy_rl.learner.advantage_log import advantage_fields, make_advantages
from entropy_rl.rewards import Rewards, build_rewards
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.types import TrainBatch


def add_advantages(
    rows: list[Row], config: dict[str, Any] | None, group: int | None, temperature: float | None
) -> tuple[list[Row], str]:
    """Add the advantages that training would assign to samples, where they are known exactly.

    Args:
      rows: Samples of an evaluation, sorted by problem and sample.
      config: Config of the training run; None if unknown.
      group: Its group size; None if unknown.
      temperature: Sampling temperature of the evaluation; None if unknown.

    Returns:
      The rows, and a note for the reader: where the advantages come from, or why they are unknown.
    """
    if config is None or group is None:
        return rows, "unknown: the training config of the model is not available"
    if "step" in rows[0]:
        return rows, "unknown: this run did not record them"
    own = config["rollout"].get("temperature", 1.0)
    if own != temperature:
        sampled = (
            "an unknown temperature" if temperature is None else f"temperature {temperature:g}"
        )
        note = f"unknown: these entropies are at {sampled}, those of training at {own:g}"
        return rows, note
    named = {"transform": config["advantage"] or [], "reward": config.get("rewards", [])}
    for what, specs in named.items():
        if any(":" in str(spec["name"]) for spec in specs):
            # Reading a run must not execute code that its config names.
            return rows, f"unknown: they need a {what} that is not part of the library"
    try:
        gamma = (config.get("critic") or {}).get("gamma")
        advantage = build_advantage(config["advantage"], group, gamma, named["reward"])
        short = RewardConfig(**config.get("reward", {}))
        rewards = build_rewards(named["reward"], short, config["rollout"].get("max_new_tokens"))
    except ValueError as error:
        return rows, f"unknown: {error}"
    if advantage.scope == "batch":
        return rows, "unknown: they depend on the whole mini-batch"
    if advantage.requires:
        needed = ", ".join(sorted(advantage.requires))
        return rows, f"unknown: they need {needed}, which evaluations do not record"
    of_problem: dict[int, list[Row]] = {}
    for row in rows:
        of_problem.setdefault(row["problem"], []).append(row)
    whole = [r for r in of_problem.values() if [row["sample"] for row in r] == list(range(group))]
    if not whole:
        most = max(map(len, of_problem.values()))
        return (
            rows,
            f"unknown: a group needs {group} samples of a problem, but at most {most} exist",
        )
    members = [row for r in whole for row in r]
    try:
        mask_truncated = config.get("loss", {}).get("mask_truncated", False)
        with contextlib.closing(rewards):
            batch = _batch(members, rewards, mask_truncated)
        found = jax.device_get(make_advantages(advantage, len(members))(batch))
    except ValueError as error:  # such as a part that the evaluation did not record
        return rows, f"unknown: {error}"
    fields = advantage_fields(found, len(members))
    known = {id(row): field for row, field in zip(members, fields, strict=True)}
    rest = len(rows) - len(members)
    note = (
        f"computed by the transforms of the run from samples 0 to {group - 1} of a problem as one "
        "group; the run was not trained on these samples"
    )
    note += f"; unknown for {rest} samples of incomplete groups" if rest else ""
    return [row | known.get(id(row), {}) for row in rows], note


def _batch(rows: Sequence[Row], rewards: Rewards, mask_truncated: bool) -> TrainBatch:
    """The TrainBatch fields that advantages need."""
    lengths = np.array([len(row["tokens"]) for row in rows])
    finished = np.array([row.get("finish_reason") != "length" for row in rows])
    columns = int(lengths.max())
    found = rewards(
        [row.get("completion", "") for row in rows],
        [Problem(row["problem"], row["prompt"], row["right_answer"]) for row in rows],
        [Judgement(Verdict(r["verdict"]), r.get("graded"), r.get("parts", {})) for r in rows],
        [np.array(row["tokens"], np.int32) for row in rows],
    )

    def padded(name: str, dtype: Any) -> np.ndarray:
        array = np.zeros((len(rows), columns), dtype)
        for b, row in enumerate(rows):
            array[b, : lengths[b]] = row[name]
        return array

    log_probs, entropy = padded("log_probs", np.float32), padded("entropy", np.float32)
    return TrainBatch(
        ids=np.zeros((len(rows), 0), np.int32),
        prompt_length=np.zeros(len(rows), np.int32),
        completion_ids=padded("tokens", np.int32),
        completion_mask=np.arange(columns)[None] < lengths[:, None],
        old_log_probs=log_probs,
        old_entropy=entropy,
        sampler_log_probs=log_probs,
        rewards=found.total,
        has_reward=found.has_reward,
        loss_row_mask=finished if mask_truncated else None,
    )
