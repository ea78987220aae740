"""Collectors: what is dispatched before the completions are judged, and groups that are selected,
replaced and exchanged.
"""

import contextlib
import dataclasses
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_runs import make_workspace

from entropy_rl.cli.main import main
from entropy_rl.config.rollout import DynamicSamplingConfig, ExplorationConfig, RolloutConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.collect import make_collector
from entropy_rl.experience.dynamic_sampling import DynamicSamplingCollector, exchange
from entropy_rl.experience.experience import Experience, ScoredGroups, concatenate
from entropy_rl.experience.exploration import ExplorationCollector, failed_prompts
from entropy_rl.experience.metrics import ScoredRows
from entropy_rl.experience.plain import PlainCollector
from entropy_rl.experience.planned_problems import outcomes_of
from entropy_rl.experience.prompts import PromptBatch, own_places
from entropy_rl.experience.sampler import Sampler
from entropy_rl.experience.scoring import VERDICTS
from entropy_rl.rewards import build_rewards
from entropy_rl.runs.jsonl import read_jsonl
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks.task import JudgeError, Problem, Verdict
from entropy_rl.trainer.prepare import Prepare
from entropy_rl.types import Rollout

P, G, N = 3, 2, 4
CORRECT, WRONG, UNPARSABLE, TIMEOUT, CRASH, NOT_JUDGED = range(len(VERDICTS))


def make_rollout(first: int = 0, prompts: int = P, group_size: int = G) -> Rollout:
    rows = first + np.arange(prompts * group_size)
    token = np.broadcast_to(rows[:, None], (len(rows), N))
    return Rollout(
        prompt_ids=np.ones((prompts, 2), np.int32),
        prompt_mask=np.ones((prompts, 2), bool),
        completion_ids=token.astype(np.int32),
        completion_mask=np.ones((len(rows), N), bool),
        log_probs=token.astype(np.float32),
        entropy=token.astype(np.float32),
        finish_reason=np.zeros(len(rows), np.int32),
    )


def make_groups(verdicts=None, first: int = 0, prompts: int = P) -> ScoredGroups:
    rollout, rows = make_rollout(first, prompts), prompts * G
    arrays = {
        "rewards": np.arange(rows, dtype=np.float32),
        "has_reward": np.ones(rows, bool),
        "verdicts": np.array([CORRECT] * rows if verdicts is None else verdicts, np.int32),
        "extras": {"weights": rollout.log_probs},  # of tokens
    }
    return ScoredGroups(rollout, first + np.arange(prompts), np.zeros(prompts, np.int32), arrays)


class FakeRun:
    """A sampler without a model, whose calls are written down in their order."""

    def __init__(self, verdict=Verdict.CORRECT):
        self.calls, self.verdict = [], verdict
        self.keys, self.first_samples = [], []
        identity = lambda x: x  # noqa: E731
        model = SimpleNamespace(
            to_decode=identity,
            params_with=identity,
            placement=SimpleNamespace(put_prompts=identity),
            tokenizer=SimpleNamespace(batch_decode=lambda rows, **_: [""] * len(rows)),
        )
        watch = lambda state: None  # noqa: E731
        self.clock = Clock()
        self.sampler = Sampler(
            self.generate, model, self, build_rewards([]), jax.random.key(0), G, self.clock, watch
        )

    def generate(self, params, ids, mask, index, key, first_sample, *, limits, on_chunk):
        self.calls.append("sample")
        self.keys.append(jax.random.key_data(key).tolist())
        self.first_samples.append(first_sample)
        return make_rollout()

    def judge(self, problems, completions):
        self.calls.append("judge")
        return [self.verdict] * len(completions)

    def on_sampled(self, state, rollout):
        self.calls.append("prepare")
        return ["batches"]


STATE = SimpleNamespace(params=None, rounds=0)
PROMPTS = PromptBatch(
    [Problem(i, "", "") for i in range(P)], np.ones((P, 2)), np.ones((P, 2)), np.arange(P)
)


def test_log_probs_are_dispatched_before_the_completions_are_judged():
    run = FakeRun()
    experience = PlainCollector(run.sampler, run.on_sampled)(STATE, PROMPTS, 0)
    assert run.calls == ["sample", "prepare", "judge"] and experience.batches == ["batches"]
    assert "time/waiting_for_verdicts" in run.clock.metrics(tokens=1)


@pytest.mark.parametrize(
    "settings, kind, calls",
    [
        ({}, PlainCollector, ["sample", "prepare", "judge"]),
        (
            {"exploration": ExplorationConfig(2.0)},
            ExplorationCollector,
            ["sample", "judge", "sample", "judge"],
        ),
        (
            {"dynamic_sampling": DynamicSamplingConfig(2, "train")},
            DynamicSamplingCollector,
            ["sample", "judge", "sample", "judge"],
        ),
    ],
)
def test_the_config_chooses_the_collector_and_only_a_plain_one_knows_before_judging(
    settings, kind, calls
):
    run = FakeRun(Verdict.WRONG)
    config = RolloutConfig(P, G, 2, N, **settings)
    collect = make_collector(
        config, run.sampler, run.generate, lambda round: PROMPTS, 1, run.on_sampled
    )
    experience = collect(STATE, PROMPTS, 0)
    assert type(collect) is kind and run.calls == calls and isinstance(experience, Experience)
    assert experience.scored == P * G * calls.count("judge")
    assert (experience.batches is not None) == ("prepare" in calls)


def test_the_samples_of_a_step_have_the_key_of_the_run_with_the_step_folded_in():
    run, key = FakeRun(), jax.random.key(3)
    sampler = dataclasses.replace(run.sampler, key=key)
    for step in (0, 1):
        sampler.sample(STATE, PROMPTS, step)
    folded = [jax.random.key_data(jax.random.fold_in(key, step)).tolist() for step in (0, 1)]
    assert run.keys == folded and folded[0] != folded[1]


def test_the_second_samples_of_a_failed_prompt_have_indices_of_their_own():
    run = FakeRun(Verdict.WRONG)
    collect = ExplorationCollector(PlainCollector(run.sampler), run.sampler, N)
    experience = collect(STATE, PROMPTS, 0, round=1)
    assert run.first_samples == [2 * G, 3 * G] and run.keys[0] == run.keys[1]
    assert (experience.groups.first_sample == 3 * G).all()


def test_an_exploration_samples_no_greedy_completion():
    run = FakeRun(Verdict.WRONG)

    def with_greedy(*arguments, **more):
        run.generate(*arguments, **more)
        return make_rollout(group_size=G + 1)

    sampler = dataclasses.replace(run.sampler, generate=with_greedy, greedy=True)
    config = RolloutConfig(P, G, 2, N, exploration=ExplorationConfig(2.0))
    collect = make_collector(config, sampler, run.generate, None, 1, run.on_sampled)
    groups = collect(STATE, PROMPTS, 0).groups
    assert run.first_samples == [0, G]
    assert groups.rollout.completion_ids[:, 0].tolist() == list(range(P * G))
    assert groups.rows["greedy_rewards"].shape == (P * G,)


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        ([Verdict.CRASH] * 6, "6 crash"),
        ([Verdict.NOT_JUDGED] * 6, "6 not_judged"),
        ([Verdict.CRASH] * 3 + [Verdict.TIMEOUT] * 2 + [Verdict.NOT_JUDGED], None),
        ([Verdict.CRASH] * 5 + [Verdict.WRONG], ""),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"exploration": ExplorationConfig(2.0)},
        {"dynamic_sampling": DynamicSamplingConfig(1, at_limit="train")},
    ],
    ids=["plain", "exploration", "dynamic"],
)
def test_a_step_without_a_judgement_is_an_error_in_every_collector(settings, verdicts, told):
    run = FakeRun()
    run.judge = lambda problems, completions: verdicts[: len(completions)]
    config = RolloutConfig(P, G, 2, N, **settings)
    collect = make_collector(
        config, run.sampler, run.generate, lambda round: PROMPTS, 1, run.on_sampled
    )
    counts = "2 timeout, 3 crash, 1 not_judged" if told is None else told
    expected = pytest.raises(JudgeError, match=f"^none of 6 completions was judged: {counts}$")
    with expected if counts else contextlib.nullcontext():
        collect(STATE, PROMPTS, 0)


@pytest.mark.parametrize(
    "more, order",
    [([], "(pj){2}"), (["--rollout.exploration.temperature", "9"], "(j+p){2}")],
)
def test_in_a_run_the_device_computes_log_probs_while_the_host_judges(
    tmp_path, monkeypatch, more, order
):
    workspace = make_workspace(tmp_path / "workspace")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)
    calls = []

    def recorded(name, function):
        return lambda *arguments: calls.append(name) or function(*arguments)

    monkeypatch.setattr(Prepare, "dispatch", recorded("prepare", Prepare.dispatch))
    monkeypatch.setattr(Sampler, "_score", recorded("judge", Sampler._score))
    assert main(["train", "--config", "train.yaml", "--steps", "2", *more]) == 0
    assert re.fullmatch(order, "".join(name[0] for name in calls))
    for row in read_jsonl(workspace / "run" / "metrics.jsonl"):
        assert ("time/waiting_for_verdicts" in row) == ("(p" in order)


# --- groups
# ------------------------------------------------------------------------------------------


def test_groups_are_selected_with_all_their_rows_and_the_arrays_of_their_tokens():
    for index in (np.array([2, 0]), np.array([True, False, True])):
        taken = make_groups().take(index)
        rows = [4, 5, 0, 1] if index.dtype != bool else [0, 1, 4, 5]
        assert taken.rows["rewards"].tolist() == rows
        assert taken.rows["extras"]["weights"][:, 0].tolist() == rows
        assert taken.rollout.completion_ids[:, 0].tolist() == rows
        assert taken.rollout.prompt_ids.shape == (2, 2) and taken.group_size == G


def test_groups_take_the_places_of_others_in_their_order():
    where = np.array([True, False, True])
    merged = make_groups().replace_groups(where, make_groups(first=10, prompts=2))
    assert merged.prompt_index.tolist() == [10, 1, 11]
    assert merged.rollout.completion_ids[:, 0].tolist() == [10, 11, 2, 3, 12, 13]
    assert merged.rows["extras"]["weights"][:, 0].tolist() == [10, 11, 2, 3, 12, 13]


def test_a_prompt_has_failed_if_a_completion_was_judged_and_none_is_correct():
    groups = make_groups([TIMEOUT, WRONG, CRASH, TIMEOUT, WRONG, CORRECT])
    assert failed_prompts(groups).tolist() == [True, False, False]


def test_a_problem_of_which_nothing_was_judged_has_no_outcome():
    groups = make_groups([CORRECT, WRONG, CRASH, CORRECT, TIMEOUT, CRASH])
    found = outcomes_of(Experience(groups, None, 6))
    assert (found[0], found[1]) == (0.5, 1.0) and math.isnan(found[2])


def test_explored_groups_keep_the_missing_reward_of_their_greedy_completion(monkeypatch):
    # All but the first prompt have failed; the greedy completion of the last one has no reward.
    first = make_groups([CORRECT, WRONG, WRONG, WRONG, WRONG, WRONG])
    first = first.with_rows(has_reward=np.array([True] * 4 + [False] * 2))
    second = make_groups([CORRECT] * 4, first=4, prompts=2)
    nothing = ScoredRows(*[np.zeros(P * G)] * 5, {}, {}, {})
    sampler = SimpleNamespace(
        sample=lambda *_: (None, None), score=lambda *_, **__: Experience(second, nothing, 4)
    )
    monkeypatch.setattr(
        "entropy_rl.experience.exploration.take_prompts", lambda sampled, failed: sampled
    )
    collect = ExplorationCollector(lambda *_: Experience(first, nothing, 6), sampler, N)
    found = collect(None, PROMPTS, 0)
    assert found.groups.rows["has_reward"].tolist() == [True] * 4 + [False] * 2
    # The first prompt was not explored, and its correct completion does not count as solved.
    assert found.rows.ratios == {"groups_explored": (2, 3), "explored_solved": (2, 2)}
    assert found.scored == 6 + 2 * G


def test_processes_exchange_groups_wherever_they_were_sampled(monkeypatch):
    """One process stands in for two: `hosts.concatenate` returns what both would send."""
    of_host = [make_groups(), make_groups(first=100)]
    host, number = np.array([0, 1, 1, 0]), np.array([2, 0, 2, 0])
    expected = [[2, 101 - 1], [102, 0]]
    for me in range(2):
        sent = [groups.take(number[host == h]) for h, groups in enumerate(of_host)]
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(hosts, "count", lambda: 2)
            patch.setattr(hosts, "index", lambda me=me: me)
            patch.setattr(hosts, "concatenate", lambda _, sent=sent: concatenate(sent))
            taken = exchange(of_host[me], host, number, own_places(4, me, 2, 1))
        assert taken.prompt_index.tolist() == expected[me]


def test_a_run_with_another_collector_of_the_same_prompts_is_the_same_run(tmp_path, monkeypatch):
    """Dynamic sampling that keeps every group trains on what a plain run trains on."""
    workspace = make_workspace(tmp_path / "workspace")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)
    train = ["train", "--config", "train.yaml", "--steps", "2", "--run.directory"]
    assert main([*train, "plain"]) == 0
    monkeypatch.setattr(
        "entropy_rl.experience.dynamic_sampling.has_contrast",
        lambda rewards, has_reward, group_size: np.ones(len(rewards) // group_size, bool),
    )
    assert main([*train, "dynamic", "--rollout.dynamic_sampling", "{}"]) == 0
    plain, dynamic = (
        [
            {n: row[n] for n in ("loss", "grad_norm", "entropy", "reward", "tokens")}
            for row in read_jsonl(workspace / name / "metrics.jsonl")
        ]
        for name in ("plain", "dynamic")
    )
    assert plain == dynamic
