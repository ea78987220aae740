"""`data select` scores texts by a model and keeps the best of each prompt, by three scores."""

import contextlib
import datetime
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from hf_fixtures import save_tokenizer
from math_files import write_jsonl
from tiny_runs import save_tiny_model

from entropy_rl.cli.main import main
from entropy_rl.experience.chats import encode_chat
from entropy_rl.runs.load_model import load_model
from entropy_rl.runs.lock import one_writer

ARGUMENTS = {
    "model.path": "talker",
    "data.train": "texts.jsonl",
    "data.max_tokens": "128",
    "keep": "1",
    "max_tokens_per_micro_batch": "256",
}


@pytest.fixture(scope="module")
def at_work(workspace):
    """Four texts for each of three questions, of two teachers."""
    from transformers import AutoTokenizer

    save_tokenizer(workspace / "chatml")
    save_tiny_model(workspace / "talker", AutoTokenizer.from_pretrained(workspace / "chatml"))
    rows = []
    for a in (3, 4, 5):
        for i in range(4):
            steps = [f"{a} + {j} is {a + j}{' and so on' * i}." for j in range(1 + i % 3)]
            said = {"role": "assistant", "content": " ".join(steps)}
            asked = {"role": "user", "content": f"{a}?"}
            rows.append({"messages": [asked, said], "teacher": "ab"[i % 2], "number": len(rows)})
    write_jsonl(workspace / "texts.jsonl", rows)
    said = lambda text: {  # noqa: E731
        "messages": [{"role": "user", "content": "3?"}, {"role": "assistant", "content": text}]
    }
    write_jsonl(workspace / "blank.jsonl", [said("<|im_end|>")])
    dated = [row | {"when": datetime.datetime(2026, 1, 1)} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dated), workspace / "dated.parquet")
    return workspace


def select(output, **changes):
    settings = ARGUMENTS | {"output": output} | changes
    return main(["data", "select", *(f"--{name}={value}" for name, value in settings.items())])


def results(directory):
    rows = [json.loads(line) for line in (directory / "selected.jsonl").read_text().splitlines()]
    return rows, json.loads((directory / "selection.json").read_text())


@pytest.fixture(scope="module")
def scored(at_work):
    """Scores of all texts."""
    with contextlib.chdir(at_work):
        assert select("all", keep=99, group_by="all") == 0
    return results(at_work / "all")[0]


def test_scores_are_those_of_a_plain_forward_pass(scored, at_work, here):
    model, tokenizer = load_model("talker"), load_model("talker").tokenizer
    for row in scored[:5]:
        chat = [(message["role"], message["content"]) for message in row["messages"]]
        text = encode_chat(chat, tokenizer, model.eos_ids)
        ids = jnp.array([text.ids])
        logits = model.policy.apply(model.params, ids)[0] @ model.policy.head(model.params).T
        log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
        at = np.arange(1, len(text.ids))
        own = np.where(text.mask[1:], log_probs[at - 1, text.ids[1:]], np.nan)
        np.testing.assert_allclose(row["scores"]["logp"], np.nanmean(own), atol=1e-4)
        pieces = [tokenizer.decode([i]) for i, m in zip(text.ids, text.mask, strict=True) if m]
        ends = [i for i, piece in enumerate(pieces[:-2]) if piece == "."]
        words = [i for i, piece in enumerate(pieces) if piece.strip()]
        begins = {0} | {min(i for i in words if i > end) for end in ends}
        assert row["scores"]["fraction_first"] == len(begins) / len(pieces)
        own = own[~np.isnan(own)]
        np.testing.assert_allclose(row["scores"]["first"], own[sorted(begins)].mean(), atol=1e-4)


@pytest.mark.parametrize("score", ["logp", "drop", "casl"])
def test_the_best_of_each_prompt_are_kept_in_their_order(scored, at_work, here, score):
    assert select(score, score=score) == 0
    rows, statistics = results(at_work / score)
    values = {row["number"]: row["scores"] for row in scored}
    if score == "casl":
        gamma = statistics["regressions"]["all"]["fraction"]
        found = {n: s["logp"] - gamma * s["fraction_first"] for n, s in values.items()}
    else:
        found = {n: s[score] for n, s in values.items()}
    expected = [max(range(start, start + 4), key=found.get) for start in (0, 4, 8)]
    assert [row["number"] for row in rows] == expected
    assert statistics["groups"] == 3 and statistics["kept"] == 3 and statistics["texts"] == 12
    by_logp = {max(range(s, s + 4), key=lambda n: values[n]["logp"]) for s in (0, 4, 8)}
    assert statistics["kept_by_logp_too"] == len(by_logp & set(expected))


def test_the_length_of_steps_is_that_between_their_beginnings(scored, at_work, here):
    # With one first token per step it is 1 / Z; with two it is the same, and Z is not.
    assert select("two", first_tokens=2, keep=99, group_by="all") == 0
    rows, statistics = results(at_work / "two")
    expected = [1 / row["scores"]["fraction_first"] for row in scored]
    assert len(rows) == len(scored) and statistics["rule"]["first_tokens"] == 2
    np.testing.assert_allclose(statistics["step_length"], np.mean(expected), rtol=1e-12)
    logp = [row["scores"]["logp"] for row in rows]
    np.testing.assert_allclose(
        statistics["correlation_with_step_length"]["logp"],
        np.corrcoef(logp, expected)[0, 1],
        rtol=1e-9,
    )


def test_each_source_has_a_regression_of_its_own(at_work, here, capsys):
    assert select("apart", source_field="teacher") == 0
    assert results(at_work / "apart")[1]["regressions"].keys() == {"a", "b"}
    assert "regression of b: gamma " in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_selected_can_be_trained_on(scored, at_work, here):
    settings = ["--steps", "1", "--batch_size", "8", "--run.directory", "after", "--seed", "0"]
    data = ["--data.train", "all/selected.jsonl", "--data.max_tokens", "128"]
    model = ["--model.path", "talker", "--batching.max_tokens_per_micro_batch", "256"]
    assert main(["sft", *settings, *data, *model, "--optimizer.learning_rate", "0.01"]) == 0


def test_an_interrupted_selection_leaves_nothing_and_can_be_repeated(at_work, here, monkeypatch):
    def interrupted(self, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", interrupted)  # of the second file
        assert select("again/selected") == 130
    assert list((at_work / "again").iterdir()) == []
    assert select("again/selected") == 0
    assert [path.name for path in (at_work / "again").iterdir()] == ["selected"]


def test_a_second_selection_into_the_same_directory_is_refused_before_it_scores(
    at_work, here, monkeypatch, capsys
):
    monkeypatch.delattr("entropy_rl.runs.load_model.load_weights")
    with one_writer(at_work / "twice.lock", "output: twice"):
        assert select("twice") == 2
    assert "output: twice: must have one writer, got a second process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"keep": 0}, "keep: must be >= 1, got 0"),
        ({"score": "cals"}, "--score: must be one of logp, drop, casl, got 'cals'"),
        ({"steps": "word"}, "--steps: must be one of sentence, line, paragraph, got 'word'"),
        ({"data.train": "blank.jsonl", "data.special_tokens": True}, "data.train: must have a "
         "text with tokens that begin a step and others, by the rule 'sentence', got none of 1"),
        ({"output": "talker"}, "output: must be a directory that does not exist yet, got"),
        ({"max_tokens_per_micro_batch": 16}, "max_tokens_per_micro_batch: must be >= "),
        ({"output": "texts.jsonl/no"}, "output: must be a directory that can be created, got"),
        ({"source_field": "techer"}, "source_field: must be a field of all 12 rows, 12 of which "
         "are without it, got 'techer'"),
        ({"source_field": "number"}, "data.train: the regression of ASLEC-CASL must have at least "
         "4 texts that differ, got 1 of the source '0'"),
        ({"score": "drop", "source_field": "teacher"}, "source_field: must be null with score "
         "drop, which has no regression, got 'teacher'"),
        ({"data.train": "no.jsonl"}, "data.train: must be"),
        ({"data.train": "dated.parquet"}, "data.train: must have fields that JSON can hold, as "
         "rows are written to selected.jsonl, got datetime in 'when' of row 1"),
        ({"data.chat_template_kwargs": "{enable_thinkng: false}"}, "data.chat_template_kwargs"),
        ({"data.held_out": 2}, "data.held_out: must be 0, because `data select` does"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line(at_work, here, monkeypatch, capsys, changes, line):
    if "regression of ASLEC" not in line:  # which needs the scores
        monkeypatch.delattr("entropy_rl.runs.load_model.load_weights")
    assert select(**{"output": "no"} | changes) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"entropy-rl data select: {line}")
    assert not (at_work / "no").exists()
