"""Rotary frequencies against those of transformers, whose functions made the golden values."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hf_fixtures import _COMMON, CONFIGS, make_hf_dir

from entropy_rl.models import read_config
from entropy_rl.models.rope import (
    LinearRopeScaling,
    apply_rope,
    rope_frequencies,
    rope_magnitude,
    yarn_attention_factor,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())


def config_of(tmp_path, case):
    directory = make_hf_dir(tmp_path / "model", "llama3")
    fields = {k: v for k, v in (_COMMON | CONFIGS["llama3"]).items() if not k.startswith("rope")}
    (directory / "config.json").write_text(json.dumps(fields | case["config"]))
    return read_config(directory)


@pytest.mark.parametrize("name", GOLDEN)
def test_frequencies_and_magnitude_are_those_of_transformers(tmp_path, name):
    case = GOLDEN[name]
    config = config_of(tmp_path, case)
    found = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    # Powers of float32 may differ by an ulp or two between libraries.
    np.testing.assert_allclose(found, np.float32(case["frequencies"]), rtol=4e-7, atol=0)
    assert rope_magnitude(config.rope_scaling) == pytest.approx(case["attention_factor"], rel=1e-12)


def test_linear_scaling_by_f_is_position_divided_by_f():
    plain = rope_frequencies(8, 10_000.0, None)
    scaled = rope_frequencies(8, 10_000.0, LinearRopeScaling(4.0))
    np.testing.assert_array_equal(scaled, plain / np.float32(4))


def test_yarn_s_attention_factor_is_that_of_the_paper():
    assert yarn_attention_factor(4.0) == pytest.approx(1.1386294361)  # 0.1 ln 4 + 1
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(40.0, 1.0, 1.0) == 1.0
    assert yarn_attention_factor(40.0, 1.0, None) == yarn_attention_factor(40.0)


def test_the_magnitude_multiplies_what_is_rotated():
    x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 3, 2, 8)), jnp.float32)
    frequencies = rope_frequencies(8, 10_000.0, None)
    plain = apply_rope(x, jnp.arange(3)[None], frequencies)
    scaled = apply_rope(x, jnp.arange(3)[None], frequencies, 1.25)
    np.testing.assert_allclose(scaled, 1.25 * plain, rtol=1e-5, atol=1e-6)
