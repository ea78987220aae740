"""The fused head: eight devices give the result of one, and unused gradients cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_programs import collectives
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
# None of them is divisible by any mesh axis.
B, N, D, V = 13, 5, 6, 37


def make_mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def make_inputs(b=B, n=N, d=D, v=V):
    k = jax.random.split(jax.random.key(3), 5)
    hidden, weights = jax.random.normal(k[0], (b, n, d)), jax.random.normal(k[1], (v, d))
    ids = jax.random.randint(k[2], (b, n), 0, v)
    mask = jax.random.bernoulli(k[3], 0.6, (b, n))
    return hidden, weights, ids, mask, jax.random.normal(k[4], (2, b, n))


def value_and_gradients(mesh, hidden, weights, ids, mask, cotangents, temperature=0.7):
    def loss(h, w):
        lp, ent = log_prob_and_entropy(
            h, w, ids, mask, temperature=temperature, chunk_size=2, mesh=mesh
        )
        return (cotangents[0] * lp + cotangents[1] * ent).sum(), (lp, ent)

    (_, values), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, weights)
    return values, grads


def assert_relatively_close(got, want, limit):
    assert np.abs(got - want).max() <= limit * np.abs(want).max()


@pytest.mark.parametrize(
    "live", ["some tokens", "the first rows alone", "the last row alone", "none"]
)
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_eight_devices_give_the_values_and_gradients_of_one(shape, live):
    hidden, weights, ids, mask, cotangents = make_inputs()
    rows = jnp.arange(B)[:, None]
    mask &= {
        "some tokens": rows >= 0,
        "the first rows alone": rows < 3,
        "the last row alone": rows == B - 1,
    }.get(live, rows < 0)
    values, grads = value_and_gradients(make_mesh(shape), hidden, weights, ids, mask, cotangents)
    expected, expected_grads = value_and_gradients(None, hidden, weights, ids, mask, cotangents)
    for got, want in zip(values, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert_relatively_close(got, want, 1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_a_bfloat16_model_gets_the_same_gradients_from_eight_devices_up_to_one_rounding(shape):
    hidden, weights, ids, mask, cotangents = make_inputs()
    hidden = hidden.astype(jnp.bfloat16)
    values, grads = value_and_gradients(make_mesh(shape), hidden, weights, ids, mask, cotangents)
    expected, expected_grads = value_and_gradients(None, hidden, weights, ids, mask, cotangents)
    for got, want in zip(values, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        assert got.dtype == want.dtype
        # dz is rounded to bfloat16; a last digit of a logit may turn a rounding.
        assert_relatively_close(np.asarray(got, np.float32), np.asarray(want, np.float32), 2**-7)


def test_tokens_without_a_batch_axis_and_a_mesh_of_one_device_work_too():
    hidden, weights, ids, *_ = make_inputs()
    want = log_prob_and_entropy(hidden, weights, ids)
    for got in (
        log_prob_and_entropy(
            hidden.reshape(-1, D), weights, ids.reshape(-1), mesh=make_mesh((2, 2, 2))
        ),
        log_prob_and_entropy(hidden, weights, ids, mesh=make_mesh((1, 1, 1))),
    ):
        jax.tree.map(
            lambda g, w: np.testing.assert_allclose(g.reshape(w.shape), w, atol=1e-5), got, want
        )
    got = log_prob_and_entropy(hidden[2, 3], weights, ids[2, 3], mesh=make_mesh((2, 2, 2)))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w[2, 3], atol=1e-5), got, want)


def compiled_text(function, mesh, *, chunk=4):
    """Compiles the head for arrays that are sharded as in the trainer, of divisible sizes."""
    shapes = {"hidden": (16, 12, 24), "weights": (64, 24), "ids": (16, 12), "mask": (16, 12)}
    tokens, weights = PartitionSpec(DATA_AXES), PartitionSpec(TENSOR_AXIS, FSDP_AXIS)
    specs = {"hidden": tokens, "weights": weights, "ids": tokens, "mask": tokens}
    types = {"hidden": jnp.float32, "weights": jnp.float32, "ids": jnp.int32, "mask": bool}
    arguments = {
        name: jax.ShapeDtypeStruct(
            shapes[name], types[name], sharding=NamedSharding(mesh, specs[name])
        )
        for name in shapes
    }

    def head(hidden, weights, ids, mask):
        return log_prob_and_entropy(
            hidden, weights, ids, mask, temperature=0.7, chunk_size=chunk, mesh=mesh
        )

    def out(*names):
        return tuple(NamedSharding(mesh, specs[name]) for name in names)

    if function == "forward":
        program = jax.jit(lambda hidden, weights, ids, mask: head(hidden, weights, ids, mask),
                          out_shardings=out("ids", "ids"))  # fmt: skip
    else:
        # Gradients of given cotangents, so that the text has no operations of a loss.
        def backward(hidden, weights, ids, mask):
            _, pull = jax.vjp(lambda h, w: head(h, w, ids, mask), hidden, weights)
            return pull((mask * 0.5, mask * 0.25))

        program = jax.jit(backward, out_shardings=out("hidden", "weights"))
    return program.lower(**arguments).compile().as_text()


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_loops_communicate_only_numbers_per_token_of_a_chunk(shape):
    mesh, chunk = make_mesh(shape), 4
    for function in ("forward", "backward"):
        found = collectives(compiled_text(function, mesh, chunk=chunk), in_loops=True)
        for kind, results in found:
            assert kind == "all-reduce" and set(results) == {f"f32[{chunk}]"}, (
                function,
                kind,
                results,
            )
        assert bool(found) == (shape[2] > 1), (
            "devices that hold the whole vocabulary have nothing to say"
        )


def test_outside_of_the_loops_weights_are_gathered_once_a_pass_and_each_gradient_is_summed_once():
    mesh = make_mesh((2, 2, 2))
    forward = collectives(compiled_text("forward", mesh), in_loops=False)
    assert forward == [("all-gather", ("f32[32,24]",))]
    # Forward and backward together. Both gather, or the one for both: weights are not kept in
    # between.
    both = sorted(set(collectives(compiled_text("backward", mesh), in_loops=False)))
    assert both == [
        ("all-gather", ("f32[32,24]",)),
        (
            "all-reduce",
            ("f32[32,12]",),
        ),  # of the weights' gradient over data, after its scatter over fsdp
        ("all-reduce", ("f32[48,24]",)),  # of the hidden states' over tensor
        ("reduce-scatter", ("f32[32,12]",)),
    ]
    assert len(collectives(compiled_text("backward", mesh), in_loops=False)) <= 5


def gradients(loss_of):
    """The program for the gradients of a loss of (log_prob, entropy), and its arguments."""
    hidden, weights, ids, mask, cotangents = make_inputs(4, 16, 8, 512)

    def loss(h, w):
        return loss_of(*log_prob_and_entropy(h, w, ids, mask, chunk_size=16), cotangents).sum()

    return jax.jit(jax.grad(loss, (0, 1))), (hidden, weights)


LOG_PROB_ALONE = gradients(lambda log_prob, entropy, g: g[0] * log_prob)
ENTROPY_ALONE = gradients(lambda log_prob, entropy, g: g[1] * entropy)
BOTH = gradients(lambda log_prob, entropy, g: g[0] * log_prob + g[1] * entropy)
SHAPED = gradients(  # as a shaped advantage has it
    lambda log_prob, entropy, g: (
        (g[0] + jnp.minimum(0.4 * jax.lax.stop_gradient(entropy), 1.0)) * log_prob
    )
)


def work_in_the_loop_of_the_gradient(program):
    """Elementwise operations per logit, as they are written, in the loop that has the three
    products.
    """

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for sub in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                if inner := getattr(sub, "jaxpr", sub if hasattr(sub, "eqns") else None):
                    yield from equations(inner)

    function, arguments = program
    loops = [
        list(equations(equation.params["body_jaxpr"].jaxpr))
        for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr)
        if equation.primitive.name == "while"
    ]
    (body,) = [body for body in loops if sum(e.primitive.name == "dot_general" for e in body) == 3]
    names = [e.primitive.name for e in body if e.outvars[0].aval.shape == (16, 512)]
    return {name: names.count(name) for name in ("exp", "mul", "eq")}


def test_an_output_whose_gradient_is_not_used_has_no_term_in_the_backward_pass():
    # -g p (log p + H) are two products more than g (onehot - p); only the latter compares with the
    # ids.
    assert work_in_the_loop_of_the_gradient(BOTH) == {"exp": 1, "mul": 3, "eq": 1}
    assert work_in_the_loop_of_the_gradient(LOG_PROB_ALONE) == {"exp": 1, "mul": 1, "eq": 1}
    assert work_in_the_loop_of_the_gradient(SHAPED) == {"exp": 1, "mul": 1, "eq": 1}
    assert work_in_the_loop_of_the_gradient(ENTROPY_ALONE) == {"exp": 1, "mul": 2, "eq": 0}


def test_compiled_programs_without_a_term_have_fewer_operations():
    def flops(program):
        function, arguments = program
        return function.lower(*arguments).compile().cost_analysis()["flops"]  # of a loop body once

    logits = 16 * 512
    assert flops(LOG_PROB_ALONE) <= flops(BOTH) - 3 * logits
    assert flops(SHAPED) <= flops(BOTH) - 3 * logits
    assert flops(ENTROPY_ALONE) <= flops(BOTH) - logits


def test_gradients_of_one_output_are_those_of_both_with_a_zero_for_the_other():
    hidden, weights, ids, mask, cotangents = make_inputs(4, 16, 8, 512)
    _, pull = jax.vjp(
        lambda h, w: log_prob_and_entropy(h, w, ids, mask, chunk_size=16), hidden, weights
    )
    zero = jnp.zeros(ids.shape)
    for (function, arguments), given in (
        (LOG_PROB_ALONE, (cotangents[0], zero)),
        (ENTROPY_ALONE, (zero, cotangents[1])),
        (BOTH, tuple(cotangents)),
    ):
        for got, want in zip(function(*arguments), pull(given), strict=True):
            assert_relatively_close(got, want, 1e-6)
    entropy = log_prob_and_entropy(hidden, weights, ids, mask, chunk_size=16)[1]
    shaped = cotangents[0] + jnp.minimum(0.4 * entropy, 1.0)
    for got, want in zip(SHAPED[0](*SHAPED[1]), pull((shaped, zero)), strict=True):
        assert_relatively_close(got, want, 1e-6)
