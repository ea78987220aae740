"""Sharding: the mesh of a config, the partition rules, and the same run on any mesh."""

import dataclasses
import importlib
import json
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from policies import TINY, tiny_policy
from run_records import metrics_of
from tiny_runs import EVALUATION, make_workspace
from update_problem import SHAPED, G, make_data

from entropy_rl.cli.main import main
from entropy_rl.config.common import MeshConfig
from entropy_rl.config.optimizer import OptimizerConfig
from entropy_rl.distributed.sharding import Placement, check_rows, make_mesh, move, partition_spec
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.models import make_policy
from entropy_rl.models.embedding import embed_tokens
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Sampling
from entropy_rl.types import DATA_AXES


def placement_of(*sizes, kv_heads=TINY.num_kv_heads):
    return Placement(make_mesh(MeshConfig(*sizes)), kv_heads)


# --- the mesh ---


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(data=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=-1, fsdp=2), (4, 2, 1)),
        (MeshConfig(data=1, fsdp=2, tensor=2), (1, 2, 2)),  # on four of the eight
    ],
)
def test_a_mesh_takes_the_devices_that_are_left(config, shape):
    assert tuple(make_mesh(config).shape.values()) == shape


def test_a_single_device_needs_no_mesh():
    assert make_mesh(MeshConfig(fsdp=1)) is None
    assert make_mesh(MeshConfig(), jax.devices()[:1]) is None


def test_a_mesh_that_does_not_fit_is_refused_in_a_line():
    with pytest.raises(
        ValueError,
        match=r"^mesh: .* must divide the number of devices \(8\), got data 1 x fsdp -1 x",
    ):
        make_mesh(MeshConfig(tensor=3))
    with pytest.raises(
        ValueError, match=r"^mesh: .* must be at most .* \(8\), got data 4 x fsdp 4 x tensor 1$"
    ):
        make_mesh(MeshConfig(data=4, fsdp=4))
    with pytest.raises(
        ValueError, match=r"^mesh: must be -1 for at most one axis, got {'data': -1"
    ):
        MeshConfig(data=-1)
    with pytest.raises(ValueError, match=r"^mesh\.tensor: must be -1 or >= 1, got 0$"):
        MeshConfig(tensor=0)


def two_processes():
    """Devices as two processes of four have them."""
    return [SimpleNamespace(process_index=i // 4, id=i, platform="cpu") for i in range(8)]


def test_devices_of_several_processes_must_all_be_used_and_a_tensor_group_is_within_one():
    with pytest.raises(
        ValueError, match=r"^mesh: must have all 8 devices of the 2 processes, got .* are 4$"
    ):
        make_mesh(MeshConfig(fsdp=4), two_processes())
    with pytest.raises(
        ValueError, match=r"^mesh\.tensor: must be a divisor of 4, the devices of a process, got 8$"
    ):
        make_mesh(MeshConfig(tensor=8), two_processes())


def test_rows_that_are_not_divisible_are_refused_in_a_line():
    mesh = make_mesh(MeshConfig())
    check_rows(None, 3, rows_each=5, field="batch_size")
    check_rows(mesh, 3, rows_each=8, field="batch_size")
    check_rows(mesh, 2, rows_each=12, field="batch_size")
    with pytest.raises(ValueError, match=r"^batch_size: must be a multiple of 2, .* got 3$"):
        check_rows(mesh, 3, rows_each=12, field="batch_size")


# --- the rules ---

CONFIGS = {
    "every switch": TINY,
    "all biases": dataclasses.replace(TINY, qk_norm=False, o_bias=True, mlp_bias=True),
    "no bias, tied": dataclasses.replace(TINY, qkv_bias=False, qk_norm=False, tie_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_and_moment_has_a_rule_and_is_sharded_by_it(name):
    placement = placement_of(1, 4, 2)
    policy = make_policy(CONFIGS[name])
    params = jax.jit(policy.init)(jax.random.key(0))
    state = init_state(params, optax.adam(1e-3), placement.constrain)
    params, moments = state.params, state.opt_state[0].mu
    for tree in (params, moments):
        attention, mlp = tree["layers"]["self_attn"], tree["layers"]["mlp"]
        assert attention["q_proj"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
        assert attention["o_proj"]["kernel"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")
        assert mlp["down_proj"]["kernel"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")
        # 37 vocab entries are not divisible
        assert tree["embed_tokens"]["embedding"].sharding.spec == PartitionSpec(None, "fsdp")
        assert tree["norm"]["scale"].sharding.is_fully_replicated
    largest = params["layers"]["mlp"]["up_proj"]["kernel"]
    assert largest.addressable_shards[0].data.size * 8 == largest.size


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "lion", "sgd"])
def test_an_update_by_each_optimizer_on_a_mesh_is_that_of_one_device(name, key):
    # 256 hidden units: Adafactor factors moments of at least 128.
    shape = dataclasses.replace(TINY, hidden_size=128, intermediate_size=256)
    placement = placement_of(1, 4, 2)
    optimizer = make_optimizer(OptimizerConfig(0.1, name=name, weight_decay=0.1))
    params = jax.jit(make_policy(shape).init)(key)
    gradient = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size).reshape(x.shape)), params)

    def step(state, gradient):
        changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, changes), opt_state=opt_state)

    def run(constrain):
        state = init_state(params, optimizer, constrain)
        apply = jax.jit(step if constrain is None else lambda s, g: constrain(step(s, g)))
        return apply(apply(state, gradient), gradient)

    sharded, single = run(placement.constrain), run(None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), sharded, single
    )
    large = [x for x in jax.tree.leaves(sharded.opt_state) if x.size > 10_000]
    assert (name == "adafactor") == (not large)
    assert all(not x.sharding.is_fully_replicated for x in large)


def test_kv_heads_that_are_not_divisible_are_not_sharded():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    path = "layers/self_attn/k_proj/kernel"
    assert partition_spec(path, (2, 32, 16), mesh, kv_heads=2) == PartitionSpec(None, "fsdp", None)
    assert partition_spec(path, (2, 32, 16), mesh, kv_heads=4) == PartitionSpec(
        None, "fsdp", "tensor"
    )


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"^layers/router/kernel: no partition rule matches"):
        partition_spec("layers/router/kernel", (3, 4), make_mesh(MeshConfig()))


# --- what is computed ---


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (1, 2, 4)])
@pytest.mark.parametrize("shape", [(40, 16), (37, 12)])  # divisible, and not
def test_embedding_and_its_gradient_are_those_of_one_device(sizes, shape, key):
    placement = placement_of(*sizes)
    mesh = placement.mesh
    table, ids = jax.random.normal(key, shape), jax.random.randint(key, (8, 5), 0, shape[0])

    def run(table, ids, mesh):
        return jax.value_and_grad(
            lambda t: jnp.sum(jnp.sin(embed_tokens(t, ids, jnp.float32, mesh)))
        )(table)

    spec = partition_spec("embed_tokens/embedding", shape, mesh)
    placed = jax.device_put(table, NamedSharding(mesh, spec))
    rows = jax.device_put(ids, NamedSharding(mesh, PartitionSpec(DATA_AXES)))
    found = jax.jit(run, static_argnums=2)(placed, rows, mesh)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, run(table, ids, None)
    )


# A KV head on each device, and on two of them; prompts once for a group, and with each row.
@pytest.mark.parametrize(
    ("sizes", "group_size"),
    [((2, 2, 2), G), pytest.param((1, 2, 4), None, marks=pytest.mark.slow)],
)
def test_an_update_of_a_sharded_state_is_that_of_one_device_and_stays_sharded(
    sizes, group_size, key, capfd
):
    placement = placement_of(*sizes)
    rows = NamedSharding(placement.mesh, PartitionSpec(DATA_AXES))
    data, optimizer = make_data(), optax.adam(0.1)
    params = tiny_policy().init(key)
    results = []
    for mesh in (None, placement.mesh):
        constrain = None if mesh is None else placement.constrain
        settings = dict(
            max_tokens_per_micro_batch=15, mesh=mesh, constrain=constrain, group_size=group_size
        )
        update = make_update(
            tiny_policy(mesh=mesh), SHAPED, optimizer, settings=PassSettings(**settings)
        )
        state = init_state(params, optimizer, constrain)
        before = jax.tree.map(lambda x: x.sharding, state.params)
        state, metrics = update(state, data if mesh is None else jax.device_put(data, rows))
        assert jax.tree.map(lambda x: x.sharding, state.params) == before
        results.append(jax.device_get((state.opt_state[0].mu, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)
    assert (
        "rematerialization" not in capfd.readouterr().err
    )  # what the compiler says when layouts do not fit


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 4)])
def test_the_weight_sync_gives_the_same_parameters_sharded_over_tensor_only(sizes, key):
    placement = placement_of(*sizes)
    policy = tiny_policy(compute_dtype=jnp.bfloat16, mesh=placement.mesh)
    params = init_state(policy.init(key), optax.sgd(0.1), placement.constrain).params
    decode = placement.make_to_decode(policy)(params)
    whole = policy.to_decode(jax.device_get(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), decode, whole
    )
    kernel = decode["layers"][0]["self_attn"]["q_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "tensor")
    assert kernel.addressable_shards[0].data.shape == (32, 32 // sizes[2])


# --- a run ---


@pytest.mark.slow
def test_a_run_on_eight_devices_is_that_of_one(tmp_path, monkeypatch, capfd):
    """Rollout, log-probs, updates and evaluation; the one KV head is on both devices of a tensor
    group.
    """
    workspace = make_workspace(tmp_path / "workspace")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(
        "entropy_rl.report.summary.write_curves", lambda directory: directory
    )  # slow
    settings = [
        x for name, value in EVALUATION.items() for x in (f"--evaluation.{name}", str(value))
    ]
    for name, sizes in (("one", (1, 1, 1)), ("eight", (2, 2, 2))):
        mesh = [x for axis, n in zip(MESH, sizes, strict=True) for x in (axis, str(n))]
        directory = ["--run.directory", name, "--steps", "2", *settings, *mesh]
        assert main(["train", "--config", "train.yaml", *directory]) == 0
    assert "rematerialization" not in capfd.readouterr().err
    np.testing.assert_allclose(
        metrics_of(workspace / "eight"), metrics_of(workspace / "one"), rtol=1e-4
    )
    samples = [
        [json.loads(line)["tokens"] for line in (workspace / name / path).read_text().splitlines()]
        for path in ("samples.jsonl", "evaluations/2/samples.jsonl")
        for name in ("one", "eight")
    ]
    assert samples[0] == samples[1] and samples[2] == samples[3]


MESH = ("--mesh.data", "--mesh.fsdp", "--mesh.tensor")


@pytest.mark.slow
def test_moments_that_are_offloaded_to_the_host_change_nothing(tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path / "workspace")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(
        "entropy_rl.report.summary.write_curves", lambda directory: directory
    )  # slow
    seen = []
    monkeypatch.setattr(
        importlib.import_module("entropy_rl.trainer.updates"),
        "move",
        lambda tree, memory: seen.append(memory) or move(tree, memory),
    )
    for name, offload in (("on the device", "false"), ("on the host", "true")):
        more = ["--run.directory", name, "--steps", "2", "--optimizer.offload", offload]
        assert main(["train", "--config", "train.yaml", *more]) == 0
    assert seen == ["pinned_host"] + ["device", "pinned_host"] * 2
    assert metrics_of(workspace / "on the host") == metrics_of(workspace / "on the device")


def test_an_array_keeps_its_sharding_when_it_moves_between_memories():
    rows = NamedSharding(make_mesh(MeshConfig()), PartitionSpec(DATA_AXES))
    x = jax.device_put(np.arange(16.0), rows)
    there = move({"x": x}, "pinned_host")["x"]
    assert there.sharding.memory_kind == "pinned_host" and there.sharding.spec == rows.spec
    back = move(there, "device")
    assert back.sharding == rows
    np.testing.assert_array_equal(back, np.arange(16.0))


def gathered_sizes(program):
    """Entries of what is gathered in a compiled program."""
    gathered = re.findall(r"= (\S+) (?:all-gather|all-to-all)(?:-start)?\(", program)
    return [
        math.prod(map(int, re.search(r"\[([\d,]*)\]", shape)[1].split(","))) for shape in gathered
    ]


def test_a_row_that_takes_a_slot_gathers_no_prompts_and_is_that_of_one_device(key):
    ids = np.asarray(jax.random.randint(key, (8, 64), 2, TINY.vocab_size), np.int32)
    prompts = (ids, ids > 0, np.arange(8, dtype=np.int32), np.full(8, 16, np.int32))

    def sample(*sizes):
        placement = placement_of(*sizes)
        policy = tiny_policy(mesh=placement.mesh)
        params = placement.make_to_decode(policy)(policy.init(key))
        sampler = tiny_policy(mesh=placement.local_mesh)._replace(to_decode=lambda params: params)
        sampling = Sampling(4, 16, (1,), 0, 1.0, 1.0, placement.local_shards)
        programs = SamplerPrograms(sampler, sampling, placement.constrain_rows)
        put = (*placement.put_prompts(prompts[:3]), prompts[3])
        request, state, _ = programs.begin(8, 16, params, put, jax.random.key(0), 0)
        decode = programs.decode.lower(params, request, state, 999, 0).compile()
        state, status = decode(params, request, state, 999, 0)
        assert status.alive == status.waiting == 0
        return decode.as_text(), programs.finish(request, state)

    program, rollout = sample(4, 1, 1)
    of_prompts = 8 * TINY.num_kv_heads * TINY.head_dim * 64  # keys or values of a layer
    assert max(gathered_sizes(program)) < of_prompts // 8
    _, alone = sample(1, 1, 1)
    np.testing.assert_array_equal(rollout.completion_ids, alone.completion_ids)
    np.testing.assert_allclose(rollout.log_probs, alone.log_probs, atol=1e-5)


def test_decoding_gathers_neither_weights_nor_cache_and_the_cache_stays_sharded(key):
    """Communicates two sums over the tensor group per layer, of one vector per row each."""
    placement = placement_of(2, 1, 2)
    policy = tiny_policy(mesh=placement.mesh)
    params = placement.make_to_decode(policy)(policy.init(key))
    sampler = tiny_policy(mesh=placement.local_mesh)._replace(to_decode=lambda params: params)
    programs = SamplerPrograms(
        sampler, Sampling(4, 16, (1,), 0, 1.0, 1.0), placement.constrain_rows
    )
    ids, index = np.ones((8, 6), np.int32), np.arange(8, dtype=np.int32)
    prompts = placement.put_prompts((ids, ids > 0, index, np.full(8, 16, np.int32)))
    request, state, _ = programs.begin(32, 16, params, prompts, jax.random.key(0), 0)
    for leaf in jax.tree.leaves((state.slots.cache.rows, state.slots.cache.prompts)):
        assert leaf.sharding.spec == PartitionSpec("data", "tensor")
    program = programs.decode.lower(params, request, state, 8, 0).compile().as_text()
    smallest_weight = 32 * 8 * 2  # of the keys or values of a layer
    assert max(gathered_sizes(program), default=0) < smallest_weight
    assert (
        len(re.findall(r"all-reduce(?:-start)?\(.*(?:o_proj|down_proj)", program))
        == 2 * TINY.num_layers
    )
