"""Names of a config: methods by their public names, and functions of the user's own."""

import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import advantages, contrib, losses
from entropy_rl.advantages import Transform, build_advantage, chain
from entropy_rl.config import registry
from entropy_rl.config.registry import factories_of
from entropy_rl.curricula import Curriculum
from entropy_rl.learner.replay_rule import Replay, build_replay
from entropy_rl.losses import (
    ClipMasks,
    Controller,
    PreferenceLoss,
    Surrogate,
    TokenWeighting,
    build_surrogate,
    build_token_weighting,
    no_clips,
    ppo_clip,
)
from entropy_rl.losses.controllers import build_entropy_control
from entropy_rl.rewards import Reward
from entropy_rl.types import TokenStats

B, N = 4, 3
ONES = jnp.ones((B, N))
STATS = TokenStats(
    log_probs=-ONES,
    old_log_probs=-ONES,
    entropy=2 * ONES,
    old_entropy=3 * ONES,
    mask=ONES.astype(bool),
    has_reward=jnp.ones(B, bool),
    sampler_log_probs=-ONES,
)
GIVEN = ("group_size", "gamma", "surrogate", "reward_weights", "max_new_tokens")
KINDS = (Transform, Surrogate, TokenWeighting, Controller, Replay, Reward, PreferenceLoss)
KINDS += (Curriculum,)
SPACES = [importlib.import_module(name) for name in registry.NAMESPACES]


# --- the library's own names


@pytest.mark.parametrize("namespace", SPACES, ids=lambda m: m.__name__)
def test_every_import_line_of_a_namespace_is_public(namespace):
    assert len(namespace.__all__) == len(set(namespace.__all__)) > 0
    for name in namespace.__all__:
        assert callable(getattr(namespace, name)) and not name.startswith("_")


def test_a_name_is_the_public_function_of_its_namespace():
    transforms = factories_of(Transform, GIVEN)
    assert transforms["group_normalize"] is advantages.group_normalize
    assert transforms["ucpo"] is contrib.ucpo
    assert factories_of(Surrogate)["s_trace"] is contrib.s_trace
    assert factories_of(Controller)["adaptive_entropy"] is losses.adaptive_entropy


def test_every_name_has_one_kind_and_is_in_one_namespace():
    names = [name for kind in KINDS for name in factories_of(kind, GIVEN)]
    assert len(names) == len(set(names)) > 50
    for name in names:
        assert sum(name in n.__all__ for n in SPACES) == 1, name


# Public functions that no config names.
HELPERS = {
    *("advantage_of", "build_advantage", "baseline_and_shaping", "before_values", "chain"),
    *("is_local", "build_loss", "build_surrogate", "build_token_weighting", "combine"),
    *("build_preference_loss",),
    *("build_rewards", "build_curriculum"),
    *("no_clips", "aggregation_weights", "kl_estimate", "value_loss"),
    *("meds_reward", "oger_reward"),
}


def test_a_public_function_is_a_method_or_a_helper():
    methods = {name for kind in KINDS for name in factories_of(kind, GIVEN)}
    assert not methods & HELPERS
    for namespace in SPACES:
        for name in namespace.__all__:
            if inspect.isfunction(getattr(namespace, name)) and name not in HELPERS:
                assert name in methods, (
                    f"{namespace.__name__}.{name}: no config can name it. Annotate what it returns "
                    f"({', '.join(kind.__name__ for kind in KINDS)}) and its required arguments "
                    "(int, float, ...), or add it to HELPERS"
                )


def test_no_core_module_imports_contrib():
    # The look-up imports it by name, so that contrib can build on any core package.
    package = Path(contrib.__file__).parents[1]
    for path in package.rglob("*.py"):
        if path.parent.name != "contrib" and path != package / "__init__.py":
            imported = re.findall(
                r"^\s*(?:from|import) entropy_rl\.contrib", path.read_text(), re.M
            )
            assert not imported, f"{path.relative_to(package)} imports entropy_rl.contrib"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: build_advantage([{"name": "ppo_clip"}], 4),
            r"advantage\[0\]\.name: must be a Transform or .*, got 'ppo_clip', which makes a "
            "Surrogate",
        ),
        (
            lambda: build_surrogate({"name": "erc"}),
            r"loss\.surrogate\.name: must be a Surrogate or .*, got 'erc', which makes a "
            "TokenWeighting",
        ),
        (
            lambda: build_token_weighting([{"name": "ucpo"}], ppo_clip()),
            r"loss\.token_weights\[0\]\.name: must be .*, got 'ucpo', which makes a Transform",
        ),
        (
            lambda: build_entropy_control({"name": "pipo"}),
            r"loss\.entropy_coef\.name: must be a Controller .*, got 'pipo', which makes a Replay",
        ),
        (
            lambda: build_replay({"name": "adaptive_entropy"}, 4),
            r"replay\.name: must be a Replay, got 'adaptive_entropy', which makes a Controller",
        ),
    ],
)
def test_a_method_of_another_kind_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        build()


def test_an_error_lists_methods_of_the_kind_asked_for_alone():
    with pytest.raises(ValueError) as error:
        build_surrogate({"name": "no_such_name"})
    assert "gspo" in str(error.value) and "s_trace" in str(error.value)
    assert "ucpo" not in str(error.value) and "icepop" not in str(error.value)


# --- the user's own


def double(advantages, stats):
    return 2 * advantages


def scale(advantages, stats, factor: float = 2.0, *, offset: float = 0.0):
    return factor * advantages + offset


def by_group(a, s, group_size):
    return a * group_size


def of_class(factor: float = 2.0):
    return Doubler(factor)


def annotated(advantages: float, stats: float) -> Transform:
    return Transform(lambda a, s: advantages * stats * a, "token")


def two_numbers(low, high):
    return lambda a, s: (low + high) * a


class Doubler:
    def __init__(self, factor: float = 2.0):
        self.factor = factor

    def __call__(self, advantages, stats):
        return self.factor * advantages


def reinforce(advantages, stats, scale: float = 1.0):
    return -scale * advantages * stats.log_probs, no_clips(advantages)


def first_tokens(advantages, stats, count: int):
    return (jnp.arange(N)[None] < count) * jnp.ones_like(stats.entropy)


@pytest.fixture
def own(monkeypatch):
    module = types.ModuleType("a_users_own_module")
    for value in (double, scale, by_group, of_class, annotated, two_numbers, Doubler, reinforce):
        setattr(module, value.__name__, value)
    module.first_tokens = first_tokens
    module.anonymous = lambda a, s: 2 * a
    module.instance = Doubler()
    module.ready = Transform(double, "token")
    module.surrogate = Surrogate(reinforce, "token")
    module.controller = losses.adaptive_entropy()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "double"}, 2),
        ({"name": "anonymous"}, 2),
        ({"name": "instance"}, 2),
        ({"name": "Doubler"}, 2),
        ({"name": "Doubler", "factor": 3}, 3),
        ({"name": "of_class", "factor": "3e0"}, 3),
        ({"name": "scale", "factor": 3, "offset": "1e0"}, 4),
        ({"name": "by_group"}, 4),
        ({"name": "ready"}, 2),
        ({"name": "annotated", "advantages": 2, "stats": 3}, 6),
        ({"name": "two_numbers", "low": 1, "high": 2}, 3),
    ],
    ids=lambda x: str(x.get("name")) if isinstance(x, dict) else str(x),
)
def test_a_plain_function_is_an_advantage_and_so_is_what_makes_one(own, spec, expected):
    advantage = build_advantage([{**spec, "name": f"{own}:{spec['name']}"}], 4)
    np.testing.assert_array_equal(advantage(ONES, STATS), expected * ONES)
    told = spec["name"] in ("ready", "annotated")
    assert (advantage.scope, advantage.needs_policy) == (
        ("token", False) if told else ("batch", True)
    )


def test_a_plain_function_is_a_surrogate_of_scope_sequence(own):
    surrogate = build_surrogate({"name": f"{own}:reinforce", "scale": 3})
    loss, clipped = surrogate(ONES, STATS)
    np.testing.assert_array_equal(loss, 3 * ONES)
    assert isinstance(clipped, ClipMasks) and surrogate.scope == "sequence"
    assert build_surrogate({"name": f"{own}:surrogate"}).scope == "token"


def test_a_plain_function_weighs_tokens_of_the_whole_batch(own):
    weighting = build_token_weighting([{"name": f"{own}:first_tokens", "count": 2}], ppo_clip())
    np.testing.assert_array_equal(weighting(ONES, STATS).weight, [[1, 1, 0]] * B)
    assert weighting.scope == "batch"


def test_a_controller_is_taken_as_it_is(own):
    assert isinstance(build_entropy_control({"name": f"{own}:controller"}), Controller)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "scale", "factr": 3}, "factr: .*'factr'.*'factor'"),
        ({"name": "scale", "factor": "x"}, "factor: .*'x'"),
        ({"name": "by_group", "group_size": 3}, "group_size: must be that of rollout.group_size"),
        ({"name": "two_numbers", "low": 1}, "high: must be given"),
        ({"name": "ready", "factor": 1}, " must have no arguments, as .*ready' is a Transform"),
    ],
)
def test_a_wrong_argument_of_a_users_function_is_refused_in_one_line(own, spec, message):
    with pytest.raises(ValueError, match=rf"^advantage\[0\][.:]{message}"):
        build_advantage([{**spec, "name": f"{own}:{spec['name']}"}], 4)


def test_a_factory_without_its_arguments_is_refused_where_its_result_is_no_array(own):
    # Two required parameters that the entry does not give: that is the form of a plain function.
    advantage = build_advantage([{"name": f"{own}:two_numbers"}], 4)
    with pytest.raises(ValueError, match=r"two_numbers must have shape .*, got function"):
        advantage(ONES, STATS)


# --- scopes


def test_a_chain_needs_what_its_members_need():
    of_batch = Transform(double, "batch", needs_policy=True)
    of_values = Transform(double, "group", requires=("values",))
    both = chain(of_values, of_batch, of_values, Transform(double, "token"))
    assert (both.scope, both.needs_policy, both.requires) == ("batch", True, ("values",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "row"}, r"^Transform\.scope: "),
        ({"scope": "token", "needs_policy": True}, r"^Transform\.needs_policy: "),
        ({"scope": "group", "requires": ("value",)}, r"^Transform\.requires: "),
    ],
)
def test_a_transform_that_says_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transform(double, **arguments)


@pytest.mark.parametrize("code", [0, 3])
def test_a_module_that_exits_at_its_import_is_refused(tmp_path, monkeypatch, code):
    (tmp_path / f"exits_{code}.py").write_text(f"import sys\nsys.exit({code})\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = rf"^task\.name: cannot import 'exits_{code}:X': the module calls sys\.exit\({code}\)$"
    with pytest.raises(ValueError, match=said):
        registry.import_object("task.name", f"exits_{code}:X")
