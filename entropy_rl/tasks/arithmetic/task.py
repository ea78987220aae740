"""The arithmetic task."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from entropy_rl.config.checks import is_int, require
from entropy_rl.config.values import unknown
from entropy_rl.tasks.arithmetic import judge
from entropy_rl.tasks.arithmetic.expressions import (
    SPLITS,
    TYPES,
    Expression,
    Question,
    draw_question,
    example_questions,
    is_in_split,
    question_key,
    write_question,
    write_solution,
)
from entropy_rl.tasks.task import Problem, Verdict

_COUNTS = {"train": 2048, "validation": 128, "test": 128, "unseen": 128}
_KINDS = (
    *(["product", "product"], ["sum", "sum"]),
    *(["product", "sum_2_digits"], ["product", "product", "sum"]),
)
_UNSEEN = (["sum_3_terms"], ["sum", "sum", "sum"])
_MOST_EXPRESSIONS, _MOST_EXAMPLES = 8, 8
# A split is full when as many questions in a row are repeated, or of other splits.
_MOST_DRAWS = 2000


class Arithmetic:
    """Calculate several expressions of small numbers, such as `Calculate 5 * 9 and 7 + 9.`

    A completion is correct if the first equation of each expression is right, as in `5 * 9 = 45. 7
    + 9 = 16.`; what follows, such as an answer, does not count. Small language models know most of
    the single facts, so that a question has many wrong completions and some right ones.

    A question has no expression twice, and none of its worked examples. It is in one split only and
    there only once, also with its expressions and their terms in another order; the facts
    themselves recur. `unseen` has kinds of questions that training has not.

    Args:
      seed: Seed of the questions and their order.
      counts: Questions per split, of "train", "validation", "test" and "unseen"; other splits keep
        their default. The first k questions of a split are the same for every count.
      kinds: Kinds of questions in turn, each a mapping with `expressions`, a list of types, and
        `share`, the weight of the kind, an integer (1). Types are `product` (of two numbers of one
        digit), `sum` (or difference, of two numbers of one digit), `sum_2_digits` (of one or two
        digits) and `sum_3_terms` (three numbers of one digit). Null is a quarter each of two
        products, two sums, a product and a sum of up to 2 digits, two products and a sum.
      unseen_kinds: As `kinds`, for the split "unseen". Null is half each of a sum of three terms
        and three sums.
      examples: Worked examples of the same kind before the question, as turns of the chat.
      chat: Format the prompt by the tokenizer's chat template; false for plain text.

    Raises:
      ValueError: If an argument is out of range; the message starts with `task.args.` and its name.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        counts: Mapping[str, int] | None = None,
        kinds: Sequence[Mapping[str, Any]] | None = None,
        unseen_kinds: Sequence[Mapping[str, Any]] | None = None,
        examples: int = 2,
        chat: bool = True,
    ):
        _require(is_int(seed), "seed", seed, "an integer")
        self._seed = seed
        _require(isinstance(counts, Mapping | None), "counts", counts, "a mapping from splits")
        for split, count in (counts or {}).items():
            if split not in SPLITS:
                raise ValueError(unknown("task.args.counts", split, SPLITS))
            _require(is_int(count) and count >= 1, f"counts.{split}", count, "an integer >= 1")
        self._counts = _COUNTS | dict(counts or {})
        self._kinds = _read_kinds("kinds", kinds, _KINDS)
        self._unseen = _read_kinds("unseen_kinds", unseen_kinds, _UNSEEN)
        _require(
            is_int(examples) and 0 <= examples <= _MOST_EXAMPLES,
            "examples", examples, f"an integer in 0..{_MOST_EXAMPLES}",
        )  # fmt: skip
        self._examples = examples
        _require(isinstance(chat, bool), "chat", chat, "true or false")
        self._chat = chat
        self._problems: dict[str, tuple[Problem, ...]] = {}
        self._questions: dict[str, Question] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of "train", "validation", "test" or "unseen", in a fixed order.

        Kinds alternate by their shares, so every prefix of the list has about the same shares.

        Raises:
          ValueError: If there is no such split, or fewer questions than requested.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        if split not in self._problems:
            self._problems[split] = tuple(self._draw(split))
        return self._problems[split]

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """Judge completions: UNPARSABLE if there is no equation of any expression."""
        pairs = zip(problems, completions, strict=True)
        return [judge.judge_one(self._question(p), completion) for p, completion in pairs]

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The first equations of each completion, sorted; None without any."""
        read = map(judge.read_equations, completions)
        return [", ".join(sorted(f"{a} = {b}" for a, b in e.items())) or None for e in read]

    def probe(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Skill metrics as name -> (numerator, denominator).

        `answered`: expressions that have an equation. `equations`: those of which are right, and of
        these `products`, `sums` (with + only) and `differences`.
        """
        return judge.probe_all([self._question(problem) for problem in problems], completions)

    def _question(self, problem: Problem) -> Question:
        if problem.answer not in self._questions:
            lefts = [part.split(" = ")[0].split(" ") for part in problem.answer.split(", ")]
            self._questions[problem.answer] = tuple(
                Expression(tuple(map(int, left[::2])), "".join(left[1::2])) for left in lefts
            )
        return self._questions[problem.answer]

    def _draw(self, split: str) -> Iterator[Problem]:
        kinds = self._unseen if split == "unseen" else self._kinds
        # With shares 1 and 3 the order is 0 1 1 1 0 1 1 1 ...
        turns = itertools.cycle([types for types, share in kinds for _ in range(share)])
        random = Random(f"{self._seed} {split}")
        drawn: set[Hashable] = set()
        for i, types in zip(range(self._counts[split]), turns, strict=False):
            examples = example_questions(types, self._examples)
            shown = {expression.key for question in examples for expression in question}
            for _ in range(_MOST_DRAWS):
                question = draw_question(types, random)
                key = question_key(question)
                if key not in drawn and shown.isdisjoint(key) and is_in_split(key, split):
                    break
            else:
                kind = " and ".join(types)
                raise ValueError(
                    f"task.args.counts.{split}: must be at most {i}, the number of questions with "
                    f"{kind}, got {self._counts[split]}"
                )
            drawn.add(key)
            yield self._problem(i, question, examples)

    def _problem(self, i: int, question: Question, examples: Sequence[Question]) -> Problem:
        answer = ", ".join(f"{expression} = {expression.value}" for expression in question)
        turns = [(write_question(q), write_solution(q)) for q in examples]
        prompt = write_question(question)
        if self._chat:
            messages = tuple(
                message
                for asked, solved in turns
                for message in (("user", asked), ("assistant", solved))
            )
            return Problem(i, prompt, answer, chat=True, messages=messages)
        text = "".join(f"{asked}\n{solved}\n\n" for asked, solved in turns)
        return Problem(i, f"{text}{prompt}\n", answer)


def _require(condition: bool, name: str, value: Any, must_be: str) -> None:
    require(condition, f"task.args.{name}", value, must_be)


def _read_kinds(
    name: str, value: Sequence[Mapping[str, Any]] | None, default: Sequence[Sequence[str]]
) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Read kinds as (types, share)."""
    if value is None:
        return tuple((tuple(types), 1) for types in default)
    _require(isinstance(value, list | tuple) and len(value) > 0, name, value, "a non-empty list")
    kinds = []
    for i, given in enumerate(value):
        at = f"{name}[{i}]"
        _require(
            isinstance(given, Mapping) and "expressions" in given,
            at, given, "a mapping with a field 'expressions'",
        )  # fmt: skip
        for field in given:
            if field not in ("expressions", "share"):
                raise ValueError(unknown(f"task.args.{at}", field, ("expressions", "share")))
        types, share = given["expressions"], given.get("share", 1)
        _require(
            isinstance(types, list | tuple) and 1 <= len(types) <= _MOST_EXPRESSIONS,
            f"{at}.expressions", types, f"a list of 1 to {_MOST_EXPRESSIONS} types",
        )  # fmt: skip
        for j, type_ in enumerate(types):
            if type_ not in list(TYPES):  # may be of any type
                raise ValueError(unknown(f"task.args.{at}.expressions[{j}]", type_, TYPES))
        _require(is_int(share) and share >= 1, f"{at}.share", share, "an integer >= 1")
        kinds.append((tuple(types), share))
    return tuple(kinds)
