"""A transform reads what its scope allows, and a chain that reads more is refused at set-up."""

import dataclasses
import operator
import re
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import yaml
from tiny_runs import ROOT

from entropy_rl.advantages import Transform, advantage_of, chain, group_center, shape_by_entropy
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.train import TrainConfig
from entropy_rl.types import TokenStats

NEEDS = "must set needs_policy=True to read log_probs or entropy"
B, N = 4, 3
ONES = jnp.ones((B, N))
BEFORE = TokenStats(None, ONES, None, ONES, mask=ONES > 0, has_reward=jnp.ones(B, bool))


@pytest.mark.parametrize(
    "read",
    [
        lambda a, s: 2 * s.entropy,
        lambda a, s: a + s.entropy,
        lambda a, s: s.log_probs - s.old_log_probs,
        lambda a, s: 1.0 / s.log_probs,
        lambda a, s: s.entropy**2 * a,
        lambda a, s: abs(s.log_probs),
        lambda a, s: jnp.exp(s.log_probs) * a,
        lambda a, s: jnp.where(s.entropy > 1, a, 0),
        lambda a, s: a * s.entropy.mean(),
        lambda a, s: jax.nn.relu(s.entropy),
        jax.jit(lambda a, s: a * s.entropy),
    ],
)
def test_reading_the_policy_too_early_is_named_however_it_is_read(read):
    with pytest.raises(ValueError, match=NEEDS):
        Transform(read, "group")(ONES, BEFORE)


@pytest.mark.parametrize("kind", [bool, jnp.uint8, jnp.int32, jnp.bfloat16])
def test_advantages_are_float32_whatever_the_type_of_the_rewards(kind):
    rewards = jnp.array([[1], [0], [0], [1]])
    stats = BEFORE.replace(log_probs=ONES, entropy=ONES)
    shaped = chain(
        group_center(2), lambda a, stats: jnp.sign(a).astype(jnp.int8), shape_by_entropy()
    )
    expected = [[1.4] * N, [-0.6] * N, [-0.6] * N, [1.4] * N]
    found = shaped(rewards.astype(kind), stats)
    assert found.dtype == jnp.float32
    assert found.tolist() == [pytest.approx(row) for row in expected]
    last = chain(group_center(2), lambda a, stats: a > 0)(rewards.astype(kind), stats)
    assert last.dtype == jnp.float32 and last.tolist() == [[1], [0], [0], [1]]


@pytest.mark.parametrize("name", ["mask", "has_reward"])
def test_a_mask_of_numbers_is_refused(name):
    # Its complement ~mask would be -1 and -2, which are both True.
    stats = BEFORE.replace(**{name: getattr(BEFORE, name).astype(jnp.int32)})
    message = f"^advantage transform: stats.{name}: must be of type bool, got dtype"
    with pytest.raises(ValueError, match=message):
        group_center(2)(ONES[:, :1], stats)


def test_every_operator_on_what_is_not_known_is_named():
    binary = "add sub mul truediv floordiv mod pow matmul lt le gt ge"
    for function in (getattr(operator, name) for name in binary.split()):
        for swap in (False, True):

            def read(a, s, function=function, swap=swap):
                return function(*((2.0, s.entropy) if swap else (s.entropy, 2.0)))

            with pytest.raises(ValueError, match=NEEDS):
                Transform(read, "group")(ONES, BEFORE)


def test_a_jitted_transform_may_leave_alone_what_is_not_known():
    double = Transform(jax.jit(lambda a, s: 2 * a + s.old_entropy), "group")
    assert float(double(ONES, BEFORE).sum()) == 3 * B * N


# --- set-up
# ------------------------------------------------------------------------------------------------


def reads_policy(a, s):
    return a + s.entropy


def greedy(a, s):
    return a - s.greedy_rewards[:, None]


def refusal_of(transforms, monkeypatch):
    """The error of a run with these transforms of the user's."""
    module = types.ModuleType("own_transforms")
    vars(module).update({f"t{i}": transform for i, transform in enumerate(transforms)})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    specs = [{"name": f"own_transforms:t{i}"} for i in range(len(transforms))]
    recipe = ["--config", str(ROOT / "configs" / "countdown_grpo.yaml")]
    config = parse_config(
        TrainConfig,
        "train",
        [*recipe, "--advantage", yaml.safe_dump(specs, default_flow_style=True)],
    )
    try:
        advantage_of(config)
    except ValueError as error:
        return str(error)
    return None


def test_a_transform_that_reads_the_policy_and_does_not_say_so_is_refused_at_set_up(monkeypatch):
    center = group_center(8)
    silent = Transform(reads_policy, "group")
    honest = Transform(reads_policy, "group", needs_policy=True)
    local = Transform(reads_policy, "token")
    for transforms in ([silent], [center, silent], [silent, honest], [silent, local]):
        assert re.match(
            f"advantage: advantage transform: {NEEDS}", refusal_of(transforms, monkeypatch)
        )
    # Behind one that needs the policy, or a local one, it is known.
    for transforms in ([honest, silent], [local, silent], [reads_policy, silent], [center, local]):
        assert refusal_of(transforms, monkeypatch) is None


def test_a_local_transform_that_reads_the_greedy_reward_is_refused_at_set_up(monkeypatch):
    wide = Transform(greedy, "group", requires=("greedy_rewards",))
    local = dataclasses.replace(wide, scope="sequence")
    assert refusal_of([wide], monkeypatch) is None
    says = (
        "advantage: advantage transform: must have the scope 'group' or 'batch' to read greedy_re"
    )
    assert refusal_of([local], monkeypatch).startswith(says)
    hidden = Transform(greedy, "token")
    assert refusal_of([wide, hidden], monkeypatch).startswith(says)
    assert refusal_of([chain(wide, hidden)], monkeypatch).startswith(says)
