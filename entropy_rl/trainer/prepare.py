"""`Prepare`: from scored completions to the mini-batches of a step."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from entropy_rl.experience.experience import Experience
from entropy_rl.experience.planned_problems import outcomes_of
from entropy_rl.learner.batch import make_batch
from entropy_rl.runs.load_model import Model
from entropy_rl.trainer.programs import Programs
from entropy_rl.trainer.teacher import TeacherFn
from entropy_rl.types import (
    OTHER_ENTROPY,
    OTHER_LOG_PROBS,
    TEACHER_LOG_PROBS,
    Rollout,
    TrainBatch,
    TrainState,
)

_FIELDS = {field.name for field in dataclasses.fields(TrainBatch)}


class TrainData(NamedTuple):
    """What the updates of a step read.

    Attributes:
      batches: The mini-batches, in order.
      rounds: Rounds of sampling of the step.
      outcomes: With a curriculum, the fraction of correct completions of each problem of the step,
        by its id.
    """

    batches: list[TrainBatch]
    rounds: int
    outcomes: dict[int, float] | None = None


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Cuts the groups of a step into mini-batches, with their log-probs, values and rewards.

    Advantages that read the whole rollout are computed here, over all mini-batches.

    Attributes:
      programs: The compiled passes.
      model: Placement, and the parameters of the reference policy if there is a KL penalty.
      updates: Mini-batches of a step.
      old_log_probs: The `old_log_probs` of the config.
      mask_truncated: The `loss.mask_truncated` of the config.
      has_curriculum: Whether a curriculum reads the outcomes of the step.
      other_prompt: Whether the advantage reads log-probs under the other prompt of each problem.
      teacher: (mini-batch) -> log-probs of the teacher; None without one.
    """

    programs: Programs
    model: Model
    updates: int
    old_log_probs: Literal["trainer", "sampler"]
    mask_truncated: bool
    has_curriculum: bool = False
    other_prompt: bool = False
    teacher: TeacherFn | None = None

    def __call__(self, state: TrainState, experience: Experience) -> TrainData:
        """Build the mini-batches of a step.

        Args:
          state: The training state that sampled.
          experience: The groups; their mini-batches are dispatched here unless they have been.
        """
        groups, batches = experience.groups, experience.batches
        if batches is None:
            batches = self.dispatch(state, groups.rollout)
        rows = {name: x for name, x in groups.rows.items() if name in _FIELDS}
        parts = [self.model.placement.put_rows(part) for part in split_rows(rows, self.updates)]
        scored = [_with_rows(batch, part) for batch, part in zip(batches, parts, strict=True)]
        if self.programs.rollout_advantages is not None:
            scored = self.programs.rollout_advantages(scored)
        outcomes = outcomes_of(experience) if self.has_curriculum else None
        return TrainData(scored, experience.rounds, outcomes)

    def dispatch(self, state: TrainState, rollout: Rollout) -> list[TrainBatch]:
        """Dispatch all that needs no reward: old and reference log-probs, and values.

        Args:
          state: The training state that sampled.
          rollout: Host copies.

        Returns:
          The mini-batches without rewards. The device still computes them.
        """
        return [self._dispatch(state, part) for part in split_rows(rollout, self.updates)]

    def _dispatch(self, state: TrainState, rollout: Rollout) -> TrainBatch:
        programs, batch = self.programs, self._batch(rollout)
        found = {}  # not in `batch` yet: for a batch of committed arrays, passes are compiled again
        if self.old_log_probs == "trainer":
            params = self.model.params_with(state.params)
            found["old_log_probs"], found["old_entropy"] = programs.stats(params, batch)
        if self.model.params is not None:
            found["ref_log_probs"], _ = programs.stats(self.model.params, batch)
        if programs.critic is not None:
            found["values"] = programs.critic.values(state.critic.params, batch)
        found["extras"] = {}
        if self.other_prompt:
            params = self.model.params_with(state.params)
            log_probs, entropy = programs.stats(params, self._batch(under_other_prompt(rollout)))
            found["extras"] |= {OTHER_LOG_PROBS: log_probs, OTHER_ENTROPY: entropy}
        if self.teacher is not None:
            found["extras"] |= {TEACHER_LOG_PROBS: self.teacher(batch)}
        return batch.replace(**found)

    def _batch(self, rollout: Rollout) -> TrainBatch:
        rows = len(rollout.completion_ids)
        batch = make_batch(
            rollout,
            np.zeros(rows, np.float32),
            np.zeros(rows, bool),
            pad_id=self.model.pad_id,
            mask_truncated=self.mask_truncated,
        )
        return self.model.placement.put_rows(batch)


def under_other_prompt(rollout: Rollout) -> Rollout:
    """Exchange the prompts of each two consecutive groups, which are of the same problem."""
    pairs = np.arange(len(rollout.prompt_ids)).reshape(-1, 2)
    other = pairs[:, ::-1].reshape(-1)
    return rollout.replace(
        prompt_ids=rollout.prompt_ids[other], prompt_mask=rollout.prompt_mask[other]
    )


def split_rows(rows: Any, parts: int) -> list[Any]:
    """Cut a tree of host arrays into equal parts along the first axis, in order."""

    def part(i: int) -> Any:
        return jax.tree.map(lambda x: x[i * len(x) // parts : (i + 1) * len(x) // parts], rows)

    return [part(i) for i in range(parts)]


def _with_rows(batch: TrainBatch, rows: dict[str, jax.Array]) -> TrainBatch:
    # Rows that `mask_truncated` excludes stay excluded.
    if batch.loss_row_mask is not None and "loss_row_mask" in rows:
        rows["loss_row_mask"] = batch.loss_row_mask & rows["loss_row_mask"]
    extras = batch.extras | rows.get("extras", {})
    return batch.replace(**rows | {"extras": extras})
