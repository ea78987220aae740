"""The command line says what is wrong in one line, before anything is written, and helps
quickly.
"""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from error_lines import says
from hf_fixtures import make_hf_dir
from safetensors.numpy import load_file, save_file
from tiny_runs import EVALUATION, ROOT, SFT, TRAIN, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.rollout import DynamicSamplingConfig
from entropy_rl.config.train import LossConfig, TrainConfig
from entropy_rl.runs.directory import check_directory, claim_directory, claimed_run
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.runs.load_model import load_tokenizer
from entropy_rl.tasks.countdown import Countdown


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    """The working directory: its model and tasks, and a train.yaml of the test's own."""
    monkeypatch.chdir(workspace)
    write_yaml(workspace / "train.yaml", TRAIN)
    return workspace


def changed(config: dict, path: str, *value) -> dict:
    """A copy of a config with another value at a dotted path; without a value the field is gone."""
    config = json.loads(json.dumps(config))
    *sections, name = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    if value:
        inner[name] = value[0]
    else:
        del inner[name]
    return config


# --- the command line itself
# -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trian"],
            "must be one of train, train-stacked, ..., got 'trian' (did you mean 'train'?)",
        ),
        (["--config", "train.yaml"], "must be one of train, train-stacked, ..., got '--config'"),
    ],
)
def test_an_unknown_verb_is_refused_with_the_nearest_one(capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert says(err, f"entropy-rl: verb: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--stepz", "3"],
            "--stepz: must be one of seed, steps, ..., got 'stepz' (did you mean 'steps'?)",
        ),
        (
            ["--rollout.group_sise=4"],
            "--rollout.group_sise: must be one of prompts, group_size, ..., got 'group_sise' "
            "(did you mean 'group_size'?)",
        ),
        (
            ["--confg", "x"],
            "--confg: must be one of seed, steps, ..., got 'confg' (did you mean 'config'?)",
        ),
        (["--steps.x", "3"], "--steps.x: must be --steps, because 'steps' has no fields"),
        (["--steps", "ten"], "--steps: must be an integer, got 'ten'"),
        (["--steps+", "3"], "--steps+: must be an integer, got [3]"),
        (["--steps=2.5"], "--steps: must be an integer, got 2.5"),
        (["--steps"], "--steps: must have a value"),
        (["--steps", "--seed", "3"], "--steps: must have a value"),
        (
            ["--model.remat", "true"],
            "--model.remat: must be one of none, dots, full, got True",
        ),
        (
            ["--model.attention", "flash"],
            "--model.attention: must be one of auto, xla, cudnn, splash, got 'flash'",
        ),
        (
            ["--model.compute_dtype", "float31"],
            "--model.compute_dtype: must be one of float32, bfloat16, got 'float31' (did you mean "
            "'float32'?)",
        ),
        (
            ["--optimizer.learning_rate", "fast"],
            "--optimizer.learning_rate: must be a number, got 'fast'",
        ),
        (
            ["--optimizer.learning_rate", "nan"],
            "--optimizer.learning_rate: must be a number, got 'nan'",
        ),
        (["--task.args", "[1]"], "--task.args: must be a mapping, got [1]"),
        (["--task.args", "{a: 1"], "--task.args: must be valid YAML (..., got '{a: 1'"),
        (
            ["--advantage", "group_normalize"],
            "--advantage: must be a list, got 'group_normalize'",
        ),
        (["--model", "other.yaml"], "--model: must be a mapping, got 'other.yaml'"),
        (
            ["--evaluation.sampels", "3"],
            "--evaluation.sampels: must be one of split, ..., got 'sampels' (did you mean",
        ),
        (
            ["--evaluation.samples", "x"],
            "--evaluation.samples: must be an integer, got 'x'",
        ),
        (
            ["train.yaml"],
            "command line: must be --config FILE or --dotted.path VALUE, got 'train.yaml'",
        ),
        (["-x"], "command line: must be --config FILE or --dotted.path VALUE, got '-x'"),
        (
            ["--steps", "{{steps}}"],
            "--steps: must be valid YAML (found unhashable key), got '{{steps}}'",
        ),
        (["--"], "command line: must be --config FILE or --dotted.path VALUE, got '--'"),
        (
            ["--print_config=short"],
            "--print_config: must have no value, got 'short'",
        ),
        (["--config"], "--config: must have a value"),
        (
            ["--config", "nowhere.yaml"],
            "--config: must be a file or one of the recipes ..., countdown_analyze, ..., got "
            "'nowhere.yaml'",
        ),
        (["--config", "model"], "--config: cannot read 'model': Is a directory"),
        (
            ["--config", "model/model.safetensors"],
            "--config: cannot read 'model/model.safetensors': not a ",
        ),
    ],
)
def test_a_wrong_argument_is_refused(refused, arguments, message):
    assert says(refused("train", "--config", "train.yaml", *arguments), message)


def test_without_a_config_every_missing_field_is_named(refused):
    line = refused("train")
    assert line.startswith(
        "no --config FILE: missing: seed, steps, model.path, task.name, rollout.prompts, "
    )
    assert line.endswith("optimizer.learning_rate, run.directory") and "temperature" not in line
    assert refused("export") == "no --config FILE: missing: model, output"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed(TRAIN, "model", {"paht": "x"}),
            "model.paht: must be one of path, compute_dtype, remat, attention, "
            "decode_attention, extra_eos, lora, got 'paht' (did you mean 'path'?)",
        ),
        (
            changed(TRAIN, "modle", 1),
            "modle: must be one of seed, steps, ..., got 'modle' (did you mean 'model'?)",
        ),
        (changed(TRAIN, "steps", "ten"), "steps: must be an integer, got 'ten'"),
        (changed(TRAIN, "steps", True), "steps: must be an integer, got True"),
        (changed(TRAIN, "steps", None), "steps: must be an integer, got None"),
        (changed(TRAIN, "model", "tiny"), "model: must be a mapping, got 'tiny'"),
        (changed(TRAIN, "task.name", 3), "task.name: must be a string, got 3"),
        (changed(TRAIN, "advantage", [3]), "advantage[0]: must be a mapping, got 3"),
        (
            changed(TRAIN, "loss", {"aggregation": "token-maen"}),
            "loss.aggregation: must be one of token-mean, ..., got 'token-maen' (did you mean",
        ),
        (
            changed(TRAIN, "evaluation", {"split": "test"}),
            "missing: evaluation.samples, evalu",
        ),
        (changed(TRAIN, "rollout.exploration", {}), "missing: rollout.exploration.temperature"),
        (changed(changed(TRAIN, "seed"), "rollout.prompts"), "missing: seed, rollout.prompts"),
        (changed(TRAIN, "model", None), "missing: model.path"),
        ([1, 2], "must be a mapping of seed, steps, model, ..., got [1, 2]"),
        (None, "must be a mapping of seed, steps, model, ..., got None"),
    ],
)
def test_a_wrong_config_file_is_refused_with_file_and_dotted_path(refused, here, content, message):
    write_yaml(here / "wrong.yaml", content)
    assert says(refused("train", "--config", "wrong.yaml"), f"wrong.yaml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 0\nsteps: [1\nmodel: 2\n", "wrong.yaml:3: must be valid YAML, got an error: "),
        (
            "seed: 0\nsteps: 1\nseed: 2\n",
            "wrong.yaml:3: must be valid YAML, got an error: 'seed' is given",
        ),
        ("seed: 0\n  steps: 1\n", "wrong.yaml:2: must be valid YAML, got an error: "),
        ("seed: {{SEED}}\n", "wrong.yaml:1: must be valid YAML, got an error: found unhashable"),
        ("seed: \x07\n", "wrong.yaml: must be valid YAML, got an error: "),
    ],
)
def test_bad_yaml_is_refused_with_file_and_line(refused, here, text, message):
    (here / "wrong.yaml").write_text(text)
    assert refused("train", "--config", "wrong.yaml").startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "-1"], "steps: must be >= 0, got -1"),
        (
            ["--rollout.group_size", "0"],
            "rollout.group_size: must be >= 1, got 0",
        ),
        (
            ["--rollout.temperature", "-1"],
            "rollout.temperature: must be > 0, got -1.0",
        ),
        (["--rollout.top_p", "1.5"], "rollout.top_p: must be > 0 and <= 1, got 1.5"),
        (
            ["--loss.surrogate", "{name: ppo_clip, clip_low: -0.1}"],
            "loss.surrogate: ppo_clip.clip_low: must be a number > 0 and < 1, got -0.1",
        ),
        (
            ["--batching.fused_loss", "true"],
            "--batching.fused_loss: removed; the program decides it now",
        ),
        (
            ["--loss.token_weights+", "{name: token_tis}", "--rollout.top_p", "0.9"],
            "loss.token_weights: must be without importance weights unless old_log_probs is "
            "trainer and rollout.top_p is 1, got ['token_tis']",
        ),
        (
            ["--batching.mini_batch_prompts", "3"],
            "batching.mini_batch_prompts: must be a divisor of rollout.prompts (4), got 3",
        ),
        (
            ["--batching.max_tokens_per_micro_batch", "19"],
            "batching.max_tokens_per_micro_batch: must be >= 20, the longest row of prompt "
            "and completion, got 19",
        ),
        (
            ["--critic", "{learning_rate: 0}"],
            "critic.learning_rate: must be > 0, got 0.0",
        ),
        (
            [
                "--advantage",
                "[{name: gae}]",
                "--critic",
                "{learning_rate: 1, max_tokens_per_micro_batch: 19}",
            ],
            "critic.max_tokens_per_micro_batch: must be >= 20, the longest row of prompt and "
            "completion, got 19",
        ),
        (
            ["--run.evaluate_every", "5"],
            "run.evaluate_every: must be 0 without evaluation, got 5",
        ),
        (
            ["--run.profile_step", "7"],
            "run.profile_step: must be null or <= steps (6), got 7",
        ),
        (
            ["--run.directory", ""],
            "run.directory: must be a path that all hosts see (a bucket can be mounted, or "
            "hold run.checkpoints), got ''",
        ),
        (
            ["--advantage", "[]"],
            "advantage: must be a list with at least one transform, got []",
        ),
        (
            ["--evaluation", json.dumps(EVALUATION | {"samples": 0})],
            "evaluation.samples: must be >= 1, got 0",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(refused, arguments, message):
    assert says(refused("train", "--config", "train.yaml", *arguments), message)


def test_options_override_files_later_files_earlier_ones_and_sections_are_merged(here):
    write_yaml(here / "more.yaml", {"steps": 8, "rollout": {"prompts": 8}, "loss": None})
    config = parse_config(
        TrainConfig,
        "train",
        ["--seed", "5", "--rollout.prompts", "6", "--rollout.prompts", "12"]
        + ["--config", "train.yaml", "--rollout.top_p", "0.5", "--config", "more.yaml"]
        + [
            "--task.args.seed",
            "7",
            "--optimizer.learning_rate=1e-6",
            "--evaluation",
            json.dumps(EVALUATION),
        ]
        + ["--evaluation.samples", "4", "--advantage+", "{name: whiten}"]
        + ["--task.args.counts.test", "9"],
    )
    assert (config.seed, config.steps) == (5, 8)
    assert (config.rollout.prompts, config.rollout.group_size, config.rollout.top_p) == (12, 4, 0.5)
    assert config.task.args == {"counts": {"train": 16, "test": 9}, "seed": 7}
    assert config.optimizer.learning_rate == 1e-6
    assert (config.evaluation.samples, config.evaluation.split) == (4, "test")
    assert [transform["name"] for transform in config.advantage][1:] == [
        "shape_by_entropy",
        "whiten",
    ]
    assert config.loss == LossConfig()
    more = [
        "--config",
        "train.yaml",
        "--evaluation",
        "null",
        "--task.args",
        "{seed: 7}",
        "--loss.kl_coef",
        "1",
    ]
    config = parse_config(TrainConfig, "train", more)
    assert config.evaluation is None and config.rollout.dynamic_sampling is None
    assert config.task.args == {"seed": 7}
    assert config.loss == LossConfig(kl_coef=1.0) and isinstance(config.loss.kl_coef, float)


def test_an_empty_optional_section_asks_for_its_defaults(here):
    write_yaml(here / "more.yaml", {"rollout": {"dynamic_sampling": {}}})
    given = ["--config", "train.yaml"]
    for more in (["--config", "more.yaml"], ["--rollout.dynamic_sampling", "{}"]):
        config = parse_config(TrainConfig, "train", [*given, *more])
        assert config.rollout.dynamic_sampling == DynamicSamplingConfig()
        config = parse_config(
            TrainConfig, "train", [*given, "--rollout.dynamic_sampling.max_rounds", "3", *more]
        )
        assert config.rollout.dynamic_sampling.max_rounds == 3


def test_a_list_with_a_default_is_added_to(here):
    given = ["--config", "train.yaml"]
    usual = parse_config(TrainConfig, "train", given).run.loggers
    more = parse_config(TrainConfig, "train", [*given, "--run.loggers+", "{name: mlflow}"])
    assert usual and more.run.loggers == [*usual, {"name": "mlflow"}]


def test_arguments_of_a_task_can_be_lists_that_are_added_to(here):
    given = ["--config", "train.yaml", "--task.args.mine+", "1", "--task.args.mine+", "[2, 3]"]
    assert parse_config(TrainConfig, "train", given).task.args["mine"] == [1, 2, 3]


# --- what the config names
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.path", "nowhere"],
            "model.path: must be a Hugging Face directory, asset:NAME, the directory of a run or "
            "NAMESPACE/NAME of the Hugging Face hub, got 'nowhere'",
        ),
        (
            ["--model.path", "asset:nothing"],
            "model.path: must be asset:NAME with a NAME of countdown, smollm2, got",
        ),
        (
            ["--task.name", "countdwon"],
            "task.name: must be one of arithmetic, countdown, countdown_turns, math, mixture, "
            "reasoning_gym, textarena, tools, two_prompts, module:Class, got 'countdwon' "
            "(did you mean 'countdown'?)",
        ),
        (
            ["--task.name", "lukc:Luck"],
            "task.name: cannot import 'lukc:Luck': No module named 'lukc'",
        ),
        (
            ["--task.name", "luck:Lukc"],
            "task.name: cannot import 'luck:Lukc': module 'luck' has no attribute",
        ),
        (
            ["--task.name", "luck:Unlucky", "--task.args", "{number: x}"],
            "task.name: luck:Unlucky: invalid literal for int() with base 10: 'x'",
        ),
        (
            ["--task.name", "fractions:Fraction", "--task.args", "{numerator: 1}"],
            "task.name: must be a class with a method 'problems', got 'fractions:Fraction'",
        ),
        (["--task.name", "./luck:Luck"], "task.name: cannot import './luck:Luck': "),
        (
            ["--task.name", "luck:zlib"],
            "task.name: must be a class with a method 'problems', got 'luck:zlib'",
        ),
        (
            ["--task.args.coutns", "{}"],
            "task.args.coutns: must be one of seed, counts, bands, traces, got 'coutns' (did "
            "you mean 'counts'?)",
        ),
        (["--task.args.seed", "x"], "task.args.seed: must be an integer, got 'x'"),
        (
            ["--task.args.counts.train", "0"],
            "task.args.counts.train: must be an integer >= 1, got 0",
        ),
        (
            ["--task.train_split", "trian"],
            "task.train_split: must be one of test, validation, train, sft, got 'trian'",
        ),
        (
            ["--rollout.max_prompt_tokens", "3"],
            "no prompt is left: of 16 problems, 16 (such as problem ...",
        ),
        (
            ["--evaluation", json.dumps(EVALUATION | {"problems": 5})],
            "evaluation.problems: must be at most 4, the size of the split 'test', got 5",
        ),
        (
            ["--evaluation", json.dumps(EVALUATION | {"split": "tset"})],
            "evaluation.split: must be one of test, validation, train, sft, got 'tset'",
        ),
        (["--rollout.group_size", "1"], "advantage[0]"),
        (
            ["--advantage", "[{name: maxrl}]"],
            "advantage[0]: must be used with rewards >= 0 (reward.wrong, rewards, and penalties "
            "before it), got -1.0",
        ),
        (
            [
                "--advantage",
                "[{name: overlong_penalty, max_tokens: 12, buffer_tokens: 3}, {name: maxrl}]",
                "--reward.wrong",
                "0",
            ],
            "advantage[1]: must be used with rewards >= 0",
        ),
        (
            ["--advantage", "[{name: group_normalise}]"],
            "advantage[0].name: must be one of gpg, group_center, ..., got 'group_normalise' "
            "(did you mean 'group_normalize'?)",
        ),
        (
            ["--advantage", "[{name: gae}]"],
            "advantage[0]: needs the values of a critic; add a section `critic:`",
        ),
        (
            ["--critic", "{learning_rate: 0.1}"],
            "critic: must be null where no transform of the advantage reads values, got a critic",
        ),
        (
            [
                *("--critic", "{learning_rate: 0.1, warmup_updates: 9}"),
                *("--optimizer.schedule", "linear", "--optimizer.decay_updates", "9"),
            ],
            "optimizer.decay_updates: must be null or > 9, which is critic.warmup_updates, got 9",
        ),
        (
            ["--advantage", "[{name: gae}]", "--critic", "{learning_rate: 0.1, path: nowhere}"],
            "critic.path: must be a Hugging Face directory, asset:NAME, the directory of a run or "
            "NAMESPACE/NAME of the Hugging Face hub, got 'nowhere'",
        ),
        (
            ["--advantage", "[{nam: whiten}]"],
            "advantage[0].name: must be given, one of: gpg, group_center",
        ),
        (
            ["--advantage", "[{name: 'own:advantage'}]"],
            "advantage[0].name: cannot import 'own:advantage': ",
        ),
        (
            [
                "--advantage",
                "[{name: group_normalize}, {name: shape_by_entropy, alpha: -1, kappa: 2}]",
            ],
            "advantage[1]: shape_by_entropy.alpha: must be a number >= 0, got -1.0",
        ),
        (
            [
                "--advantage",
                "[{name: group_normalize}, {name: shape_by_entropy, alpha: 0.4, kappa: 1}]",
            ],
            "advantage[1]: shape_by_entropy.kappa: must be a number > 1, so that the bonus "
            "flips no sign, got 1.0",
        ),
        (
            [
                "--advantage",
                "[{name: group_normalize}, {name: shape_by_entropy, alhpa: 0.4, kappa: 2}]",
            ],
            "advantage[1].alhpa: must be one of alpha, kappa, entropy_source, got 'alhpa' "
            "(did you mean 'alpha'?)",
        ),
        (
            [
                "--advantage",
                "[{name: shape_by_entropy, alpha: 0.4, kappa: 2}, {name: group_normalize}]",
            ],
            "advantage: group_normalize: advantages must have shape (8, 1), one for each sequence, "
            "got (8, 12)",
        ),
        (
            ["--advantage", "[{name: group_normalize}, {name: remax}]"],
            "advantage[1]: must be the first transform, as those before it do not apply to the "
            "reward of the greedy completion, got 1 before it",
        ),
        (
            [
                "--loss.token_weights",
                "[{name: geometric_rejection}]",
                "--rollout.exploration.temperature",
                "1.2",
            ],
            "loss.token_weights: must be without geometric_rejection if rollout.exploration "
            "is set, because it would reject all rows of another temperature, got "
            "['geometric_rejection']",
        ),
        (["--run.wandb_project", "x"], "run.wandb_project: wandb is not installed; "),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(
    refused, monkeypatch, arguments, message
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert says(refused("train", "--config", "train.yaml", *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task.name", "math"],
            "task.name: must be a task with demonstrations, such as countdown, got 'math'",
        ),
        (["--length_buckets", "[8, 16]"], "length_buckets: a demonstration has "),
        (
            ["--length_buckets", "[16, 8]"],
            "length_buckets: must be a list of increasing lengths, got [16, 8]",
        ),
        (
            ["--length_buckets", "[16, x]"],
            "--length_buckets[1]: must be an integer, got 'x'",
        ),
        (
            ["--architecture.num_kv_heads", "3"],
            "architecture.num_kv_heads: must be a divisor of architecture.num_heads (2), got 3",
        ),
        (
            ["--gate.at_least", "{arithmatic: 1}"],
            "gate.at_least: must be one of arithmetic, operands, ..., got 'arithmatic' (did "
            "you mean 'arithmetic'?)",
        ),
        (
            ["--gate.at_most", "{pass@4: 1}"],
            "gate.at_most: must be one of arithmetic, operands, ..., got 'pass@4' (did you "
            "mean 'pass@2'?)",
        ),
        (
            ["--gate.at_least", "{pass@1: 80}"],
            "gate.at_least.pass@1: must be >= 0 and <= 1, got 80",
        ),
        (["--gate.at_most", "{stopped: -1}"], "gate.at_most.stopped: must be >= 0, got -1"),
        (
            ["--run.evaluate_every", "3"],
            "run.evaluate_every: must be 0, because SFT does not use it, got 3",
        ),
        (
            ["--optimizer.offload", "true"],
            "optimizer.offload: must be False, because SFT does not use it, got True",
        ),
        (
            ["--gate.at_most", "{stopped: x}"],
            "--gate.at_most.stopped: must be a number, got 'x'",
        ),
        (
            ["--evaluation.problems", "9999"],
            "evaluation.problems: must be at most 256, the size of the split 'test', got 9999",
        ),
    ],
)
def test_an_sft_config_that_cannot_work_is_refused_before_anything_is_written(
    refused, here, arguments, message
):
    write_yaml(here / "wrong.yaml", SFT | {"evaluation": EVALUATION})
    assert says(refused("sft", "--config", "wrong.yaml", *arguments), message)


# --- models
# ------------------------------------------------------------------------------------------------


TRAINED = ("train", "--config", "train.yaml")


@pytest.fixture
def model(tmp_path) -> Path:
    """A model that may be broken."""
    return make_hf_dir(tmp_path / "model", "qwen2", tokenizer=True)


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_truncated_weight_file_is_refused_with_its_name(refused, model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = refused(*TRAINED, "--model.path", str(model), "--rollout.max_prompt_tokens", "40")
    assert line.startswith(f"{weights}: is damaged or truncated")


def test_a_missing_tensor_is_refused_with_its_name(refused, model):
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors")
    line = refused(*TRAINED, "--model.path", str(model), "--rollout.max_prompt_tokens", "40")
    assert line == f"{model}: missing tensors (1): model.layers.1.mlp.up_proj.weight"


def test_a_directory_without_a_model_is_refused(refused, tmp_path):
    line = refused("export", "--model", str(tmp_path), "--output", "out")
    assert line.startswith("model.path: must be a Hugging Face directory")
    assert line.endswith(f"got {str(tmp_path)!r} without a config.json")


def test_a_model_without_a_tokenizer_is_refused(refused, tmp_path):
    model = make_hf_dir(tmp_path / "model", "qwen2")
    line = refused("train", "--config", "train.yaml", "--model.path", str(model))
    missing = "tokenizer.json or tokenizer.model or vocab.json"
    assert line == f"{model}: no usable tokenizer: there is no {missing}"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"model": 3}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(refused, model, content):
    (model / "tokenizer.json").write_bytes(content)
    line = refused("train", "--config", "train.yaml", "--model.path", str(model))
    assert line.startswith(f"{model}: no usable tokenizer: ")


def test_a_tokenizer_without_an_end_of_sequence_is_refused(refused, model):
    edit_json(model / "tokenizer_config.json", eos_token=None)
    edit_json(model / "config.json", eos_token_id=None)
    line = refused("train", "--config", "train.yaml", "--model.path", str(model))
    assert (
        line == f"{model}: the tokenizer has no end-of-sequence token, so no completion could end; "
        "name one in model.extra_eos"
    )


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(refused, model):
    edit_json(model / "config.json", vocab_size=300)
    line = refused("train", "--config", "train.yaml", "--model.path", str(model))
    assert line == (
        f"{model}: vocab_size: must be at least 384, the tokens of the tokenizer, got 300"
    )


@pytest.mark.parametrize(
    ("content", "message"), [("{", "must be JSON"), ('{"eos_token_id": "x"}', "eos_token_id")]
)
def test_a_broken_generation_config_is_refused_with_its_name(refused, model, content, message):
    (model / "generation_config.json").write_text(content)
    line = refused("train", "--config", "train.yaml", "--model.path", str(model))
    assert line.startswith(f"{model / 'generation_config.json'}: {message}")


def test_a_chat_prompt_without_a_chat_template_is_refused(refused, here, model):
    write_jsonl(here / "rows.jsonl", {"problem": "1 + 1", "answer": "2"})
    (model / "chat_template.jinja").unlink()
    line = refused("train", *math(model), "--task.args.chat", "true")
    assert "the tokenizer has no chat template; set task.args.chat to false" in line


# --- data
# --------------------------------------------------------------------------------------------------


def write_jsonl(path: Path, *rows) -> None:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )


def math(model: Path) -> list[str]:
    write_yaml(
        Path("math.yaml"), TRAIN | {"task": {"name": "math", "args": {"train": "rows.jsonl"}}}
    )
    return [
        "--config",
        "math.yaml",
        "--model.path",
        str(model),
        "--rollout.max_prompt_tokens",
        "200",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "1 + 1"}, "answer_field: must be one of 'problem', got 'answer'"),
        (
            {"problem": "1 + 1", "answer": None},
            "'answer': must be a number or a non-empty text, got None",
        ),
        ({"problem": "", "answer": "2"}, "'problem': must be a non-empty text, got ''"),
        ("{", "must be one JSON object per line, got an object over several lines"),
        ("[]", "must be one JSON object per line, got a JSON array"),
    ],
)
def test_a_row_without_problem_or_answer_is_refused_with_file_and_line(
    refused, here, model, row, message
):
    write_jsonl(here / "rows.jsonl", {"problem": "2 + 2", "answer": "4"}, row)
    assert refused("train", *math(model)).startswith(f"rows.jsonl:2: {message}")


def test_wrong_arguments_of_the_maths_task_are_refused(refused, here, model):
    write_jsonl(here / "rows.jsonl", {"problem": "1 + 1", "answer": "2"})
    for option, value, message in (
        ("train", "nowhere.jsonl", "task.args.train: must be a data file (JSONL, parquet or Arrow"),
        ("prompt", "no placeholder", "task.args.prompt: must be one of boxed, dapo, or a text "),
        (
            "verifier",
            "math-verfy",
            "task.args.verifier: must be one of math-verify, dapo, ..., got 'math-verfy' (did",
        ),
        ("workers", "0", "task.args.workers: must be an integer >= 1, got 0"),
        (
            "trian",
            "rows.jsonl",
            "task.args.trian: must be one of ..., got 'trian' (did you mean 't",
        ),
    ):
        assert says(refused("train", *math(model), f"--task.args.{option}", value), message)


# --- directories
# -------------------------------------------------------------------------------------------


def test_a_directory_with_another_run_is_refused_and_left_alone(refused, here):
    assert (
        main(["train", "--config", "train.yaml", "--run.directory", "other", "--steps", "1"]) == 0
    )
    line = refused(
        *("train", "--config", "train.yaml", "--run.directory", "other", "--steps", "2"),
        *("--rollout.group_size", "8"),
    )
    assert line.startswith(
        "run.directory: other holds another run (its rollout.group_size is 4, here it is 8); "
    )
    assert line.endswith("repeat its settings to resume it, or choose another directory")


def test_an_option_that_a_run_did_not_know_is_at_its_default_there(here, tmp_path):
    config = parse_config(TrainConfig, "train", ["--config", "train.yaml"])
    claim_directory(tmp_path / "run", config)
    file = tmp_path / "run" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["loss"]["mask_truncated"], stored["critic"], stored["decoding"]
    file.write_text(yaml.safe_dump(stored))
    check_directory(tmp_path / "run", config)
    masked = dataclasses.replace(config, loss=LossConfig(mask_truncated=True))
    with pytest.raises(ValueError, match=r"its loss\.mask_truncated is False, here it is True"):
        check_directory(tmp_path / "run", masked)
    del stored["seed"]  # a setting without a default was always there
    file.write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match="its seed is None, here it is 0"):
        check_directory(tmp_path / "run", config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "notes.txt",
            "precious",
            "run.directory: taken is not empty and holds no run; choose another directory",
        ),
        ("config.yaml", "steps: [1", "taken/config.yaml:1: must be YAML, got an error: expected "),
        ("config.yaml", "a: 1\nb\nc: 2", "taken/config.yaml:3: must be YAML, got an error: could "),
        (
            "config.yaml",
            "precious",
            "taken/config.yaml: must be a mapping of config fields, got 'precious'",
        ),
    ],
)
def test_a_directory_with_something_else_is_refused_and_left_alone(
    refused, here, name, content, message
):
    shutil.rmtree(here / "taken", ignore_errors=True)
    (here / "taken").mkdir()
    (here / "taken" / name).write_text(content)
    line = refused("train", "--config", "train.yaml", "--run.directory", "taken")
    assert line.startswith(message)
    assert (here / "taken" / name).read_text() == content


@pytest.mark.parametrize("option", ["--run.directory", "--run.checkpoints"])
@pytest.mark.parametrize("path", ["a[x]", "a[x]/b", "what?", "*"])
def test_a_path_whose_checkpoints_could_not_be_read_back_is_refused(refused, here, option, path):
    line = refused("train", "--config", "train.yaml", option, str(here / path))
    where = option.removeprefix("--")
    assert line == (
        f"{where}: must be a path without the characters [ ] * ?, whose checkpoints could not be "
        f"read back, got '{here / path}'"
    )


@pytest.mark.parametrize("option", ["--run.directory", "--run.checkpoints"])
def test_a_directory_that_cannot_be_made_is_refused_before_the_weights(
    refused, here, option, monkeypatch
):
    monkeypatch.setattr("entropy_rl.trainer.setup.load_model", None)
    path = str(here / "luck.py" / "run")
    line = refused("train", "--config", "train.yaml", option, path)
    where = option.removeprefix("--")
    assert line == (
        f"{where}: must be a directory that can be created, got {path!r}, as {here / 'luck.py'} is "
        "a file"
    )
    # --print_config checks it too.
    assert main(["train", "--config", "train.yaml", option, path, "--print_config"]) == 2


def test_checkpoints_that_are_a_file_are_noticed_before_the_first_one(refused, here):
    with claimed_run(
        parse_config(TrainConfig, "train", ["--config", "train.yaml", "--run.directory", "held"])
    ):
        (here / "held" / "checkpoints").write_text("")
    line = refused("train", "--config", "train.yaml", "--run.directory", "held")
    assert line.startswith("run.directory: must be a directory that can be created, got 'held/chec")
    shutil.rmtree(here / "held")


def test_a_file_in_place_of_a_directory_is_refused(refused):
    line = refused("train", "--config", "train.yaml", "--run.directory", "luck.py")
    assert line == "run.directory: luck.py is a file; choose another directory"
    line = refused("train", "--config", "train.yaml", "--run.directory", "/proc/run")
    must_be = "run.directory: must be a directory that can be created, got "
    assert line == f"{must_be}'/proc/run' (No such file or directory)"


def evaluate(*more: str) -> list[str]:
    return ["evaluate", "--seed", "0", "--model.path", "model", "--task.name", "countdown"] + [
        *("--evaluation", json.dumps(EVALUATION), "--output", "out", *more)
    ]


def test_an_evaluation_that_cannot_work_is_refused_before_anything_is_written(refused, here):
    line = refused(*evaluate("--evaluation.problems", "9999"))
    assert (
        line == "evaluation.problems: must be at most 256, the size of the split 'test', got 9999"
    )
    assert refused(*evaluate("--max_prompt_tokens", "2")).startswith(
        "no prompt is left: of 3 problems, 3 (such as problem "
    )
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("precious")
    assert refused(*evaluate("--output", "full")).startswith(
        "output: full is not empty and holds no run; "
    )


def test_an_evaluation_does_not_replace_one_with_other_settings(here, capsys, refused):
    into = ("--output", "evaluated")
    assert main(evaluate(*into)) == 0
    result = json.loads((here / "evaluated" / "evaluation.json").read_text())
    assert (result["problems"], result["samples"], result["left_out"]) == (3, 2, 0)
    assert len((here / "evaluated" / "samples.jsonl").read_text().splitlines()) == 6
    assert "Pass@2" in capsys.readouterr().out
    line = refused(*evaluate(*into, "--evaluation.samples", "4"))
    assert line.startswith(
        "output: evaluated holds another run (its evaluation.samples is 2, here it is 4); "
    )


def test_a_run_without_a_checkpoint_cannot_be_evaluated_or_exported(refused, here):
    (here / "young" / "checkpoints").mkdir(parents=True)
    write_yaml(here / "young" / "config.yaml", TRAIN)
    shutil.copytree(here / "model", here / "young" / "model")
    for arguments in (
        evaluate("--model.path", "young"),
        ["export", "--model", "young", "--output", "out"],
    ):
        assert refused(*arguments) == "young/checkpoints: there is no complete checkpoint yet"
    (here / "young" / "checkpoints").rmdir()
    assert refused(*arguments) == "young/checkpoints: there is no complete checkpoint yet"


def test_an_export_never_writes_over_something(refused, here):
    (here / "precious").mkdir()
    (here / "precious" / "notes.txt").write_text("precious")
    line = refused("export", "--model", "model", "--output", "precious")
    assert line == "precious: must not exist or be an empty directory; nothing was written"


def test_an_export_that_cannot_be_written_is_refused_before_weights_are_read(refused, monkeypatch):
    monkeypatch.setattr("entropy_rl.runs.load_model.load_weights", no_weights)
    export = ("export", "--model", "model", "--output")
    line = refused(*export, "luck.py/out")
    assert line.startswith("output: must be a directory that can be created, got 'luck.py/out', as")
    line = refused(*export, "out", "--format", "peft")
    assert line == "format: must be merged for a model without an adapter, got 'peft'"


def no_weights(*_, **__):
    raise AssertionError("weights are read")


def test_what_cannot_be_written_is_named_without_its_temporary_file(here):
    with pytest.raises(NotADirectoryError) as error:
        write_atomically(Path("luck.py/table.csv"), "")
    assert error.value.filename == "luck.py/table.csv"


def test_a_link_stays_and_the_file_that_it_names_is_replaced(here):
    (here / "table.csv").write_text("old")
    (here / "link.csv").symlink_to("table.csv")
    write_atomically(here / "link.csv", "new")
    assert (here / "link.csv").is_symlink() and (here / "table.csv").read_text() == "new"


def test_a_device_or_a_pipe_is_never_replaced_by_a_file(refused, here):
    os.mkfifo(here / "pipe.svg")
    (here / "link.svg").symlink_to("pipe.svg")
    sample = ("sample", "model", "1?", "--figure")
    for name in ("pipe.svg", "link.svg"):
        assert refused(*sample, name) == f"figure: {name}: must be a regular file, got a FIFO"
    assert (here / "pipe.svg").is_fifo()


def test_prompts_that_are_too_long_are_counted_and_reported_and_never_cut(here, capsys, caplog):
    tokenizer, task = load_tokenizer(here / "model"), Countdown(counts={"train": 16})
    lengths = {p.id: len(tokenizer.encode(p.prompt)) for p in task.problems("train")}
    limit = min(lengths.values())
    short = {i for i, length in lengths.items() if length == limit}
    assert 0 < len(short) < 16
    arguments = [
        "--config",
        "train.yaml",
        "--rollout.max_prompt_tokens",
        str(limit),
        "--steps",
        "4",
    ]
    assert (
        main(["train", *arguments, "--run.directory", "short", "--run.samples_per_step", "16"]) == 0
    )
    wanted = (
        f"{16 - len(short)} of 16 problems are left out: their prompt is longer than "
        f"max_prompt_tokens={limit} (such as problem "
    )
    assert any(message.startswith(wanted) for message in caplog.messages)
    samples = [
        json.loads(line) for line in (here / "short" / "samples.jsonl").read_text().splitlines()
    ]
    assert {sample["problem"] for sample in samples} <= short
    # Two updates a step: the rows of the first have their advantages, as it saw them.
    assert [sample["advantage_after"] is not None for sample in samples[:16]] == [True] * 8 + [
        False
    ] * 8
    of_group = [sample["advantage_before"][0] for sample in samples[:4]]
    assert sum(of_group) == pytest.approx(0, abs=1e-5)
    (start,) = [
        json.loads(line) for line in (here / "short" / "starts.jsonl").read_text().splitlines()
    ]
    assert start["step"] == 0 and start["versions"]["jax"] and start["devices"]


# --- the machine says no
# -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of a given size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        return disk

    yield mount
    subprocess.run(["umount", str(disk)], capture_output=True)


def test_a_read_only_directory_ends_the_run_with_its_name(small_disk, refused):
    disk = small_disk("ro")
    line = refused("train", "--config", "train.yaml", "--run.directory", str(disk / "run"), code=1)
    assert line == f"{disk}: Read-only file system"
    line = refused("export", "--model", "model", "--output", str(disk / "out"), code=1)
    assert "Read-only file system" in line


def test_a_full_disk_ends_the_run_with_everything_before_readable(small_disk, here, capsys):
    run = small_disk("size=3m") / "run"
    arguments = [
        "train",
        "--config",
        "train.yaml",
        "--run.directory",
        str(run),
        "--run.max_to_keep",
        "9",
    ]
    assert main([*arguments, "--steps", "4"]) == 0
    free = shutil.disk_usage(run).free
    (run.parent / "filler").write_bytes(bytes(free - 900_000))
    capsys.readouterr()
    assert main([*arguments, "--steps", "8"]) == 1
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert last.startswith(
        f"entropy-rl train: {run}/checkpoints: no room for the checkpoint of step 6: it takes "
    )
    expected = ("resuming ", "changed settings: steps: 4 -> 8", "update: ", "decoding: ")
    expected += ("step ", "compiled ", "entropy-rl ")
    assert not [line for line in lines if not line.startswith(expected)]
    assert [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == [*range(1, 7)]

    (run.parent / "more").write_bytes(bytes(shutil.disk_usage(run).free))
    assert main([*arguments, "--steps", "8"]) == 1
    assert capsys.readouterr().err == f"entropy-rl train: {run}/lock: No space left on device\n"

    (run.parent / "filler").unlink()
    (run.parent / "more").unlink()
    assert main([*arguments, "--steps", "6"]) == 0
    assert f"resuming {run} after step 4 of 6" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("limit", [6_000, 20_000])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(here, limit):
    # As with a quota: the disk has room, but no file may be larger than `limit` bytes.
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "runpy.run_module('entropy_rl.cli.main', run_name='__main__')"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "train",
            "--config",
            "train.yaml",
            "--run.directory",
            f"limit_{limit}",
        ]
        + ["--run.samples_per_step", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    *lines, line = result.stderr.splitlines()
    assert line == (
        f"entropy-rl train: limit_{limit}/checkpoints: a checkpoint could not be written: File "
        "too large; "
        "those before it are complete"
    )
    assert all(x.startswith(("step ", "update: ", "decoding: ", "compiled ")) for x in lines)
    steps = [x for x in lines if "  correct " in x]
    metrics = (here / f"limit_{limit}" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, len(steps) + 1))


# --- errors of ours
# ----------------------------------------------------------------------------------------


def test_a_programming_error_keeps_its_traceback(here, monkeypatch):
    (here / "buggy.py").write_text(
        "from luck import Luck\n\nclass Buggy(Luck):\n    def judge(self, *_):\n        return 1 "
        "/ 0\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(
            [
                "train",
                "--config",
                "train.yaml",
                "--task.name",
                "buggy:Buggy",
                "--run.directory",
                "buggy",
            ]
        )


def test_a_traceback_of_bad_input_can_be_asked_for(here, monkeypatch):
    monkeypatch.setenv("ENTROPY_RL_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"^model\.path: must be .*, got 'nowhere'"):
        main(["export", "--model", "nowhere", "--output", "out"])


def test_ctrl_c_before_the_run_has_begun_is_one_line(here, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    setup = importlib.import_module("entropy_rl.trainer.setup")
    monkeypatch.setattr(setup, "load_model", interrupt)
    assert main(["train", "--config", "train.yaml"]) == 130
    assert capsys.readouterr() == ("", "entropy-rl train: interrupted\n")


# --- help
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_lists_the_verbs(capsys, arguments):
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("usage: entropy-rl VERB ")
    for verb in ("train", "sft", "evaluate", "export", "compare", "data list", "data prepare"):
        assert f"\n  {verb} " in out


@pytest.mark.parametrize("arguments", [["data"], ["data", "--help"], ["help", "data"]])
def test_the_help_of_a_group_lists_its_verbs_only(capsys, arguments):
    assert main(arguments) == 0
    verbs = [
        line.split("  ")[1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("  ")
    ]
    assert verbs == [
        f"data {word}".strip()
        for word in ("list", "prepare", "show", "overlap", "select", "prompts")
    ]


def leaves(config: dict, above: str = ""):
    for name, value in config.items():
        if isinstance(value, dict) and name not in ("args", "surrogate", "at_least", "at_most"):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


@pytest.mark.parametrize("verb", ["train", "sft", "evaluate", "export", "compare", "data prompts"])
def test_the_help_of_a_verb_explains_every_setting_on_a_narrow_terminal(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([verb, "--config", "nowhere.yaml", "--help"])
    out, err = capsys.readouterr()
    assert end.value.code == 0 and err == ""
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main([verb, "--print_config"])
    for name in leaves(yaml.safe_load(capsys.readouterr().out)):
        # A section that is null has a heading, and its fields.
        assert f"  --{name} " in out or (f"\n{name}: " in out and f"  --{name}." in out), name
    if verb in ("train", "sft", "evaluate"):
        assert "  --evaluation.samples INT" in out


def test_the_printed_config_is_a_config_file(here, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", "train.yaml", "--steps", "9", "--print_config"])
    out, err = capsys.readouterr()
    assert end.value.code in (0, None) and err == ""
    (here / "printed.yaml").write_text(out)
    config = parse_config(TrainConfig, "train", ["--config", "printed.yaml"])
    assert config == parse_config(TrainConfig, "train", ["--config", "train.yaml", "--steps", "9"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--version"], "0."),
        (["-V"], "0."),
        (["help", "train"], "usage: entropy-rl train "),
        (["--help"], "usage: entropy-rl VERB"),
        (["train", "--help"], "usage: entropy-rl train "),
        (["export", "--help"], "usage: entropy-rl export "),
        (["train", "--print_config"], "seed: null"),
        (["train", "--steps", "ten"], ""),
    ],
)
def test_help_and_bad_arguments_are_answered_before_jax_is_imported(tmp_path, arguments, text):
    code = (
        "import sys\nfrom entropy_rl.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "assert not {'jax', 'transformers', 'numpy'} & set(sys.modules)\nsys.exit(code)"
    )
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert time.perf_counter() - begin < 3
    assert result.stdout.startswith(text)
    if text:
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert result.returncode == 2
        assert result.stderr == "entropy-rl train: --steps: must be an integer, got 'ten'\n"
