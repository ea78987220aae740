"""The README and the recipes say what is true: the example runs, files exist, configs are
accepted.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from entropy_rl.advantages import advantage_of
from entropy_rl.cli.parse import parse_config
from entropy_rl.commands.analyze import AnalyzeConfig
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.study import StudyConfig
from entropy_rl.config.train import EvaluateConfig, TrainConfig
from entropy_rl.studies import design

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
CLASSES = {
    "analyze": AnalyzeConfig,
    "evaluate": EvaluateConfig,
    "study": StudyConfig,
    "train": TrainConfig,
    "sft": SFTConfig,
}


def test_the_notebook_example_runs_as_it_is_written(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["metrics"]["bonus_share"] > 0
    assert int(names["state"].updates) == 1
    assert "bonus_share" in capsys.readouterr().out


def test_every_file_and_folder_that_the_readme_names_exists():
    names = set(re.findall(r"`((?:entropy_rl|configs|launch|tests)/[\w./*]+)`", README))
    names |= {
        f"configs/{name}"
        for name in re.findall(r"`([\w*]+\.yaml)`", README)
        if name != "config.yaml"
    }
    (tree,) = re.findall(r"```\nentropy_rl/\n(.*?)configs/", README, flags=re.S)
    for line in tree.strip().splitlines():
        names |= {f"entropy_rl/{word}" for word in line[:48].split() if word.endswith((".py", "/"))}
    assert len(names) > 30
    for name in names:
        assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_is_a_page_with_a_header_and_is_accepted_by_its_own_command(path, monkeypatch):
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("hardware", "time", "command"):
        assert f"#   {word}" in header, word
    verb, file = re.search(r"entropy-rl (\w+) --config (\S+)", header).groups()
    assert ROOT / file == path
    config = parse_config(CLASSES[verb], verb, ["--config", str(path)])
    if verb == "train":
        advantage_of(config)
    if verb == "study":
        monkeypatch.chdir(ROOT)
        assert len(design(config).units()) > len(config.arms)


def test_the_commands_of_the_readme_are_accepted_and_evaluate_the_file_that_they_are_given():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.S)).replace("\\\n", " ")
    seen = []
    for line in blocks.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["entropy-rl"] or words[1] not in CLASSES or "--config" not in words:
            continue
        seen.append(words[1])
        arguments = [
            str(ROOT / word) if word.startswith("configs/") else word for word in words[2:]
        ]
        config = parse_config(CLASSES[words[1]], words[1], arguments)
        if words[1] == "evaluate" and "test" in config.task.args:
            assert config.evaluation.split == "test"
    assert {"train", "evaluate", "study", "analyze"} <= set(seen)


def differences(one, other, path=""):
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from differences(one.get(name), other.get(name), f"{path}.{name}".lstrip("."))
    elif one != other:
        yield path


@pytest.mark.parametrize(
    "baseline, recipe, science",
    [
        ("countdown_grpo", "countdown_grpo_entropy", "advantage"),
        ("countdown_grpo", "countdown_grpo_entropy_bonus", "loss.entropy_coef"),
        ("countdown_ppo", "countdown_ppo_entropy", "advantage"),
        ("qwen2_5_7b_grpo", "qwen2_5_7b_grpo_entropy", "advantage"),
        ("qwen2_5_7b_ppo", "qwen2_5_7b_ppo_entropy", "advantage"),
        ("qwen2_5_math_7b_grpo", "qwen2_5_math_7b_grpo_entropy", "advantage"),
    ],
)
def test_two_recipes_differ_in_the_one_line_that_differs_in_the_science(baseline, recipe, science):
    one, other = (
        yaml.safe_load((ROOT / "configs" / f"{n}.yaml").read_text()) for n in (baseline, recipe)
    )
    assert set(differences(one, other)) == {science, "run.directory"}


@pytest.mark.parametrize("model", ["countdown", "qwen2_5_7b"])
def test_ppo_differs_from_grpo_by_its_critic_the_advantage_and_the_steps_that_warm_it_up(model):
    grpo, ppo = (
        yaml.safe_load((ROOT / "configs" / f"{model}_{n}.yaml").read_text())
        for n in ("grpo", "ppo")
    )
    assert set(differences(grpo, ppo)) == {"advantage", "critic", "steps", "run.directory"}
    assert ppo["steps"] == grpo["steps"] + ppo["critic"]["warmup_steps"]


def test_the_large_recipe_of_ppo_states_the_settings_of_the_paper():
    # arXiv 2506.14758, appendix B.
    path = ROOT / "configs/qwen2_5_7b_ppo_entropy.yaml"
    config = parse_config(TrainConfig, "train", ["--config", str(path)])
    critic = config.critic
    assert (critic.learning_rate, critic.warmup_steps, critic.gamma, critic.lam) == (
        2e-6,
        10,
        1.0,
        1.0,
    )
    first, *_, last = config.advantage
    assert first == {"name": "gae", "lam": 1.0}
    assert last == {"name": "shape_by_entropy", "alpha": 0.1, "kappa": 2.0}


@pytest.mark.parametrize("model", ["qwen2_5_7b", "qwen2_5_math_7b"])
def test_the_large_recipes_state_the_settings_of_the_paper(model):
    # arXiv 2506.14758, section 4 and table 4.
    config = parse_config(
        TrainConfig, "train", ["--config", str(ROOT / f"configs/{model}_grpo_entropy.yaml")]
    )
    assert (config.rollout.prompts, config.rollout.group_size) == (512, 8)
    assert config.rollout.prompts // config.batching.mini_batch_prompts == 16
    assert config.rollout.max_new_tokens == 8192 and config.rollout.temperature == 1.0
    assert config.loss.surrogate == {
        "name": "ppo_clip",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "dual_clip": 3.0,
    }
    assert config.loss.aggregation == "token-mean"
    assert config.loss.kl_coef == config.loss.entropy_coef == 0
    assert config.optimizer.learning_rate == 1e-6
    assert (config.reward.correct, config.reward.wrong) == (1.0, -1.0)
    assert config.advantage[1] == {"name": "shape_by_entropy", "alpha": 0.4, "kappa": 2.0}
