"""Matrix products of float32 models are float32 products, in sampling and in training.

On a CPU they are anyway; what is looked at is what the traced programs ask for.
"""

import jax
import jax.numpy as jnp
import pytest
from policies import TINY
from update_problem import SHAPED, G, make_data

from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.models.attention.ragged_gpu import ragged_attention_gpu
from entropy_rl.models.attention.splash import splash_attention
from entropy_rl.models.decoder import make_policy
from entropy_rl.rollout import decode
from entropy_rl.rollout.state import Request, Sampling

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
SAMPLING = Sampling(2, 4, (1,), 0, 1.0, 0.9)


def products(function, *arguments):
    """(types of the factors, precision) of every matrix product of a traced function."""

    def found(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                types = {str(x.aval.dtype) for x in equation.invars}
                yield types, equation.params["precision"]
            values = list(equation.params.values())
            for part in jax.tree.leaves(values, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from found(inner)

    return list(found(jax.make_jaxpr(function)(*arguments).jaxpr))


def of_sampling(policy):
    request = Request(
        jnp.ones((2, 3), jnp.int32),
        jnp.ones((2, 3), bool),
        jax.random.split(jax.random.key(0), 4),
        jnp.full(4, 4, jnp.int32),
    )

    def sample(params):
        params = policy.to_decode(params)
        state = decode.start(policy, params, SAMPLING, request, slots=4, columns=4)
        return decode.advance(policy, params, SAMPLING, request, state, 3, 0)

    return products(sample, jax.eval_shape(policy.init, jax.random.key(0)))


def of_updates(policy, fused):
    settings = PassSettings(max_tokens_per_micro_batch=64, group_size=G, fuse_loss=fused)
    gradient = make_gradient(policy, SHAPED, settings=settings)
    return products(gradient, jax.eval_shape(policy.init, jax.random.key(0)), make_data())


def of_kernels(dtype):
    q, keys = jnp.ones((2, 2, 1, 16), dtype), jnp.ones((2, 2, 64, 16), dtype)
    ends = jnp.zeros(2, jnp.int32), jnp.full(2, 9, jnp.int32)
    x = jnp.ones((1, 128, 2, 16), dtype)
    ragged = products(ragged_attention_gpu, q, keys, keys, *ends)
    splash = lambda *x: splash_attention(*x, interpret=True).sum()  # noqa: E731
    return ragged + products(jax.grad(splash, (0, 1, 2)), x, x, x)


def every_product(dtype):
    policy = make_policy(TINY, jnp.dtype(dtype))
    return [
        *of_sampling(policy),
        *of_updates(policy, fused=True),
        *of_updates(policy, fused=False),
        *of_kernels(dtype),
    ]


@pytest.fixture
def users_choice():
    with jax.default_matmul_precision("tensorfloat32"):
        yield


def test_products_of_a_float32_model_are_not_rounded_to_fewer_bits():
    found = every_product("float32")
    assert len(found) > 60
    assert all(precision == HIGHEST for _, precision in found)


def test_products_of_bfloat16_have_the_precision_of_the_device():
    found = every_product("bfloat16")
    assert all(precision != HIGHEST for types, precision in found if types == {"bfloat16"})
    assert any(types == {"bfloat16"} for types, _ in found)


def test_a_precision_that_the_user_has_set_is_kept(users_choice):
    assert all(precision != HIGHEST for _, precision in every_product("float32"))
