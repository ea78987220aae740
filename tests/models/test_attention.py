"""Attention of whole rows: every implementation computes one softmax over what a token may see."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY, mesh_of

from entropy_rl.config.common import ModelConfig
from entropy_rl.models.attention import dispatch
from entropy_rl.models.attention.dispatch import (
    causal_attention,
    check_backend,
    resolve_attention,
    resolve_decode_attention,
)
from entropy_rl.models.attention.packed import packed_attention
from entropy_rl.models.attention.splash import splash_attention
from entropy_rl.models.attention.xla import Prefix, xla_attention
from entropy_rl.models.decoder import make_policy
from entropy_rl.models.packing import make_packing, pack_tokens
from entropy_rl.runs import load_model as loading


def qkv(key, rows=2, length=37, heads=4, kv_heads=2, h=8, dtype=jnp.float32):
    shapes = [(rows, length, n, h) for n in (heads, kv_heads, kv_heads)]
    keys = jax.random.split(key, 3)
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def float64_attention(q, k, v, window=None):
    """The formula, token by token."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, head in np.ndindex(q.shape[:3]):
        seen = slice(0 if window is None else max(0, t - window + 1), t + 1)
        kv_head = head // (q.shape[2] // k.shape[2])
        scores = k[b, seen, kv_head] @ q[b, t, head] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, head] = weights @ v[b, seen, kv_head] / weights.sum()
    return out


def value_and_gradients(attend, *x):
    """The output and the gradients of a fixed sum of it."""

    @jax.jit
    def compute(*x):
        out, vjp = jax.vjp(attend, *x)
        return out, vjp(jax.random.normal(jax.random.key(9), out.shape).astype(out.dtype))

    return compute(*x)


def assert_close(actual, expected, atol):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=atol),
        actual,
        jax.tree.map(lambda x: np.asarray(x, np.float64), expected),
    )


# --- xla ---

WINDOWS = {"no window": None, "window": 5, "window of one": 1}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(
    "chunk", [512, 19, 4]
)  # at once; two chunks, padded; in stripes of several
def test_xla_attention_is_the_formula_in_float64(name, chunk, key):
    q, k, v = qkv(key)
    expected = float64_attention(q, k, v, WINDOWS[name])
    assert_close(xla_attention(q, k, v, WINDOWS[name], chunk), expected, atol=2e-6)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("chunk", [512, 19, 4])
def test_attention_after_a_prefix_is_that_of_the_joined_rows(name, chunk, key):
    lengths = [11, 0, 7]
    q, k, v = qkv(key, rows=3)
    _, *before = qkv(jax.random.key(1), rows=3, length=11)
    prefix = Prefix(*before, jnp.array(lengths))
    out = xla_attention(q, k, v, WINDOWS[name], chunk, prefix)
    for row, length in enumerate(lengths):
        joined = [
            jnp.concatenate([first[row : row + 1, :length], x[row : row + 1]], axis=1)
            for first, x in zip((jnp.zeros((3, 11, 4, 8)), *before), (q, k, v), strict=True)
        ]
        expected = float64_attention(*joined, WINDOWS[name])[:, length:]
        assert_close(out[row : row + 1], expected, atol=2e-6)


@pytest.mark.parametrize(("window", "chunk"), [(None, 4), (5, 19)])
def test_chunks_change_neither_values_nor_gradients(window, chunk, key):
    x = qkv(key)
    whole = value_and_gradients(lambda *x: xla_attention(*x, window), *x)
    chunked = value_and_gradients(lambda *x: xla_attention(*x, window, chunk), *x)
    assert_close(chunked, whole, atol=5e-6)


def test_a_window_may_be_a_traced_number(key):
    x = qkv(key)
    traced = jax.jit(lambda window, *x: xla_attention(*x, window, 8))
    for window in (3, 37):
        assert_close(traced(jnp.int32(window), *x), xla_attention(*x, window), atol=1e-6)


def test_gradients_in_bfloat16_do_not_lose_more_by_chunks(key):
    _, exact = value_and_gradients(xla_attention, *qkv(key, length=64))
    x = qkv(key, length=64, dtype=jnp.bfloat16)

    def error(attend):
        pairs = zip(value_and_gradients(attend, *x)[1], exact, strict=True)
        return np.array([abs(np.asarray(a, np.float64) - b).mean() for a, b in pairs])

    assert (error(lambda *x: xla_attention(*x, None, 4)) < 1.1 * error(xla_attention)).all()


def test_memory_of_long_rows_grows_with_the_length_and_not_with_its_square():
    def temporary_bytes(length, chunk):
        shapes = [jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)] * 3
        loss = lambda q, k, v: xla_attention(q, k, v, None, chunk).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(1024, 128), temporary_bytes(4096, 128)
    assert long < 4.5 * short
    assert 8 * long < temporary_bytes(4096, 4096)


# --- the choice ---


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "windows", "expected"),
    [
        ("cpu", "float32", 64, (None,), "xla"),
        ("cpu", "bfloat16", 64, (None,), "xla"),
        ("gpu", "bfloat16", 128, (None, None), "cudnn"),
        ("gpu", "bfloat16", 128, (7, 7), "cudnn"),
        ("gpu", "float32", 128, (None,), "xla"),
        ("gpu", "bfloat16", 100, (None,), "xla"),
        ("gpu", "bfloat16", 512, (None,), "xla"),
        ("gpu", "bfloat16", 128, (None, 7), "xla"),
        ("tpu", "bfloat16", 64, (None,), "splash"),
        ("tpu", "float32", 64, (7, 7), "splash"),
        ("tpu", "bfloat16", 64, (7, None), "xla"),
    ],
)
def test_auto_is_what_the_backend_has_for_this_model(
    backend, dtype, head_dim, windows, expected, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert resolve_attention("auto", dtype, head_dim, windows) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "windows", "message"),
    [
        (
            "flash",
            "float32",
            8,
            (None,),
            "model.attention: must be one of auto, xla, cudnn, splash, got 'flash'",
        ),
        (
            "cudnn",
            "float32",
            8,
            (None,),
            "model.attention: must be one of auto, xla with model.compute_dtype float32",
        ),
        (
            "cudnn",
            "bfloat16",
            12,
            (None,),
            "model.attention: must be one of auto, xla with a head size of 12, got",
        ),
        ("cudnn", "bfloat16", 264, (None,), "which needs a multiple of 8 up to 256"),
        (
            "splash",
            "bfloat16",
            8,
            (None, 7),
            "where layers have different sliding windows (7, None), got",
        ),
    ],
)
def test_a_model_that_an_implementation_does_not_support_is_refused_in_a_line(
    name, dtype, head_dim, windows, message
):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        resolve_attention(name, dtype, head_dim, windows)
    assert "\n" not in str(error.value)


def test_a_policy_refuses_before_it_computes():
    with pytest.raises(
        ValueError, match=r"^model\.attention: must be .* with model\.compute_dtype float32"
    ):
        make_policy(TINY, attention="cudnn")


def test_a_backend_without_the_kernel_is_refused_in_a_line_before_weights_are_read(monkeypatch):
    monkeypatch.setattr("entropy_rl.runs.weights.load_hf", None)
    with pytest.raises(
        ValueError, match=r"must be one of auto, xla on the backend cpu, got 'splash'$"
    ):
        loading.load_model(ModelConfig("asset:countdown", attention="splash"))
    check_backend("auto")


def test_new_tokens_are_read_by_the_kernel_on_gpus_where_its_blocks_fit(monkeypatch):
    found = {}
    for backend in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda b=backend: b)
        found[backend] = [resolve_decode_attention("auto", h) for h in (128, 80, 8)]
    assert found == {"cpu": ["xla"] * 3, "tpu": ["xla"] * 3, "gpu": ["ragged", "xla", "xla"]}
    assert resolve_decode_attention("ragged", 80) == "ragged"


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_a_traced_window_is_refused_in_a_line(implementation, key):
    x = qkv(key, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="window: must be None or an int with"):
        causal_attention(*x, window=jnp.int32(3), implementation=implementation)


# --- the kernels ---

KERNEL_CASES = {
    "a row of one block": dict(length=100, window=None),
    "two blocks, padded": dict(length=600, window=None),
    "window": dict(length=600, window=70),
}


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_splash_agrees_with_xla(name, key):
    case = dict(KERNEL_CASES[name])
    x = qkv(key, rows=1, length=case.pop("length"), heads=2, kv_heads=1, h=16)
    splash = value_and_gradients(lambda *x: splash_attention(*x, **case, interpret=True), *x)
    assert_close(splash, value_and_gradients(lambda *x: xla_attention(*x, **case), *x), atol=2e-5)


# A KV head on each device; on two of them; rows that do not divide.
@pytest.mark.parametrize(("shape", "rows"), [((2, 2, 2), 4), ((1, 2, 4), 4), ((1, 2, 4), 3)])
def test_splash_over_a_mesh_agrees_with_xla(shape, rows, key):
    x = qkv(key, rows=rows, length=20, heads=8, kv_heads=2, h=16)
    mesh = mesh_of(*shape)
    splash = value_and_gradients(lambda *x: splash_attention(*x, mesh=mesh, interpret=True), *x)
    assert_close(splash, value_and_gradients(xla_attention, *x), atol=2e-5)


def test_heads_that_the_mesh_does_not_divide_are_refused_in_a_line(key):
    with pytest.raises(ValueError, match="must divide the number of heads, got 6 query and 2 KV"):
        splash_attention(*qkv(key, heads=6), mesh=mesh_of(1, 1, 4))


# KV heads on two devices each; rows that do not divide.
@pytest.mark.parametrize(("shape", "rows"), [((1, 2, 4), 4), ((1, 2, 4), 3)])
def test_cudnn_over_a_mesh_gets_as_many_kv_heads_on_each_device_as_divide(
    shape, rows, key, monkeypatch
):
    """On CPU, XLA stands in for cudnn, which shards q, k and v in the same way only."""
    compute, seen = jax.nn.dot_product_attention, set()

    def stand_in(q, k, v, *, implementation=None, **kwargs):
        if implementation == "cudnn":
            seen.add((q.shape, k.shape, v.shape))
        return compute(q, k, v, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    x = qkv(key, rows=rows, length=20, heads=8, kv_heads=2, h=16, dtype=jnp.bfloat16)
    attend = partial(causal_attention, window=7)
    on_mesh = partial(attend, implementation="cudnn", mesh=mesh_of(*shape))
    out, grads = value_and_gradients(on_mesh, *x)
    assert seen == {((2, 20, 2, 16), (2, 20, 1, 16), (2, 20, 1, 16))}
    expected, expected_grads = value_and_gradients(attend, *x)
    # bfloat16 has 8 bits: of values of order 1, and of gradients that are sums of some of them.
    assert_close(out, expected, atol=2e-2)
    assert_close(grads, expected_grads, atol=1e-1)


@pytest.mark.parametrize(("implementation", "backend"), [("cudnn", "gpu"), ("splash", "tpu")])
@pytest.mark.parametrize("window", [None, 70])
def test_a_kernel_on_its_device_agrees_with_xla(implementation, backend, window, key):
    if jax.default_backend() != backend:
        pytest.skip(
            f"{implementation} needs the backend {backend}, this is {jax.default_backend()}"
        )
    x = qkv(key, rows=3, length=600, heads=4, kv_heads=2, h=64, dtype=jnp.bfloat16)
    attend = partial(causal_attention, window=window)
    out, grads = value_and_gradients(partial(attend, implementation=implementation), *x)
    expected, expected_grads = value_and_gradients(attend, *x)
    # bfloat16 has 8 bits: of values of order 1, and of gradients that are sums of some of them.
    assert_close(out, expected, atol=2e-2)
    assert_close(grads, expected_grads, atol=1e-1)


@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
def test_packed_tokens_agree_with_whole_rows_in_xla(implementation, key):
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip(f"cudnn needs the backend gpu, this is {jax.default_backend()}")
    lengths = np.array([600, 1, 77, 300])
    x = qkv(key, rows=4, length=600, heads=4, kv_heads=2, h=64, dtype=jnp.bfloat16)
    shapes = ((512, 4), (640, 4))
    first = jnp.zeros(4, jnp.int32)
    packed = pack_tokens(first, jnp.array(lengths), jnp.int32(1), shapes, room=1024, shards=1)
    packing = make_packing(packed, 600)

    def of_packed(q, k, v):
        attend = packed_attention(
            lambda q, k, v, window, _: causal_attention(
                q, k, v, window=window, implementation=implementation
            ),
            packed,
        )
        return packing.unpack(attend(*(packing.pack(y) for y in (q, k, v)), None, None))

    def of_rows(q, k, v):
        real = jnp.arange(600)[None, :, None, None] < lengths[:, None, None, None]
        return jnp.where(real, causal_attention(q, k, v), 0)

    expected = value_and_gradients(of_rows, *x)
    out, grads = value_and_gradients(of_packed, *x)
    assert_close(out, expected[0], atol=2e-2)
    assert_close(grads, expected[1], atol=1e-1)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("longest", [4, 9, 16])  # every width of the prompts that is compiled
def test_packed_tokens_after_prompts_are_the_same_with_and_without_the_prompts_queries(
    longest, window, key
):
    lengths, owner = np.array([5, 0, 12, 1]), jnp.array([0, 1, 1, 0])
    first = jnp.minimum(jnp.array([16, 3, 3, 16]), longest)
    shapes = ((8, 4), (12, 4))
    packed = pack_tokens(first, first + lengths, jnp.int32(1), shapes, room=24, shards=1)
    packed = packed.replace(prompt=owner)
    _, *prompts = qkv(key, rows=2, length=16)
    q, k, v = (x.reshape((1, 24) + x.shape[2:]) for x in qkv(key, rows=2, length=12))

    def attend(q, k, v, window, prefix):
        return xla_attention(q, k, v, window, prefix=prefix)

    def outputs(takes_prefix):
        def run(q, k, v, *prompts):
            of_packed = packed_attention(attend, packed, 16, takes_prefix)
            out = of_packed(q, k, v, prompts, window)
            return jnp.where(jnp.arange(24)[None, :, None, None] < lengths.sum(), out, 0)

        return value_and_gradients(run, q, k, v, *prompts)

    # float32, sums in another order.
    assert_close(outputs(True), outputs(False), atol=1e-5)


def test_packed_tokens_with_one_window_in_all_layers_agree_with_xla_in_a_kernel(key, monkeypatch):
    monkeypatch.setattr(dispatch, "splash_attention", partial(splash_attention, interpret=True))
    config = dataclasses.replace(TINY, sliding_window=5, sliding_layers=(True, True))
    last = jnp.array([20, 9])
    packed = pack_tokens(jnp.zeros_like(last), last, jnp.int32(0), ((24, 2),), room=32, shards=1)
    ids = make_packing(packed, 24).pack(jax.random.randint(key, (2, 24), 0, TINY.vocab_size))

    def outputs(implementation):
        policy = make_policy(config, attention=implementation)
        return value_and_gradients(lambda p: policy.apply_packed(p, ids, packed), policy.init(key))

    assert_close(outputs("splash"), outputs("xla"), atol=1e-4)
