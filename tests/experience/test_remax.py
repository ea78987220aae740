"""ReMax: a greedy completion beside the sampled ones, whose reward is their baseline."""

import jax.numpy as jnp
import numpy as np
import pytest
from run_records import lines_of
from tiny_runs import TRAIN, make_workspace, write_yaml

from entropy_rl.advantages import chain, group_center, remax
from entropy_rl.cli.main import main
from entropy_rl.experience.sampler import Sampled, split_greedy
from entropy_rl.tasks.task import Judgement, Verdict
from entropy_rl.types import Rollout, TokenStats


def make_stats(has_reward, greedy_rewards):
    nothing = jnp.zeros((len(has_reward), 2))
    return TokenStats(
        *[nothing] * 4,
        mask=nothing == 0,
        has_reward=jnp.array(has_reward),
        greedy_rewards=None if greedy_rewards is None else jnp.array(greedy_rewards),
    )


def test_the_advantage_is_the_reward_above_that_of_the_greedy_completion():
    stats = make_stats([True, True, False, True], [1.0, 1.0, -1.0, -1.0])
    advantages = remax()(jnp.array([[1.0], [-1.0], [1.0], [0.5]]), stats)
    assert advantages.tolist() == [[0.0], [-2.0], [0.0], [1.5]]


def test_a_chain_says_that_it_needs_greedy_completions_and_without_them_says_what_is_missing():
    assert chain(remax()).requires == ("greedy_rewards",)
    assert chain(group_center(2)).requires == ()
    with pytest.raises(
        ValueError, match="greedy_rewards must be the rewards of greedy completions, got None"
    ):
        remax()(jnp.ones((2, 1)), make_stats([True, True], None))


def test_the_last_row_of_each_group_is_taken_apart():
    rows = np.arange(8)
    rollout = Rollout(*[np.zeros((2, 3))] * 2, *[rows[:, None]] * 4, finish_reason=rows)
    judgements = [Judgement(Verdict.WRONG, float(row)) for row in rows]
    turns = np.zeros((8, 1), np.float32)
    sampled, greedy = split_greedy(Sampled(rollout, judgements, turns))
    assert sampled.rollout.finish_reason.tolist() == [0, 1, 2, 4, 5, 6]
    assert [judgement.reward for judgement in sampled.judgements] == [0, 1, 2, 4, 5, 6]
    assert greedy.rollout.completion_ids.tolist() == [[3], [7]]
    assert greedy.rollout.prompt_ids is rollout.prompt_ids and greedy.judgements[1].reward == 7


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [1, 3])
def test_a_run_learns_from_what_is_sampled_alone_with_the_greedy_reward_as_its_baseline(
    tmp_path, monkeypatch, group_size
):
    """Rows that were cut off are masked as well, which changes which tokens there are, and no
    advantage.
    """
    workspace = make_workspace(tmp_path / "workspace")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(
        "entropy_rl.report.summary.write_curves", lambda directory: directory
    )  # slow
    settings = TRAIN | {
        "steps": 2,
        "rollout": TRAIN["rollout"] | {"group_size": group_size, "max_new_tokens": 40},
        "batching": TRAIN["batching"] | {"mini_batch_prompts": 4},
        "run": TRAIN["run"] | {"samples_per_step": 99},
        "loss": {"mask_truncated": True},
        "old_log_probs": "sampler",
    }
    found = {}
    for name, advantage in (("remax", {"name": "remax"}), ("plain", {"name": "whiten"})):
        write_yaml(workspace / f"{name}.yaml", settings | {"advantage": [advantage]})
        assert main(["train", "--config", f"{name}.yaml", "--run.directory", name]) == 0
        found[name] = lines_of(workspace / name / "samples.jsonl")
    of_step = 4 * group_size
    assert [row["tokens"] for row in found["remax"]][:of_step] == [
        row["tokens"] for row in found["plain"]
    ][:of_step]
    baselines = np.array([row["reward"] - row["advantage_before"][0] for row in found["remax"]])
    groups = baselines.reshape(2, 4, group_size)
    assert (groups == groups[..., :1]).all() and set(baselines) == {-1.0, 1.0}
    for step, metrics in enumerate(lines_of(workspace / "remax" / "metrics.jsonl")):
        rows = found["remax"][step * of_step : (step + 1) * of_step]
        assert metrics["greedy_reward"] == groups[step, :, 0].mean()
        assert "logprob_diff" not in metrics and "kl_sampler" in metrics
        ended = [row for row in rows if row["finish_reason"] == "eos"]
        assert ended and metrics["tokens"] == sum(row["length"] for row in ended)
        teaches = any(row["advantage_before"] != [0.0] for row in ended)
        assert (metrics["grad_norm"] > 0) == teaches
    assert {row["finish_reason"] for row in found["remax"]} == {"eos", "length"}
