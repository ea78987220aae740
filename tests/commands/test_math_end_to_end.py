"""Math from end to end with real parts: recipe, Qwen2 tokenizer and chat template, math-verify,
export.
"""

import contextlib
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hf_fixtures import make_hf_dir
from safetensors.numpy import load_file, save_file

from entropy_rl.cli.main import main
from entropy_rl.config.common import ModelConfig
from entropy_rl.models import load_hf, make_policy
from entropy_rl.runs.load_model import check_length, load_model

RECIPE = Path(__file__).parents[2] / "configs" / "qwen2_5_math_7b_grpo_entropy.yaml"
SMALL = [
    *(
        "--config",
        str(RECIPE),
        "--model.path",
        "model",
        "--task.args.train",
        "train.jsonl",
        "--steps",
        "2",
    ),
    *("--task.args.chat", "true", "--rollout.prompts", "4", "--rollout.group_size", "4"),
    *("--rollout.max_new_tokens", "16", "--batching.mini_batch_prompts", "2"),
]
# (problem, answer, the digit that is right); that of the last three, math-verify alone can say.
ROWS = [
    ("two and two", "4", "4"),
    ("one and one", "2", "2"),
    ("the root of sixteen", r"\sqrt{16}", "4"),
    ("two squared", "2^2", "4"),
    ("a quarter of two cubed", "2^3/4", "2"),
]

OWN = r'''
from entropy_rl.tasks import Verdict


def soften(factor: float):
    """An advantage of a user's own."""
    return lambda advantages, stats: factor * advantages


def judge(prompt, completion, answer):
    """A verifier of a user's own."""
    assert prompt.endswith(r"within \boxed{}.") and answer
    return Verdict.CORRECT if len(completion) % 2 else Verdict.WRONG
'''


def save_model_that_answers(directory: Path) -> Path:
    """A random Qwen2 whose completions are `\\boxed{2}` or `\\boxed{4}`, by the toss of a coin.

    Layers add little, so that a token follows from the one before it: the rows of the head are
    turned toward the hidden state after which they are to come.
    """
    make_hf_dir(directory, "qwen2_untied", tokenizer=True)
    tokenizer = load_model(ModelConfig(path=str(directory))).tokenizer
    weights = load_file(directory / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 0.02
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    beginning = tokenizer.encode("\n")[-1:] + tokenizer.encode(r"\boxed{")
    digits = [tokenizer.encode(digit)[0] for digit in "24"]
    end = tokenizer.encode("}") + [tokenizer.eos_token_id]
    follows = [*itertools.pairwise(beginning), *itertools.pairwise(end)]
    follows += [(beginning[-1], digit) for digit in digits] + [(digit, end[0]) for digit in digits]
    assert len(end) == 2 and len({before for before, _ in follows}) == len(follows) - 1
    head[[after for _, after in follows]] = 0
    for before, after in follows:
        hidden = (
            embedding[before]
            / np.sqrt(np.mean(embedding[before] ** 2))
            * weights["model.norm.weight"]
        )
        head[after] += 0.5 * hidden
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("math") / "workspace"
    save_model_that_answers(directory / "model")
    make_hf_dir(directory / "random", "qwen2", tokenizer=True)
    (directory / "own.py").write_text(OWN)
    rows = "".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a, _ in ROWS)
    for split in ("train", "test"):
        (directory / f"{split}.jsonl").write_text(rows)
    return directory


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


@pytest.fixture(
    scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(workspace, dtype) -> Path:
    """A run of the recipe with the sizes of a test."""
    with contextlib.chdir(workspace):
        run = [
            "--model.compute_dtype",
            dtype,
            "--run.directory",
            dtype,
            "--run.samples_per_step",
            "16",
        ]
        assert main(["train", *SMALL, *run]) == 0
    return workspace / dtype


@pytest.fixture(scope="module")
def exported(trained, dtype) -> Path:
    out = trained.with_name(f"exported_{dtype}")
    assert main(["export", "--model", str(trained), "--output", str(out), "--dtype", dtype]) == 0
    return out


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_recipe_trains_with_math_verify_as_judge(trained):
    metrics = rows_of(trained / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        assert 0.1 < row["verdict/correct"] < 0.9
        assert row["verdict/timeout"] == row["verdict/crash"] == 0
        assert row["grad_norm"] > 0 and 0 < row["bonus_share"] <= 0.5
        assert row["truncated"] < 0.5
    seen = set()
    for sample in rows_of(trained / "samples.jsonl"):
        if sample["completion"] in (r"\boxed{2}", r"\boxed{4}"):
            right = sample["completion"] == rf"\boxed{{{ROWS[sample['problem']][2]}}}"
            assert sample["verdict"] == ("correct" if right else "wrong"), sample
            assert sample["finish_reason"] == "eos" and sample["tokens"][-1] == 383
            seen.add((sample["problem"], right))
    assert len(seen) > 6
    config = yaml.safe_load((trained / "config.yaml").read_text())
    recipe = yaml.safe_load(RECIPE.read_text())
    assert config["advantage"] == recipe["advantage"]
    for name in ("loss", "optimizer", "reward"):
        assert recipe[name].items() <= config[name].items()


def test_sampler_and_trainer_agree_on_the_log_probs(trained, dtype):
    limit = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]
    assert all(0 <= row["logprob_diff"] < limit for row in rows_of(trained / "metrics.jsonl"))


def test_a_chat_prompt_is_sampled_as_the_template_has_it(here):
    model = load_model(ModelConfig(path="model"))
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\nYou are") and text.endswith(
        "<|im_start|>assistant\n"
    )
    assert model.eos_ids == (383,) and model.tokenizer.decode([383]) == "<|im_end|>"


def test_rows_longer_than_what_the_model_was_made_for_are_warned_of(here, caplog):
    model = load_model(ModelConfig(path="model"))
    made_for = json.loads((here / "model" / "config.json").read_text())["max_position_embeddings"]
    check_length(model, made_for)
    assert not caplog.records
    check_length(model, made_for + 1)
    assert f"was made for {made_for} positions; rows can have {made_for + 1} here" in caplog.text


def test_an_export_is_the_trained_model(trained, exported, dtype, workspace):
    from transformers import AutoConfig, AutoTokenizer

    config, params = load_hf(exported)
    run = load_model(ModelConfig(path=str(trained)))
    assert config == run.config
    before = load_hf(workspace / "model")[1]
    for x, y, z in zip(*map(jax.tree.leaves, (params, run.params, before)), strict=True):
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(x, y.astype(dtype).astype(jnp.float32))
        assert (y != z).any()
    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    text = "<|im_start|>user\nWhat is $\\frac{1}{2}$ of 8?<|im_end|>"
    assert tokenizer.encode(text) == run.tokenizer.encode(text)
    assert tokenizer.chat_template == run.tokenizer.chat_template
    described = AutoConfig.from_pretrained(exported, local_files_only=True)
    assert (described.model_type, described.eos_token_id) == ("qwen2", 383)
    assert str(described.dtype).removeprefix("torch.") == dtype


@pytest.mark.torch
def test_transformers_computes_the_same_with_an_export(exported):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config, params = load_hf(exported)
    policy = make_policy(config)
    ids = np.arange(24).reshape(2, 12) * 7 % 381
    ours = policy.apply(params, ids) @ policy.head(params).T
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)


EVALUATE = [
    *("--config", str(RECIPE.with_name("math_evaluate.yaml")), "--task.args.chat", "true"),
    *("--task.args.test", "test.jsonl", "--evaluation.split", "test"),
    *(
        "--evaluation.samples",
        "4",
        "--evaluation.max_new_tokens",
        "16",
        "--evaluation.rows_per_call",
        "8",
    ),
    *("--evaluation.temperature", "1.0", "--evaluation.top_p", "1.0"),
]


def test_a_run_and_its_export_have_the_same_evaluation(trained, exported, dtype, here, capsys):
    results = []
    for model in (trained, exported):
        output = here / f"{model.name}_evaluated"
        arguments = [
            "--model.path",
            str(model),
            "--model.compute_dtype",
            dtype,
            "--output",
            str(output),
        ]
        assert main(["evaluate", *EVALUATE, *arguments]) == 0
        out = capsys.readouterr().out
        assert "  5 x 4\n" in out and "Pass@4" in out and str(output) in out
        result = json.loads((output / "evaluation.json").read_text())
        samples = rows_of(output / "samples.jsonl")
        assert [(s["problem"], s["sample"]) for s in samples] == [
            (p, s) for p in range(5) for s in range(4)
        ]
        assert (result["problems"], result["left_out"], result["samples"]) == (5, 0, 4)
        assert list(result["pass_at_k"]) == ["1", "2", "4"]
        correct = sum(sample["verdict"] == "correct" for sample in samples)
        assert result["pass_at_k"]["1"][0] == pytest.approx(correct / 20)
        assert 0 < correct < 20 and result["verdicts"]["correct"] == correct / 20
        results.append((result, samples))
    if dtype == "float32":  # an export in bfloat16 is rounded
        assert results[0] == results[1]


@pytest.mark.slow
def test_a_verifier_and_an_advantage_of_a_user_s_own_are_used(here):
    own = [
        "--advantage+",
        "{name: 'own:soften', factor: 1e-6}",
        "--task.args.verifier",
        "own:judge",
    ]
    arguments = ["--model.path", "random", "--run.directory", "own", "--run.samples_per_step", "16"]
    assert main(["train", *SMALL, *own, *arguments, "--steps", "1", "--mesh.fsdp", "1"]) == 0
    (metrics,) = rows_of(here / "own" / "metrics.jsonl")
    assert 0 < metrics["grad_norm"] < 1e-4
    for sample in rows_of(here / "own" / "samples.jsonl"):
        assert sample["verdict"] == ("correct" if len(sample["completion"]) % 2 else "wrong")
    # In bfloat16, with a policy that is unsure and layers that count.
    assert metrics["entropy"] > 3 and 0 < metrics["logprob_diff"] < 3e-2
