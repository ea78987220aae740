"""The functions of a step: what of a config reaches each of them."""

from types import SimpleNamespace

import jax
import pytest

from entropy_rl.advantages import group_normalize
from entropy_rl.config.rollout import RolloutConfig
from entropy_rl.config.train import CriticConfig
from entropy_rl.runs.logging import Clock
from entropy_rl.trainer.stages import make_stages


def stages_of(**settings):
    """The functions of a run without a model."""
    config = SimpleNamespace(
        rollout=RolloutConfig(4, 2, 8, 8),
        loss=SimpleNamespace(mask_truncated=True),
        optimizer=SimpleNamespace(offload=True),
        old_log_probs="sampler",
        updates_per_step=2,
        **settings,
    )
    names = ("model", "task", "rewards", "planned", "teacher", "nonfinite_updates")
    setup = SimpleNamespace(
        config=config,
        programs=SimpleNamespace(generate=None, explore=None),
        advantage=group_normalize(2),
        next_prompts=None,
        prompts_of_round=None,
        **dict.fromkeys(names),
    )
    run = SimpleNamespace(setup=setup, clock=Clock(), on_disk=SimpleNamespace(rollout_watch=None))
    return make_stages(run)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_samples_of_a_run_have_the_key_of_its_seed(seed):
    key = stages_of(seed=seed, critic=None).collect.sampler.key
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(seed)).tolist()


def test_mini_batches_and_updates_have_the_settings_of_the_config():
    stages = stages_of(seed=0, critic=CriticConfig(0.1, warmup_steps=3))
    assert (stages.prepare.old_log_probs, stages.prepare.mask_truncated) == ("sampler", True)
    update = stages.update
    assert (update.critic_warmup_steps, update.offload) == (3, True)
    assert update.old_log_probs == "sampler"
