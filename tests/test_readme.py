"""The README, the docs and the recipes say what is true: the examples run, files and links exist,
commands and configs are accepted.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import sys
from operator import attrgetter
from pathlib import Path

import jax
import pytest
import yaml
from update_problem import make_data

import entropy_rl as er
from entropy_rl.advantages import Transform, advantage_of, build_advantage
from entropy_rl.cli.main import _VERBS
from entropy_rl.cli.parse import parse_config
from entropy_rl.commands.analyze import AnalyzeConfig
from entropy_rl.commands.train_stacked import parse_runs
from entropy_rl.config.common import EpisodesConfig, RunConfig
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.plan import PlanConfig
from entropy_rl.config.registry import factories_of, import_object
from entropy_rl.config.rewards import RewardConfig
from entropy_rl.config.rollout import RolloutConfig
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.stack import StackConfig
from entropy_rl.config.study import StudyConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.learner.replay_rule import Replay
from entropy_rl.losses import Controller, PreferenceLoss, Surrogate, TokenWeighting
from entropy_rl.rewards import Reward, build_rewards
from entropy_rl.runs.directory import free_fields
from entropy_rl.runs.hub import MODEL_FIELDS
from entropy_rl.studies import design
from entropy_rl.tasks import _BUILT_IN, load_task
from entropy_rl.tasks.environments import Done

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    *(ROOT / name for name in ("benchmarks/README.md", "entropy_rl/assets/countdown/README.md")),
]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
CLASSES = {
    "analyze": AnalyzeConfig,
    "evaluate": EvaluateConfig,
    "plan": PlanConfig,
    "study": StudyConfig,
    "train": TrainConfig,
    "sft": SFTConfig,
}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands(text):
    """The words of each `entropy-rl` command in the bash blocks of a page."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    found = [re.match(r"(?:\w+=\S+ )*entropy-rl (.*)", line) for line in lines]
    words = [shlex.split(match[1].split(" > ")[0], comments=True) for match in found if match]
    return [line for line in words if line != ["--help"]]


def anchors(text):
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- the README
# --------------------------------------------------------------------------------------------


def test_the_readme_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_python_example_of_the_readme_runs_as_it_is_written(capsys):
    (example,) = blocks(README, "python")
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["metrics"]["bonus_share"] > 0
    assert int(names["state"].updates) == 1
    assert "bonus_share" in capsys.readouterr().out


def test_the_config_of_the_readme_is_accepted_with_its_command(tmp_path):
    (config,) = blocks(README, "yaml")
    (command,) = [line for line in commands(README) if "mine.yaml" in line]
    (tmp_path / "mine.yaml").write_text(config)
    arguments = [str(tmp_path / word) if word == "mine.yaml" else word for word in command[1:]]
    parsed = parse_config(TrainConfig, command[0], arguments)
    assert parsed.run.directory == "runs/mine" and len(advantage_of(parsed).members) == 2


def test_the_readme_names_the_two_commands():
    scripts = [line.split("#")[0].strip() for line in "\n".join(blocks(README, "bash")).split("\n")]
    assert {"bash launch/quickstart.sh", "bash launch/test.sh"} <= set(scripts)


# --- all pages
# --------------------------------------------------------------------------------------------


@pages
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


@pages
def test_a_file_that_a_page_names_exists(page):
    if page.name == "CHANGELOG.md":  # names what is gone, too
        return
    names = set(
        re.findall(r"`((?:entropy_rl|configs|launch|tests|notebooks)/[\w./*]+)`", page.read_text())
    )
    if page.name == "command-line.md":
        recipes = re.findall(r"`((?:study/)?\w+\.yaml)`", page.read_text())
        names |= {f"configs/{name}" for name in recipes if name != "config.yaml"}
        assert {f"configs/{path.relative_to(ROOT / 'configs')}" for path in CONFIGS} <= names
    for name in names:
        assert list(ROOT.glob(name)), name


@pages
def test_the_commands_of_a_page_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page.read_text()):
        verb = " ".join(words[:2]) if words[0] == "data" else words[0]
        assert verb in _VERBS or words[0] == "VERB", words
        if words[0] == "VERB" or "--help" in words or "$recipe" in words:
            continue
        if {"mine.yaml", "runs.yaml", "guess.yaml", "FILE"} & set(words):  # files of the reader's
            continue
        words = [word for word in words if word != "--print_config"]
        config = parse_config(
            import_object("verb", _VERBS[verb][0]), verb, words[len(verb.split()) :]
        )
        if verb == "evaluate" and "test" in config.task.args:
            assert config.evaluation.split == "test"


@pages
def test_every_yaml_example_of_a_page_is_accepted_by_its_verb(page, tmp_path):
    recipe = yaml.safe_load((ROOT / "configs/countdown_grpo.yaml").read_text())
    del recipe["reward"], recipe["old_log_probs"]  # some examples need the defaults
    verb = "sft" if page.name in ("sft.md", "dpo.md") else "train"
    if verb == "sft":
        recipe = yaml.safe_load((ROOT / "configs/smollm2_sft.yaml").read_text())
    files = {"recipe": tmp_path / "recipe.yaml", "example": tmp_path / "example.yaml"}
    files["recipe"].write_text(yaml.safe_dump(recipe))
    for block in blocks(page.read_text(), "yaml"):
        if "apiVersion" in block:  # the manifest of Kubernetes, which tests/launch reads
            continue
        files["example"].write_text(block)
        if "runs" in yaml.safe_load(block):
            for run in parse_runs(
                parse_config(StackConfig, "train-stacked", [f"--config={files['example']}"])
            ):
                assert run.model.lora is not None
            continue
        parse_config(CLASSES[verb], verb, [f"--config={path}" for path in files.values()])


@pages
def test_every_python_example_of_a_page_uses_names_that_exist(page):
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("entropy_rl"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
            if isinstance(node, ast.Attribute) and re.fullmatch(r"er[.\w]+", ast.unparse(node)):
                assert attrgetter(ast.unparse(node).removeprefix("er."))(er) is not None


def trains_smollm2(path):
    """Whether the model of a recipe, or of one that it names, is that of the extra `smollm2`."""
    text = path.read_text()
    named = re.findall(r"^ +config: (configs/\S+)", text, flags=re.M)
    return "asset:smollm2" in text or any(trains_smollm2(ROOT / name) for name in named)


@pages
def test_a_page_whose_commands_need_smollm2_says_where_it_is_installed(page):
    recipes = [f"{path.relative_to(ROOT / 'configs')}" for path in CONFIGS if trains_smollm2(path)]
    words = " ".join(word for line in commands(page.read_text()) for word in line)
    shown = words + "".join(blocks(page.read_text(), "yaml"))
    if page.name in ("smollm2.md", "planning.md"):  # a plan needs no weights
        return
    if any(name in shown for name in ("asset:smollm2", *recipes)):
        assert re.search(r"\]\([./]*smollm2\.md", page.read_text())


def test_the_data_of_a_guide_is_written_before_it_is_read():
    sft, dpo = ((ROOT / f"docs/guides/{name}.md").read_text() for name in ("sft", "dpo"))
    for name in ("chats", "pairs"):
        assert sft.index(f'open("{name}.jsonl", "w")') < sft.index("```bash\nentropy-rl sft")
    assert "(sft.md#an-example)" in dpo


def test_the_page_on_resumption_names_every_setting_that_may_change():
    text = (ROOT / "docs/guides/resume-and-debug.md").read_text()
    allowed = text[text.index("**Settings that do not affect") : text.index("**Only one process")]
    named = set(re.findall(r"`([\w.]+)`", allowed))
    config = ["--config", str(ROOT / "configs/smollm2_sft.yaml")]
    config = parse_config(SFTConfig, "sft", [*config, "--optimizer.schedule", "constant"])
    free = set(free_fields(config)) | set(MODEL_FIELDS)
    fixed = {f"run.{field.name}" for field in dataclasses.fields(RunConfig)} - free
    assert fixed == {"run.checkpoints", "run.evaluate_every"} and {*fixed, "patience"} <= named
    for name in free:
        assert name in named or name.rpartition(".")[2] in named or name.startswith("run."), name


def test_the_pages_show_how_each_program_is_started():
    verbs = {words[0] for page in PAGES for words in commands(page.read_text())}
    assert {verb.split()[0] for verb in _VERBS} - {"debug-update"} <= verbs


def test_the_table_of_verbs_names_every_verb():
    text = (ROOT / "docs/command-line.md").read_text()
    named = set(re.findall(r"`([a-z-]+)`", text))
    assert {verb.split()[0] for verb in _VERBS} <= named


@pytest.mark.parametrize("page", ["write-your-own", "ppo"])
def test_the_examples_of_a_guide_are_accepted(page, tmp_path, monkeypatch):
    text = (ROOT / f"docs/guides/{page}.md").read_text()
    # Every example of an own advantage is a mine.py; the config names what is in it.
    (tmp_path / "mine.py").write_text("\n\n".join(blocks(text, "python")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for block in blocks(text, "yaml"):
        section = yaml.safe_load(block)
        gamma = 1.0 if "critic" in section else None
        assert build_advantage(section["advantage"], 4, gamma).members
    if page == "write-your-own":
        task = import_object("task", "mine:Echo")()
        problems = task.problems("train")[:2]
        assert [v.value for v in task.judge(problems, ["0", "2"])] == ["correct", "wrong"]
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_the_examples_of_rewards_are_accepted(tmp_path, monkeypatch):
    text = (ROOT / "docs/guides/rewards.md").read_text()
    (tmp_path / "mine.py").write_text("\n\n".join(blocks(text, "python")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    short, several = (yaml.safe_load(block) for block in blocks(text, "yaml"))
    assert RewardConfig(**short["reward"]) == RewardConfig()
    entries = build_rewards(several["rewards"]).entries
    assert [entry.weight for entry in entries] == [1, 0.2, 0.1, 0.1, 0]
    named = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.M))
    assert set(factories_of(Reward, ["max_new_tokens"])) <= named
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.parametrize("name", _BUILT_IN)
def test_the_pages_of_tasks_name_every_argument_of_a_built_in_task(name):
    text = (ROOT / "docs/tasks.md").read_text()
    guides = re.findall(rf"^\| [^|]*`{name}`[^|]*\|.*?\((guides/[\w-]+\.md)", text, flags=re.M)
    text += "".join((ROOT / "docs" / guide).read_text() for guide in guides)
    named = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, flags=re.M))
    arguments = inspect.signature(import_object("task.name", _BUILT_IN[name])).parameters
    assert {*arguments} <= set(re.findall(r"`(\w+)`", " ".join(named)))


def test_the_example_of_an_environment_plays(tmp_path, monkeypatch):
    text = (ROOT / "docs/guides/environments.md").read_text()
    (tmp_path / "mine.py").write_text("\n\n".join(blocks(text, "python")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (config,) = (yaml.safe_load(block) for block in blocks(text, "yaml"))
    limits = EpisodesConfig(**config["task"]["episodes"])
    task = load_task(config["task"]["name"], {}, limits)
    assert RolloutConfig(**config["rollout"]).max_new_tokens > limits.max_turn_tokens
    environment = task.environment
    environment.reset(environment.problems("train")[4], seed=0)
    assert environment.step("3?") == "Too small." and environment.step("6") == "Too large."
    assert environment.step("a cat").reward == -0.1 and environment.step("5") == Done(True)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_the_example_of_lora_in_a_notebook_updates_the_adapter_alone():
    (example,) = blocks((ROOT / "docs/guides/lora.md").read_text(), "python")
    names = {}
    exec(compile(example, "lora.md", "exec"), names)
    model, state = names["model"], names["state"]
    found, metrics = jax.eval_shape(names["update"], state, make_data())
    assert jax.tree.structure(found.params) == jax.tree.structure(model.adapter)
    assert metrics["grad_norm"].shape == ()
    assert jax.tree.structure(names["params"]) == jax.tree.structure(model.params)


def test_every_method_has_a_card_in_the_paper_index_with_a_status_and_a_file_that_exists():
    text = (ROOT / "docs/methods.md").read_text()
    cards = dict(re.findall(r"^#### (.*?)\n(.*?)(?=^##|\Z)", text, flags=re.S | re.M))
    named = {name for heading in cards for name in re.findall(r"`(\w+)`", heading)}
    given = ["group_size", "gamma", "reward_weights"]
    kinds = (Transform, Surrogate, TokenWeighting, Controller, Replay, PreferenceLoss)
    methods = {name for kind in kinds for name in factories_of(kind, given)}
    assert methods - named == set() and len(methods) > 50
    for heading, card in cards.items():
        assert re.search(r" · (exact|reconstructed|control|as in)[^·]* · ", card), heading
        files = re.findall(r"`([a-z_]+/[\w/]+\.py)`", card)
        assert files and all((ROOT / "entropy_rl" / file).is_file() for file in files), heading


# --- the recipes
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_is_a_page_with_a_header_and_is_accepted_by_its_own_command(path, monkeypatch):
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("hardware", "time", "command", *["needs"] * trains_smollm2(path)):
        assert f"#   {word}" in header, word
    verb, file = re.search(r"entropy-rl (\w+) --config (\S+)", header).groups()
    assert ROOT / file == path
    config = parse_config(CLASSES[verb], verb, ["--config", str(path)])
    if verb == "train":
        advantage_of(config)
        build_rewards(config.rewards, config.reward, config.rollout.max_new_tokens)
    if verb == "study":
        monkeypatch.chdir(ROOT)
        assert len(design(config).units()) > len(config.arms)


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
