"""Baselines x shapings x surrogates x token weightings: every combination has a finite loss and
gradient, and the same ones in micro-batches and on eight devices.

The members that a program could have are the branches of a `lax.switch`, and which of them acts is
an argument of it: so a program is compiled once, and run for every combination.
"""

import functools
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from policies import mesh_of, table_policy

from entropy_rl.advantages import (
    Transform,
    chain,
    gpg,
    group_center,
    group_normalize,
    opo,
    rloo,
    shape_by_entropy,
    whiten,
)
from entropy_rl.config.train import LossConfig
from entropy_rl.contrib import (
    archer,
    aspo,
    asymgrpo,
    eapo,
    flexible_clip,
    flexible_clip_od,
    grpo_passk,
    grpo_s,
    gtpo,
    miner,
    misplace_entropy_bonus,
    opefo,
    pass_at_k_training,
    qae,
    s_trace,
    scale_by_sign,
    ucpo,
    unbounded_entropy_bonus,
)
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.losses import (
    Surrogate,
    TokenWeighting,
    TokenWeights,
    ce_gppo,
    cispo,
    clip_cov,
    combine,
    dppo_tv,
    erc,
    forking_tokens,
    geometric_rejection,
    gmpo,
    gppo,
    gspo,
    icepop,
    kl_cov,
    ppo_clip,
    sapo,
    sequence_tis,
    token_tis,
    unclipped,
)
from entropy_rl.losses.build import build_loss
from entropy_rl.types import DATA_AXES, TrainBatch

P, G, N, V = 4, 4, 6, 128
ROWS = P * G

GROUP_BASELINES = {
    "group_normalize": group_normalize(G),
    "group_center": group_center(G),
    "rloo": rloo(G),
    "opo": opo(G),
    "pass_at_k_training": pass_at_k_training(G, k=2),
    "grpo_passk": grpo_passk(G),
    "qae": qae(G),
    "asymgrpo": asymgrpo(G),
    "grpo_s": grpo_s(G),
    "ucpo": chain(group_normalize(G), ucpo(G)),
}
RECORDED_BASELINES = {
    "whiten": whiten(),
    "center and whiten": chain(group_center(G), whiten()),
    "gpg": gpg(G),
    "miner": miner(G),
    "gtpo": gtpo(G),
}
LOCAL_SHAPINGS = {
    "none": chain(),
    "shape_by_entropy": shape_by_entropy(),
    "shape by old entropy": shape_by_entropy(entropy_source="old"),
    "eapo, row": eapo(statistics="sequence"),
    "misplace_entropy_bonus, uniform": misplace_entropy_bonus("uniform"),
    "misplace_entropy_bonus, shuffled": misplace_entropy_bonus("shuffled"),
    "scale_by_sign": scale_by_sign(),
    "unbounded_entropy_bonus": unbounded_entropy_bonus(),
}
BATCH_SHAPINGS = {"eapo": eapo()}
SURROGATES = {
    "ppo_clip": ppo_clip(),
    "ppo_clip, dual": ppo_clip(dual_clip=1.5),
    "unclipped": unclipped(),
    "flexible_clip": flexible_clip(-0.4, 0.5),
    "flexible_clip_od": flexible_clip_od(100, 0.2, -0.4, 0.5, -0.3, 0.4),
    "gspo": gspo(),
    "gmpo": gmpo(),
    "s_trace": s_trace(0.8, 0.5),
    "cispo": cispo(1.2),
    "sapo": sapo(),
    "dppo_tv": dppo_tv(0.1, 0.1),
    "ce_gppo": ce_gppo(),
    "gppo": gppo(),
    "archer": archer(),
    "aspo": aspo(),
}
LOCAL_SELECTIONS = {
    "none": TokenWeighting(lambda a, stats: jnp.ones_like(a), "token"),
    "token_tis": token_tis(1.2),
    "sequence_tis": sequence_tis(1.2),
    "icepop": icepop(0.7, 1.3),
    "geometric_rejection": geometric_rejection(0.9, 1.1),
    "erc": erc(),
    "erc and token_tis": combine(erc(), token_tis(1.2)),
}
# Clip-Cov asks the surrogate for what it clips: the one that acts.
BATCH_SELECTIONS = {
    "forking_tokens": forking_tokens(),
    "opefo": opefo(),
    "opefo, first order": opefo("first_order"),
    "clip_cov": clip_cov(Surrogate(lambda *x: _acting_surrogate(*x), "sequence"), 0.1, 0.1),
    "kl_cov": kl_cov(0.1),
    "forking_tokens and token_tis": combine(forking_tokens(), token_tis(1.2)),
}

# Of the controller of a surrogate; half of its bounds.
SIGNALS = {"dynamic_upper": jnp.float32(0.5), "dynamic_lower": jnp.float32(0.5)}

# Without a forward pass before the gradient pass; with one for the advantage; with one for the
# token_weighting.
PROGRAMS = {
    "local": (GROUP_BASELINES | RECORDED_BASELINES, LOCAL_SHAPINGS, SURROGATES, LOCAL_SELECTIONS),
    "batch advantage": (
        RECORDED_BASELINES,
        LOCAL_SHAPINGS | BATCH_SHAPINGS,
        SURROGATES,
        LOCAL_SELECTIONS,
    ),
    "batch token_weighting": (
        GROUP_BASELINES | RECORDED_BASELINES,
        LOCAL_SHAPINGS | BATCH_SHAPINGS,
        SURROGATES,
        BATCH_SELECTIONS,
    ),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name == "batch advantage" else [])
        for name in PROGRAMS
    ],
)
def program(request) -> str:
    """Every program; the tests of one come together, and share what it gives."""
    return request.param


class Acting:
    """Of the program that is being traced: its members, and the numbers of those that act,
    int32[4].
    """

    members = numbers = None


def _switch(kind, branches):
    return jax.lax.switch(Acting.numbers[kind], branches)


def _acting_transform(kind):
    def transform(advantages, stats):
        def branch(member):
            return lambda: jnp.broadcast_to(member(advantages, stats), stats.mask.shape)

        return _switch(kind, [branch(member) for member in Acting.members[kind].values()])

    return transform


def _acting_surrogate(advantages, stats):
    def branch(member):
        def call():
            loss, masks = member(advantages, stats)
            return loss, masks._replace(dual=None)

        return call

    return _switch(2, [branch(member) for member in Acting.members[2].values()])


def _acting_selection(advantages, stats):
    def branch(member):
        def call():
            weights = member(advantages, stats)
            kl_penalty = (
                jnp.zeros_like(weights.weight) if weights.kl_penalty is None else weights.kl_penalty
            )
            return TokenWeights(weights.weight, kl_penalty)

        return call

    return _switch(3, [branch(member) for member in Acting.members[3].values()])


def acting_surrogate():
    return Surrogate(_acting_surrogate, "sequence")


def acting_selection(scope: str):
    return TokenWeighting(_acting_selection, scope)


def make_data() -> TrainBatch:
    """Rows of many lengths; no token twice, so that hardly two entropies are equal."""
    rng = np.random.default_rng(0)
    mask = np.arange(N) < rng.integers(1, N + 1, (ROWS, 1))
    ids = np.zeros((ROWS, 2 + N), np.int32)
    ids[:, :2] = np.repeat(rng.integers(0, V, (P, 2)), G, axis=0)
    ids[:, 2:] = np.where(mask, rng.permutation(V)[: ROWS * N].reshape(ROWS, N), 0)
    rewards = np.array([1, 0, 0, 1] + [1, 1, 1, 1] + [0, 1, 0, 0] + [1, 1, 0, 1], np.float32)
    zeros = jnp.zeros((ROWS, N))
    return TrainBatch(
        ids=jnp.asarray(ids),
        prompt_length=jnp.full(ROWS, 2, jnp.int32),
        completion_ids=jnp.asarray(ids[:, 2:]),
        completion_mask=jnp.asarray(mask),
        old_log_probs=zeros,
        old_entropy=zeros,
        sampler_log_probs=zeros,
        rewards=jnp.asarray(rewards),
        has_reward=jnp.asarray(np.arange(ROWS) != 10),
    )


@functools.cache
def problem():
    """Policy, parameters, a batch whose old and sampler's log-probs are of others nearby,
    directions.
    """
    policy, batch = table_policy(V), make_data()
    keys = jax.random.split(jax.random.key(1), 4)
    params = {"table": 2 * policy.init(keys[0])["table"]}
    old = {"table": params["table"] + 0.2 * jax.random.normal(keys[1], (V, V))}
    log_probs, entropy = jax.jit(make_stats_pass(policy, settings=PassSettings(temperature=1.0)))(
        old, batch
    )
    noise = 0.15 * jax.random.normal(keys[2], log_probs.shape)
    batch = batch.replace(
        old_log_probs=log_probs, old_entropy=entropy, sampler_log_probs=log_probs + noise
    )
    directions = jax.random.normal(keys[3], (V, V, 3))
    return policy, params, batch, directions


@functools.cache
def combinations(program: str, every: bool = False) -> np.ndarray:
    """All combinations, or the first ones in which any two members meet; int32[C, 4]."""
    product = list(itertools.product(*(range(len(members)) for members in PROGRAMS[program])))
    if every:
        return np.array(product, np.int32)
    random.Random(0).shuffle(product)
    met, chosen = set(), []
    for combination in product:
        pairs = set(itertools.combinations(enumerate(combination), 2))
        if pairs - met:
            met |= pairs
            chosen.append(combination)
    return np.array(chosen, np.int32)


@functools.cache
def run(
    program: str, tokens: int | None, devices: int, every: bool = False
) -> dict[str, np.ndarray]:
    """For every combination its metrics, and the products of its gradient with fixed directions."""
    policy, params, batch, directions = problem()
    mesh = None
    if devices > 1:
        mesh = mesh_of(2, 2, 2)
        rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((DATA_AXES,), ()))
        batch, (params, directions) = (
            jax.device_put(batch, rows),
            jax.device_put((params, directions), whole),
        )
    needs_policy = program != "local"
    advantage = chain(
        Transform(_acting_transform(0), "batch", needs_policy=needs_policy),
        Transform(_acting_transform(1), "batch", needs_policy=True)
        if program == "batch advantage"
        else Transform(_acting_transform(1), "sequence"),
    )
    token_weighting = {"scope": "batch" if program == "batch token_weighting" else "sequence"}
    gradient = make_gradient(
        policy,
        advantage,
        build_loss(
            LossConfig(
                surrogate={"name": f"{__name__}:acting_surrogate"},
                token_weights=[{"name": f"{__name__}:acting_selection", **token_weighting}],
            )
        ),
        settings=PassSettings(max_tokens_per_micro_batch=tokens, mesh=mesh),
    )

    @jax.jit
    def all_of_them(params, batch, directions, numbers):
        def one(acting):
            Acting.members, Acting.numbers = PROGRAMS[program], acting
            grads, metrics = gradient(params, batch, SIGNALS)
            return metrics | {"along": jnp.einsum("ij,ijk->k", grads["table"], directions)}

        return jax.lax.map(one, numbers)

    return jax.device_get(all_of_them(params, batch, directions, combinations(program, every)))


def names_of(program: str, combination: np.ndarray) -> list[str]:
    return [list(m)[k] for m, k in zip(PROGRAMS[program], combination, strict=True)]


def assert_finite(program: str, every: bool = False) -> None:
    result = run(program, None, 1, every)
    for i, combination in enumerate(combinations(program, every)):
        names = names_of(program, combination)
        for metric, values in result.items():
            assert np.isfinite(values[i]).all(), f"{names}: {metric}"
        # A clip or a token_weighting may leave out all that grpo_passk pays, a single row of
        # a group. With a bonus without bound all uncertain tokens may have advantages above 0, and
        # gspo's range clips them.
        may_vanish = "grpo_passk" in names or {"unbounded_entropy_bonus", "gspo"} <= set(names)
        # Forking tokens are a fifth of all tokens, and gspo's narrow range may clip each of them.
        clipped = result["clip_low"][i] + result["clip_high"][i]
        if {"gspo", "forking_tokens and token_tis"} <= set(names):
            may_vanish = may_vanish or clipped > result["tokens_kept"][i]
        assert result["grad_norm"][i] > 0 or may_vanish, f"{names}: no gradient"


def assert_same(program: str, tokens: int, devices: int, every: bool = False) -> None:
    one, two = run(program, None, 1, every), run(program, tokens, devices, every)
    for i, combination in enumerate(combinations(program, every)):
        names = names_of(program, combination)
        if "gtpo" in names and {"gmpo", "opefo", "opefo, first order"} & set(names):
            # half of that baseline's advantages are 0 up to rounding, and these go by their sign
            continue
        metrics = ["loss", "grad_norm", "along", "token_weight", "tokens_kept", "tokens_held"]
        if "gtpo" not in names:  # a clip counts by the sign as well
            metrics.append("clip_low")
        for metric in metrics:
            np.testing.assert_allclose(
                one[metric][i], two[metric][i], rtol=2e-5, atol=2e-5, err_msg=f"{names}: {metric}"
            )


def test_more_than_two_hundred_combinations_are_run_and_every_two_members_meet():
    numbers = {program: combinations(program) for program in PROGRAMS}
    assert sum(map(len, numbers.values())) >= 200
    for program, chosen in numbers.items():
        sizes = [len(members) for members in PROGRAMS[program]]
        for one, two in itertools.combinations(range(4), 2):
            assert len({tuple(row) for row in chosen[:, [one, two]]}) == sizes[one] * sizes[two]


def test_every_combination_has_a_finite_loss_and_gradient(program):
    assert_finite(program)
    along = run(program, None, 1)["along"]
    assert len({tuple(row) for row in along.round(6)}) > 0.9 * len(along), (
        "the switches must tell members apart"
    )


def test_every_combination_is_the_same_in_micro_batches_on_eight_devices(program):
    assert_same(program, tokens=15, devices=8)


@pytest.mark.slow
def test_every_combination_is_the_same_in_micro_batches_on_one_device(program):
    assert_same(program, tokens=20, devices=1)


@pytest.mark.slow
def test_the_whole_product_is_finite_and_the_same_in_micro_batches(program):
    assert_finite(program, every=True)
    assert_same(program, tokens=20, devices=1, every=True)


def alone(kind: int, member: str):
    """A factory for a config: one of the members above as it is."""
    kinds = (SURROGATES, LOCAL_SELECTIONS | BATCH_SELECTIONS)
    return kinds[kind][member]


def test_a_member_behind_a_switch_is_the_member_alone_in_its_own_scope(program):
    policy, params, batch, directions = problem()
    result = run(program, None, 1)
    for i in (0, 7):
        baseline, shaping, surrogate, token_weighting = names_of(program, combinations(program)[i])
        if token_weighting.startswith("clip_cov"):
            continue  # it asks the surrogate behind the switch
        loss = LossConfig(
            surrogate={"name": f"{__name__}:alone", "kind": 0, "member": surrogate},
            token_weights=[{"name": f"{__name__}:alone", "kind": 1, "member": token_weighting}],
        )
        advantage = chain(PROGRAMS[program][0][baseline], PROGRAMS[program][1][shaping])
        grads, metrics = jax.jit(make_gradient(policy, advantage, build_loss(loss)))(
            params, batch, SIGNALS
        )
        along = jnp.einsum("ij,ijk->k", grads["table"], directions)
        np.testing.assert_allclose(along, result["along"][i], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"], result["loss"][i], rtol=1e-5, atol=1e-6)
