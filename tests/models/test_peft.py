"""PEFT files: written with PEFT's names and shapes, read back to the bit, and refused by name."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hf_fixtures import make_hf_dir, set_type
from policies import TINY, tiny_policy
from safetensors.numpy import load_file, save_file

from entropy_rl.config.lora import LORA_TARGETS
from entropy_rl.models import load_hf, make_policy
from entropy_rl.models.lora import Base, LoraSpec, adapter_shapes, merge
from entropy_rl.models.peft import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    load_adapter,
    read_adapter_config,
    save_adapter,
)

ALL = LoraSpec(4, 6.0, False, LORA_TARGETS)
PREFIX = "base_model.model.model.layers"


def random_adapter(spec, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda s: rng.normal(0, 0.05, s.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(normal, adapter_shapes(spec, TINY))


def saved(directory, spec=ALL, **changes):
    """An adapter in a directory, with changes of its config."""
    adapter = random_adapter(spec)
    directory.mkdir(exist_ok=True)
    save_adapter(directory, spec, adapter, "org/base")
    file = directory / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return adapter


def test_files_have_the_names_and_shapes_of_peft(tmp_path):
    adapter = saved(tmp_path, LoraSpec(4, 6.0, True, ("q_proj", "k_proj", "down_proj")))
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    expected = {}
    for layer in range(TINY.num_layers):
        for name, rows, columns in (
            ("self_attn.q_proj", 32, 32),
            ("self_attn.k_proj", 32, 16),
            ("mlp.down_proj", 48, 32),
        ):
            expected[f"{PREFIX}.{layer}.{name}.lora_A.weight"] = (4, rows)
            expected[f"{PREFIX}.{layer}.{name}.lora_B.weight"] = (columns, 4)
    assert {name: x.shape for name, x in tensors.items()} == expected
    a = adapter["layers"]["self_attn"]["k_proj"]["lora_a"]
    np.testing.assert_array_equal(tensors[f"{PREFIX}.1.self_attn.k_proj.lora_A.weight"], a[1].T)
    fields = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert fields["peft_type"] == "LORA" and fields["base_model_name_or_path"] == "org/base"
    assert (fields["r"], fields["lora_alpha"], fields["use_rslora"]) == (4, 6, True)
    assert fields["target_modules"] == ["down_proj", "k_proj", "q_proj"]


def test_an_adapter_is_read_back_to_the_bit(tmp_path):
    spec = LoraSpec(4, 6.0, True, ("q_proj", "down_proj"))
    adapter = saved(tmp_path, spec)
    found, params = load_adapter(tmp_path, TINY)
    assert found == spec
    jax.tree.map(np.testing.assert_array_equal, params, adapter)


def test_a_pattern_of_modules_is_read_by_its_tensors(tmp_path):
    adapter = saved(tmp_path, target_modules=".*_proj")
    found, params = load_adapter(tmp_path, TINY)
    assert found.targets == LORA_TARGETS
    jax.tree.map(np.testing.assert_array_equal, params, adapter)


def test_absent_fields_have_the_defaults_of_peft(tmp_path):
    saved(tmp_path, LoraSpec(8, 8.0, False, LORA_TARGETS))
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
    assert load_adapter(tmp_path, TINY)[0] == LoraSpec(8, 8.0, False, LORA_TARGETS)


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_kernels_are_those_of_the_formula_of_peft(tmp_path, rslora):
    """W + s B A in float64 from the tensors of the file, as `merge_and_unload`; within 1e-6."""
    spec = LoraSpec(4, 6.0, rslora, LORA_TARGETS)
    saved(tmp_path, spec)
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    base = tiny_policy().init(jax.random.key(0))
    found, adapter = load_adapter(tmp_path, TINY)
    merged = jax.jit(merge)(Base(base, found, "base").join(adapter))
    scale = 6.0 / (np.sqrt(4) if rslora else 4)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
        module, target = name.split(".")
        kernels = (tree["layers"][module][target]["kernel"] for tree in (base, merged))
        for layer, (before, after) in enumerate(zip(*kernels, strict=True)):
            a, b = (
                tensors[f"{PREFIX}.{layer}.{name}.lora_{kind}.weight"].astype(np.float64)
                for kind in "AB"
            )
            np.testing.assert_allclose(after, before + scale * (b @ a).T, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["experts"]),
        ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [1]),
        ("use_bdlora", {"nblocks": 2}),
        ("use_qalora", True),
        ("fan_in_fan_out", True),
        ("kasa_config", {"alpha": 1.0}),
        *(
            ("init_lora_weights", how)
            for how in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 5, ["eva"])
        ),
    ],
)
def test_features_that_are_not_supported_are_refused_by_name(tmp_path, field, value):
    saved(tmp_path, **{field: value})
    with pytest.raises(
        ValueError, match=rf"^\S+adapter_config.json: {field}: must be null"
    ) as error:
        load_adapter(tmp_path, TINY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal"])
def test_initializations_that_leave_the_base_as_it_is_are_read(tmp_path, how):
    adapter = saved(tmp_path, init_lora_weights=how)
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path, TINY)[1], adapter)


def test_unknown_fields_that_are_set_are_named(tmp_path, caplog):
    corda = {"corda_method": "ipm"}  # PEFT ignores it without that initialization
    saved(
        tmp_path,
        new_kind=True,
        corda_config=corda,
        old=None,
        off=False,
        none={},
        eva_config={"a": 1},
    )
    load_adapter(tmp_path, TINY)
    (record,) = caplog.records
    assert record.getMessage().endswith("fields, which are not used: corda_config, new_kind")


def test_all_fields_that_peft_writes_are_known(caplog):
    read_adapter_config(GOLDEN, warn=True)
    assert not caplog.records


@pytest.mark.parametrize("value", [None, False])
def test_rslora_may_be_null(tmp_path, value):
    saved(tmp_path, use_rslora=value)
    assert load_adapter(tmp_path, TINY)[0] == ALL


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"peft_type": "IA3"}, "peft_type: must be LORA, got 'IA3'"),
        ({"r": 0}, "r: must be a whole number >= 1, got 0"),
        ({"r": 2**31}, "r: must be a whole number <= 2147483647, got 2147483648"),
        ({"r": None}, "r: must be a whole number >= 1, got None"),
        ({"lora_alpha": "8"}, "lora_alpha: must be a number > 0, got '8'"),
        (
            {"lora_alpha": 10**400},
            "lora_alpha: must be a number that float32 holds, got a number of about 400 digits",
        ),
        ({"lora_alpha": 1e300}, "lora_alpha: must be a number that float32 holds, got 1e+300"),
        ({"lora_alpha": math.inf}, "lora_alpha: must be a number that float32 holds, got inf"),
        ({"use_rslora": "false"}, "use_rslora: must be true or false, got 'false'"),
        ({"use_rslora": 1}, "use_rslora: must be true or false, got 1"),
        ({"r": 8}, "must have shape (8, 32), by the rank and the base, got (4, 32)"),
    ],
)
def test_bad_values_are_one_line(tmp_path, changes, line):
    saved(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        load_adapter(tmp_path, TINY)
    assert str(error.value).endswith(line) and str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "layers.2.mlp.up_proj.lora_A.weight",
            "must be of a base with 2 layers, .* got base_model",
        ),
        (
            "lm_head.lora_A.weight",
            "must have lora_A and lora_B of q_proj, .* alone, got base_model",
        ),
        ("layers.0.mlp.up_proj.lora_magnitude_vector", "must have lora_A .* got base_model"),
    ],
)
def test_tensors_without_a_place_are_refused(tmp_path, name, line):
    saved(tmp_path)
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    tensors[f"base_model.model.model.{name}"] = np.zeros((4, 32), np.float32)
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(ValueError, match=line):
        load_adapter(tmp_path, TINY)


def test_an_adapter_of_some_layers_is_refused(tmp_path):
    saved(tmp_path)
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    del tensors[f"{PREFIX}.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(ValueError, match=r"got no base_model\S+layers.0.mlp.up_proj.lora_B.weight"):
        load_adapter(tmp_path, TINY)


@pytest.mark.parametrize("kind", ["F8_E4M3", "I8", "F64"])
def test_tensors_of_other_types_are_refused_by_name(tmp_path, kind):
    saved(tmp_path)
    name = f"{PREFIX}.0.mlp.up_proj.lora_B.weight"
    set_type(tmp_path / ADAPTER_WEIGHTS, name, kind)
    with pytest.raises(ValueError) as error:
        load_adapter(tmp_path, TINY)
    line = f"adapter_model.safetensors: tensor {name} must be F32, F16 or BF16, got {kind}"
    assert str(error.value).endswith(line)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensors_of_half_the_size_are_read_as_float32(tmp_path, dtype):
    adapter = random_adapter(ALL)
    save_adapter(tmp_path, ALL, adapter, "org/base", dtype=dtype)
    _, found = load_adapter(tmp_path, TINY)
    expected = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)).astype(np.float32), adapter)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# --------------------------------------------------------------------------------------------------
# Foreign truth: what PEFT computes in torch (tests/golden/make_peft_golden.py)
# --------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"


@pytest.fixture(scope="module")
def of_peft(tmp_path_factory):
    """(values, policy, base, adapter as PEFT saved it, tensors of an adapter by PEFT's names)."""
    config, params = load_hf(make_hf_dir(tmp_path_factory.mktemp("hf") / "base", "qwen3"))
    spec, adapter = load_adapter(GOLDEN, config)
    with np.load(GOLDEN / "values.npz") as values:
        values = dict(values)

    def named(tree, directory):
        save_adapter(directory, spec, jax.device_get(tree), "base")
        return load_file(directory / ADAPTER_WEIGHTS)

    return values, make_policy(config), Base(params, spec, "base"), adapter, named


def log_probs_of(policy, base, ids):
    def log_probs(adapter):
        params = base.join(adapter)
        logits = policy.apply(params, ids)[:, :-1] @ policy.head(params).T
        every = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.take_along_axis(every, ids[:, 1:, None], axis=-1)[..., 0]

    return jax.jit(log_probs)


def test_log_probs_with_an_adapter_are_those_of_peft(of_peft):
    values, policy, base, adapter, _ = of_peft
    assert base.spec.rslora and base.spec.scale == 5 / 3**0.5
    found = log_probs_of(policy, base, jnp.asarray(values["ids"]))
    np.testing.assert_allclose(found(adapter), values["log_probs"], atol=2e-5)
    without = jax.tree.map(jnp.zeros_like, adapter)
    assert np.abs(found(without) - values["log_probs"]).max() > 1e-2


def test_gradients_and_three_updates_by_adamw_are_those_of_peft(of_peft, tmp_path):
    values, policy, base, adapter, named = of_peft
    log_probs = log_probs_of(policy, base, jnp.asarray(values["ids"]))
    gradient = jax.jit(jax.grad(lambda adapter: -log_probs(adapter).mean()))
    optimizer = optax.adamw(1e-2, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    state = optimizer.init(adapter)
    for update in range(3):
        grads = gradient(adapter)
        if update == 0:
            for name, x in named(grads, tmp_path / "gradient").items():
                np.testing.assert_allclose(x, values[f"gradient/{name}"], rtol=1e-4, atol=2e-6)
        updates, state = optimizer.update(grads, state, adapter)
        adapter = optax.apply_updates(adapter, updates)
    after = named(adapter, tmp_path / "after")
    assert {f"after/{name}" for name in after} == {n for n in values if n.startswith("after/")}
    for name, x in after.items():
        np.testing.assert_allclose(x, values[f"after/{name}"], atol=2e-5)
