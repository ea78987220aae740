"""A LoRA run trains, stores and resumes its adapter alone, and is opened like any other run."""

import contextlib
import shutil
import signal

import jax
import numpy as np
import pytest
from run_records import assert_same_run, lines_of, metrics_of, state_of
from safetensors.numpy import load_file, save_file
from tiny_runs import EVALUATION, TRAIN, run, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.lora import LoraConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.models.quantized import store
from entropy_rl.runs.load_model import load_model
from entropy_rl.trainer.setup import set_up

LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
CONFIG = TRAIN | {
    "model": {"path": "model", "lora": LORA},
    "loss": {"kl_coef": 0.1},
}


def train(directory, *more):
    return ["train", "--config", "lora.yaml", "--run.directory", directory, *more]


@pytest.fixture(scope="module")
def whole(workspace):
    """A LoRA run that was never interrupted."""
    write_yaml(workspace / "lora.yaml", CONFIG)
    with contextlib.chdir(workspace):
        assert main(train("whole")) == 0
    return workspace / "whole"


def leaves_of(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


def leaves(tree):
    return jax.device_get(leaves_of(tree))


def test_a_checkpoint_holds_the_adapter_alone_and_its_moments(whole):
    state = state_of(whole)
    names = {path[-7:-2] for path in leaves(state["params"])}
    assert names == {"ora_a", "ora_b"}
    numbers = sum(x.size for x in leaves(state).values())
    of_adapter = sum(x.size for x in leaves(state["params"]).values())
    assert 3 * of_adapter <= numbers < 3 * of_adapter + 16
    before, after = (leaves(state_of(whole, step)["params"]) for step in (4, 6))
    assert all((before[name] != after[name]).any() for name in after)


def test_the_reference_is_the_base_in_the_same_memory(whole, here):
    setup = set_up(parse_config(TrainConfig, "train", train("unused")[1:]))
    reference, base = (leaves_of(tree) for tree in (setup.model.params, setup.model.base.params))
    of_adapter = reference.keys() - base.keys()
    assert {path.rpartition("['")[2] for path in of_adapter} == {"lora_a']", "lora_b']"}
    assert not any(reference[path].any() for path in of_adapter if "lora_b" in path)
    for path, x in base.items():
        assert x.unsafe_buffer_pointer() == reference[path].unsafe_buffer_pointer()
    assert leaves_of(setup.start.params).keys() == of_adapter


@pytest.mark.slow
def test_a_lora_run_that_is_killed_ends_as_one_that_never_was(whole, workspace, here, capsys):
    result = run(
        workspace, *train("killed"), env={"DIE_WHERE_IT_EXISTS": "killed/checkpoints/4.*tmp*"}
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert main(train("killed")) == 0
    assert "resuming killed after step 2 of 6\n" in capsys.readouterr().err
    assert_same_run(whole, workspace / "killed")


def test_a_loaded_run_has_its_base_and_its_adapter_to_the_bit(whole, here):
    model = load_model("whole")
    assert leaves(model.base.params).keys() == leaves(load_model("model").params).keys()
    for found, expected in (
        (model.base.params, load_model("model").params),
        (model.adapter, state_of(whole)["params"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert model.base.spec.scale == 2 and model.base.path == "model"


def test_a_run_on_a_quantized_base_is_loaded_and_exported_with_the_base_it_had(whole, here):
    options = ["--steps", "2", "--model.lora.base_dtype", "int8"]
    assert main(train("int8", *options)) == 0
    model = load_model("int8")
    codes = model.base.params["layers"]["mlp"]["up_proj"]["kernel_int8"]
    read = store(load_model("model").params, "bfloat16")
    expected = store(read, "int8")["layers"]["mlp"]["up_proj"]["kernel_int8"]
    np.testing.assert_array_equal(codes, expected)
    # int8 has 7 bits of each weight, so that some samples have other tokens.
    np.testing.assert_allclose(
        metrics_of(here / "int8")[0][:3], metrics_of(whole)[0][:3], rtol=0.05
    )
    ids = jax.random.randint(jax.random.key(2), (2, 9), 0, 20)
    hidden = model.policy.apply(model.params, ids)
    arguments = ["export", "--model", "int8", "--output", "dense", "--dtype", "float32"]
    assert main(arguments) == 0
    dense = load_model("dense")
    np.testing.assert_allclose(dense.policy.apply(dense.params, ids), hidden, rtol=1e-5, atol=1e-5)


def test_exports_are_a_peft_adapter_and_a_merged_model(whole, here, capsys):
    ids = jax.random.randint(jax.random.key(2), (2, 9), 0, 20)
    model = load_model("whole")
    hidden = model.policy.apply(model.params, ids)
    assert main(["export", "--model", "whole", "--output", "peft", "--format", "peft"]) == 0
    adapted = load_model(ModelConfig("model", lora=LoraConfig(path="peft")))
    jax.tree.map(np.testing.assert_array_equal, adapted.params, model.params)
    merged = ["export", "--model", "whole", "--output", "merged", "--dtype", "float32"]
    assert main(merged) == 0
    dense = load_model("merged")
    assert dense.base is None
    np.testing.assert_allclose(dense.policy.apply(dense.params, ids), hidden, rtol=1e-5, atol=1e-5)
    assert main(["export", "--model", "model", "--output", "no", "--format", "peft"]) == 2
    line = "format: must be merged for a model without an adapter, got 'peft'\n"
    assert capsys.readouterr().err.endswith(line)


def test_an_evaluation_of_the_run_is_that_of_its_last_step(whole, workspace, here):
    evaluation = {f"--evaluation.{name}": str(value) for name, value in EVALUATION.items()}
    arguments = [word for pair in evaluation.items() for word in pair]
    # The run is complete: it evaluates and ends.
    assert main(train("whole", *arguments)) == 0
    of_run = lines_of(workspace / "whole" / "evaluations" / "6" / "samples.jsonl")
    own = ["--max_prompt_tokens", "16", "--seed", "0", "--output", "evaluated"]
    assert main(["evaluate", "--model.path", "whole", *own, *arguments]) == 0
    assert lines_of(workspace / "evaluated" / "samples.jsonl") == of_run and of_run


def test_a_run_of_all_parameters_that_began_with_a_lora_run_is_one_of_a_plain_model(whole, here):
    options = ["--model.path", "whole", "--model.lora", "null", "--steps", "1"]
    assert main(train("all", *options)) == 0
    model = load_model("all")
    assert model.base is None
    jax.tree.map(np.testing.assert_array_equal, model.params, state_of(here / "all", 1)["params"])


def test_another_base_is_refused_in_one_line(whole, workspace, here, capsys):
    shutil.copytree("model", "kept")
    try:
        file = workspace / "model" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ValueError) as error:
            load_model("whole")
        assert str(error.value) == (
            "whole: the base of its adapter must have the weights that the run began with, got "
            "others in model"
        )
    finally:
        shutil.rmtree("model")
        shutil.move("kept", "model")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model.lora.rank", "0"], "model.lora.rank: must be >= 1, got 0"),
        (["--model.lora.rank", "8"], "model.lora.rank: must be < 8, the smaller side of v_proj, "
                                     "got 8"),
        (["--model.lora.targets", "[v_prj]"], "model.lora.targets[0]: must be one of q_proj, "
         "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, got 'v_prj' (did you mean "
         "'v_proj'?)"),
        (["--model.lora.base_dtype", "int4"], "model.lora.base_dtype: must be one of float32, "
         "bfloat16, int8, nf4, got 'int4' (did you mean 'int8'?)"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_the_weights_are_read(here, capsys, options, line, whole):
    assert main(train("new", *options)) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(line)


@pytest.mark.slow
def test_a_lora_run_on_eight_devices_is_that_of_one(whole, workspace, here):
    mesh = [word for axis in ("data", "fsdp", "tensor") for word in (f"--mesh.{axis}", "2")]
    assert main(train("eight", "--steps", "2", *mesh)) == 0
    eight, one = (metrics_of(workspace / name) for name in ("eight", "whole"))
    np.testing.assert_allclose(eight, one[:2], rtol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_from_another_adapter_with_a_critic_and_a_replay_buffer(
    whole, workspace, here
):
    config = TRAIN | {
        "steps": 2,
        "model": {"path": "whole", "lora": {"rank": 2, "alpha": 2.0, "base_dtype": "bfloat16"}},
        "advantage": [{"name": "gae"}],
        "critic": {"learning_rate": 0.01},
    }
    write_yaml(workspace / "ppo.yaml", config)
    assert main(["train", "--config", "ppo.yaml", "--run.directory", "ppo"]) == 0
    critic = leaves(state_of(workspace / "ppo", 2)["critic"]["params"])
    assert {path.rpartition("[")[2] for path in critic} == {"'lora_a']", "'lora_b']", "'kernel']"}
    assert all(x.any() for x in critic.values())
    assert load_model("ppo").base.params["norm"]["scale"].dtype == "bfloat16"
