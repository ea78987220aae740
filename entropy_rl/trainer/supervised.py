"""Supervised training before its first step: passes, state, and the validations of `patience`."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from entropy_rl.config.sft import SFTConfig
from entropy_rl.distributed.sharding import Placement, commit
from entropy_rl.learner.micro_batches import make_micro_batch_fill
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.sft import SupervisedBatch, make_supervised_update, make_validation
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.losses.preference import PreferenceLoss, build_preference_loss
from entropy_rl.models import config_json, save_hf
from entropy_rl.models.lora import on_base
from entropy_rl.runs.directory import MODEL_DIRECTORY
from entropy_rl.runs.identity import Identity
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.runs.load_model import Model, keep_model_files
from entropy_rl.trainer.start import start_state
from entropy_rl.types import Params, TrainState

# Of the state of a run with `patience`.
_LOWEST, _SINCE = "lowest_loss", "validations_since"


@dataclasses.dataclass(frozen=True)
class SupervisedSetup:
    """What a run of supervised training is made of, before its first step.

    Attributes:
      config: The config.
      model: The model, without the parameters that no pass reads.
      batch: (step) -> its rows, on the host.
      validation: Batches of the validation loss, on the host.
      identity: Digests of data and model, which a resumption must repeat.
      start: The state before the first step.
      loss: The loss on pairs; None for the negative log-likelihood.
      rows: Conversations or pairs of an epoch; None for demonstrations, which do not end.
    """

    config: SFTConfig
    model: Model
    batch: Callable[[int], SupervisedBatch]
    validation: Sequence[SupervisedBatch]
    identity: Identity
    start: TrainState
    loss: PreferenceLoss | None = None
    rows: int | None = None

    @property
    def has_reference(self) -> bool:
        """Whether the loss reads the log-probs of the starting policy."""
        return self.loss is not None and self.loss.needs_reference

    @property
    def _settings(self) -> PassSettings:
        placement = self.model.placement
        return PassSettings(
            max_tokens_per_micro_batch=self.config.batching.max_tokens_per_micro_batch,
            mesh=placement.mesh,
            constrain=placement.constrain,
        )

    @functools.cached_property
    def update(self) -> Callable[[TrainState, SupervisedBatch], tuple[TrainState, Any]]:
        """The compiled update."""
        model, optimizer = self.model, make_optimizer(self.config.optimizer, self.config.steps)
        return on_base(
            lambda policy: make_supervised_update(policy, optimizer, self.loss, self._settings),
            model.policy,
            model.base,
            (0,),
        )

    @functools.cached_property
    def micro_batch_fill(self) -> Callable[[Sequence[SupervisedBatch]], float]:
        """The fraction of useful tokens of updates, of their batches."""
        return make_micro_batch_fill(
            self.model.policy, self._settings, lambda batch: batch.completion_mask
        )

    @functools.cached_property
    def validation_sums(self) -> Callable[[Params, SupervisedBatch], Any]:
        """The compiled sums of the validation loss of a batch."""
        make = functools.partial(make_validation, loss=self.loss, settings=self._settings)
        return on_base(make, self.model.policy, self.model.base)

    @functools.cached_property
    def stats(self) -> Callable[[Params, Any], tuple[jax.Array, jax.Array]]:
        """The compiled log-probs of a batch, which the reference policy needs."""
        return jax.jit(make_stats_pass(self.model.policy, self._settings))

    @functools.cached_property
    def _put_validation(self) -> list[SupervisedBatch]:
        return [self.put(batch) for batch in self.validation]

    def put(self, batch: SupervisedBatch) -> SupervisedBatch:
        """Put a batch on the devices, with the log-probs of the reference policy if needed."""
        batch = self.model.placement.put_rows(batch)
        if not self.has_reference:
            return batch
        return batch.replace(ref_log_probs=self.stats(self.model.params, batch)[0])

    def validate(self, params: Params) -> dict[str, float]:
        """Return the validation loss, and with pairs the metrics of their rewards.

        Args:
          params: `TrainState.params`.
        """
        found = jax.device_get(
            [self.validation_sums(params, batch) for batch in self._put_validation]
        )
        divisor = float(np.sum([count for _, count in found], dtype=np.float64))
        return {
            f"validation/{name}": float(np.sum([s[name] for s, _ in found], dtype=np.float64))
            / divisor
            for name in found[0][0]
        }

    def save_best(self, params: Params, directory: Path) -> None:
        """Write the model, an adapter merged, as a Hugging Face directory in float32.

        Args:
          params: `TrainState.params`.
          directory: Is replaced when it is complete.
        """
        model = dataclasses.replace(self.model, params=self.model.params_with(params))
        temporary = directory.with_name(f"{directory.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        save_hf(
            temporary,
            model.config,
            model.merged().params,
            tokenizer_dir=model.directory,
            dtype="float32",
            source_config=model.directory,
        )
        shutil.rmtree(directory, ignore_errors=True)
        temporary.replace(directory)

    def keep_model_files(self) -> None:
        """Copy config.json and tokenizer into the run, so that it can be loaded by itself."""
        directory = Path(self.config.run.directory)
        if self.config.data is not None:
            keep_model_files(self.model, directory)
            return
        (directory / MODEL_DIRECTORY).mkdir(exist_ok=True)
        self.model.tokenizer.save_pretrained(str(self.model.directory))
        content = json.dumps(config_json(self.model.config, "float32", None), indent=1) + "\n"
        write_atomically(self.model.directory / "config.json", content)


def preference_loss(config: SFTConfig) -> PreferenceLoss | None:
    """Return the loss on pairs; None for the negative log-likelihood.

    Raises:
      ValueError: A name, an argument or a value is wrong.
    """
    return None if config.loss is None else build_preference_loss(config.loss)


def count_validation(
    state: TrainState, loss: float, placement: Placement
) -> tuple[TrainState, bool]:
    """Count a validation for `patience`.

    Returns:
      (the state, whether the loss is the lowest so far).
    """
    found = jax.device_get(state.controller)
    is_lowest = np.float32(loss) < found[_LOWEST]
    new = {
        _LOWEST: np.float32(loss) if is_lowest else found[_LOWEST],
        _SINCE: np.int32(0 if is_lowest else found[_SINCE] + 1),
    }
    return state.replace(controller=commit(placement.put_whole(new))), bool(is_lowest)


def validations_since_lowest(state: TrainState) -> int:
    """Return the number of validations since the one with the lowest loss."""
    return int(state.controller[_SINCE])


def supervised_start(model: Model, config: SFTConfig) -> TrainState:
    """Return the state before the first step."""
    state = start_state(model, make_optimizer(config.optimizer, config.steps))
    if config.patience is None:
        return state
    new = {_LOWEST: np.float32(np.inf), _SINCE: np.int32(0)}
    return state.replace(controller=model.placement.put_whole(new))
