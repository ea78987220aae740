"""LoRA: an adapter that is new changes nothing, one that is merged is the same model, and gradients
are those of the dense model, projected.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec
from policies import TINY, tiny_policy
from update_problem import SHAPED, G, make_data

from entropy_rl.config.common import MeshConfig
from entropy_rl.config.lora import LORA_TARGETS, LoraConfig
from entropy_rl.distributed.sharding import Placement, make_mesh
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.models.linear import low_rank
from entropy_rl.models.lora import (
    Base,
    LoraSpec,
    OnBase,
    adapter_shapes,
    check_rank,
    init_adapter,
    lora_spec,
    merge,
)
from entropy_rl.rollout import make_generate
from entropy_rl.rollout.decode import sample_keys

SPEC = LoraSpec(rank=4, alpha=6.0, rslora=False, targets=LORA_TARGETS)
POLICY = tiny_policy()
BASE = Base(POLICY.init(jax.random.key(0)), SPEC, "base")
NEW = init_adapter(jax.random.key(1), SPEC, TINY)
IDS = jax.random.randint(jax.random.key(2), (4, 9), 0, TINY.vocab_size)
apply = jax.jit(POLICY.apply)


def trained(spec=SPEC, seed=3):
    """An adapter after some training: B is not 0."""
    adapter, rng = init_adapter(jax.random.key(1), spec, TINY), np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32), adapter)


@functools.cache
def gradients(tokens=None, group_size=None):
    """(of the dense parameters with a trained adapter merged, of that adapter)."""
    settings = PassSettings(
        max_tokens_per_micro_batch=tokens, fuse_loss=tokens is not None, group_size=group_size
    )
    make = functools.partial(make_gradient, advantage=SHAPED, settings=settings)
    data, adapter = make_data(), trained()
    merged = jax.jit(merge)(BASE.join(adapter))
    return jax.jit(make(POLICY))(merged, data)[0], OnBase(make, POLICY, BASE)(adapter, data)


def assert_close(found, expected):
    """Within 1e-5 of the largest number of each leaf."""
    found = traverse_util.flatten_dict(found)
    for path, x in traverse_util.flatten_dict(expected).items():
        atol = 1e-5 * np.abs(x).max()
        np.testing.assert_allclose(found[path], x, rtol=0, atol=atol, err_msg=str(path))


def leaf(tree, target, name):
    module = "self_attn" if target in LORA_TARGETS[:4] else "mlp"
    return np.asarray(tree["layers"][module][target][name], np.float64)


def test_a_new_adapter_has_the_hidden_states_of_its_base_to_the_bit():
    np.testing.assert_array_equal(apply(BASE.params, IDS), apply(BASE.join(NEW), IDS))


def test_a_new_adapter_samples_the_tokens_and_log_probs_of_its_base_to_the_bit():
    generate = make_generate(
        POLICY, group_size=2, max_new_tokens=5, eos_ids=(0,), pad_id=0, temperature=1.0
    )
    prompts = IDS[:2], jnp.ones((2, 9), bool), jnp.arange(2), jax.random.key(4)
    one, other = (generate(params, *prompts) for params in (BASE.params, BASE.join(NEW)))
    jax.tree.map(np.testing.assert_array_equal, vars(one), vars(other))


def test_a_merged_adapter_is_the_same_model_within_1e_5():
    joined = BASE.join(trained())
    hidden, base = apply(joined, IDS), apply(BASE.params, IDS)
    assert np.abs(hidden - base).max() > 0.1  # the adapter does something
    merged = apply(jax.jit(merge)(joined), IDS)
    np.testing.assert_allclose(merged, hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "v_proj", "up_proj")])
def test_fused_decoding_weights_have_block_diagonal_adapters(targets):
    spec = LoraSpec(4, 6.0, False, targets)
    joined = Base(BASE.params, spec, "base").join(trained(spec))
    merged = jax.jit(merge)(joined)
    decode = [jax.jit(POLICY.to_decode)(params)["layers"][1] for params in (joined, merged)]
    for module, name in (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj")):
        fused, dense = (layer[module][name] for layer in decode)
        product = fused["kernel"] + fused["lora_a"] @ fused["lora_b"]
        np.testing.assert_allclose(product, dense["kernel"], rtol=1e-5, atol=1e-6)


def test_gradients_of_a_and_b_are_the_dense_gradient_projected():
    """∂A = s ∂W Bᵀ and ∂B = s Aᵀ ∂W, within 1e-5 of the largest number."""
    dense, (of_adapter, _) = gradients()
    adapter = trained()
    assert of_adapter.keys() == {"layers"}
    for target in LORA_TARGETS:
        dw = leaf(dense, target, "kernel")
        a, b = (leaf(adapter, target, name) for name in ("lora_a", "lora_b"))
        for name, expected in (
            ("lora_a", SPEC.scale * np.einsum("lio,lro->lir", dw, b)),
            ("lora_b", SPEC.scale * np.einsum("lir,lio->lro", a, dw)),
        ):
            found, largest = leaf(of_adapter, target, name), np.abs(expected).max()
            assert largest > 0
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("group_size", [None, G])
def test_the_gradient_does_not_depend_on_micro_batches_packing_and_shared_prompts(group_size):
    assert_close(gradients(16, group_size)[1][0], gradients()[1][0])


def test_the_gradient_on_eight_devices_is_that_of_one_and_sharded_as_its_parameters():
    placement = Placement(make_mesh(MeshConfig(2, 2, 2)), TINY.num_kv_heads)
    policy = tiny_policy(mesh=placement.mesh)
    base = Base(placement.put_params(jax.device_get(BASE.params)), SPEC, "base")
    settings = PassSettings(
        max_tokens_per_micro_batch=16,
        fuse_loss=True,
        mesh=placement.mesh,
        constrain=placement.constrain,
    )
    make = functools.partial(make_gradient, advantage=SHAPED, settings=settings)
    adapter = placement.put_params(trained())
    found, _ = OnBase(make, policy, base)(adapter, jax.device_put(make_data(), placement.of_rows()))
    for x, place in zip(*map(jax.tree.leaves, (found, placement.of_params(found))), strict=True):
        assert x.sharding.is_equivalent_to(place, x.ndim)
    spec = found["layers"]["mlp"]["up_proj"]["lora_b"].sharding.spec
    assert spec == PartitionSpec(None, None, "tensor")
    assert_close(found, gradients(tokens=16)[1][0])


def test_an_update_moves_the_adapter_alone_and_keeps_moments_for_it_alone():
    optimizer = optax.adam(0.1)

    def make(policy):
        return make_update(policy, SHAPED, optimizer)

    state = init_state(NEW, optimizer)
    update = OnBase(make, POLICY, BASE, donate=(0,))
    state, metrics = update(state, make_data())
    shapes = jax.tree.map(jnp.shape, adapter_shapes(SPEC, TINY))
    assert jax.tree.map(jnp.shape, state.params) == shapes
    assert jax.tree.map(jnp.shape, state.opt_state[0].mu) == shapes
    assert float(metrics["grad_norm"]) > 0
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), state.params, NEW)
    by_name = {path[-1]: x for path, x in traverse_util.flatten_dict(moved).items()}
    assert by_name == {"lora_a": False, "lora_b": True}  # with B = 0, A has no gradient yet


def test_a_is_uniform_as_in_peft_and_b_is_zero():
    for target in LORA_TARGETS:
        a, b = (leaf(NEW, target, name) for name in ("lora_a", "lora_b"))
        bound = a.shape[1] ** -0.5
        assert (np.abs(a) <= bound).all() and np.abs(a).max() > 0.9 * bound and not b.any()
        assert np.std(a) == pytest.approx(bound / np.sqrt(3), rel=0.15)


def test_the_a_of_a_matrix_depends_on_its_name_layer_and_the_seed_alone():
    few = init_adapter(jax.random.key(1), LoraSpec(4, 1.0, True, ("v_proj", "up_proj")), TINY)
    for target in ("v_proj", "up_proj"):
        np.testing.assert_array_equal(leaf(few, target, "lora_a"), leaf(NEW, target, "lora_a"))
    other = init_adapter(jax.random.key(2), SPEC, TINY)
    q = leaf(NEW, "q_proj", "lora_a")
    assert not np.array_equal(q, leaf(other, "q_proj", "lora_a"))
    assert not np.array_equal(q[0], q[1])


def test_the_scale_is_alpha_over_rank_or_over_its_root_with_rslora():
    assert lora_spec(LoraConfig(rank=4, alpha=8.0)).scale == 2
    assert lora_spec(LoraConfig(rank=4, alpha=8.0, rslora=True)).scale == 4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rank": 0, "alpha": 1.0}, "model.lora.rank: must be >= 1, got 0"),
        ({"alpha": 1.0}, "model.lora.rank: must be an integer >= 1 without a path, got None"),
        ({"rank": 4}, "model.lora.alpha: must be > 0 without a path, got None"),
        ({"rank": 4, "alpha": 0.0}, "model.lora.alpha: must be > 0, got 0.0"),
        (
            {"rank": 4, "alpha": 1.0, "targets": ["q_proj", "query"]},
            "model.lora.targets[1]: must be one of q_proj, k_proj, v_proj, o_proj, gate_proj, "
            "up_proj, down_proj, got 'query'",
        ),
        (
            {"rank": 4, "alpha": 1.0, "targets": ["up_prj"]},
            "model.lora.targets[0]: must be one of q_proj, k_proj, v_proj, o_proj, gate_proj, "
            "up_proj, down_proj, got 'up_prj' (did you mean 'up_proj'?)",
        ),
        (
            {"rank": 4, "alpha": 1.0, "targets": []},
            "model.lora.targets: must be null or not empty, got []",
        ),
        (
            {"rank": 4, "path": "adapter"},
            "model.lora.rank: must be null with model.lora.path, which has its own rank, got 4",
        ),
    ],
)
def test_bad_settings_are_one_line(settings, line):
    with pytest.raises(ValueError) as error:
        LoraConfig(**settings)
    assert str(error.value) == line


def test_a_rank_that_saves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^model.lora.rank: must be < 16, the smaller side of k"):
        check_rank(LoraSpec(16, 1.0, False, LORA_TARGETS), TINY)


def test_stacked_adapters_decode_each_part_of_the_rows_with_its_own():
    keys = iter(jax.random.split(jax.random.key(5), 8))
    x = jax.random.normal(next(keys), (6, 5, 8))
    a, b = jax.random.normal(next(keys), (3, 8, 2)), jax.random.normal(next(keys), (3, 2, 12))
    found = low_rank(x, a, b)
    for k in range(3):
        part = slice(2 * k, 2 * k + 2)
        expected = low_rank(x[part], a[k], b[k])
        np.testing.assert_allclose(found[part], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(low_rank(x, a, jnp.zeros_like(b)), jnp.zeros((6, 5, 12)))


def test_the_random_keys_of_stacked_rows_are_those_of_their_runs_alone():
    keys, index = jax.random.split(jax.random.key(0), 3), jnp.arange(12)
    found = sample_keys(keys, index, jnp.arange(2, 6))
    for k in range(3):
        alone = sample_keys(keys[k], index[4 * k : 4 * k + 4], jnp.arange(2, 6))
        np.testing.assert_array_equal(
            jax.random.key_data(found[16 * k : 16 * k + 16]), jax.random.key_data(alone)
        )
