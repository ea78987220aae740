"""Programs for TPUs are compiled by the real compiler, ahead of time and without a TPU.

That is libtpu, in the version that jax[tpu] asks for: `pip install --target DIRECTORY
libtpu==0.0.42.*`, and DIRECTORY on PYTHONPATH, leaves the environment as it is.
"""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from policies import TINY
from update_problem import SHAPED, G, N, make_data

from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.models.attention import causal_attention
from entropy_rl.models.attention.ragged import ragged_attention
from entropy_rl.models.decoder import make_policy
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Sampling
from entropy_rl.types import DATA_AXES, TENSOR_AXIS

pytestmark = pytest.mark.tpu_compiler

ROWS, HEADS = PartitionSpec(DATA_AXES), PartitionSpec(DATA_AXES, None, TENSOR_AXIS)


@pytest.fixture(scope="module")
def mesh():
    """Two by two chips that nobody has."""
    pytest.importorskip("libtpu", reason="libtpu is not installed: no TPU compiler")
    from jax.experimental import topologies

    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # or it looks for a TPU over the network
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    # The cache of compiled programs is for devices that exist.
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield Mesh(
        np.reshape(devices, (1, 2, 2)), (*DATA_AXES, TENSOR_AXIS), axis_types=(AxisType.Auto,) * 3
    )
    jax.config.update("jax_enable_compilation_cache", before)


def on(mesh, shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


@pytest.mark.parametrize(("h", "window"), [(64, None), (128, 300)])
def test_splash_attention_and_its_gradient_compile(h, window, mesh):
    q = on(mesh, (4, 1024, 8, h), jnp.bfloat16, HEADS)
    k = on(mesh, (4, 1024, 2, h), jnp.bfloat16, HEADS)

    def loss(q, k, v):
        out = causal_attention(q, k, v, window=window, implementation="splash", mesh=mesh)
        return out.astype(jnp.float32).sum()

    text = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, k).compile().as_text()
    assert text.count("tpu_custom_call") >= 3  # forward, gradient of q, gradient of k and v


def test_the_gradient_of_the_decoder_compiles_with_splash(mesh):
    config = dataclasses.replace(TINY, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64)
    policy = make_policy(config, jnp.bfloat16, remat="dots", attention="splash", mesh=mesh)
    params = jax.tree.map(
        lambda x: on(mesh, x.shape, x.dtype, PartitionSpec()),
        jax.eval_shape(policy.init, jax.random.key(0)),
    )
    loss = lambda params, ids: policy.apply(params, ids).astype(jnp.float32).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss)).lower(params, on(mesh, (4, 256), jnp.int32, ROWS)).compile()
    assert "tpu_custom_call" in compiled.as_text()


def test_the_update_compiles_with_splash_in_lists_of_live_tokens(mesh):
    config = dataclasses.replace(TINY, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64)
    policy = make_policy(config, jnp.bfloat16, remat="full", attention="splash", mesh=mesh)
    optimizer = optax.adam(1e-3)
    update = make_update(
        policy,
        SHAPED,
        optimizer,
        settings=PassSettings(max_tokens_per_micro_batch=512, group_size=G, mesh=mesh),
    )
    rows, prompt, new = 4 * G, 128, 384
    place = lambda spec: lambda x: on(mesh, x.shape, x.dtype, spec)  # noqa: E731
    state = jax.eval_shape(lambda k: init_state(policy.init(k), optimizer), jax.random.key(0))
    batch = make_data()
    wide = lambda x: jax.ShapeDtypeStruct(  # noqa: E731
        (rows,) if x.ndim == 1 else (rows, new if x.shape[1] == N else prompt + new), x.dtype
    )
    batch = jax.tree.map(place(ROWS), jax.tree.map(wide, batch))
    text = update.lower(jax.tree.map(place(PartitionSpec()), state), batch).compile().as_text()
    assert text.count("tpu_custom_call") >= 3


@pytest.mark.parametrize(
    ("r", "h", "dtype"), [(7, 128, jnp.bfloat16), (4, 64, jnp.bfloat16), (6, 128, jnp.float32)]
)
def test_ragged_attention_compiles_and_a_decode_loop_never_copies_its_cache(r, h, dtype, mesh):
    rows, kv_heads, columns = 8, 4, 2048 + 128

    def decode(q, keys, values):
        def step(state):
            t, keys, values, total = state
            new = q[:, :, :1] + t.astype(dtype)
            keys, values = (
                jax.lax.dynamic_update_slice(x, new, (0, 0, t, 0)) for x in (keys, values)
            )
            length = jnp.full(rows, t + 1)
            part = ragged_attention(q, keys, values, jnp.zeros_like(length), length, mesh=mesh)
            return t + 1, keys, values, total + part.out

        start = (jnp.int32(0), keys, values, jnp.zeros(q.shape))
        return jax.lax.while_loop(lambda state: state[0] < columns, step, start)[3]

    spec = PartitionSpec(DATA_AXES, TENSOR_AXIS)
    q, cache = (on(mesh, (rows, kv_heads, n, h), dtype, spec) for n in (r, columns))
    text = jax.jit(decode).lower(q, cache, cache).compile().as_text()
    loop, _, program = text.partition("\nENTRY ")
    assert " while(" in program and "ragged_attention" in loop
    # With h = 64 there is one before the loop: the kernel's layout fills the 128 lanes.
    copies = re.compile(rf",{columns},{h}\].* (copy|copy-start|transpose)\(")
    assert not [line for line in loop.splitlines() if copies.search(line)]


@pytest.mark.parametrize("slots", [8, 4])
def test_the_loop_of_the_rollout_compiles_with_the_ragged_kernel(slots, mesh):
    config = dataclasses.replace(TINY, head_dim=64, hidden_size=128)
    policy = make_policy(config, jnp.bfloat16, decode_attention="ragged", mesh=mesh)
    programs = SamplerPrograms(policy, Sampling(2, 256, (1,), 0, 1.0, 1.0))
    params = jax.eval_shape(lambda: policy.to_decode(policy.init(jax.random.key(0))))
    i32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    prompts = (i32(4, 16), jax.ShapeDtypeStruct((4, 16), bool), i32(4), i32(4))
    request, state, _ = jax.eval_shape(
        lambda *a: programs.begin(slots, 256, *a),
        params,
        prompts,
        jax.eval_shape(jax.random.key, 0),
        i32(),
    )
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree
    )
    compiled = programs.decode.lower(*map(place, (params, request, state, i32(), i32()))).compile()
    assert compiled.as_text().count("tpu_custom_call") >= config.num_layers
