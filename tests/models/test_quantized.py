"""Quantized kernels: their values by hand, their error, and a model that computes with them."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from policies import TINY, tiny_policy
from update_problem import make_data

from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.models.linear import linear
from entropy_rl.models.quantized import (
    BYTES,
    NF4_VALUES,
    dequantize,
    dequantize_kernel,
    quantize_kernel,
    quantized_linear,
    store,
)
from entropy_rl.rollout import make_generate

KINDS = ("int8", "nf4")
KERNEL = np.array(jax.random.normal(jax.random.key(0), (3, 128, 6)))
KERNEL[1, :, 2] = 0  # a column that a scale of 0 would divide


def test_int8_codes_by_hand():
    kernel = jnp.array([[1.0, 0.0], [-0.5, 0.0], [0.26, 0.0]])
    found = quantize_kernel(kernel, "int8")
    np.testing.assert_array_equal(found["kernel_int8"], [[127, 0], [-64, 0], [33, 0]])
    np.testing.assert_allclose(found["kernel_scale"], [[1 / 127, 0]], rtol=1e-6)


def test_nf4_codes_by_hand():
    # Each of the 16 values, four times, in 64 rows with the scale 2.
    kernel = 2 * np.repeat(NF4_VALUES, 4)[:, None]
    found = quantize_kernel(jnp.asarray(kernel), "nf4")
    codes = np.repeat(np.arange(16), 4)
    np.testing.assert_array_equal(found["kernel_nf4"][:, 0], codes[::2] * 16 + codes[1::2])
    np.testing.assert_array_equal(found["kernel_scale"], [[2.0]])
    np.testing.assert_array_equal(dequantize_kernel(found), kernel)


def test_the_values_of_nf4_are_quantiles_of_a_normal_distribution():
    # arXiv 2305.14314, appendix E: 8 negative and 9 positive ones of evenly spaced probabilities.
    normal = statistics.NormalDist()
    offset = 0.9677083
    positive = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    values = np.sort([*positive, 0.0, *negative])
    np.testing.assert_allclose(NF4_VALUES, values / values.max(), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_at_most_half_a_step(kind):
    leaves = quantize_kernel(jnp.asarray(KERNEL), kind)
    error = np.abs(dequantize_kernel(leaves) - KERNEL)
    if kind == "int8":
        bound = np.asarray(leaves["kernel_scale"]) / 2
    else:
        widest = np.diff(NF4_VALUES).max() / 2
        bound = widest * np.repeat(leaves["kernel_scale"], 64, axis=-2)
    assert (error <= bound + 1e-6).all() and error.max() > 0.1 * bound.max()
    again = quantize_kernel(dequantize_kernel(leaves), kind)
    jax.tree.map(np.testing.assert_array_equal, again[f"kernel_{kind}"], leaves[f"kernel_{kind}"])


def test_nf4_refuses_rows_that_have_no_whole_blocks():
    with pytest.raises(ValueError, match="of 16 rows, which are no multiple of 64, got 'nf4'"):
        quantize_kernel(jnp.ones((16, 4)), "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_and_its_gradient_are_those_of_the_dequantized_kernel(kind):
    leaves = quantize_kernel(jnp.asarray(KERNEL[0]), kind)
    x, dy = (jax.random.normal(jax.random.key(i), (5, n)) for i, n in ((1, 128), (2, 6)))
    y, pull = jax.vjp(lambda x: quantized_linear(x, leaves), x)
    kernel = dequantize_kernel(leaves)
    expected, pull_expected = jax.vjp(lambda x: linear(x, kernel), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(pull(dy)[0], pull_expected(dy)[0], rtol=1e-6, atol=1e-6)
    # What is kept for the backward pass are the codes, not a float kernel.
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert kept <= sum(leaf.nbytes for leaf in leaves.values())


POLICY = tiny_policy()
PARAMS = POLICY.init(jax.random.key(0))


def test_a_quantized_model_is_the_model_of_its_dequantized_kernels():
    quantized = store(PARAMS, "int8")
    leaves = traverse_util.flatten_dict(quantized, sep="/")
    assert leaves["layers/mlp/up_proj/kernel_int8"].dtype == jnp.int8
    assert leaves["embed_tokens/embedding"].dtype == jnp.bfloat16
    assert store(quantized, "int8") is quantized
    floats = dequantize(quantized)
    data = make_data()
    stats = jax.jit(make_stats_pass(POLICY, PassSettings(max_tokens_per_micro_batch=64)))
    found, expected = stats(quantized, data), stats(floats, data)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    plain = stats(PARAMS, data)
    assert 1e-4 < np.abs(found[0] - plain[0]).max() < 0.3


def test_a_quantized_model_decodes_with_its_codes_and_samples_what_the_trainer_computes():
    quantized = store(PARAMS, "int8")
    decoding = traverse_util.flatten_dict(
        {"layers": dict(enumerate(POLICY.to_decode(quantized)["layers"]))}
    )
    kernels = {path[-1] for path in decoding if path[-2].endswith("_proj")}
    assert {"kernel_int8", "kernel_scale"} <= kernels and "kernel" not in kernels
    generate = make_generate(
        POLICY, group_size=2, max_new_tokens=6, eos_ids=(TINY.vocab_size - 1,), pad_id=0
    )
    ids = jnp.ones((2, 4), jnp.int32)
    prompts = ids, ids > 0, jnp.arange(2), jax.random.key(3)
    found, expected = (generate(p, *prompts) for p in (quantized, dequantize(quantized)))
    np.testing.assert_array_equal(found.completion_ids, expected.completion_ids)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_stored_bytes_are_those_that_are_planned():
    wide = {"mlp": {"up_proj": {"kernel": jnp.ones((2, 4096, 64))}}}
    for kind in KINDS:
        stored = sum(leaf.nbytes for leaf in jax.tree.leaves(store(wide, kind)))
        np.testing.assert_allclose(
            stored / wide["mlp"]["up_proj"]["kernel"].size, BYTES[kind], rtol=0.002
        )
