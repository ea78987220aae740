"""A LoRA run trains, stores and resumes its adapter alone, and is opened like any other run."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from run_records import assert_same_run, lines_of, metrics_of, state_of
from safetensors.numpy import load_file, save_file
from tiny_runs import EVALUATION, TRAIN, run, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.commands.export import _base_note
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.lora import LoraConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.models.quantized import store
from entropy_rl.runs.load_model import load_model
from entropy_rl.runs.weights import _is_other
from entropy_rl.trainer.setup import set_up

LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
CONFIG = TRAIN | {
    "model": {"path": "model", "lora": LORA},
    "loss": {"kl_coef": 0.1},
}
PEFT = ("--format", "peft")


def train(directory, *more):
    return ["train", "--config", "lora.yaml", "--run.directory", directory, *more]


@pytest.fixture(scope="module")
def whole(workspace):
    """A LoRA run that was never interrupted."""
    write_yaml(workspace / "lora.yaml", CONFIG)
    with contextlib.chdir(workspace):
        assert main(train("whole")) == 0
    return workspace / "whole"


def copy_run(whole, name, path="model", **lora):
    """A copy of a run, as if it had begun with another `model.path` or other settings of LoRA."""
    shutil.copytree(whole, name)
    config = yaml.safe_load((whole / "config.yaml").read_text())
    config["model"]["path"] = path
    config["model"]["lora"].update(lora)
    write_yaml(Path(name) / "config.yaml", config)


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


def test_a_run_on_a_quantized_base_is_loaded_and_exported_with_the_base_it_had(whole, here, caplog):
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
    caplog.clear()
    assert main(["export", "--model", "int8", "--output", "codes", *PEFT]) == 0
    how = "`export --format merged --dtype float32`"
    note = f"trained on the base quantized to int8; {how} writes that model"
    assert [record.getMessage() for record in caplog.records] == [f"codes: {note}"]
    assert f"| Weights | float32, {note} |" in (here / "codes" / "README.md").read_text()


def test_an_adapter_on_a_rounded_base_is_exported_with_a_note(whole, here, caplog):
    copy_run(whole, "rounded", base_dtype="bfloat16")
    assert main(["export", "--model", "rounded", "--output", "rounded-peft", *PEFT]) == 0
    line = "rounded-peft: trained on the base rounded to bfloat16; "
    assert [record.getMessage().startswith(line) for record in caplog.records] == [True]
    # The same of a base whose weights are bfloat16: nothing was rounded.
    model, file = here / "model", here / "model" / "model.safetensors"
    kept, tensors = file.read_bytes(), load_file(file)
    caplog.clear()
    try:
        save_file({name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}, file)
        assert _base_note(here / "rounded", str(model)) is None
    finally:
        file.write_bytes(kept)


def test_an_adapter_on_a_run_is_exported_with_what_makes_its_base_loadable(whole, here, caplog):
    copy_run(whole, "second", "whole")
    (here / "second" / "identity.json").unlink()  # its weights are those of another base
    assert main(["export", "--model", "second", "--output", "second-peft", *PEFT]) == 0
    (record,) = caplog.records
    assert record.getMessage() == (
        "second-peft: PEFT cannot load the base whole: export it (`entropy-rl export --model whole "
        "--output BASE --dtype float32`) and set base_model_name_or_path to that directory"
    )
    # It does what it says: with that base, the adapter is the model of the run.
    base = ["export", "--model", "whole", "--output", "second-base", "--dtype", "float32"]
    assert main(base) == 0
    ids = jax.random.randint(jax.random.key(2), (2, 9), 0, 20)
    lora = LoraConfig(path="second-peft")
    found, expected = load_model(ModelConfig("second-base", lora=lora)), load_model("second")
    hidden = expected.policy.apply(expected.params, ids)
    np.testing.assert_allclose(found.policy.apply(found.params, ids), hidden, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_another_base_is_warned_of(whole, here, caplog):
    assert main(["export", "--model", "whole", "--output", "own", *PEFT]) == 0
    shutil.copytree("model", "elsewhere/model")
    shutil.copytree("model", "other")
    lora = LoraConfig(path="own")
    for path in ("model", "elsewhere/model", "./model/"):  # a base may have been moved
        load_model(ModelConfig(path, lora=lora))
    assert not caplog.records
    load_model(ModelConfig("other", lora=lora))
    line = "model.lora.path: trained on the base model, got the base other"
    assert [record.getMessage() for record in caplog.records] == [line]


@pytest.mark.parametrize(
    ("base", "path", "is_other"),
    [
        ("org/one", f"org/one@{'0' * 40}", False),
        ("org/one", "net/one", True),
        ("org/one", "/models/one", False),
        ("org/one", "/models/two", True),
        ("asset:countdown", "asset:countdown", False),
        ("asset:countdown", "model", True),
    ],
)
def test_a_base_is_another_one_by_its_id_or_by_its_last_name(base, path, is_other):
    assert _is_other(base, path) == is_other


def test_a_local_path_that_looks_like_an_id_is_exported_as_a_path(whole, here):
    shutil.copytree("model", "local/base")
    copy_run(whole, "of-local", "local/base")
    assert main(["export", "--model", "of-local", "--output", "local-peft", *PEFT]) == 0
    fields = json.loads((here / "local-peft" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["revision"]) == ("./local/base", None)
    assert "base_model:" not in (here / "local-peft" / "README.md").read_text()


@pytest.mark.parametrize("way", ["link", "config"])
def test_a_base_that_was_moved_is_found_as_the_error_says(way, whole, here):
    copy_run(whole, f"by-{way}", "base")
    shutil.copytree("model", f"moved-{way}")
    with pytest.raises(ValueError) as error:
        load_model(f"by-{way}")
    assert str(error.value).endswith(
        f"got 'base'; put it or a symbolic link there, or change model.path in by-{way}/"
        "config.yaml; its digests are checked"
    )
    config = here / f"by-{way}" / "config.yaml"
    if way == "link":
        (here / "base").symlink_to(f"moved-{way}")
    else:
        config.write_text(config.read_text().replace("path: base\n", f"path: moved-{way}\n"))
    assert load_model(f"by-{way}").adapter is not None
    tensors = load_file(f"moved-{way}/model.safetensors")
    save_file(
        tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1},
        f"moved-{way}/model.safetensors",
    )
    with pytest.raises(ValueError, match="must have the weights that the run began with"):
        load_model(f"by-{way}")
    if way == "link":
        (here / "base").unlink()


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
