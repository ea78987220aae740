"""`entropy-rl sample`: an answer as it comes, its tokens shaded, and what is said of it."""

import html
import io
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from error_lines import says
from fake_evaluation import EOS, MODEL, NEW

from entropy_rl.cli.main import main
from entropy_rl.commands.sample import SampleConfig, _Printer, _prompt
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.report.terminal import FULL, has_colors, shaded
from entropy_rl.rollout import make_generate
from entropy_rl.tasks import Problem
from entropy_rl.tasks.countdown import Countdown


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def say(capsys, *arguments):
    assert main(["sample", *arguments]) == 0
    return capsys.readouterr().out


# --- the tokens of a rollout as they come
# -------------------------------------------------------------------


@pytest.mark.parametrize("slots", [None, 2])
def test_what_is_heard_of_a_rollout_is_always_a_beginning_of_what_it_returns(slots):
    generate = make_generate(
        MODEL.policy,
        group_size=4,
        max_new_tokens=NEW,
        eos_ids=(EOS,),
        pad_id=0,
        decoding=DecodingConfig(slots=slots, chunk_steps=1),
    )
    prompts = np.array([[7, 9]], np.int32), np.ones((1, 2), bool), np.array([3], np.int32)
    heard = []
    rollout = generate(MODEL.params, *prompts, jax.random.key(0), on_tokens=heard.append)
    lengths = np.array([columns.length for columns in heard])
    assert (np.diff(lengths, axis=0) >= 0).all() and len(heard) > 2
    assert lengths[-1].tolist() == rollout.completion_mask.sum(-1).tolist()
    for columns in heard:
        known = np.arange(NEW)[None] < columns.length[:, None]
        for name, whole in (("ids", rollout.completion_ids), ("entropy", rollout.entropy)):
            assert (np.where(known, getattr(columns, name) - np.asarray(whole), 0) == 0).all()


class Bytes:
    """A tokenizer of bytes: several tokens can make one character."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode(errors="replace")


class RunsOfBytes(Bytes):
    """As SentencePiece's: if a run of bytes is no text, each of them is shown as a half."""

    def decode(self, ids, skip_special_tokens):
        text = super().decode(ids, skip_special_tokens)
        return "\ufffd" * len(ids) if "\ufffd" in text else text


@pytest.mark.parametrize("decoder", [Bytes, RunsOfBytes])
def test_half_a_character_is_held_back_until_it_is_whole(capsys, decoder):
    ids = np.frombuffer("a→é→".encode(), np.uint8).astype(np.int32)
    printer, printed = _Printer(decoder(), colors=False), ""
    for length in range(1, len(ids) + 1):
        row = np.zeros((1, len(ids)))
        columns = type(
            "Completions",
            (),
            {"length": np.array([length]), "ids": ids[None], "entropy": row, "sampled": None},
        )
        printer.show(columns)
        printed += capsys.readouterr().out
        assert "a→é→".startswith(printed)
    printer.finish()
    assert printed + capsys.readouterr().out == "a→é→" == "".join(t for t, _ in printer.texts)


def test_tokens_are_decoded_from_the_last_whole_one_on(capsys):
    """Decoding all of them again and again would take the square of the completion."""
    decoded = []

    class Counted(Bytes):
        def decode(self, ids, skip_special_tokens):
            decoded.append(len(ids))
            return super().decode(ids, skip_special_tokens)

    printer, text = _Printer(Counted(), colors=False), "the → answer é " * 40
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    for length in range(4, len(ids) + 1, 4):
        columns = SimpleNamespace(
            length=np.array([length]), ids=ids[None], entropy=np.zeros((1, len(ids))), sampled=None
        )
        printer.show(columns)
    printer.finish()
    assert capsys.readouterr().out == text == "".join(text for text, _ in printer.texts)
    assert len(printer.texts) == len(ids) and max(decoded) < 16


# --- shades
# -------------------------------------------------------------------------------------------------


def test_a_token_is_shaded_by_its_entropy_and_a_decided_one_is_not():
    greens = [
        int(re.search(r"48;2;\d+;(\d+)", shaded("x", h, True))[1]) for h in (0.2, 0.7, FULL, 9.0)
    ]
    assert greens == sorted(greens, reverse=True) and greens[2] == greens[3]
    assert shaded("x", 0.0, True) == "x" == shaded("x", 5.0, False)
    first, second = shaded("a\nb", 1.0, True).split("\n")
    assert (
        first.endswith("\x1b[0m") and second.startswith("\x1b[48") and plain(first + second) == "ab"
    )


def test_what_a_model_writes_cannot_steer_the_terminal():
    hostile = "\x1b[2J\x07\x9b31m\u202eabc\r\x00"
    assert shaded(hostile, 0.0, False) == r"\x1b[2J\x07\x9b31m\u202eabc\r\x00"
    assert shaded("tab\tand\nline", 0.0, False) == "tab\tand\nline"


@pytest.mark.parametrize(
    "stream, environment, colors",
    [
        (Terminal(), {"COLORTERM": "truecolor"}, True),
        (Terminal(), {"COLORTERM": "24bit"}, True),
        (Terminal(), {"COLORTERM": "truecolor", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm"}, False),
        (io.StringIO(), {"COLORTERM": "truecolor"}, False),
    ],
)
def test_there_are_colors_where_the_terminal_has_them_and_they_are_wanted(
    stream, environment, colors
):
    assert has_colors(stream, environment) is colors


# --- the verb
# -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return Countdown().problems("test")[3]


def test_a_problem_of_the_task_is_answered_and_judged(capsys, problem, tmp_path):
    arguments = ["asset:countdown", "--task.name", "countdown", "--problem", str(problem.id)]
    out = say(capsys, *arguments)
    prompt, answer, facts = out.split("\n\n")
    assert prompt == problem.prompt
    facts = dict(
        line.split(maxsplit=1) for line in facts.replace("ended by", "ended_by").splitlines()
    )
    assert facts["length"] == f"{len(answer.split()) + 1} tokens" and facts["ended_by"] == "eos"
    assert float(facts["log-prob"]) < 0 < float(facts["entropy"].split()[0])
    (verdict,) = Countdown().judge([problem], [answer])
    assert facts["verdict"] == verdict.value
    figure = tmp_path / "figures" / "answer.svg"
    assert say(capsys, *arguments, "--figure", str(figure)) == out
    drawn = html.unescape("".join(re.findall(r"<text [^>]*>(.*?)</text>", figure.read_text())))
    assert drawn.startswith(prompt + answer) and f"verdict: {verdict.value}" in drawn
    # The same as a question: its prompt without the token that begins a text.
    question = problem.prompt.removeprefix("<bos> ")
    asked = say(capsys, "asset:countdown", question, "--task.name", "countdown")
    assert asked.split("\n\n", 1)[1] == out.split("\n\n", 1)[1]


def test_an_answer_has_the_temperature_the_seed_and_the_stop_strings_of_the_command(capsys):
    def answer(*more):
        arguments = ["asset:countdown", "2 3 7 : 27", "--max_new_tokens", "16", *more]
        return say(capsys, *arguments).split("\n\n")[1]

    greedy = answer("--temperature", "0", "--seed", "1")
    hot = [answer("--temperature", "9", "--seed", seed) for seed in "12"]
    assert len({greedy, *hot}) == 3
    words = greedy.split()
    stop = words[3]
    stopped = answer("--temperature", "0", "--seed", "1", "--stop", f"['{stop}']")
    assert stopped.split() == words[: words.index(stop) + 1] != words


def test_on_a_terminal_the_shaded_answer_is_the_plain_one(capsys, monkeypatch):
    arguments = ["asset:countdown", "3 5 7 2 : 24", "--max_new_tokens", "20"]
    out = say(capsys, *arguments)
    assert "\x1b" not in out and "verdict" not in out
    monkeypatch.setattr("entropy_rl.report.terminal.has_colors", lambda stream: True)
    colored = say(capsys, *arguments)
    assert "\x1b[48;2;" in colored and "entropy in nats" in colored
    assert plain(colored).split("\n\n")[:2] == out.split("\n\n")[:2]
    said = say(capsys, *arguments, "--task.name", "countdown")
    assert "verdict   none: the question is no problem of the split 'test'" in said


def test_a_question_begins_as_in_training(tokenizer):
    tokenizer.bos_token = "<|im_start|>"  # begins a turn of its chat template, as SmolLM2's
    config = SampleConfig(ModelConfig("random"), question="one two")
    _, ids, _ = _prompt(config, SimpleNamespace(tokenizer=tokenizer), None)
    assert ids == encode_prompt(Problem(0, "one two", "", chat=False), tokenizer)
    assert tokenizer.bos_token_id not in ids
    tokenizer.chat_template = None
    _, after_bos, _ = _prompt(config, SimpleNamespace(tokenizer=tokenizer), None)
    assert after_bos == [tokenizer.bos_token_id, *ids]


def test_a_question_that_is_a_problem_is_sampled_as_the_problem(tokenizer):
    """Training puts no BOS token before it that the tokenizer does not add itself."""
    tokenizer.bos_token, tokenizer.chat_template = "<|im_start|>", None
    asked = Problem(4, "one two", "2")

    class Task:
        def problems(self, split):
            return [Problem(3, "one", "1"), asked]

    config = SampleConfig(ModelConfig("random"), question="one two")
    found = _prompt(config, SimpleNamespace(tokenizer=tokenizer), Task())
    assert found == ("one two", encode_prompt(asked, tokenizer), asked)


def test_what_cannot_be_asked_is_refused_in_a_line(capsys):
    def refused(*arguments):
        assert main(["sample", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("entropy-rl sample: ")

    countdown = ["asset:countdown", "--task.name", "countdown"]
    assert refused() == "the command line: missing: model.path"
    assert refused("asset:countdown").startswith(
        "question: must be set if and only if problem is null"
    )
    assert refused(*countdown, "a question", "--problem", "3").startswith(
        "question: must be set if and only if problem is null, got 'a question'"
    )
    assert (
        refused("asset:countdown", "--problem", "3")
        == "problem: must be null without task.name, got 3"
    )
    assert refused("asset:countdown", "--question", "").startswith("question: must be a non-empty")
    line = refused(*countdown, "--problem", "99999")
    assert says(line, "problem: must be an id of the split 'test', from ... to ..., got 99999")
    line = refused(*countdown, "--problem", "3", "--figure", "answer.png")
    assert line.startswith("figure: must be a file NAME.svg")
    assert "no chat template" in refused("asset:countdown", "1 : 1", "--chat", "true")
    # Without this, the model would answer a prompt of <unk>.
    assert refused("asset:countdown", "hello") == (
        "question: must be text of which the tokenizer knows every word (others become <unk>), got "
        "'hello'"
    )
    assert refused("asset:countdown", "1", "2").startswith(
        "command line: must be MODEL, QUESTION, --config FILE or --dotted.path VALUE, got '2'"
    )
