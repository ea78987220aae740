"""Math problems with a final answer, judged by math-verify, DAPO's rule or a user's function.

The built-in verifiers never execute text of the model: math-verify parses LaTeX, and its evaluation
of plain expressions is off. Worker processes have resource limits but are not a sandbox.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from entropy_rl.config.checks import require
from entropy_rl.config.registry import import_object, require_module
from entropy_rl.config.values import unknown
from entropy_rl.tasks.judging import CORRECT_AT
from entropy_rl.tasks.math.answers import (
    canonical,
    check_equal,
    compare_simple,
    final_answer,
    last_boxes,
)
from entropy_rl.tasks.math.catalog import PUBLISHED
from entropy_rl.tasks.math.dapo import judge_dapo, last_answer
from entropy_rl.tasks.math.formatting import READS, PromptFormat
from entropy_rl.tasks.math.right_answers import check_answers
from entropy_rl.tasks.math.sets import Source, find_source, read_source
from entropy_rl.tasks.math.verifier import find_verifier
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import Judged, Problem, Verdict

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


class Math:
    """Math problems with final answers, from prepared sets or files.

    A published set is also a split of its own name, as in `evaluation.split: aime_2024`. Of a set
    with two splits, `train` uses the training split and everything else the test split.

    Args:
      train: A set prepared by `entropy-rl data prepare`, or files: JSONL (also .gz, .zst, .bz2,
        .xz), parquet or Arrow; a directory, a pattern such as `data/train-*.parquet`, or a list of
        these; null for none.
      validation: As `train`.
      test: As `train`.
      prompt: `boxed`, `dapo`, or a text that contains `{problem}`. Null is `boxed`, except that a
        prompt of the data (a list of messages, or the text of a field `prompt`) that asks for what
        the verifier reads is used as it is.
      chat: Format the prompt as a user message by the tokenizer's chat template; null for data that
        are lists of messages only.
      system: System message of chat prompts; null for that of the data, or none.
      chat_template_kwargs: Variables of the chat template, such as {enable_thinking: false}.
      verifier: `math-verify` reads the last \\boxed{...}, and those before it that only "or",
        "and" or commas separate, and compares as mathematics; `dapo` reads the last `Answer: ...`
        and compares as text; or `module:function`, a function (prompt, completion, answer) that
        returns a Verdict, a Judgement, a bool, a grade from 0 to 1, or None for not judged. Null is
        `math-verify`, but `dapo` for files of DAPO's style: a `data_source` such as math_dapo, and
        prompts that ask for "Answer: $Answer".
      problem_field: Field of the problem in a file: a text, or a list of chat messages. Dots lead
        into objects and lists, as in `extra_info.question`. Null looks for problem, question,
        prompt, messages and conversations.
      answer_field: Field of the answer in a file: a text or a number. Of a whole solution, the
        built-in verifiers use what follows `####`, or the content of the last \\boxed{...}. Null
        looks for answer, reward_model.ground_truth, ground_truth, final_answer and solution, then
        for the last message of the assistant.
      invalid_rows: Rows of a file in which a field is missing, empty or of a wrong type: `error`
        stops at the first one; `skip` leaves them out, and the log counts them.
      data_dir: Directory of prepared sets; null for the default of TFDS.
      deadline_s: CPU seconds of one check.
      special_tokens: Encode special tokens in the text of a problem, such as <|im_end|>, as tokens;
        false for plain text.
      workers: Verifier processes; they start at the first completion that needs them.
      correct_at: With a verifier of yours that returns grades: the grade from which on a completion
        is correct.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        test: str | list[str] | None = None,
        prompt: str | None = None,
        chat: bool | None = None,
        verifier: str | None = None,
        problem_field: str | None = None,
        answer_field: str | None = None,
        data_dir: str | None = None,
        deadline_s: float = 5.0,
        workers: int = 2,
        special_tokens: bool = False,
        system: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        invalid_rows: Literal["error", "skip"] = "error",
        correct_at: float = CORRECT_AT,
    ):
        self._data_dir = data_dir
        self._sources = {
            split: find_source(f"task.args.{split}", given, split, data_dir)
            for split, given in zip(SPLITS, (train, validation, test), strict=True)
            if given is not None
        }
        if verifier is None:
            has_own = prompt is not None or problem_field is not None
            verifier = "math-verify" if has_own else find_verifier(self._sources.values())
        self._format = PromptFormat(
            prompt, verifier, chat, system, chat_template_kwargs or {}, special_tokens
        )
        self._fields = (problem_field, answer_field, invalid_rows == "skip")
        self._verifier = verifier
        require(
            correct_at == CORRECT_AT or ":" in verifier,
            "task.args.correct_at",
            correct_at,
            f"absent with verifier {verifier}, which returns no grades",
        )
        self.correct_at = correct_at
        self._pool = None
        if verifier != "dapo":
            self._pool = _make_pool(verifier, deadline_s, workers, correct_at)
        else:
            for name, value, usual in (("deadline_s", deadline_s, 5.0), ("workers", workers, 2)):
                allowed = "absent with verifier dapo, which needs no process"
                require(value == usual, f"task.args.{name}", value, allowed)
        self._splits: dict[str, list[Problem]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split, in the order of its source; the id is the place of the row.

        Raises:
          ValueError: The split has no source, a row of the file is invalid, as `FILE:LINE: ...`, or
            no right answer can be read.
        """
        if split not in self._splits:
            source = self._find(split)
            examples = read_source(source, *self._fields)
            if examples.left_out:
                logger.warning("%s: %s", source.title, examples.message)
            rows = examples.rows
            if self._verifier in READS:
                self._check_answers(source, [row.answer for row in rows])
                rows = [row._replace(answer=final_answer(row.answer)) for row in rows]
            self._splits[split] = self._format.problems(source.title, rows, examples.fields)
        return self._splits[split]

    def _check_answers(self, source: Source, answers: Sequence[str]) -> None:
        """Refuse right answers that are all unusable, and warn if some are."""
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

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Judged]:
        """One verdict per completion, in order; or the judgements of a verifier of the user's."""
        pairs = list(zip(problems, completions, strict=True))
        if self._verifier == "dapo":
            return [judge_dapo(completion, problem.answer) for problem, completion in pairs]
        if self._verifier != "math-verify":
            return self._pool.judge([(p.prompt, completion, p.answer) for p, completion in pairs])
        golds = [final_answer(problem.answer) for problem in problems]
        boxed = [last_boxes(completion) for completion in completions]
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
        if self._verifier == "dapo" or r"\boxed" not in self._format.template:
            return [last_answer(completion) for completion in completions]
        boxed = map(last_boxes, completions)
        return [None if answer is None else canonical(answer) for answer in boxed]

    def close(self) -> None:
        """Stop the verifier processes."""
        if self._pool is not None:
            self._pool.close()


def _make_pool(verifier: str, deadline_s: float, workers: int, correct_at: float) -> VerifierPool:
    path = "task.args.verifier"
    # The warm-up item loads the LaTeX parser and the simplifier.
    check, warm_up = f"{check_equal.__module__}:{check_equal.__name__}", (r"2\sqrt{2}", r"\sqrt{8}")
    if verifier != "math-verify":
        if ":" not in verifier:
            raise ValueError(unknown(path, verifier, ["math-verify", "dapo", "module:function"]))
        require_module(path, verifier)
        if not callable(import_object(path, verifier)):
            raise ValueError(
                f"{path}: must be a function (prompt, completion, answer), got {verifier!r}"
            )
        check, warm_up = verifier, None
    try:
        return VerifierPool(
            check, workers=workers, deadline_s=deadline_s, warm_up=warm_up, correct_at=correct_at
        )
    except ValueError as error:
        raise ValueError(f"task.args.{error}") from error
