"""Command lines that people have got wrong: each ends with exit code 2 and one line that helps."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
import yaml
from error_lines import says
from tiny_runs import EVALUATION, ROOT, SFT, write_yaml

from entropy_rl.cli.main import _VERBS, main
from entropy_rl.cli.method_names import _KINDS, method_names
from entropy_rl.cli.parse import parse_config
from entropy_rl.commands.sample import SampleConfig
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.recipes import find_config, recipe_names
from entropy_rl.config.registry import factories_of, import_object
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.synonyms import SYNONYMS, suggested_field
from entropy_rl.config.train import TrainConfig
from entropy_rl.runs.directory import check_run, claimed_run
from entropy_rl.version import __version__

TRAIN = ["train", "--config", "train.yaml"]
EVALUATE = ["evaluate", "--config", "countdown_evaluate", "--output", "out"]


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    """The working directory: its model and tasks, and a train.yaml of the test's own."""
    monkeypatch.chdir(workspace)
    write_yaml(workspace / "train.yaml", tiny_runs.TRAIN)
    return workspace


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Files and recipes.
        (
            ["train", "--config", "countdown_grpo_entrpy"],
            "--config: must be a file or one of the recipes ..., countdown_analyze, ..., got "
            "'countdown_grpo_entrpy' (did you mean 'countdown_grpo_entropy'?)",
        ),
        (
            ["train", "--config", "configs/countdown_grop.yaml"],
            "--config: must be a file or one of the recipes ... (did you mean 'countdown_grpo'?)",
        ),
        (["train", "--config", ""], "--config: must be a file or the name of a recipe, got ''"),
        (["train", "--config", "study/tinny"], "--config: ... (did you mean 'study/tiny'?)"),
        (
            ["train", "--config", "countdown_evaluate"],
            "...countdown_evaluate.yaml: must be a config of this verb, got one of `evaluate`",
        ),
        (
            ["plan", "--config", "smollm2_sft", "--devices", "1"],
            "...smollm2_sft.yaml: must be a config of this verb, got one of `sft`, `plan-sft`",
        ),
        (["sample", "--config", "real_model"], "... verb, got one of `train`, `plan`"),
        (["train", "--config", "study/tiny"], "... verb, got one of `study`"),
        (["train"], "no --config FILE: missing: seed, steps, "),
        (["train", "--print_config", "--steps", "3"], None),
        # An option before the file.
        (
            ["evaluate", "--model.path", "runs/none", *EVALUATE[1:]],
            "model.path: must be a Hugging Face directory, ... hub, got 'runs/none' "
            "(HF_HUB_OFFLINE is set); `hf download runs/none` caches a model of the Hub",
        ),
        ([*EVALUATE, "--model.path", "runs/none"], "model.path: must be "),
        # Names of other libraries.
        ([*TRAIN, "--lr", "1e-6"], "--lr: ... (did you mean '--optimizer.learning_rate'?)"),
        (
            [*TRAIN, "--optimizer.lr", "1e-6"],
            "--optimizer.lr: must be one of learning_rate, ..., got 'lr' (did you mean "
            "'--optimizer.learning_rate'?)",
        ),
        ([*TRAIN, "--learning_rate", "1"], "--learning_rate: ... '--optimizer.learning_rate'?)"),
        ([*TRAIN, "--learning-rate", "1"], "--learning-rate: ... '--optimizer.learning_rate'?)"),
        ([*TRAIN, "--batch_size", "8"], "--batch_size: ... '--rollout.prompts'?)"),
        ([*TRAIN, "--n", "8"], "--n: ... '--rollout.group_size'?)"),
        ([*TRAIN, "--rollout.n", "8"], "--rollout.n: ... '--rollout.group_size'?)"),
        ([*TRAIN, "--num_generations", "8"], "--num_generations: ... '--rollout.group_size'?)"),
        ([*TRAIN, "--kl_beta", "0.1"], "--kl_beta: ... '--loss.kl_coef'?)"),
        ([*TRAIN, "--loss.beta", "0.1"], "--loss.beta: ... '--loss.kl_coef'?)"),
        ([*TRAIN, "--eps", "0.2"], "--eps: ... '--optimizer.eps'?)"),
        ([*TRAIN, "--loss.eps", "0.2"], "--loss.eps: ... '--loss.surrogate.clip_low'?)"),
        ([*TRAIN, "--max_tokens", "9"], "--max_tokens: ... '--rollout.max_new_tokens'?)"),
        (
            [*EVALUATE, "--model.path", "model", "--evaluation.max_tokens", "9"],
            "--evaluation.max_tokens: ... '--evaluation.max_new_tokens'?)",
        ),
        ([*TRAIN, "--output_dir", "x"], "--output_dir: ... '--run.directory'?)"),
        ([*TRAIN, "--temperature", "1"], "--temperature: ... '--rollout.temperature'?)"),
        ([*TRAIN, "--grup_size", "1"], "--grup_size: ... '--rollout.group_size'?)"),
        ([*TRAIN, "--alpha", "0.4"], "--alpha: ... '--advantage.1.alpha'?)"),
        (["sft", "--config", "sft.yaml", "--final_rate", "0"], "--final_rate: moved to --optim"),
        # Lists.
        (
            [*TRAIN, "--advantage.2.alpha", "0.5"],
            "--advantage.2.alpha: must have an index from 0 to 1 of the list, got '2'",
        ),
        (
            [*TRAIN, "--advantage.shape_by_entropy.alpha", "0.5"],
            "--advantage.shape_by_entropy.alpha: must have an index of the list in place of "
            "'shape_by_entropy'",
        ),
        ([*TRAIN, "--advantage.1.alhpa", "0.5"], "advantage[1].alhpa: must be one of alpha, "),
        ([*TRAIN, "--advantage.1.alpha", "-1"], "advantage[1]: shape_by_entropy.alpha: must be "),
        (
            [*TRAIN, "--loss.token_weights.0.name", "erc"],
            "--loss.token_weights.0.name: must have no index, because the list is empty, got '0'",
        ),
        ([*TRAIN, "--advantage.1", "whiten"], "--advantage.1: must be a mapping, got 'whiten'"),
        # A text, a number or nothing where a section or a list belongs.
        ([*TRAIN, "--model", "asset:countdown"], "--model: must be a mapping, got 'asset:co"),
        ([*TRAIN, "--task", "countdown"], "--task: must be a mapping, got 'countdown'"),
        ([*TRAIN, "--loss.surrogate", "gspo"], "--loss.surrogate: must be a mapping, got 'gspo'"),
        ([*TRAIN, "--advantage", "whiten"], "--advantage: must be a list, got 'whiten'"),
        ([*TRAIN, "--advantage", "[whiten]"], "--advantage[0]: must be a mapping, got 'whiten'"),
        ([*TRAIN, "--advantage", "[{}]"], "advantage[0].name: must be given, one of: "),
        ([*TRAIN, "--advantage+", "3"], "--advantage+[2]: must be a mapping, got 3"),
        ([*TRAIN, "--run.loggers", "[wandb]"], "--run.loggers[0]: must be a mapping, got 'wandb'"),
        ([*TRAIN, "--run.loggers", "[{name: wandb}]"], "run.loggers[0].project: must be given"),
        ([*TRAIN, "--rollout.stop", "x"], "--rollout.stop: must be a list, got 'x'"),
        ([*TRAIN, "--model.lora", "{}"], "model.lora.rank: must be an integer >= 1 without a"),
        ([*TRAIN, "--model.lora.r", "8"], "--model.lora.r: must be one of rank, alpha, "),
        # Dashes, dots and equals signs.
        ([*TRAIN, "steps=3"], "command line: must be --config FILE or --dotted.path VALUE, got "),
        ([*TRAIN, "-steps", "3"], "command line: must be --config FILE or --dotted.path VALUE, "),
        ([*TRAIN, "---steps", "3"], "---steps: must be one of seed, steps, "),
        ([*TRAIN, "--steps="], "--steps: must be an integer, got None"),
        ([*TRAIN, "--steps.x", "3"], "--steps.x: must be --steps, because 'steps' has no fields"),
        ([*TRAIN, "--"], "command line: must be --config FILE or --dotted.path VALUE, got '--'"),
        # Numbers.
        ([*TRAIN, "--steps", "1.5"], "--steps: must be an integer, got 1.5"),
        ([*TRAIN, "--steps", "true"], "--steps: must be an integer, got True"),
        ([*TRAIN, "--optimizer.learning_rate", "nan"], "--optimizer.learning_rate: must be a nu"),
        ([*TRAIN, "--optimizer.learning_rate", "1e-6x"], "--optimizer.learning_rate: must be a"),
        ([*TRAIN, "--reward.correct", "1e39"], "--reward.correct: must be a finite number of flo"),
        ([*TRAIN, "--seed", "9" * 20], "--seed: must be an integer below 2^63, got 9999"),
        # Values.
        ([*TRAIN, "--optimizer.name", "adam"], "--optimizer.name: ... (did you mean 'adamw'?)"),
        ([*TRAIN, "--optimizer.schedule", "cos"], "--optimizer.schedule: must be one of constant"),
        (
            [*TRAIN, "--optimizer.name", "lion", "--optimizer.eps", "1e-6"],
            "optimizer.eps: must be 1e-08, because optimizer lion does not use it, got 1e-06",
        ),
        ([*TRAIN, "--run.directory"], "--run.directory: must have a value"),
        (
            [*TRAIN, "--task.name", "gsm8k"],
            "task.name: must be one of arithmetic, countdown, ..., math, ",
        ),
        ([*TRAIN, "--model.path", "yes"], "model.path: must be ..., got 'yes'"),
        ([*TRAIN, "--model.path", "Qwen/Qwen2.5-0.5B"], "model.path: "),
        ([*TRAIN, "--mesh.tensor", "64"], "mesh: the product of the sizes must be at most "),
        (["report", "runs/countdown_grpo"], "runs/countdown_grpo: "),
        (["compare", "runs/a", "runs/b"], "runs/a: "),
    ],
)
def test_a_command_line_that_people_get_wrong_is_one_line(refused, capsys, arguments, message):
    if message is None:  # the printed config comes first
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
        return
    line = refused(*arguments)
    assert says(line, message), line


@pytest.mark.parametrize("arguments", [["trian"], ["help", "trian"], ["--config", "x"]])
def test_an_unknown_verb_is_one_line(capsys, arguments):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("entropy-rl: verb: must be one of")


# --- entries of lists, and texts
# -----------------------------------------------------------------------------------------------


def parsed(*arguments: str) -> TrainConfig:
    return parse_config(TrainConfig, "train", [*arguments, "--config", "train.yaml"])


def test_an_index_changes_an_entry_of_a_list(here):
    config = parsed("--advantage.1.alpha", "0.5", "--rollout.stop", "[a, b]", "--rollout.stop.1=c")
    assert config.advantage == [
        {"name": "group_normalize"},
        {"name": "shape_by_entropy", "alpha": 0.5, "kappa": 2.0},
    ]
    assert config.rollout.stop == ["a", "c"]
    config = parsed("--advantage+", "{name: whiten}", "--advantage.2", "{name: gpg}")
    assert [entry["name"] for entry in config.advantage] == [
        *("group_normalize", "shape_by_entropy", "gpg")
    ]
    config = parsed("--task.args.mine", "[{a: 1}, 2]", "--task.args.mine.0.a", "[3]")
    assert config.task.args["mine"] == [{"a": [3]}, 2]


def test_an_index_of_a_list_that_an_alias_shares_changes_only_this_list(here):
    text = "task: {args: {one: &x [1, 2], two: *x}}\n"
    (here / "alias.yaml").write_text(text)
    files = ["--config", "train.yaml", "--config", "alias.yaml"]
    config = parse_config(TrainConfig, "train", [*files, "--task.args.one.0", "9"])
    assert (config.task.args["one"], config.task.args["two"]) == ([9, 2], [1, 2])


@pytest.mark.parametrize("text", ["1e3", "yes", "null", "[1]", "{a: b}", "0x10", "2026-01-01", " "])
def test_a_text_is_taken_as_it_is(here, text):
    config = parsed("--run.directory", text, f"--model.path={text}")
    assert (config.run.directory, config.model.path) == (text, text)


def test_an_argument_of_a_task_is_a_text_where_its_class_says_so(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    (here / "texts.py").write_text(
        "class Texts:\n    def __init__(self, a: str, b: str | None = None, c: int = 0): pass\n"
    )
    given = ["--task.args", "{}", "--task.args.a", "yes", "--task.args.b", "null"]
    config = parsed(*given, "--task.args.c", "7", "--task.name", "texts:Texts")
    assert config.task.args == {"a": "yes", "b": None, "c": 7}
    config = parsed("--task.name", "math", "--task.args", "{}", "--task.args.train", "1e3")
    assert config.task.args == {"train": "1e3"}


# --- recipes
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["NAME", "NAME.yaml", "configs/NAME.yaml", "./configs/NAME.yaml"])
def test_a_recipe_is_found_by_name_in_any_directory(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    path = find_config(given.replace("NAME", "countdown_grpo_entropy"))
    assert path.read_text() == (ROOT / "configs/countdown_grpo_entropy.yaml").read_text()
    assert find_config(given.replace("NAME", "study/tiny")).is_file()


def test_a_directory_of_that_name_does_not_hide_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("countdown_grpo", "study", "countdown_ppo.yaml"):
        (tmp_path / name).mkdir()
    assert find_config("countdown_grpo").is_file() and find_config("countdown_ppo.yaml").is_file()
    with pytest.raises(ValueError, match=r"^--config: cannot read 'study': Is a directory$"):
        parse_config(TrainConfig, "train", ["--config", "study"])


def test_a_file_of_that_name_comes_before_a_recipe(here):
    write_yaml(here / "countdown_grpo", {"steps": 7})
    config = parse_config(
        TrainConfig, "train", ["--config", "train.yaml", "--config", "countdown_grpo"]
    )
    assert config.steps == 7 and config.run.directory == "run"


def test_every_recipe_is_in_the_package():
    files = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert recipe_names() == sorted(str(file).removesuffix(".yaml") for file in files)


# --- what is printed is checked
# -----------------------------------------------------------------------------------------------

# Terms of the loss that do not fit.
UNFIT = """
from entropy_rl.losses import no_clips


def of_rows(advantages, stats):
    return (advantages * stats.log_probs).sum(1), no_clips(advantages)


def without_clips(advantages, stats):
    return advantages * stats.log_probs


def whole_numbers(advantages, stats):
    return stats.mask.astype(int), no_clips(advantages)


def nothing(advantages, stats):
    pass


def of_one(advantages, stats):
    return stats.old_entropy.mean()
"""


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("train", ["--advantage.1.alhpa", "0.5"], "advantage[1].alhpa: must be one of alpha"),
        ("train", ["--loss.surrogate", "{name: ppo_clpi}"], "loss.surrogate.name: must be one"),
        ("train", ["--task.args.coutns", "{}"], "task.args.coutns: must be one of"),
        ("train", ["--task.train_split", "trian"], "task.train_split: must be one of"),
        (
            "train",
            ["--loss.surrogate", "{name: 'unfit:of_rows'}"],
            "loss.surrogate: surrogate: result of of_rows must have arrays of shape (8, 12), got "
            "(8,)",
        ),
        (
            "train",
            ["--loss.surrogate", "{name: 'unfit:without_clips'}"],
            "loss.surrogate: surrogate: result of without_clips must be (loss, ClipMasks), got ",
        ),
        (
            "train",
            ["--loss.surrogate", "{name: 'unfit:whole_numbers'}"],
            "loss: grad requires real",
        ),
        (
            "train",
            ["--loss.token_weights", "[{name: 'unfit:nothing'}]"],
            "loss.token_weights: token weights: result of nothing must have shape (8, 12), got No",
        ),
        (
            "train",
            ["--loss.token_weights", "[{name: 'unfit:of_one'}]"],
            "loss.token_weights: token weights: result of of_one must have shape (8, 12), got ()",
        ),
        ("plan", ["--curriculum", "{name: nonsense}"], "curriculum.name: must be one of"),
        ("train", ["--curriculum", "{name: nonsense}"], "curriculum.name: must be one of"),
        (
            "train",
            ["--curriculum", "{name: replay_failed, fraction: 0.1}"],
            "curriculum: fraction: must be >= 1/4, a problem of the 4 of a step, got 0.1",
        ),
        (
            "train",
            ["--curriculum", "{name: learnability}"],
            "curriculum: must be null or another one",
        ),
        ("train", ["--rollout.prompts", "18"], "rollout.prompts: must be at most 16, the probl"),
        ("train", ["--rollout.prompts", "3"], "batching.mini_batch_prompts: must be a divisor"),
        ("sft", ["--length_buckets", "[8]"], "length_buckets: a demonstration has "),
        ("evaluate", ["--evaluation.split", "tset"], "evaluation.split: must be one of"),
    ],
)
def test_a_printed_config_that_cannot_run_is_refused(here, capsys, verb, arguments, message):
    (here / "unfit.py").write_text(UNFIT)
    write_yaml(here / "plan.yaml", tiny_runs.TRAIN | {"devices": 1})
    write_yaml(here / "sft.yaml", SFT | {"evaluation": EVALUATION})
    evaluate = {"seed": 0, "model": {"path": "m"}, "task": {"name": "luck:Luck"}, "output": "o"}
    write_yaml(here / "evaluate.yaml", evaluate | {"evaluation": EVALUATION})
    before = set(here.iterdir())
    assert main([verb, "--config", f"{verb}.yaml", *arguments, "--print_config"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"entropy-rl {verb}: {message}") and err.count("\n") == 1, err
    assert yaml.safe_load(out)["seed"] == 0
    assert {path for path in here.iterdir() if path.name != "__pycache__"} <= before


NO_MODEL = "model.path: must be a Hugging Face directory, "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TRAIN, "--model.path", "nowhere"], NO_MODEL),
        ([*TRAIN, "--model.lora", "{path: nowhere}"], "model.lora.path: nowhere/adapter_config."),
        (
            ["train-stacked", "--runs", "[{config: no.yaml}, {config: no.yaml}]"],
            "runs[0]: --config: must be a file or one of the recipes",
        ),
        (
            ["train-stacked", "--runs", "[{config: train.yaml}, {config: train.yaml}]"],
            "runs[0].model.lora: must be the section of LoRA",
        ),
        (
            ["study", "--config", "study/tiny", "--train.config", "nowhere.yaml"],
            "train: --config: must be a file or one of the recipes",
        ),
        (["export", "--model", "nowhere", "--output", "out"], NO_MODEL),
        (["compare", "nowhere", "model"], "nowhere: "),
        (["analyze", "--samples", "nowhere"], "nowhere: must be a JSONL file or the directory of"),
        (
            [
                *("data", "select", "--model.path", "nowhere", "--output", "out", "--keep", "1"),
                *("--data.train", "texts.jsonl", "--data.max_tokens", "9"),
            ],
            NO_MODEL,
        ),
        (["sample", "nowhere", "--question", "1 2 : 3"], NO_MODEL),
        (
            ["sample", "model", "--task.name", "luck:Luck", "--problem", "9999"],
            "problem: must be an id of the split 'test'",
        ),
    ],
)
def test_paths_of_a_printed_config_are_checked(here, capsys, arguments, message):
    before = set(here.iterdir())
    assert main([*arguments, "--print_config"]) == 2
    out, err = capsys.readouterr()
    verb = " ".join(arguments[:2]) if arguments[0] == "data" else arguments[0]
    assert err.startswith(f"entropy-rl {verb}: {message}") and err.count("\n") == 1, err
    assert yaml.safe_load(out)
    assert {path for path in here.iterdir() if path.name != "__pycache__"} <= before


# --- names
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", _KINDS)
def test_help_lists_the_names_that_a_config_may_have(field):
    module = {
        "Transform": "advantages",
        "Replay": "learner.replay_rule",
        "Reward": "rewards",
        "Curriculum": "curricula",
    }.get(_KINDS[field].returns, "losses")
    kind = import_object("", f"entropy_rl.{module}:{_KINDS[field].returns}")
    names = method_names(field)
    assert sorted(names) == sorted(factories_of(kind, _KINDS[field].given)) != []


@pytest.mark.parametrize(
    ("arguments", "path", "why"),
    [
        ([*TRAIN, "--loss.kl_estimator", "k1"], "loss.kl_estimator", "loss.kl_coef is 0"),
        (
            [*TRAIN, "--decoding.slots", "8", "--decoding.memory_share", "0.2"],
            "decoding.memory_share",
            "decoding.slots is set",
        ),
        ([*EVALUATE, "--task.train_split", "sft"], "task.train_split", "an evaluation does not"),
        ([*EVALUATE, "--model.remat", "full"], "model.remat", "an evaluation does not use it"),
        (["analyze", "--samples", "x", "--neighbors", "7"], "neighbors", "base is null"),
        (["analyze", "--samples", "x", "--rare_share", "0.2"], "rare_share", "base is null"),
        (["sample", "asset:countdown", "1 2", "--split", "sft"], "split", "task is null"),
    ],
)
def test_a_setting_without_an_effect_is_refused(here, refused, arguments, path, why):
    line = refused(*arguments)
    assert line.startswith(f"{path}: must be ") and f", because {why}" in line


def test_every_synonym_means_a_field_of_some_verb():
    for name, fields in SYNONYMS.items():
        for field in fields:
            classes = (TrainConfig, SFTConfig, EvaluateConfig, SampleConfig)
            found = [suggested_field(cls, [*field.split(".")[:-1], name]) for cls in classes]
            assert field in found, (name, field, found)


@pytest.mark.parametrize("columns", [45, 60, 80, 100, 160])
def test_help_fits_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for verb in ("train", "analyze"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        lines = capsys.readouterr().out.splitlines()
        # An option or a word that is longer is not broken.
        assert all(len(line) <= columns or len(line.split()) <= 6 for line in lines)
        assert max(map(len, lines)) > columns - 12
    assert len("\n".join(lines)) < 9000


@pytest.mark.parametrize("shell", ["bash", "sh"])  # of which sh may be another shell
@pytest.mark.parametrize(
    "script", ["quickstart.sh", "real_model.sh", "test.sh", "evaluate_math.sh"]
)
def test_help_of_a_script_is_its_head_and_installs_nothing(tmp_path, script, shell):
    (tmp_path / "launch").mkdir()
    for name in (script, "common.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    for option in ("--help", "-h"):
        done = subprocess.run(
            [shell, str(tmp_path / "launch" / script), option], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout and "#!" not in done.stdout and "source" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["launch"]


@pytest.mark.parametrize("script", ["quickstart.sh", "real_model.sh"])
def test_a_script_refuses_arguments_that_it_would_ignore(tmp_path, script):
    (tmp_path / "launch").mkdir()
    for name in (script, "common.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    command = ["bash", str(tmp_path / "launch" / script), "--steps", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    line = f"launch: {script} takes no arguments, got --steps; `--help` explains it\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert [path.name for path in tmp_path.iterdir()] == ["launch"]


def test_the_last_lines_of_the_quickstart_are_commands_on_the_runs_it_has_made(
    tmp_path, monkeypatch
):
    script = (ROOT / "launch/quickstart.sh").read_text()
    text = script.partition("cat <<END")[2].replace("$directory", "runs/d").replace("$seed", "0")
    activate, train, compare, report = [line.split() for line in text.splitlines() if "  " in line]
    assert activate == ["source", ".venv/bin/activate"]
    made = ["runs/d/grpo", "runs/d/grpo_entropy"]
    assert '--run.directory "$directory/grpo_entropy"' in script
    monkeypatch.chdir(tmp_path)
    config = parse_config(TrainConfig, "train", train[2:])
    assert config.run.directory == made[0]
    assert [compare[2:4], report[2:4]] == [made, made]
    for words, name in ((compare, "compare:CompareConfig"), (report, "report:ReportConfig")):
        cls = import_object("verb", f"entropy_rl.commands.{name}")
        assert parse_config(cls, words[1], words[2:]).output.startswith("runs/d/")


def test_the_version_is_printed_for_V(capsys):
    assert main(["-V"]) == main(["--version"]) == 0
    short, long = capsys.readouterr().out.split()
    assert short == long


def test_the_package_is_a_command_too():
    command = [sys.executable, "-m", "entropy_rl"]
    version = subprocess.run([*command, "-V"], capture_output=True, text=True, cwd=ROOT)
    assert version.stdout.split() == [__version__] and version.returncode == 0
    wrong = subprocess.run([*command, "trian"], capture_output=True, text=True, cwd=ROOT)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_steps_cannot_change_where_a_schedule_ends_with_them(here, tmp_path):
    run = ["--run.directory", str(tmp_path / "run"), "--optimizer.schedule", "cosine"]
    with claimed_run(parsed(*run)):
        pass
    check_run(parsed(*run, "--run.checkpoint_every", "3"))
    with pytest.raises(ValueError, match=r"holds another run \(its steps is 6, here it is 8\)"):
        check_run(parsed(*run, "--steps", "8"))
    run = ["--run.directory", str(tmp_path / "fixed"), "--optimizer.schedule", "cosine"]
    run += ["--optimizer.decay_updates", "12"]
    with claimed_run(parsed(*run)):
        pass
    check_run(parsed(*run, "--steps", "8"))


def test_the_commands_of_the_script_for_a_real_model_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = (ROOT / "launch/real_model.sh").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in script.replace("$directory", "runs/d").splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("entropy-rl ")]
    for _, verb, *arguments in commands:
        parse_config(import_object("verb", _VERBS[verb][0]), verb, arguments)
    verbs = [words[1] for words in commands]
    assert verbs == ["sample", "train", "evaluate", "analyze", "report", "sample", "export"]
