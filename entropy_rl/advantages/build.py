"""`build_advantage`: the `advantage` section of a config file becomes a chain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_rl.advantages.baselines import (
    group_center,
    group_normalize,
    leave_one_out,
    length_weighted_center,
    rescaled_group_center,
    whiten,
)
from entropy_rl.advantages.entropy_rewards import row_entropy_rewards, token_entropy_rewards
from entropy_rl.advantages.rarity import favor_rare_correct, mine_solved_groups
from entropy_rl.advantages.risk_baselines import (
    asymmetric_normalize,
    best_minus_second,
    pass_at_k_normalize,
    quantile_normalize,
)
from entropy_rl.advantages.shaping import amplify_by_entropy, shape_by_entropy
from entropy_rl.advantages.transform import Transform, chain
from entropy_rl.factories import call_factory, import_object, unknown

_FACTORIES: dict[str, Callable[..., Transform]] = {
    factory.__name__: factory
    for factory in (
        *(group_normalize, group_center, leave_one_out, whiten, shape_by_entropy),
        *(length_weighted_center, rescaled_group_center),
        *(pass_at_k_normalize, best_minus_second, quantile_normalize, asymmetric_normalize),
        *(favor_rare_correct, mine_solved_groups, token_entropy_rewards, row_entropy_rewards),
        amplify_by_entropy,
    )
}
_NAMES = (*_FACTORIES, "module:function")


def build_advantage(specs: Sequence[Mapping[str, Any]], group_size: int) -> Transform:
    """Chain the transforms that a config lists.

    Each entry is a mapping of `name` and the arguments of the factory of that name:

        advantage:
          - {name: group_normalize}
          - {name: shape_by_entropy, alpha: 0.4, kappa: 2.0}

    Args:
      specs: The entries in order. A name is one of the factories of this package, or `module:function`
        for a factory of your own, which is imported and called with the arguments; it returns a
        `Transform` or a function (advantages, stats) -> advantages.
      group_size: Completions per prompt of the rollout, given to each factory that has such an argument.

    Returns:
      The chain; the identity for an empty list.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise ValueError(f"advantage: {specs!r} is no list; expected a list of {{name: ..., arguments}}")
    return chain(*(_build(spec, f"advantage[{i}]", group_size) for i, spec in enumerate(specs)))


def _build(spec: Mapping[str, Any], path: str, group_size: int) -> Callable[..., Any]:
    if not isinstance(spec, Mapping):
        raise ValueError(f"{path}: {spec!r} is no mapping; expected {{name: ..., arguments}}")
    if "name" not in spec:
        raise ValueError(f"{path}.name: missing; allowed: {', '.join(_NAMES)}")
    name = spec["name"]
    factory = _find_factory(name, f"{path}.name")
    arguments = {key: value for key, value in spec.items() if key != "name"}
    takes_group_size = "group_size" in inspect.signature(factory).parameters
    if takes_group_size and arguments.setdefault("group_size", group_size) != group_size:
        raise ValueError(
            f"{path}.group_size: {arguments['group_size']!r} differs from rollout.group_size, which is "
            f"{group_size}; leave it out"
        )
    try:
        transform = call_factory(factory, arguments, path)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error
    if not callable(transform):
        raise ValueError(
            f"{path}.name: {name} returned {transform!r}; "
            "expected a Transform or a function (advantages, stats) -> advantages"
        )
    return transform


def _find_factory(name: Any, path: str) -> Callable[..., Any]:
    if isinstance(name, str) and name in _FACTORIES:
        return _FACTORIES[name]
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(unknown(path, name, _NAMES))
    factory = import_object(path, name)
    if not callable(factory):
        raise ValueError(f"{path}: {name!r} is {factory!r}; expected a function that returns a transform")
    return factory
