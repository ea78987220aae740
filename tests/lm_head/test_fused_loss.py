"""The head fused with a loss: equal to the head followed by the loss, in one pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_programs import collectives
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from entropy_rl.lm_head import fused as fused_head
from entropy_rl.lm_head.fused_loss import fused_head_loss
from entropy_rl.lm_head.log_probs import log_prob_and_entropy

B, N, D, V = 13, 5, 6, 37


@pytest.fixture
def arrays(key):
    k = jax.random.split(key, 7)
    hidden, weights = jax.random.normal(k[0], (B, N, D)), jax.random.normal(k[1], (V, D))
    ids, mask = jax.random.randint(k[2], (B, N), 0, V), jax.random.bernoulli(k[3], 0.6, (B, N))
    inputs = {
        "advantage": jax.random.normal(k[4], (B, N)),
        "old": -3 + 0.5 * jax.random.normal(k[5], (B, N)),
        "weight": jax.random.uniform(k[6], (B, N)),
        "flag": ids % 2 == 0,
        "none": None,
    }
    return hidden, weights, ids, mask, inputs


def surrogate(log_prob, entropy, x, *, bonus=0.0):
    """A clipped surrogate with the shaped advantage, and an entropy bonus that has a gradient."""
    shaped = x["advantage"] + jnp.minimum(
        0.4 * jax.lax.stop_gradient(entropy), jnp.abs(x["advantage"]) / 2
    )
    ratio = jnp.exp(log_prob - x["old"])
    loss = jnp.maximum(-ratio * shaped, -jnp.clip(ratio, 0.8, 1.28) * shaped)
    if bonus:
        loss = loss - bonus * entropy
    return x["weight"] * loss, {"shaped": shaped, "flag": x["flag"]}


def with_bonus(log_prob, entropy, x):
    return surrogate(log_prob, entropy, x, bonus=0.3)


def entropy_alone(log_prob, entropy, x):
    return x["weight"] * entropy**2, ()


def unfused(token_loss, hidden, weights, ids, mask, inputs):
    log_prob, entropy = log_prob_and_entropy(hidden, weights, ids, mask, temperature=0.7)
    losses, aux = token_loss(log_prob, entropy, inputs)
    total = jnp.sum(jnp.where(mask, losses, 0))
    return total, (
        log_prob,
        entropy,
        jax.tree.map(lambda x: jnp.where(mask, x, jnp.zeros_like(x)), aux),
    )


def fused(token_loss, hidden, weights, ids, mask, inputs, mesh=None, chunk_size=2):
    total, *per_token = fused_head_loss(
        hidden,
        weights,
        ids,
        mask,
        token_loss,
        inputs,
        temperature=0.7,
        chunk_size=chunk_size,
        mesh=mesh,
    )
    return total, tuple(per_token)


def gradients(function, token_loss, hidden, weights, *rest):
    def loss(h, w):
        total, per_token = function(token_loss, h, w, *rest)
        return 3.0 * total, per_token  # a cotangent that is not 1

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, weights)


def assert_equal_up_to_rounding(got, want):
    """To 1e-5 of the largest entry of each array."""

    def check(g, w):
        assert g.dtype == w.dtype and g.shape == w.shape
        assert np.abs(np.float64(g) - np.float64(w)).max() <= 1e-5 * max(
            1e-3, np.abs(np.float64(w)).max()
        )

    jax.tree.map(check, got, want)


@pytest.mark.parametrize("token_loss", [surrogate, with_bonus, entropy_alone])
@pytest.mark.parametrize("chunk_size", [2, 64])
def test_values_and_gradients_are_those_of_the_head_and_the_same_loss_after_it(
    arrays, token_loss, chunk_size
):
    got = gradients(fused, token_loss, *arrays, None, chunk_size)
    assert_equal_up_to_rounding(got, gradients(unfused, token_loss, *arrays))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)], ids=str)
def test_eight_devices_give_the_loss_and_the_gradients_of_one(arrays, shape):
    hidden, weights, ids, mask, inputs = arrays
    mask &= jnp.arange(B)[:, None] < 7  # whole shards without a token
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    arguments = hidden, weights, ids, mask, inputs
    got = gradients(fused, with_bonus, *arguments, mesh)
    assert_equal_up_to_rounding(got, gradients(unfused, with_bonus, *arguments))


def test_without_a_token_the_loss_and_its_gradients_are_zero(arrays):
    hidden, weights, ids, mask, inputs = arrays
    got = gradients(fused, with_bonus, hidden, weights, ids, jnp.zeros_like(mask), inputs)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(got))


def test_a_loss_that_is_nan_where_nothing_counts_does_no_harm(arrays):
    hidden, weights, ids, mask, inputs = arrays

    def log_of_input(log_prob, entropy, x):
        return log_prob * jnp.log(x["weight"]) / x[
            "weight"
        ], ()  # the zeros that fill up a chunk: NaN

    one = gradients(fused, log_of_input, hidden, weights, ids, mask, inputs, None, 64)
    inputs["weight"] = jnp.where(mask, inputs["weight"], jnp.nan)
    hidden = jnp.where(mask[..., None], hidden, jnp.nan)
    two = gradients(fused, log_of_input, hidden, weights, ids, mask, inputs, None, 64)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(one))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_only_the_total_has_a_gradient(arrays):
    hidden, weights, *rest = arrays
    grads = jax.grad(
        lambda h, w: sum(x.sum() for x in fused(with_bonus, h, w, *rest)[1][:2]), (0, 1)
    )(hidden, weights)
    assert not any(np.asarray(g).any() for g in grads)


def products(function, *arguments):
    """Matrix products in the program, loop bodies counted once."""
    return len(
        re.findall(r"= dot_general\b|dot_general\[", str(jax.make_jaxpr(function)(*arguments)))
    )


def test_a_pass_with_gradients_has_three_products_and_one_without_has_one(arrays):
    hidden, weights, *rest = arrays
    count = lambda f, *more: products(lambda h, w: f(surrogate, h, w, *rest)[0], hidden, weights)  # noqa: E731
    assert count(fused) == count(unfused) == 1
    both = [
        products(jax.grad(lambda h, w, f=f: f(surrogate, h, w, *rest)[0], (0, 1)), hidden, weights)
        for f in (fused, unfused)
    ]
    assert both == [3, 4]


def test_an_entropy_under_stop_gradient_has_no_term():
    hidden, weights = jnp.ones((16, 4)), jnp.ones((64, 4))
    ids, ones = jnp.zeros(16, jnp.int32), jnp.ones(16)
    inputs = {"advantage": ones, "old": ones, "weight": ones, "flag": jnp.ones(16, bool)}

    def products_per_logit(token_loss):
        grad = jax.grad(lambda h: fused_head_loss(h, weights, ids, None, token_loss, inputs)[0])
        return str(jax.make_jaxpr(grad)(hidden)).count(":f32[16,64] = mul")

    assert products_per_logit(with_bonus) == products_per_logit(surrogate) + 2


def test_memory_is_that_of_a_chunk_and_no_buffer_holds_the_logits_of_all_tokens():
    tokens, vocab, width, chunk = 4096, 4096, 16, 64

    def loss(h, w, ids, mask, advantage):
        token_loss = lambda lp, ent, a: (a * lp - 0.1 * ent, ent)  # noqa: E731
        return fused_head_loss(h, w, ids, mask, token_loss, advantage, chunk_size=chunk)[0]

    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), bool),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    sizes = {
        int(np.prod([int(d) for d in dims.split(",")]))
        for dims in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    }
    assert max(sizes) < tokens * vocab
    assert chunk * vocab in sizes
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * chunk * vocab * 4


def test_blocks_of_the_vocabulary_give_the_gradient_of_one_product(arrays, monkeypatch):
    whole = gradients(fused, surrogate, *arrays)
    monkeypatch.setattr(fused_head, "_PRODUCT_BLOCK", 16)  # two blocks, and a rest of 5
    assert_equal_up_to_rounding(gradients(fused, surrogate, *arrays), whole)


def test_a_product_is_added_to_the_gradient_of_the_weights_without_a_second_one():
    tokens, width, vocab = 16, 64, 3 * fused_head._PRODUCT_BLOCK + 5

    def loss(h, w, ids):
        token_loss = lambda log_prob, _entropy, _: (log_prob, ())  # noqa: E731
        return fused_head_loss(h, w, ids, None, token_loss, (), chunk_size=4)[0]

    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    memory = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.7 * 4 * vocab * width


def test_shapes_that_do_not_fit_are_refused_by_name(arrays):
    hidden, weights, ids, mask, inputs = arrays
    with pytest.raises(
        ValueError, match=r"inputs\['old'\]: must have the shape of ids \(13, 5\), got \(13, 1\)"
    ):
        fused(surrogate, hidden, weights, ids, mask, inputs | {"old": inputs["old"][:, :1]})
    with pytest.raises(
        ValueError, match=r"token_loss: must return a loss of shape \(2,\), one per token, got \(\)"
    ):
        fused(lambda lp, ent, x: (lp.sum(), ()), *arrays)


def test_on_a_mesh_only_numbers_per_token_travel_in_the_loop_and_each_gradient_is_summed_once(key):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    tokens, weights = PartitionSpec(("data", "fsdp")), PartitionSpec("tensor", "fsdp")

    def loss(h, w, ids, advantage):
        token_loss = lambda lp, ent, a: (a * lp - 0.1 * ent, ())  # noqa: E731
        return fused_head_loss(h, w, ids, None, token_loss, advantage, chunk_size=4, mesh=mesh)[0]

    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in (
            ((16, 12, 24), jnp.float32, tokens),
            ((64, 24), jnp.float32, weights),
            ((16, 12), jnp.int32, tokens),
            ((16, 12), jnp.float32, tokens),
        )
    ]
    program = jax.jit(
        jax.value_and_grad(loss, (0, 1)),
        out_shardings=(None, (NamedSharding(mesh, tokens), NamedSharding(mesh, weights))),
    )
    text = program.lower(*shapes).compile().as_text()
    in_loops = collectives(text, in_loops=True)
    assert in_loops and {result for _, results in in_loops for result in results} == {"f32[4]"}
    outside = sorted(collectives(text, in_loops=False))
    assert outside == [
        ("all-gather", ("f32[32,24]",)),
        ("all-reduce", ("f32[32,12]",)),
        ("all-reduce", ("f32[48,24]",)),
        ("all-reduce", ("f32[]",)),
        ("reduce-scatter", ("f32[32,12]",)),
    ]
