"""A plan of a run with evaluations: their rollout is compiled where it is larger than a step's."""

import dataclasses
import json

import jax
import pytest
from tiny_runs import EVALUATION, TRAIN, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.plan import PlanConfig
from entropy_rl.evaluation.sampling import make_generate
from entropy_rl.planning.abstract import abstract_run
from entropy_rl.planning.decoding import evaluation_of, rollout_of
from entropy_rl.planning.devices import virtual_devices
from entropy_rl.planning.shapes import find_architecture
from entropy_rl.planning.step import resident_bytes
from entropy_rl.rollout.batching import cache_bytes

LARGER = EVALUATION | {"samples": 8, "problems": 4, "max_new_tokens": 24, "rows_per_call": 24}


@pytest.fixture
def here(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    return workspace


def planned(directory, evaluation, *options):
    write_yaml(directory / "evaluated.yaml", TRAIN | {"evaluation": evaluation})
    arguments = ["--config", "evaluated.yaml", "--devices", "1", *options]
    config = parse_config(PlanConfig, "plan", arguments)
    return abstract_run(config, find_architecture(config), virtual_devices(1, config.chip))


def test_the_planned_evaluation_is_that_of_the_run(here, monkeypatch):
    """The shapes of its parameters and prompts, and the number of rows."""
    seen = {}

    def recorded(*args, **settings):
        generate = make_generate(*args, **settings)
        return lambda *args, **more: (
            seen.update(settings | {"args": args}) or generate(*args, **more)
        )

    monkeypatch.setattr("entropy_rl.evaluation.sampling.make_generate", recorded)
    write_yaml(here / "train_evaluated.yaml", TRAIN | {"evaluation": LARGER})
    options = ["--steps", "1", "--run.directory", "evaluated"]
    assert main(["train", "--config", "train_evaluated.yaml", *options]) == 0
    params, ids, mask, index = seen["args"][:4]
    run = planned(here, LARGER, "--rollout.max_prompt_tokens", str(ids.shape[1]))
    evaluation = evaluation_of(run, memory=1e12)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes((params, ids, mask, index)) == shapes(
        (evaluation.params, *evaluation.prompts[:3])
    )
    settings = evaluation.programs.sampling
    for name in ("group_size", "max_new_tokens", "temperature", "top_p", "shards"):
        assert getattr(settings, name) == seen[name], name
    assert evaluation.decoding.slots == 24


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"samples": 2, "problems": 4},
        {"samples": 32, "problems": 1, "rows_per_call": 16},
    ],
)
def test_one_that_is_no_larger_than_a_step_is_not_compiled(here, change):
    evaluation = {**LARGER, "samples": 4, "rows_per_call": 16, "max_new_tokens": 12, **change}
    assert evaluation_of(planned(here, evaluation), memory=1e12) is None


@pytest.mark.parametrize(
    "change", [{"samples": 8}, {"max_new_tokens": 13}, {"samples": 1}, {"problems": None}]
)
def test_a_larger_one_is(here, change):
    evaluation = {**LARGER, "samples": 2, "problems": 4, "max_new_tokens": 12, **change}
    if "samples" in change:
        evaluation["problems"] = 5
    if change.get("problems", 1) is None:
        evaluation["rows_per_call"] = 20  # 10 problems, if there are as many
    assert evaluation_of(planned(here, evaluation), memory=1e12) is not None


def test_its_memory_is_beside_parameters_and_moments(here):
    options = ["--chip", "l4", "--output", "plan.json"]
    run = planned(here, LARGER, *options)
    assert main(["plan", "--config", "evaluated.yaml", "--devices", "1", *options]) == 0
    programs = {p["name"]: p for p in json.loads((here / "plan.json").read_text())["programs"]}
    resident = resident_bytes(run)
    for name in ("prefill", "decode"):
        program = programs[f"evaluation's {name}"]
        beside = {n: size for n, size in resident.items() if n != "decoding parameters"}
        assert program["beside"] == beside
    # The caches of 3 prompts and of the new tokens of 24 rows are an argument of each token.
    rollout = evaluation_of(run, memory=1e12)
    policy, params = rollout.programs.policy, rollout.params
    of_prompt, of_both = (cache_bytes(policy, params, 16, columns) for columns in (0, 24))
    caches = 3 * of_prompt + 24 * (of_both - of_prompt)
    weights = resident["decoding parameters"]
    arguments = programs["evaluation's decode"]["arguments"]
    # Beside them, 12 bytes for each token of the rows in slots and of those that have finished.
    rest = arguments - caches - weights - 2 * 24 * 24 * 12
    assert 0 < rest < 2048  # prompts, keys, lengths
    assert arguments > programs["decode"]["arguments"]


def test_runs_that_train_together_are_evaluated_one_by_one(here):
    lora = ["--model.lora", "{rank: 2, alpha: 4}", "--stacked", "3", "--mesh", "null"]
    run = planned(here, LARGER | {"rows_per_call": 64, "samples": 16}, *lora)
    evaluation = evaluation_of(run, memory=1e12)
    assert evaluation.programs.sampling.adapters == 1
    alone = dataclasses.replace(run, config=dataclasses.replace(run.config, stacked=1))
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shapes(evaluation.params) == shapes(alone.decode_params())
    assert rollout_of(run, memory=1e12).programs.sampling.adapters == 3


def test_what_helps_is_named(here, capsys):
    """Caches of about 20 GB do not fit into an l4."""
    planned(here, LARGER | {"samples": 2**16, "rows_per_call": 2**16, "max_new_tokens": 4096})
    options = ["--devices", "1", "--chip", "l4", "--decoding.slots", str(2**16)]
    assert main(["plan", "--config", "evaluated.yaml", *options]) == 1
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "does not fit: evaluation's " in text
    assert "a smaller evaluation.rows_per_call" in text
