"""The functions of a step: which settings of a config each of them is built with."""

from types import SimpleNamespace

import jax
import pytest
from policies import tiny_policy

from entropy_rl.advantages import shape_by_entropy
from entropy_rl.config.rollout import RolloutConfig
from entropy_rl.config.train import CriticConfig
from entropy_rl.distributed.sharding import Placement
from entropy_rl.losses.loss import Loss
from entropy_rl.tasks.countdown import build_tokenizer
from entropy_rl.trainer import programs


def test_a_run_samples_and_trains_with_every_setting_of_its_rollout(monkeypatch):
    given = {}
    monkeypatch.setattr(programs, "make_generate", lambda policy, **more: given.update(more))
    tokenizer = build_tokenizer()
    config = SimpleNamespace(
        rollout=RolloutConfig(4, 2, 8, 8, temperature=0.7, top_p=0.9, stop=["7 7"]),
        batching=SimpleNamespace(mini_batch_prompts=2, max_tokens_per_micro_batch=64),
        decoding=None,
        critic=CriticConfig(0.1, max_tokens_per_micro_batch=32),
    )
    model = SimpleNamespace(
        sampler=None, eos_ids=(1,), pad_id=0, tokenizer=tokenizer, placement=Placement()
    )
    programs.make_sampler(config, model)
    assert (given["group_size"], given["max_new_tokens"]) == (2, 8)
    assert (given["temperature"], given["top_p"]) == (0.7, 0.9)
    assert given["stop"](tokenizer.encode("7 7 5")) == 2
    programs.make_sampler(config, model, temperature=1.5)
    assert given["temperature"] == 1.5
    found = programs.pass_settings(config)
    assert (found.temperature, found.max_tokens_per_micro_batch) == (0.7, 64)
    found = programs.critic_pass_settings(config)
    assert (found.temperature, found.max_tokens_per_micro_batch) == (0.7, 32)


@pytest.mark.parametrize(("tokens", "shares"), [(64, True), (None, False)])
def test_prompts_are_computed_once_per_group_only_in_packed_micro_batches(tokens, shares):
    config = SimpleNamespace(
        rollout=RolloutConfig(4, 8, 56, 24),  # which would save 61% of the tokens
        batching=SimpleNamespace(mini_batch_prompts=4, max_tokens_per_micro_batch=tokens),
        critic=CriticConfig(0.1, max_tokens_per_micro_batch=32),
    )
    policy = tiny_policy()
    model = SimpleNamespace(
        policy=policy, params=jax.eval_shape(policy.init, jax.random.key(0)), placement=Placement()
    )
    assert programs.pass_settings(config).group_size == (8 if shares else None)
    assert programs.critic_pass_settings(config).group_size == 8  # its micro-batches are its own
    found = programs.describe_update(config, model, shape_by_entropy(0.4, 2.0), Loss())
    wanted = "once per group" if shares else "with each completion"
    assert found.startswith(f"update: prompts are computed {wanted}, the loss ")
