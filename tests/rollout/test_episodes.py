"""Episodes: exact across turns, equal to a full forward pass, independent of the layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.learner.batch import make_batch
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.rollout import make_generate
from entropy_rl.rollout.stop_strings import StopStrings
from entropy_rl.types import FinishReason

EOS, PAD, V = 1, 0, TINY.vocab_size
GROUP, NEW, TURN = 3, 64, 9
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
ROWS = GROUP * len(PROMPTS)


class Scripted:
    """Answers with tokens that depend on the row, the turn and its tokens; ends some episodes."""

    def __init__(self, longest=20, turns=4):
        self.longest, self.turns = longest, turns
        self.asked, self.replies, self.reasons = {}, {}, {}

    def submit(self, row, ids, reason, room):
        turn = self.asked[row] = self.asked.get(row, 0) + 1
        self.reasons.setdefault(row, []).append(reason)
        draw = np.random.default_rng([row, turn, *ids])
        reply = draw.integers(2, V, draw.integers(0, self.longest + 1)).tolist()
        if turn == self.turns:
            reply = FinishReason.TURNS
        elif len(reply) >= room:
            reply = FinishReason.LENGTH
        self.replies[row] = reply

    def reply(self, row):
        return self.replies.pop(row)


class Silent:
    """Says nothing, and ends the episode where the model does."""

    def submit(self, row, ids, reason, room):
        self.last = getattr(self, "last", {}) | {row: (reason, room)}

    def reply(self, row):
        reason, room = self.last.pop(row)
        return [] if reason == FinishReason.LENGTH and room > 0 else reason


@functools.cache
def prompts():
    length = max(map(len, PROMPTS))
    ids = jnp.array([p + [PAD] * (length - len(p)) for p in PROMPTS])
    mask = jnp.array([[True] * len(p) + [False] * (length - len(p)) for p in PROMPTS])
    return ids, mask, jnp.arange(len(PROMPTS))


@functools.cache
def sampler(policy, slots, chunk_steps, turn, stop=None):
    """Made once for each layout: its programs are compiled once for all tests."""
    return make_generate(
        policy,
        group_size=GROUP,
        max_new_tokens=NEW,
        eos_ids=[EOS],
        pad_id=PAD,
        decoding=DecodingConfig(slots=slots, chunk_steps=chunk_steps),
        max_turn_tokens=turn,
        stop=stop,
    )


def run(decoder, key, environments=None, turn=TURN, slots=None, chunk_steps=7, stop=None):
    policy, params = decoder
    turn = turn if environments else None
    answers = {"environments": environments} if environments else {}
    generate = sampler(policy, slots, chunk_steps, turn, stop)
    return jax.device_get(generate(params, *prompts(), key, **answers))


@pytest.fixture(scope="module")
def episodes(decoder):
    environments = Scripted()
    return run(decoder, jax.random.key(0), environments), environments


@pytest.mark.parametrize(
    ("turn", "slots"),
    [(NEW, None), (TURN, None), (TURN, 4)],
    ids=["one turn", "turns of 9 tokens", "turns in 4 slots"],
)
def test_an_environment_that_says_nothing_gives_the_rollout_of_a_single_turn_to_the_bit(
    decoder, key, turn, slots
):
    single = run(decoder, key, slots=slots)
    episodes = run(decoder, key, Silent(), turn=turn, slots=slots)
    assert len(set(single.completion_mask.sum(-1).tolist())) > 2
    for name, array in vars(single).items():
        np.testing.assert_array_equal(getattr(episodes, name), array, err_msg=name)


def test_observations_are_in_the_row_and_do_not_count(episodes):
    rollout, environments = episodes
    last = np.where(rollout.completion_mask, np.arange(NEW), -1).max(-1)
    inside = np.arange(NEW)[None] <= last[:, None]
    observed = inside & ~rollout.completion_mask
    assert (observed.sum(-1) > TURN).any() and max(environments.asked.values()) == 4
    assert not rollout.log_probs[~rollout.completion_mask].any()
    assert (rollout.completion_ids[~inside] == PAD).all()
    reasons = [FinishReason(int(r)) for r in rollout.finish_reason]
    assert {FinishReason.TURNS, FinishReason.LENGTH} >= set(reasons)
    for row, mask in enumerate(rollout.completion_mask):
        edges = np.flatnonzero(
            np.diff(np.concatenate([[0], mask[: last[row] + 1], [0]]).astype(int))
        )
        turns = (edges[1::2] - edges[::2]).tolist()
        assert max(turns) <= 2 * TURN  # two turns touch where an observation is empty
        assert sum(turns) == mask.sum()


@functools.cache
def forward_pass(policy):
    """(parameters, rows) -> log-probs and entropies of all tokens but the first."""

    def compute(params, ids):
        return log_prob_and_entropy(
            policy.apply(params, ids[:, :-1]), policy.head(params), ids[:, 1:]
        )

    return jax.jit(compute)


def assert_as_in_a_full_forward_pass(decoder, rollout):
    policy, params = decoder
    # Prompt and completion without a gap; what follows changes nothing before it.
    rows = np.full((ROWS, max(map(len, PROMPTS)) + NEW), PAD, np.int32)
    for b, ids in enumerate(rollout.completion_ids):
        prompt = PROMPTS[b // GROUP]
        rows[b, : len(prompt) + NEW] = [*prompt, *ids.tolist()]
    log_probs, entropy = jax.device_get(forward_pass(policy)(params, rows))
    for b, mask in enumerate(rollout.completion_mask):
        first = len(PROMPTS[b // GROUP]) - 1
        own = slice(first, first + NEW)
        for found, expected in ((rollout.log_probs, log_probs), (rollout.entropy, entropy)):
            np.testing.assert_allclose(found[b], np.where(mask, expected[b, own], 0), atol=5e-5)


def test_log_probs_and_entropies_are_those_of_a_full_forward_pass(decoder, episodes):
    assert_as_in_a_full_forward_pass(decoder, episodes[0])


class Letters:
    """A tokenizer of one or two letters a token."""

    def decode(self, ids, skip_special_tokens):
        return "".join("" if i == EOS else "abc"[i % 3] * (1 + i % 2) for i in ids)


def test_a_turn_ends_with_the_token_that_completes_a_stop_string_and_the_row_goes_on(decoder, key):
    rule = StopStrings(Letters(), ["bb", "cac"])

    class Listening(Scripted):
        def submit(self, row, ids, reason, room):
            # The shortest prefix that contains a stop string is the turn itself.
            assert rule(ids) == (len(ids) if reason == FinishReason.STOP else None)
            super().submit(row, ids, reason, room)

    environments = Listening(longest=2, turns=9)  # some observations are empty
    rollout = run(decoder, key, environments, turn=NEW, chunk_steps=3, stop=rule)
    reasons = [reason for row in environments.reasons.values() for reason in row]
    assert reasons.count(FinishReason.STOP) > 3
    assert_as_in_a_full_forward_pass(decoder, rollout)


@pytest.mark.parametrize(("slots", "chunk_steps"), [(4, 7), (None, 32)])
def test_an_episode_does_not_depend_on_slots_and_chunks(decoder, episodes, slots, chunk_steps):
    reference, _ = episodes
    other = run(decoder, jax.random.key(0), Scripted(), slots=slots, chunk_steps=chunk_steps)
    np.testing.assert_array_equal(other.completion_ids, reference.completion_ids)
    np.testing.assert_array_equal(other.completion_mask, reference.completion_mask)
    np.testing.assert_array_equal(other.finish_reason, reference.finish_reason)
    np.testing.assert_allclose(other.log_probs, reference.log_probs, atol=5e-5)


@pytest.mark.parametrize(
    "settings",
    [
        PassSettings(),
        PassSettings(max_tokens_per_micro_batch=80),
        PassSettings(max_tokens_per_micro_batch=80, group_size=GROUP),
    ],
    ids=["whole", "packed", "packed, shared prompts"],
)
def test_the_trainer_computes_the_log_probs_of_all_turns_in_one_pass(decoder, episodes, settings):
    policy, params = decoder
    rollout, _ = episodes
    batch = make_batch(rollout, jnp.zeros(ROWS), jnp.ones(ROWS, bool), pad_id=PAD)
    log_probs, entropy = jax.jit(make_stats_pass(policy, settings))(params, batch)
    np.testing.assert_allclose(log_probs, rollout.log_probs, atol=5e-5)
    np.testing.assert_allclose(entropy, rollout.entropy, atol=5e-5)


def test_a_reply_that_does_not_fit_is_refused(decoder, key):
    class Long(Silent):
        def reply(self, row):
            return [2] * (self.last[row][1])

    with pytest.raises(ValueError, match="must have fewer tokens than there is room for"):
        run(decoder, key, Long(), slots=4)
