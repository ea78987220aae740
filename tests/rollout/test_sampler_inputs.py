"""A sampler, a pass and a loss refuse what they cannot mean, in one line."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from policies import table_policy

from entropy_rl.advantages import shape_by_entropy
from entropy_rl.learner import make_update
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.losses import Loss
from entropy_rl.rollout import make_generate
from entropy_rl.rollout.checks import check_prompts, typed_key
from entropy_rl.runs.load_model import load_model

IDS = np.array([[2, 3, 4], [2, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1], [1, 0, 0]], bool)
INDEX = np.arange(2)
LIMITS = np.full(2, 4, np.int32)
VOCABULARY = 7


def says(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: IDS[0]}, "prompt_ids must be int32[P, S] with P, S >= 1, got int32[3]"),
        ({0: IDS[:0]}, "prompt_ids must be int32[P, S] with P, S >= 1, got int32[0, 3]"),
        ({0: IDS * 1.0}, "prompt_ids must be int32[2, 3], got float64[2, 3]"),
        ({0: [[2]]}, "prompt_ids must be int32[P, S] with P, S >= 1, got list"),
        ({1: MASK.astype(int)}, "prompt_mask must be bool[2, 3], got int64[2, 3]"),
        ({1: MASK[:, :2]}, "prompt_mask must be bool[2, 3], got bool[2, 2]"),
        ({2: INDEX[:1]}, "prompt_index must be int32[2], got int64[1]"),
        ({2: np.arange(3)}, "prompt_index must be int32[2], got int64[3]"),
        ({3: LIMITS[:1]}, "limits must be int32[2], got int32[1]"),
        ({3: LIMITS * 0.5}, "limits must be int32[2], got float64[2]"),
        *[
            (
                {1: np.array([[1, 1, 1], row], bool)},
                "prompt_mask must be right-padded, with at least one token in each row, got "
                f"{row} in row 1",
            )
            for row in ([0, 1, 1], [1, 0, 1], [0, 0, 0])
        ],
        (
            {0: IDS + 5000},
            "prompt_ids must be tokens from 0 to 6, the vocabulary of the policy, got "
            f"{IDS[MASK].min() + 5000} to {IDS[MASK].max() + 5000}",
        ),
        (
            {0: IDS - 6},
            "prompt_ids must be tokens from 0 to 6, the vocabulary of the policy, got "
            f"{IDS[MASK].min() - 6} to {IDS[MASK].max() - 6}",
        ),
    ],
)
def test_prompts_that_would_be_read_in_another_way_are_refused(changed, message):
    arrays = [changed.get(i, x) for i, x in enumerate((IDS, MASK, INDEX, LIMITS))]
    with says(f"generate: {message}"):
        check_prompts(*arrays, VOCABULARY)
    if all(isinstance(x, np.ndarray) for x in arrays) and ("padded" in message or "to" in message):
        with says(f"generate: {message}"):  # on one device too
            check_prompts(*map(jnp.asarray, arrays), VOCABULARY)


def test_what_is_traced_is_checked_without_its_values():
    left = MASK[:, ::-1]
    check = functools.partial(check_prompts, vocab_size=VOCABULARY)
    jax.eval_shape(check, IDS + 5000, left, INDEX, LIMITS)
    with pytest.raises(ValueError, match=r"^generate: limits must be int32\[2\], got int32\[1\]"):
        jax.eval_shape(check, IDS, left, INDEX, LIMITS[:1])


def test_tokens_of_another_model_are_refused_and_padding_may_be_any():
    policy = table_policy(VOCABULARY)
    params = policy.init(jax.random.key(1))
    run = make_generate(policy, group_size=2, max_new_tokens=4, eos_ids=[1], pad_id=0)
    with pytest.raises(ValueError, match=r"^generate: prompt_ids must be tokens"):
        run(params, IDS + 5000, MASK, INDEX, jax.random.key(0))
    padded = [np.where(MASK, IDS, pad) for pad in (0, -1)]
    first, second = (run(params, ids, MASK, INDEX, jax.random.key(0)) for ids in padded)
    np.testing.assert_array_equal(first.completion_ids, second.completion_ids)


def test_64_bit_mode_is_refused_in_one_line():
    policy = table_policy(VOCABULARY)
    with jax.enable_x64(True):
        for make in (
            lambda: make_generate(policy, group_size=2, max_new_tokens=4, eos_ids=[1], pad_id=0),
            lambda: make_update(policy, shape_by_entropy(), optax.sgd(0.1)),
            lambda: load_model("asset:countdown"),
        ):
            with says("jax_enable_x64 (JAX_ENABLE_X64): must be false, got true"):
                make()


def test_a_key_of_the_old_style_gives_the_same_samples():
    policy = table_policy(7)
    params = policy.init(jax.random.key(1))
    run = make_generate(policy, group_size=4, max_new_tokens=4, eos_ids=[1], pad_id=0)
    new, old = (
        run(params, IDS, MASK, INDEX, make(5)) for make in (jax.random.key, jax.random.PRNGKey)
    )
    jax.tree.map(np.testing.assert_array_equal, new, old)


@pytest.mark.parametrize(
    ("key", "adapters", "message"),
    [
        (0, 1, "jax.random.key(SEED), got int"),
        (np.zeros(2), 1, "jax.random.key(SEED), got float64[2]"),
        (jax.random.split(jax.random.key(0)), 1, "jax.random.key(SEED), got key<fry>[2]"),
        (jax.random.key(0), 2, "jax.random.key(SEED), stacked for 2 adapters, got key<fry>[]"),
        (jax.random.PRNGKey(0), 2, "jax.random.key(SEED), stacked for 2 adapters, got key<fry>[]"),
    ],
)
def test_what_is_no_key_is_refused(key, adapters, message):
    with says(f"generate: key must be {message}"):
        typed_key(key, adapters)
    assert typed_key(jax.random.split(jax.random.PRNGKey(0), 3), 3).shape == (3,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_p": 0.0}, "top_p: must be > 0 and <= 1, got 0.0"),
        ({"top_p": 95}, "top_p: must be > 0 and <= 1, got 95"),
        ({"temperature": -1}, "temperature: must be >= 0, got -1"),
        ({"temperature": float("nan")}, "temperature: must be >= 0, got nan"),
        ({"group_size": 0}, "group_size: must be an integer >= 1, got 0"),
        ({"max_new_tokens": 8.0}, "max_new_tokens: must be an integer >= 1, got 8.0"),
    ],
)
def test_settings_of_a_sampler_are_checked_as_those_of_a_config(changed, message):
    settings = dict(group_size=1, max_new_tokens=4, eos_ids=[1], pad_id=0)
    with says(message):
        make_generate(table_policy(5), **settings | changed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PassSettings(temperature=0), "PassSettings.temperature: must be > 0, got 0"),
        (
            lambda: PassSettings(max_tokens_per_micro_batch=0),
            "PassSettings.max_tokens_per_micro_batch: must be None or an integer >= 1, got 0",
        ),
        (
            lambda: PassSettings(max_tokens_per_micro_batch=2e3),
            "PassSettings.max_tokens_per_micro_batch: must be None or an integer >= 1, got 2000.0",
        ),
        (
            lambda: PassSettings(group_size=0),
            "PassSettings.group_size: must be None or an integer >= 1, got 0",
        ),
        (
            lambda: PassSettings(group_size=4),
            "PassSettings.group_size: must be None where max_tokens_per_micro_batch is None, got 4",
        ),
        (lambda: Loss(kl_coef=-1), "Loss.kl_coef: must be a number >= 0, got -1"),
        (lambda: Loss(kl_coef=math.inf), "Loss.kl_coef: must be a number >= 0, got inf"),
        (
            lambda: Loss(entropy_coef=math.nan),
            "Loss.entropy_coef: must be a finite number or a Controller, got nan",
        ),
        (lambda: Loss(max_tokens=0), "Loss.max_tokens: must be None or >= 1, got 0"),
    ],
)
def test_values_are_checked_as_those_of_a_config(make, message):
    with says(message):
        make()
