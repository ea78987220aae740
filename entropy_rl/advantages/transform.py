"""`Transform`, a function (advantages, stats) -> advantages that knows its scope, and `chain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from entropy_rl.types import TokenStats

AdvantageFn = Callable[[jax.Array, TokenStats], jax.Array]
Scope = Literal["token", "row", "group", "recorded", "batch"]  # from narrow to wide
_SCOPES = get_args(Scope)


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pure function of advantages and token statistics, in the manner of
    `optax.GradientTransformation`.

    Factories take the hyper-parameters and return a `Transform`; calling it takes the data:

        advantage = chain(group_normalize(group_size=8), shape_by_entropy(alpha=0.4, kappa=2.0))
        advantages = advantage(rewards[:, None], stats)

    The scope says what a value of the result depends on, so that it does not depend on how a
    mini-batch is split: "token", on its own token alone, of which it may read everything but
    `greedy_rewards`; "row", on the tokens of its own row, likewise; "group", on what was recorded
    of the rows of its group, which is all but `log_probs` and `entropy` of the policy that is being
    updated; "recorded", on the same of the whole mini-batch; "batch", on anything in it. "token"
    and "row" can be evaluated as the gradient is, "token" even where tokens of a row are apart: it
    is given them as rows of one token each. "batch" costs a forward pass before, and so does any
    scope but "token" and "row" behind a member of these two.

    Attributes:
      fn: (advantages f32[B, 1] or f32[B, N], stats) -> f32[B, 1] or f32[B, N].
      scope: "token", "row", "group", "recorded" or "batch".
      members: The members of a chain in order, none of them a chain; None for what is no chain.
      reads_values: Whether it reads `stats.values`, which there are with a critic only.
      reads_greedy: Whether it reads `stats.greedy_rewards`, for which a run then samples.
    """

    fn: AdvantageFn
    scope: Scope
    members: tuple[Transform, ...] | None = None
    reads_values: bool = False
    reads_greedy: bool = False

    def __post_init__(self):
        if self.scope not in _SCOPES:
            raise ValueError(
                f"Transform: scope={self.scope!r} is not allowed; allowed: {', '.join(_SCOPES)}"
            )

    def __call__(self, advantages: jax.Array, stats: TokenStats) -> jax.Array:
        """Transform the advantages.

        Args:
          advantages: f32[B, 1], one for each row, or f32[B, N], one for each token. A chain starts
            from `rewards[:, None]`.
          stats: Statistics of the same rows.

        Returns:
          f32[B, 1] or f32[B, N].

        Raises:
          ValueError: Input or output has neither of the two shapes.
        """
        _check_shape("got", advantages, stats)
        result = self.fn(advantages, stats)
        _check_shape(f"{getattr(self.fn, '__qualname__', self.fn)} returned", result, stats)
        return result


class NotYetKnown:
    """Stands for a statistic that there is only after the forward pass; to read it is an error."""

    def _refuse(self, *_: object) -> Any:
        raise ValueError(
            "advantage transform: log_probs and entropy of the policy that is being updated are "
            "not known to "
            "a transform of scope 'group' or 'recorded'; allowed: the scope 'batch', or "
            "old_log_probs and "
            "old_entropy"
        )

    __getattr__ = __getitem__ = __neg__ = _refuse


def chain(*transforms: Transform | AdvantageFn) -> Transform:
    """Apply transforms one after the other: the left fold A ← fᵢ(A, stats).

    Closed under composition: a chain is a `Transform` and may be a member of a chain. A chain of
    nothing is the identity.

    Args:
      *transforms: Transforms, or plain functions (advantages, stats) -> advantages. Nothing is
        known of a plain function, so it counts as "batch"; wrap it in a `Transform` to claim less.

    Returns:
      A transform with the widest scope of its members.

    Raises:
      TypeError: A member cannot be called.
    """
    members: list[Transform] = []
    for i, transform in enumerate(transforms):
        if not callable(transform):
            raise TypeError(
                f"chain: member {i} is {transform!r}; "
                "expected a Transform or a function (advantages, stats) -> advantages"
            )
        if not isinstance(transform, Transform):
            transform = Transform(transform, "batch")
        members.extend((transform,) if transform.members is None else transform.members)

    def fold(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        for member in members:
            advantages = member(advantages, stats)
        return advantages

    scope = max((member.scope for member in members), key=_SCOPES.index, default="token")
    reads = (any(getattr(m, name) for m in members) for name in ("reads_values", "reads_greedy"))
    return Transform(fold, scope, tuple(members), *reads)


def baseline_and_shaping(transform: Transform) -> tuple[Transform, Transform]:
    """Cut a chain before its first member of token or row scope: A = baseline(r), A' = shaping(A).

    `chain(baseline, shaping)` is the whole again. With ψ = A' - A, the ratio |ψ| / |A| says how
    much of the advantage is shaping.

    Returns:
      (baseline, shaping); a part without members is the identity.
    """
    members = (transform,) if transform.members is None else transform.members
    first = next(
        (i for i, member in enumerate(members) if member.scope in ("token", "row")), len(members)
    )
    return chain(*members[:first]), chain(*members[first:])


def before_values(transform: Transform) -> Transform:
    """The part of a chain before its first member that reads values: it makes the rewards of the
    critic.
    """
    members = (transform,) if transform.members is None else transform.members
    first = next((i for i, member in enumerate(members) if member.reads_values), len(members))
    return chain(*members[:first])


def is_local(baseline: Transform, shaping: Transform) -> bool:
    """Whether the two parts of a chain can be evaluated as the gradient is, without a forward pass
    before.
    """
    return baseline.scope != "batch" and shaping.scope in ("token", "row")


def _check_shape(who: str, advantages: jax.Array, stats: TokenStats) -> None:
    rows, tokens = stats.mask.shape
    if advantages.shape not in ((rows, 1), (rows, tokens)):
        raise ValueError(
            f"advantage transform: {who} advantages of shape {advantages.shape}; "
            f"expected {(rows, 1)} or {(rows, tokens)}, as stats.mask has shape {stats.mask.shape}"
        )
