"""Bad input is refused before the weights of a model are read."""

import json

import pytest
from error_lines import says
from tiny_runs import EVALUATION, TRAIN, write_yaml

ODD = """
import dataclasses

from luck import Luck


class Odd(Luck):
    def problems(self, split):
        return [dataclasses.replace(p, source=f"{p.id % 2}") for p in super().problems(split)]
"""
LORA = {"model": {"path": "model", "lora": {"rank": 2, "alpha": 4.0}}}
TRAINED = ("train", "--config", "train.yaml")
EVALUATED = (
    *("evaluate", "--model.path", "model", "--task.name", "luck:Luck", "--seed", "0"),
    *("--evaluation", json.dumps(EVALUATION), "--output", "out"),
)
SAMPLED = ("sample", "model", "--task.name", "luck:Luck")
NO_PROMPT = "no prompt is left: of "
# No token of Countdown's tokenizer has this character.
NO_STOP = "stop: must be text that can occur in a completion, got '#'"


def stacked(**of_second):
    runs = [{"config": "lora.yaml", "overrides": {"run.directory": f"no{i}"}} for i in (0, 1)]
    runs[1]["overrides"] |= of_second
    return ("train-stacked", "--runs", json.dumps(runs))


@pytest.fixture
def refused(refused, here, monkeypatch):
    def no_weights(*_, **__):
        raise AssertionError("weights are read")

    monkeypatch.setattr("entropy_rl.runs.load_model.load_weights", no_weights)
    (here / "odd.py").write_text(ODD)
    write_yaml(here / "lora.yaml", TRAIN | LORA)
    write_yaml(here / "turns.yaml", TRAIN | LORA | {"task": {"name": "countdown_turns"}})
    return refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAINED, "--rollout.max_prompt_tokens", "3"), NO_PROMPT),
        (
            (*TRAINED, "--batching.max_tokens_per_micro_batch", "16"),
            "batching.max_tokens_per_micro_batch: must be >= 20, the longest row of prompt and",
        ),
        (
            (*TRAINED, "--evaluation", json.dumps(EVALUATION | {"split": "tset"})),
            "evaluation.split: must be one of",
        ),
        ((*TRAINED, "--rollout.stop", "['#']"), f"rollout.{NO_STOP}"),
        (
            (*TRAINED, "--evaluation", json.dumps(EVALUATION | {"stop": ["#"]})),
            f"evaluation.{NO_STOP}",
        ),
        ((*TRAINED, "--curriculum", "{name: learnability}"), "curriculum: must be null or"),
        (
            (
                *(*TRAINED, "--task.name", "odd:Odd", "--advantage"),
                "[{name: heal, general: two}, {name: group_normalize}]",
            ),
            "advantage[0]: must name a source of some of the problems and not of all, got 'two'",
        ),
        (
            (
                *(*TRAINED, "--critic.learning_rate", "0.1", "--critic.path", "nowhere"),
                *("--advantage", "[{name: gae}]"),
            ),
            "critic.path: must be a Hugging Face directory",
        ),
        (
            (*TRAINED, "--model.lora", "{path: nowhere}"),
            "model.lora.path: nowhere/adapter_config.json: not found",
        ),
        ((*EVALUATED, "--max_prompt_tokens", "3"), NO_PROMPT),
        ((*EVALUATED, "--evaluation.stop", "['#']"), f"evaluation.{NO_STOP}"),
        ((*SAMPLED, "--problem", "99999"), "problem: must be an id of the split 'test', from 0"),
        ((*SAMPLED, "--question", "what is it"), "question: must be text of which the tokenizer"),
        ((*SAMPLED, "--problem", "0", "--stop", "['#']"), NO_STOP),
        (
            (*SAMPLED, "--question", "1 2 : 3", "--chat", "true"),
            "model: the tokenizer has no chat",
        ),
        (stacked(advantage=[{"name": "grop"}]), "runs[1]: advantage[0].name: must be one of"),
        (stacked(rewards=[{"name": "corect"}]), "runs[1]: rewards[0].name: must be one of"),
        (
            stacked(advantage=[{"name": "remax"}]),
            "runs[1]: advantage: must be one with a greedy completion in all runs or in none, got",
        ),
        (
            tuple(word.replace("lora.yaml", "turns.yaml") for word in stacked()),
            "runs[0]: task.name: must be a task of a single turn in runs that train together",
        ),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(refused, arguments, message):
    line = refused(*arguments)
    assert says(line, message), line
