"""Numbers that no field can hold, and files that are no files."""

import os
import socket
import threading
from pathlib import Path

import pytest

from entropy_rl.cli.parse import parse_config
from entropy_rl.config.checks import check_number, check_numbers, fits_float32, shown
from entropy_rl.config.files import read_text, reading, require_file
from entropy_rl.config.plan import PlanConfig
from entropy_rl.config.rollout import EvaluationConfig, RolloutConfig
from entropy_rl.config.train import (
    BatchingConfig,
    CriticConfig,
    LossConfig,
    OptimizerConfig,
    RewardConfig,
    TrainConfig,
)

INF, NAN = float("inf"), float("nan")
BASE = """
seed: 0
steps: 1
model: {path: m}
task: {name: countdown}
rollout: {prompts: 4, group_size: 2, max_prompt_tokens: 8, max_new_tokens: 8}
advantage: [{name: group_normalize}]
batching: {mini_batch_prompts: 4, max_tokens_per_micro_batch: 64}
optimizer: {learning_rate: 1e-3}
run: {directory: r}
"""


@pytest.fixture
def parse(tmp_path):
    (tmp_path / "c.yaml").write_text(BASE)
    return lambda *more: parse_config(
        TrainConfig, "train", ["--config", str(tmp_path / "c.yaml"), *more]
    )


def refused(function, *arguments) -> str:
    with pytest.raises(ValueError) as error:
        function(*arguments)
    line = str(error.value)
    assert "\n" not in line and len(line) < 700
    return line


# --- numbers
# ------------------------------------------------------------------------------------------

FLOATS = [
    "--optimizer.learning_rate",
    "--optimizer.weight_decay",
    "--optimizer.eps",
    "--optimizer.max_grad_norm",
    "--loss.kl_coef",
    "--loss.entropy_coef",
    "--reward.correct",
    "--reward.wrong",
    "--rollout.temperature",
    "--rollout.top_p",
    "--decoding.memory_share",
    "--critic.learning_rate",
    "--critic.clip_range",
]


@pytest.mark.parametrize("option", FLOATS)
@pytest.mark.parametrize(
    "value", [".inf", "-.inf", ".nan", "1e39", "-1e39", "1.0e+400", "1e-60", "1" + "0" * 400]
)
def test_no_float_of_a_config_is_infinite_or_out_of_float32_s_range(option, value, parse):
    line = refused(parse, option, value)
    assert line.startswith(option) or line.startswith(option[2:])


@pytest.mark.parametrize(
    "entry",
    [
        "[{name: shape_by_entropy, alpha: .inf}]",
        "[{name: group_normalize, eps: 1.0e-60}]",
        "[{name: 'mine:f', anything: {deep: [1, .nan]}}]",
        "[{name: 'mine:f', count: 10000000000000000000000000000000}]",
    ],
)
def test_arguments_of_a_method_are_checked_as_well(entry, parse):
    assert refused(parse, "--advantage", entry).startswith("--advantage[0].")


INTS = [
    "--steps",
    "--rollout.prompts",
    "--rollout.group_size",
    "--rollout.max_new_tokens",
    "--batching.max_tokens_per_micro_batch",
    "--run.checkpoint_every",
    "--run.samples_per_step",
    "--decoding.slots",
    "--mesh.data",
    "--optimizer.warmup_updates",
]


@pytest.mark.parametrize("option", INTS)
@pytest.mark.parametrize("value", [str(10**30), str(2**31), "-" + "9" * 40, "9" * 5000])
def test_no_count_is_larger_than_an_index(option, value, parse):
    assert refused(parse, option, value).startswith(option)


def test_whole_numbers_of_a_user_s_own_task_may_be_larger(parse):
    config = parse("--task.args", "{limit: 1000000000000, seed: -5, deep: [9000000000]}")
    assert config.task.args == {"limit": 10**12, "seed": -5, "deep": [9 * 10**9]}
    assert refused(parse, "--task.args.limit", str(2**63)).startswith("--task.args.limit: ")


@pytest.mark.parametrize("devices", [0, 2**16 + 1, 10**9])
def test_a_plan_has_no_more_devices_than_a_pod_could(devices, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(BASE)
    arguments = ["--config", str(file), "--devices", str(devices), "--chip", "v5e"]
    line = refused(parse_config, PlanConfig, "plan", arguments)
    assert line.startswith("devices: must be null or 1 to 65536, got ")


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seeds_are_all_that_a_random_key_holds(seed, parse):
    assert parse("--seed", str(seed)).seed == seed


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(2**32 + 5), str(2**64), str(10**30), "1.5"])
def test_a_seed_that_would_repeat_another_one_is_refused(seed, parse):
    assert refused(parse, "--seed", seed).startswith("--seed: ")


def test_the_reason_a_seed_of_2_to_the_32_repeats_that_of_0():
    import jax

    pair = (jax.random.key_data(jax.random.key(seed)).tolist() for seed in (0, 2**32))
    assert len(set(map(tuple, pair))) == 1


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: OptimizerConfig(learning_rate=INF), "optimizer.learning_rate"),
        (lambda: OptimizerConfig(learning_rate=1e-3, eps=NAN), "optimizer.eps"),
        (lambda: OptimizerConfig(learning_rate=1e-3, eps=0), "optimizer.eps"),
        (lambda: OptimizerConfig(learning_rate=1e-3, eps=-1), "optimizer.eps"),
        (lambda: OptimizerConfig(learning_rate=1e-3, weight_decay=1e39), "optimizer.weight_decay"),
        (lambda: LossConfig(kl_coef=INF), "loss.kl_coef"),
        (lambda: LossConfig(entropy_coef={"name": "x", "target": NAN}), "loss.entropy_coef.target"),
        (lambda: RewardConfig(correct=INF), "reward.correct"),
        (lambda: RewardConfig(wrong=-1e39), "reward.wrong"),
        (lambda: RewardConfig(correct=1.1e15), "reward.correct"),
        (lambda: RewardConfig(wrong=-1.1e15), "reward.wrong"),
        (lambda: CriticConfig(learning_rate=1e-3, gamma=NAN), "critic.gamma"),
        (lambda: BatchingConfig(2**40, 64), "batching.mini_batch_prompts"),
        (lambda: RolloutConfig(4, 2, 8, 8, temperature=INF), "rollout.temperature"),
        (lambda: EvaluationConfig("test", 10**12, 8), "evaluation.samples"),
    ],
)
def test_a_config_made_in_python_is_checked_too(make, path):
    assert refused(make).startswith(f"{path}: must be ")


def test_numbers_at_the_edge_of_their_range_pass():
    for value in (0.0, -0.0, 3.4028234663852886e38, -3.4028234663852886e38, 2.0**-126, 1e-37):
        assert fits_float32(value)
        check_number(value, "x")
    check_numbers({"a": [1, True, "x", None, 2**31 - 1], "seed": 2**32 - 1}, "")
    check_number(2**32 - 1, "seeds[0]")
    for value in (3.4028236e38, 2.0**-127, 1e-45, INF, NAN, 10**400):
        assert not fits_float32(value)
    check_numbers(
        {"a": [1, True, "x", None, 2**31 - 1], "seed": 2**32 - 1, "seeds": [2**32 - 1]}, ""
    )


def test_a_large_value_is_shown_shortened():
    for value in ("x" * 10**7, [1] * 10**5, 10**6000, b"x" * 10**6):
        assert len(shown(value)) < 300


# --- YAML
# ------------------------------------------------------------------------------------------

YAML = [
    "seed: !!bool maybe",
    "seed: !!int 'x'",
    "seed: !!float 'x'",
    "seed: 2026-13-45",
    "seed: 2026-11-31 99:99:99",
    "seed: !!timestamp 'x'",
    "seed: !!binary '###'",
    "seed: " + "9" * 5000,
    "seed: " + "[" * 3000,
    "a: " * 3000,
    "seed: !!python/object:os.system x",
    "seed: !!set {1, 2}",
    "? [a, b]\n: 1",
    "seed: *nowhere",
    "seed: &a [*a]",
    "a: &a [1, &b [*a, *b]]",
    "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 12))]),
    "<<: 5",
    "seed: 0x",
    "seed: 1:99:99",
    "\t",
    "seed: 'a\x00b'",
    "- 1",
    "5",
    "",
    "{",
]


@pytest.mark.parametrize("text", YAML)
def test_yaml_that_cannot_be_read_is_one_line_with_the_file(text, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    line = refused(parse_config, TrainConfig, "train", ["--config", str(file)])
    assert str(file) in line


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!int x", "2026-13-45", "9" * 5000, "[" * 3000, "{", "x: ["]
)
def test_an_option_that_cannot_be_read_is_one_line_with_the_option(value, parse):
    assert refused(parse, "--steps", value).startswith("--steps: ")


@pytest.mark.parametrize(
    "text",
    [
        "{problem} Put the answer in \\boxed{}.",
        "Question: {problem} Put the answer in \\boxed{}.",
        "{problem}: 'what?",
        "[{problem}] - [answer",
        "@user {problem}",
        "`{problem}`",
        "%{problem}",
        "*{problem}*",
        "&{problem} x",
        "\t{problem}: [",
        # These are YAML, of a mapping.
        "{problem}",
        "Q: {problem}",
        "Question: {problem}",
        "Q:\n  {problem}",
        "System: Solve it.\nUser: {problem}",
    ],
)
def test_a_text_that_is_no_yaml_is_taken_as_it_is_where_any_value_may_be(text, parse):
    assert parse("--task.args.prompt", text).task.args["prompt"] == text


@pytest.mark.parametrize("size", [2**20, 10**7])
def test_more_than_a_config_can_hold_is_refused_before_it_is_parsed(size, tmp_path, parse):
    file = tmp_path / "big.yaml"
    file.write_text("seed: " + "x" * size)
    line = refused(parse_config, TrainConfig, "train", ["--config", str(file)])
    assert line.startswith(f"{file}: ") and "more than 1048576 characters" in line
    line = refused(parse, "--steps", "x" * 10**7)
    assert line.startswith("--steps: ") and "more than 1048576 characters" in line


def test_other_values_of_such_a_field_are_still_read_as_yaml(parse):
    for value, expected in (("3", 3), ("true", True), ("[a, 1]", ["a", 1]), ("null", None)):
        assert parse("--task.args.x", value).task.args["x"] == expected
    for value, expected in (
        ("{problem: 3}", {"problem": 3}),
        ("{a: '{problem}'}", {"a": "{problem}"}),
        ('"{problem}\\n"', "{problem}\n"),
        ("['{problem}']", ["{problem}"]),
    ):
        assert parse("--task.args.x", value).task.args["x"] == expected


def test_the_line_of_a_wrong_value_is_named(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(BASE.replace("steps: 1", "steps: !!int 'x'"))
    line = refused(parse_config, TrainConfig, "train", ["--config", str(file)])
    assert line.startswith(f"{file}:3: ")


# --- files
# ------------------------------------------------------------------------------------------


@pytest.fixture
def special(tmp_path):
    """What is no regular file, by name."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    yield {
        "a FIFO": tmp_path / "fifo",
        "a directory": tmp_path / "directory",
        "a socket": tmp_path / "socket",
        "a device": Path("/dev/zero"),
        "a FIFO by a link": tmp_path / "link",
    }
    listener.close()


KINDS = ["a FIFO", "a directory", "a socket", "a device", "a FIFO by a link"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind, special):
    found = kind.removesuffix(" by a link")
    done = threading.Event()

    def read():
        for function in (require_file, read_text):
            line = refused(function, special[kind])
            assert line == f"{special[kind]}: must be a regular file, got {found}"
        line = refused(parse_config, TrainConfig, "train", ["--config", str(special[kind])])
        if found == "a directory":
            assert line == f"--config: cannot read '{special[kind]}': Is a directory"
        else:
            assert line == f"--config: {special[kind]}: must be a regular file, got {found}"
        done.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert done.is_set()


@pytest.mark.parametrize("name", ["a\0b", "nowhere", "nowhere/c.yaml", "x" * 5000])
def test_a_file_that_does_not_exist_is_one_line(name):
    with pytest.raises((ValueError, OSError)) as error:
        parse_config(TrainConfig, "train", ["--config", name])
    assert "\n" not in str(error.value)


class PanicException(BaseException):
    """As pyo3 raises it where a library in Rust panics."""


@pytest.mark.parametrize(
    "error",
    [
        TypeError("TextEncodeInput must be Union"),
        KeyError("model"),
        RecursionError("maximum recursion depth exceeded"),
        PanicException("regex parse error"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        AssertionError(),
        RuntimeError("one\n\ntwo\nthree"),
        ValueError("x" * 10**6),
    ],
)
def test_whatever_a_library_raises_becomes_one_line_with_the_file(error):
    def read():
        with reading("tokenizer.json"):
            raise error

    line = refused(read)
    assert line.startswith("tokenizer.json: ") and len(line) > len("tokenizer.json: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interruption_passes_the_boundary(error):
    with pytest.raises(error), reading("tokenizer.json"):
        raise error
