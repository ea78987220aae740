"""The functions of a step: which settings of a config each of them is built with."""

from types import SimpleNamespace

from entropy_rl.config.rollout import RolloutConfig
from entropy_rl.config.train import CriticConfig
from entropy_rl.distributed.sharding import Placement
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
