"""`Transform`, a function (advantages, stats) -> advantages with a scope, and `chain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.config.registry import plain_function
from entropy_rl.types import (
    OTHER_ENTROPY,
    OTHER_LOG_PROBS,
    REWARD_EXTRA,
    SOURCE_EXTRA,
    TEACHER_LOG_PROBS,
    TokenStats,
)

AdvantageFn = Callable[[jax.Array, TokenStats], jax.Array]
Scope = Literal["token", "sequence", "group", "batch"]  # from narrow to wide
SCOPES = get_args(Scope)
LOCAL_SCOPES = ("token", "sequence")  # evaluated in the gradient pass itself
OTHER_PROMPT = "other_prompt"
TEACHER = "teacher"
Reads = Literal["rewards", "nonnegative rewards", "advantages"]
REQUIRABLE = ("values", "greedy_rewards", OTHER_PROMPT, TEACHER)


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pure function of advantages and token statistics, in the manner of
    `optax.GradientTransformation`.

    Factories take the hyper-parameters and return a `Transform`; calling it takes the data:

        advantage = chain(group_normalize(group_size=8), shape_by_entropy(alpha=0.4, kappa=2.0))
        advantages = advantage(rewards[:, None], stats)

    The scope says which tokens a value of the result depends on, so that the result does not depend
    on how a mini-batch is split:

    - "token": its own token. It is evaluated in the gradient pass, also where the tokens of a
      sequence are apart: there it is given each token as a row of one token.
    - "sequence": the tokens of its own sequence. It is evaluated in the gradient pass.
    - "group": the sequences of its group, which are the G completions of a prompt.
    - "batch": the whole rollout, or the whole mini-batch if it reads the policy that is being
      updated, or is behind a member that does or that has the scope "token" or "sequence".

    A transform of scope "token" or "sequence" may read all statistics but `greedy_rewards`. One of
    scope "group" or "batch" is evaluated before the gradient pass; to read `log_probs` or `entropy`
    of the policy that is being updated, it sets `needs_policy`, at the cost of one forward pass
    over the mini-batch. A scope "group" or "batch" behind a member of scope "token" or "sequence"
    costs that pass as well.

    Attributes:
      fn: (advantages f32[B, 1] or f32[B, N], stats) -> f32[B, 1] or f32[B, N].
      scope: "token", "sequence", "group" or "batch".
      members: The members of a chain in order, none of them a chain; None for a single transform.
      needs_policy: For scope "group" or "batch": whether it reads `stats.log_probs` or
        `stats.entropy`.
      requires: Names of optional statistics that it reads: "values", which a critic gives,
        "greedy_rewards", for which a run samples a greedy completion of each prompt, or, in
        `stats.extras`, "reward/LABEL", a reward of the section `rewards`, "source/NAME", 1 for a
        row whose problem is of that source, "other_prompt", `other_log_probs` and
        `other_entropy` under the other one of the two prompts of a problem, or "teacher",
        `teacher_log_probs` of the teacher of the run.
      reads: What its input must be: "rewards", so that no baseline may be before it; "nonnegative
        rewards", the same without negative ones; "advantages", so that a baseline must be before
        it; None for either.
      is_baseline: Whether it makes advantages of rewards.
      shifts: Whether it only adds numbers to its input, as r - b does. With rewards of turns, no
        other transform may be before one that requires values.
    """

    fn: AdvantageFn
    scope: Scope
    members: tuple[Transform, ...] | None = None
    needs_policy: bool = False
    requires: tuple[str, ...] = ()
    reads: Reads | None = None
    is_baseline: bool = False
    shifts: bool = False

    def __post_init__(self):
        require(self.scope in SCOPES, "Transform.scope", self.scope, f"one of {', '.join(SCOPES)}")
        require(
            not (self.needs_policy and self.scope in LOCAL_SCOPES),
            "Transform.needs_policy",
            self.needs_policy,
            f"False for scope {self.scope!r}, which may read the policy in any case",
        )
        for name in self.requires:
            require(
                name in REQUIRABLE or name.startswith((REWARD_EXTRA, SOURCE_EXTRA)),
                "Transform.requires",
                name,
                f"one of {', '.join(REQUIRABLE)}, {REWARD_EXTRA}LABEL, {SOURCE_EXTRA}NAME",
            )
        reads = (None, *get_args(Reads))
        require(self.reads in reads, "Transform.reads", self.reads, f"one of {reads}")

    @property
    def is_local(self) -> bool:
        """Whether it is evaluated in the gradient pass itself: scope "token" or "sequence"."""
        return self.scope in LOCAL_SCOPES

    def __call__(self, advantages: jax.Array, stats: TokenStats) -> jax.Array:
        """Transform the advantages.

        Args:
          advantages: f32[B, 1], one for each sequence, or f32[B, N], one for each token. A chain
            starts from `rewards[:, None]`. Numbers of another type are cast.
          stats: Statistics of the same sequences.

        Returns:
          f32[B, 1] or f32[B, N].

        Raises:
          ValueError: Input or output has neither of the two shapes, or a mask is not of type bool.
        """
        advantages = _as_advantages("input", advantages, stats)
        for name in ("mask", "has_reward"):
            dtype = getattr(stats, name).dtype
            require(dtype == jnp.bool_, f"advantage transform: stats.{name}", dtype, "of type bool")
        if stats.log_probs is None:
            stats = stats.replace(log_probs=_NOT_YET_KNOWN, entropy=_NOT_YET_KNOWN)
        if stats.greedy_rewards is not None and self.members is None and self.is_local:
            stats = stats.replace(greedy_rewards=_NOT_LOCAL)
        result = self.fn(advantages, stats)
        who = f"result of {getattr(self.fn, '__qualname__', self.fn)}"
        return _as_advantages(who, result, stats)


class _Unreadable:
    """Placeholder of a statistic that a transform may not read; reading it is an error."""

    def __init__(self, must: str):
        self.__dict__["_must"] = must

    def _refuse(self, *_: object) -> Any:
        raise ValueError(f"advantage transform: must {self._must}")

    __getattr__ = __getitem__ = __iter__ = __bool__ = __float__ = _refuse
    __neg__ = __pos__ = __abs__ = __invert__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _refuse


# Without leaves, so that a transform may be jitted.
jax.tree_util.register_static(_Unreadable)
_NOT_YET_KNOWN = _Unreadable(
    "set needs_policy=True to read log_probs or entropy of the policy that is being updated at "
    "scope 'group' or 'batch'; old_log_probs and old_entropy are known without it"
)
_NOT_LOCAL = _Unreadable("have the scope 'group' or 'batch' to read greedy_rewards")


def chain(*transforms: Transform | AdvantageFn) -> Transform:
    """Apply transforms one after the other: the left fold A ← fᵢ(A, stats).

    Closed under composition: a chain is a `Transform` and may be a member of a chain. A chain of
    nothing is the identity.

    Args:
      *transforms: Transforms, or plain functions (advantages, stats) -> advantages. A plain
        function gets the scope "batch" and `needs_policy`, as it may read anything; wrap it in a
        `Transform` to say that it reads less.

    Returns:
      A transform with the widest scope of its members, and with all that these need.

    Raises:
      TypeError: A member cannot be called, or is a factory that was not.
    """
    members: list[Transform] = []
    for i, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            function = plain_function(transform, Transform, f"chain: member {i}")
            transform = Transform(function, "batch", needs_policy=True)
        members.extend((transform,) if transform.members is None else transform.members)

    def fold(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        for member in members:
            advantages = member(advantages, stats)
        return advantages

    scope = max((member.scope for member in members), key=SCOPES.index, default="token")
    needs_policy = any(member.needs_policy for member in members)
    requires = tuple(dict.fromkeys(name for member in members for name in member.requires))
    return Transform(fold, scope, tuple(members), needs_policy, requires)


def baseline_and_shaping(transform: Transform) -> tuple[Transform, Transform]:
    """Cut a chain before its first member of scope "token" or "sequence".

    A = baseline(r), A' = shaping(A)

    `chain(baseline, shaping)` is the whole again. With ψ = A' - A, the ratio |ψ| / |A| says how
    much of the advantage is shaping.

    Returns:
      (baseline, shaping); a part without members is the identity.
    """
    return _cut(transform, lambda member: member.is_local)


def recorded_part(transform: Transform) -> tuple[Transform, Transform]:
    """Cut the baseline of a chain before its first member with `needs_policy`.

    The first part reads recorded statistics alone. It is computed once for a rollout, before the
    cut into mini-batches, if `reads_rollout`.

    Returns:
      (recorded part, the remaining members of the baseline); a part without members is the
      identity.
    """
    return _cut(baseline_and_shaping(transform)[0], lambda member: member.needs_policy)


def reads_rollout(transform: Transform) -> bool:
    """Whether the recorded part of a chain depends on the whole rollout: a member has the scope
    "batch".
    """
    return recorded_part(transform)[0].scope == "batch"


def before_values(transform: Transform) -> Transform:
    """The part of a chain before its first member that requires values: the critic's rewards."""
    return _cut(transform, lambda member: "values" in member.requires)[0]


def named_rewards(transform: Transform) -> tuple[str, ...]:
    """Names of the rewards in `stats.extras` that a transform requires."""
    return tuple(name for name in transform.requires if name.startswith(REWARD_EXTRA))


def named_sources(transform: Transform) -> tuple[str, ...]:
    """The sources of problems that a transform tells apart."""
    names = [name for name in transform.requires if name.startswith(SOURCE_EXTRA)]
    return tuple(name.removeprefix(SOURCE_EXTRA) for name in names)


def required_extras(
    transform: Transform, rows: int, tokens: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that a transform requires of `stats.extras`, by name."""
    names = (*named_rewards(transform), *(f"{SOURCE_EXTRA}{n}" for n in named_sources(transform)))
    columns = dict.fromkeys(names, 1)
    if OTHER_PROMPT in transform.requires:
        columns |= {OTHER_LOG_PROBS: tokens, OTHER_ENTROPY: tokens}
    if TEACHER in transform.requires:
        columns[TEACHER_LOG_PROBS] = tokens
    return {n: jax.ShapeDtypeStruct((rows, count), jnp.float32) for n, count in columns.items()}


def _cut(
    transform: Transform, condition: Callable[[Transform], bool]
) -> tuple[Transform, Transform]:
    """Cut a chain before its first member that meets a condition."""
    members = chain(transform).members
    first = next((i for i, member in enumerate(members) if condition(member)), len(members))
    return chain(*members[:first]), chain(*members[first:])


def is_local(baseline: Transform, shaping: Transform) -> bool:
    """Whether the two parts of a chain need no forward pass before the gradient pass."""
    return not baseline.needs_policy and shaping.is_local


def _as_advantages(what: str, advantages: jax.Array, stats: TokenStats) -> jax.Array:
    """Advantages as float32, with their shape checked.

    Differences of unsigned numbers wrap around, those of bool are refused, and half precision loses
    digits of a small one.
    """
    sequences, tokens = stats.mask.shape
    shape = getattr(advantages, "shape", None)
    if shape not in ((sequences, 1), (sequences, tokens)):
        raise ValueError(
            f"advantage transform: {what} must have shape {(sequences, 1)} or "
            f"{(sequences, tokens)}, as stats.mask has shape {stats.mask.shape}, got "
            f"{type(advantages).__name__ if shape is None else shape}"
        )
    return jnp.asarray(advantages, jnp.float32)
