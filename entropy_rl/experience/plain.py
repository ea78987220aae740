"""`PlainCollector`: samples each prompt once, and trains on all of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.experience import Experience
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.sampler import Sampled, Sampler
from entropy_rl.experience.scoring import VERDICTS
from entropy_rl.runs.logging import DeviceWork
from entropy_rl.tasks.task import JudgeError
from entropy_rl.types import Rollout, TrainBatch, TrainState


@dataclasses.dataclass(frozen=True)
class PlainCollector:
    """Samples a group of completions for each prompt, and scores them.

    Attributes:
      sampler: Samples and scores.
      on_sampled: (state, rollout) -> mini-batches, called between sampling and scoring. It
        dispatches what the device can compute while the host scores, such as log-probs; None if the
        groups to train on are known after scoring only.
    """

    sampler: Sampler
    on_sampled: Callable[[TrainState, Rollout], list[TrainBatch]] | None = None

    def __call__(
        self, state: TrainState, batch: PromptBatch, step: int, round: int = 0
    ) -> Experience:
        """Sample and score; collective.

        Args:
          state: Gives the parameters of the policy.
          batch: The prompts of this process.
          step: The step, from 0.
          round: The round of the step, whose samples follow those of the rounds before.

        Raises:
          JudgeError: As `score`.
        """
        return self.score(state, batch, *self.sampler.sample(state, batch, step, round), round)

    def score(
        self,
        state: TrainState,
        batch: PromptBatch,
        sampled: Sampled,
        greedy: Sampled | None = None,
        round: int = 0,
    ) -> Experience:
        """Score completions; collective.

        Args:
          state: The training state that sampled.
          batch: The prompts of this process.
          sampled: Their completions.
          greedy: One greedy completion for each prompt, if the advantage needs it.
          round: As in a call.

        Raises:
          JudgeError: If no completion of any process was judged.
        """
        batches, device_work = None, None
        if self.on_sampled is not None:
            batches = self.on_sampled(state, sampled.rollout)
            device_work = DeviceWork(functools.partial(jax.block_until_ready, batches))
        experience = self.sampler.score(batch, sampled, greedy, round)
        _check_any_judged(experience.groups.rows["verdicts"])
        if device_work is not None:
            self.sampler.clock.add("waiting_for_verdicts", device_work.waited())
        return experience._replace(batches=batches)


def _check_any_judged(codes: np.ndarray) -> None:
    """Check that a completion of any process has a judgement; collective.

    Args:
      codes: int32[B], the indices of the verdicts of this process in `VERDICTS`.

    Raises:
      JudgeError: If none has: a step could not learn from them, nor would the next one.
    """
    counts = np.sum(hosts.gather(np.bincount(codes, minlength=len(VERDICTS)).tolist()), axis=0)
    found = {verdict: int(count) for verdict, count in zip(VERDICTS, counts, strict=True) if count}
    if not any(verdict.is_judgement for verdict in found):
        listed = ", ".join(f"{count} {verdict.value}" for verdict, count in found.items())
        raise JudgeError(f"none of {sum(found.values())} completions was judged: {listed}")
