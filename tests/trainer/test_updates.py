"""The updates of a step: which of them are run, and over which of them metrics are averaged."""

from types import SimpleNamespace

import numpy as np

from entropy_rl.learner.replay import ReplayState
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT
from entropy_rl.runs.logging import Clock
from entropy_rl.trainer.prepare import TrainData
from entropy_rl.trainer.updates import Update, run_updates
from entropy_rl.types import TrainState

APPLIED = dict(grad_norm=1.0, tokens=10, loss=2.0, bonus=0.0, advantage=0.0)
WITHOUT_TOKENS = APPLIED | dict(grad_norm=0.0, tokens=0, loss=0.0)
NONFINITE = APPLIED | dict(grad_norm=np.inf, tokens=5, loss=9.0)


class Kept:
    """Takes the place of the directory of non-finite updates; lists their kinds."""

    def __init__(self):
        self.kinds = []

    def keep(self, state, batch):
        self.kinds.append("policy")

    def keep_of_critic(self, state, batch, number):
        self.kinds.append("critic")

    def keep_of_replay(self, state, batch):
        self.kinds.append("replay")


def update_with(*metrics):
    """An update that changes nothing and has these metrics, one after another."""
    rows = iter(metrics)
    return lambda state, batch: (state, next(rows))


def test_means_are_over_the_updates_that_were_applied():
    kept = Kept()
    update = update_with(APPLIED, WITHOUT_TOKENS, NONFINITE)
    _, metrics = run_updates(update, None, None, None, [0, 1, 2], kept)
    assert (metrics["loss"], metrics["tokens"], metrics["nonfinite_updates"]) == (2.0, 10.0, 1.0)
    assert kept.kinds == ["policy"]


def test_nonfinite_updates_on_a_replay_buffer_are_counted_with_those_of_the_policy():
    replay = SimpleNamespace(
        rules=SimpleNamespace(before=False, only_last=False),
        rows_of_update=2,
        look=lambda controller, step, data: (controller, {REPLAY_WEIGHT: 1.0}),
        keep=lambda rows, data: rows,
        count=lambda rows: np.array([2, 2, 1]),
        part=lambda rows, weight, number: number,
        update=update_with(NONFINITE, APPLIED | {"loss": 4.0}),
    )
    state = TrainState(
        params={}, opt_state=None, step=0, updates=0, replay_buffer=ReplayState({}, None)
    )
    kept = Kept()
    update = update_with(APPLIED, NONFINITE)
    _, metrics = run_updates(update, None, replay, state, [0, 1], kept)
    assert metrics["nonfinite_updates"] == 2.0 and kept.kinds == ["policy", "replay"]
    assert (metrics["loss"], metrics["replay/loss"]) == (2.0, 4.0)
    assert "replay/nonfinite_updates" not in metrics


def test_the_critic_alone_is_updated_in_the_steps_of_its_warm_up():
    names = ("loss", "value", "clipped", "error", "error_variance", "return", "return_variance")
    of_critic = dict(grad_norm=1.0, tokens=1) | dict.fromkeys(names, 0.0)
    updated = []

    def update(state, batch):
        return state.replace(updates=state.updates + 1), APPLIED

    def update_critic(state, batch):
        updated.append(int(state.step))
        return state, of_critic

    programs = SimpleNamespace(
        update=update,
        critic=SimpleNamespace(update=update_critic),
        replay=None,
        micro_batch_fill=lambda batches: 1.0,
    )
    run = Update(programs, Kept(), Clock(), critic_warmup_steps=2)
    state, updates, fills = TrainState(params={}, opt_state=None, step=0, updates=0), [], []
    for _ in range(4):
        state, metrics = run(state, TrainData([None], 1))
        updates.append(state.updates)
        fills.append(metrics.get("time/micro_batch_fill"))
    assert updates == [0, 0, 1, 2] and updated == [0, 1, 2, 3]
    assert fills == [None, None, 1.0, 1.0]
