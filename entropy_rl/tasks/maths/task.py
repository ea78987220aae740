"""Maths problems with a final answer, judged by math-verify, by DAPO's rule or by a user's.

The built-in verifiers run nothing of what the model wrote: math-verify parses LaTeX, and evaluates at most a
text of digits and operators. The worker processes have limits, but they are no sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from entropy_rl.factories import import_object, unknown
from entropy_rl.tasks.maths.answers import check_equal, compare_simple, last_boxed
from entropy_rl.tasks.maths.dapo import judge_dapo
from entropy_rl.tasks.maths.files import read_problems
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import Problem, Verdict

PROMPTS = {
    # Qwen2.5-Math
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    # DAPO, arXiv 2503.14476
    "dapo": (
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    ),
}
SPLITS = ("train", "validation", "test")


class Maths:
    """Maths problems from JSONL files: one object per line with a problem and its final answer.

    Args:
      train: File of the split; null where there is none. `validation` and `test` likewise.
      prompt: `boxed`, `dapo`, or a text of your own that holds `{problem}`.
      chat: Wrap the prompt by the tokenizer's chat template, as a user's message.
      verifier: `math-verify` reads the last \\boxed{...} and compares as mathematics; `dapo` reads the last
        `Answer: ...` and compares as text; or `module:function`, a function of yours
        (prompt, completion, answer) -> Verdict.
      problem_field: Field of the problem's text.
      answer_field: Field of the answer: a text or a number.
      deadline_s: Wall-clock seconds of one check.
      workers: Processes that check; they start at the first completion that needs them.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        prompt: str = "boxed",
        chat: bool = False,
        verifier: str = "math-verify",
        problem_field: str = "problem",
        answer_field: str = "answer",
        deadline_s: float = 5.0,
        workers: int = 2,
    ):
        self._files = {
            split: Path(path)
            for split, path in zip(SPLITS, (train, validation, test), strict=True)
            if path is not None
        }
        for split, path in self._files.items():
            if not path.is_file():
                raise ValueError(f"task.args.{split}: {str(path)!r} is not a file; allowed: a JSONL file")
        self._template = PROMPTS.get(prompt, prompt)
        if "{problem}" not in self._template:
            raise ValueError(
                f"task.args.prompt: {prompt!r} is not allowed; allowed: {', '.join(PROMPTS)}, or a text "
                "that holds {problem}"
            )
        if prompt == "dapo" and verifier == "math-verify":
            raise ValueError(
                "task.args.verifier: 'math-verify' reads \\boxed{}; the prompt 'dapo' asks for none; "
                "allowed: 'dapo', 'module:function', or another prompt"
            )
        self._chat = chat
        self._fields = (problem_field, answer_field)
        self._verifier = verifier
        self._pool = None
        if verifier != "dapo":
            self._pool = _make_pool(verifier, deadline_s, workers)
        self._splits: dict[str, list[Problem]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split, in the order of its file; the id is the place in it.

        Raises:
          ValueError: The split has no file, or a line of the file is wrong, as `FILE:LINE: what; allowed`.
        """
        if split not in self._files:
            given = ", ".join(self._files) or "none"
            raise ValueError(f"task.args.{split}: no file is given for this split; given: {given}")
        if split not in self._splits:
            self._splits[split] = [
                Problem(i, self._template.replace("{problem}", problem), answer, self._chat)
                for i, (problem, answer) in enumerate(read_problems(self._files[split], *self._fields))
            ]
        return self._splits[split]

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """One verdict for each completion, in order."""
        pairs = list(zip(problems, completions, strict=True))
        if self._verifier == "dapo":
            return [judge_dapo(completion, problem.answer) for problem, completion in pairs]
        if self._verifier != "math-verify":
            return self._pool.map([(p.prompt, completion, p.answer) for p, completion in pairs])
        boxed = [last_boxed(completion) for completion in completions]
        verdicts = [
            Verdict.UNPARSABLE if answer is None else compare_simple(problem.answer, answer)
            for problem, answer in zip(problems, boxed, strict=True)
        ]
        hard = [i for i, verdict in enumerate(verdicts) if verdict is None]
        judged = self._pool.map([(problems[i].answer, boxed[i]) for i in hard])
        for i, verdict in zip(hard, judged, strict=True):
            verdicts[i] = verdict
        return verdicts

    def close(self) -> None:
        """Ends the verifier processes."""
        if self._pool is not None:
            self._pool.close()


def _make_pool(verifier: str, deadline_s: float, workers: int) -> VerifierPool:
    path = "task.args.verifier"
    # An item that loads the LaTeX parser and the simplifier.
    check, warm_up = f"{check_equal.__module__}:{check_equal.__name__}", (r"2\sqrt{2}", r"\sqrt{8}")
    if verifier != "math-verify":
        if ":" not in verifier:
            raise ValueError(unknown(path, verifier, ["math-verify", "dapo", "module:function"]))
        if verifier.startswith("__main__:"):
            raise ValueError(
                f"{path}: {verifier!r} is not allowed; allowed: a function of a module in its own file"
            )
        if not callable(import_object(path, verifier)):
            raise ValueError(
                f"{path}: {verifier!r} is no function; allowed: (prompt, completion, answer) -> Verdict"
            )
        check, warm_up = verifier, None
    try:
        return VerifierPool(check, workers=workers, deadline_s=deadline_s, warm_up=warm_up)
    except ValueError as error:
        raise ValueError(f"task.args.{error}") from error
