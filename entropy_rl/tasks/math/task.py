"""Math problems with a final answer, judged by math-verify, DAPO's rule or a user's function.

The built-in verifiers never execute text of the model: math-verify parses LaTeX, and its evaluation
of plain expressions is off. Worker processes have resource limits but are not a sandbox.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from entropy_rl.config.registry import import_object
from entropy_rl.config.values import unknown
from entropy_rl.tasks.math.answers import (
    canonical,
    check_equal,
    compare_simple,
    final_answer,
    last_boxed,
)
from entropy_rl.tasks.math.catalog import DAPO_PROMPT, PUBLISHED
from entropy_rl.tasks.math.dapo import judge_dapo, last_answer
from entropy_rl.tasks.math.right_answers import check_answers
from entropy_rl.tasks.math.sets import Source, find_source, read_source
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import Problem, Verdict

logger = logging.getLogger(__name__)

PROMPTS = {
    # Qwen2.5-Math
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "dapo": DAPO_PROMPT,
}
SPLITS = ("train", "validation", "test")
# The answer formats that a built-in verifier reads; a prompt must ask for one of them.
_READS = {"math-verify": ("\\boxed",), "dapo": ("Answer:", "\\boxed")}


class Math:
    """Math problems with final answers, from prepared sets or files.

    A published set is also a split of its own name, as in `evaluation.split: aime_2024`. Of a set
    with two splits, `train` uses the training split and everything else the test split.

    Args:
      train: A set prepared by `entropy-rl data prepare`, or a JSONL or parquet file; null for none.
      validation: As `train`.
      test: As `train`.
      prompt: `boxed`, `dapo`, or a text that contains `{problem}`.
      chat: Format the prompt as a user message by the tokenizer's chat template.
      verifier: `math-verify` reads the last \\boxed{...} and compares as mathematics; `dapo` reads
        the last `Answer: ...` and compares as text; or `module:function`, a function
        (prompt, completion, answer) -> Verdict.
      problem_field: Field of the problem in a file.
      answer_field: Field of the answer in a file: a text or a number. Of a whole solution, the
        built-in verifiers use what follows `####`, or the content of the last \\boxed{...}.
      data_dir: Directory of prepared sets; null for the default of TFDS.
      deadline_s: CPU seconds of one check.
      special_tokens: Encode special tokens in the text of a problem, such as <|im_end|>, as tokens;
        false for plain text.
      workers: Verifier processes; they start at the first completion that needs them.
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
        data_dir: str | None = None,
        deadline_s: float = 5.0,
        workers: int = 2,
        special_tokens: bool = False,
    ):
        self._data_dir = data_dir
        self._sources = {
            split: find_source(f"task.args.{split}", given, _role(split), data_dir)
            for split, given in zip(SPLITS, (train, validation, test), strict=True)
            if given is not None
        }
        self._template = PROMPTS.get(prompt, prompt)
        if "{problem}" not in self._template:
            raise ValueError(
                f"task.args.prompt: must be one of {', '.join(PROMPTS)}, or a text that contains "
                f"{{problem}}, got {prompt!r}"
            )
        fitting = [
            name for name, texts in _READS.items() if any(text in self._template for text in texts)
        ]
        if verifier in _READS and verifier not in fitting:
            raise ValueError(
                f"task.args.verifier: must be one of {', '.join([*fitting, 'module:function'])} "
                f"with the prompt {prompt!r:.60}, got {verifier!r}, which reads "
                f"{' or '.join(_READS[verifier])}"
            )
        self._chat, self._special_tokens = chat, special_tokens
        self._fields = (problem_field, answer_field)
        self._verifier = verifier
        self._pool = None
        if verifier != "dapo":
            self._pool = _make_pool(verifier, deadline_s, workers)
        self._splits: dict[str, list[Problem]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split, in the order of its source; the id is the index.

        Raises:
          ValueError: The split has no source, a row of the file is invalid, as `FILE:LINE: ...`, or
            no right answer can be read.
        """
        if split not in self._splits:
            source = self._find(split)
            pairs = read_source(source, *self._fields)
            if self._verifier in _READS:
                self._check_answers(source, [answer for _, answer in pairs])
                pairs = [(problem, final_answer(answer)) for problem, answer in pairs]
            self._splits[split] = [
                Problem(
                    id=i,
                    prompt=self._template.replace("{problem}", problem),
                    answer=answer,
                    chat=self._chat,
                    template=self._template,
                    special_tokens=self._special_tokens,
                )
                for i, (problem, answer) in enumerate(pairs)
            ]
        return self._splits[split]

    def _check_answers(self, source: Source, answers: Sequence[str]) -> None:
        """Refuses right answers that are all unusable, and warns if some are."""
        report = check_answers(answers, self._verifier)
        if report.unusable == report.total:
            raise ValueError(f"{source.title}: {report.message}")
        if report.unusable:
            logger.warning("%s: %s", source.title, report.message)

    def _find(self, split: str) -> Source:
        if split in self._sources:
            return self._sources[split]
        if split in PUBLISHED:
            return find_source("split", split, "test", self._data_dir)
        if split in SPLITS:
            given = ", ".join(self._sources) or "none"
            raise ValueError(
                f"task.args.{split}: must be a set or a file, got null; given: {given}"
            )
        raise ValueError(unknown("split", split, [*SPLITS, *PUBLISHED]))

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """One verdict per completion, in order."""
        pairs = list(zip(problems, completions, strict=True))
        if self._verifier == "dapo":
            return [judge_dapo(completion, problem.answer) for problem, completion in pairs]
        if self._verifier != "math-verify":
            return self._pool.map([(p.prompt, completion, p.answer) for p, completion in pairs])
        golds = [final_answer(problem.answer) for problem in problems]
        boxed = [last_boxed(completion) for completion in completions]
        verdicts = [
            Verdict.UNPARSABLE if answer is None else compare_simple(gold, answer)
            for gold, answer in zip(golds, boxed, strict=True)
        ]
        hard = [i for i, verdict in enumerate(verdicts) if verdict is None]
        judged = self._pool.map([(golds[i], boxed[i]) for i in hard])
        for i, verdict in zip(hard, judged, strict=True):
            verdicts[i] = verdict
        return verdicts

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The final answer of each completion, in a form that is equal for equal answers."""
        if r"\boxed" not in self._template:
            return [last_answer(completion) for completion in completions]
        boxed = map(last_boxed, completions)
        return [None if answer is None else canonical(answer) for answer in boxed]

    def close(self) -> None:
        """Stops the verifier processes."""
        if self._pool is not None:
            self._pool.close()


def _role(split: str) -> str:
    return "train" if split == "train" else "test"


def _make_pool(verifier: str, deadline_s: float, workers: int) -> VerifierPool:
    path = "task.args.verifier"
    # The warm-up item loads the LaTeX parser and the simplifier.
    check, warm_up = f"{check_equal.__module__}:{check_equal.__name__}", (r"2\sqrt{2}", r"\sqrt{8}")
    if verifier != "math-verify":
        if ":" not in verifier:
            raise ValueError(unknown(path, verifier, ["math-verify", "dapo", "module:function"]))
        if verifier.startswith("__main__:"):
            raise ValueError(
                f"{path}: must be a function of a module in its own file, got {verifier!r}"
            )
        if not callable(import_object(path, verifier)):
            raise ValueError(
                f"{path}: must be a function (prompt, completion, answer) -> Verdict, "
                f"got {verifier!r}"
            )
        check, warm_up = verifier, None
    try:
        return VerifierPool(check, workers=workers, deadline_s=deadline_s, warm_up=warm_up)
    except ValueError as error:
        raise ValueError(f"task.args.{error}") from error
