"""A task of six problems and a table policy that answers them: evaluations that take no time."""

from pathlib import Path

import jax
from policies import table_policy

from entropy_rl.runs import load_model as loading
from entropy_rl.runs.load_model import Model
from entropy_rl.tasks.countdown import build_tokenizer
from entropy_rl.tasks.countdown.tokenizer import VOCABULARY
from entropy_rl.tasks.task import Problem, Verdict

EOS, VOCAB, NEW = 2, len(VOCABULARY), 6
# Not in the order of their places, and the prompts end with different words, so that the table
# answers each in its own way. One prompt is longer than the limit that is used here.
PROBLEMS = [
    Problem(id, f"<bos> {' '.join(map(str, range(length)))} : {target}", str(target))
    for id, length, target in [
        (40, 1, 9),
        (3, 4, 12),
        (21, 9, 20),
        (7, 2, 31),
        (0, 3, 42),
        (55, 1, 44),
    ]
]
TOO_LONG = PROBLEMS[2]
MAX_PROMPT = 8


class FakeTask:
    """Correct is what begins with a word in the first third of the numbers, or ends at once."""

    def __init__(self, no_judgement=lambda problem, text: None):
        self._no_judgement = no_judgement

    def problems(self, split):
        assert split == "dev"
        return PROBLEMS

    def judge(self, problems, completions):
        return [
            self._no_judgement(p, text) or self._verdict(text)
            for p, text in zip(problems, completions, strict=True)
        ]

    def _verdict(self, text):
        first = text.split(" ")[0]
        if not first.isdigit():
            return Verdict.UNPARSABLE
        return Verdict.CORRECT if int(first) < 17 else Verdict.WRONG

    def final_answers(self, completions):
        return [text.split(" ")[0] or None for text in completions]

    def probe(self, problems, completions):
        return {
            "digits": (sum("7" in text for text in completions), len(completions)),
            "never": (0, 0),
        }


def make_model() -> Model:
    policy = table_policy(VOCAB)
    # Ends after three tokens or so, and differs between prompts.
    table = 1.5 * policy.init(jax.random.key(5))["table"]
    params = {"table": table.at[:, EOS].set(3.0)}
    files = dict(tokenizer=build_tokenizer(), eos_ids=(EOS,), pad_id=0, directory=Path())
    return loading.make_model(lambda mesh: policy, params, None, **files)


MODEL = make_model()
