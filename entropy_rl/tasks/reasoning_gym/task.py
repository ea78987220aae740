"""The task of reasoning-gym: any of its datasets, or a weighted mixture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from entropy_rl.config.checks import require
from entropy_rl.config.extras import install_command
from entropy_rl.config.values import unknown
from entropy_rl.tasks.mixture import ID_STRIDE, Part, interleave, make_parts, split_weight
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.reasoning_gym import worker
from entropy_rl.tasks.reasoning_gym.datasets import RUN_CODE, UNUSABLE, spec_of
from entropy_rl.tasks.reasoning_gym.levels import settings_of_levels
from entropy_rl.tasks.task import Judged, Problem, Verdict

_OPEN, _CLOSE = "<answer>", "</answer>"
# A minus behind a digit or a bracket subtracts. One in front of a space is a sign behind `=`, `:`,
# an opening bracket or `$`, and at the start of a line.
_SIGN = (
    r"(?:(?P<item>^- )|^\u2212 |(?:(?<=[=\u2248:(\[{$])|(?<=[=\u2248:] ))[-\u2212] "
    r"|(?<![\w)\]}])[-\u2212])?"
)
# A comma or a space in front of three digits groups them, but not in 1,2,345.
_SPACES = r" \u00a0\u2009\u202f"
_GROUPS = (
    rf"(?<![0-9][,{_SPACES}])[1-9][0-9]{{0,2}}(?P<mark>,|\{{,\}}|\\,|[{_SPACES}])[0-9]{{3}}"
    r"(?:(?P=mark)[0-9]{3})*(?![0-9])"
)
_NUMBER = re.compile(
    rf"{_SIGN}(?:{_GROUPS}|[0-9]+|(?<![\w.])(?=\.[0-9]))"
    r"(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z]))?",
    re.MULTILINE,
)
_ITEM = re.compile("^- ", re.MULTILINE)  # of a list
_MAX_ANSWER = 20_000  # characters


class ReasoningGym:
    """Procedural problems of reasoning-gym (https://arxiv.org/abs/2505.24760), with its grades.

    The grade of an answer is the score of the dataset's own judge; an answer is correct at 1.
    Splits are disjoint indices of one seed. Judges run in killable processes.

    Args:
      datasets: The name of a dataset; or a mapping from names to settings, among them `weight`, the
        share in the mixture (1), `levels`, and those of the dataset's config, such as {min_digits:
        1}. Each of the levels, as in `settings_of_levels`, is a source of its own, NAME/LEVEL, with
        an equal part of the weight.
      train: Problems of the split "train".
      test: Problems of the split "test".
      seed: Seed of all problems.
      answer: What is judged: `tags` is the text of the last <answer>...</answer>, `number` the last
        number of the completion in decimal digits, such as 10000 for 10,000, 10 000.0 or 1e4.
      system: System message; one of reasoning-gym's by name (`default`, `simple`, `direct`,
        `DeepSeekZero`, `chain_of_draft`), or a text; null for none.
      suffix: Appended to every question.
      chat: Format questions as chat messages.
      chat_template_kwargs: Variables of the chat template.
      run_code: Admit datasets whose judge runs the answer as Python code. It does so in a process
        with limits of time and memory that can read and write files.
      deadline_s: CPU seconds of one check.
      workers: Processes that judge.

    Raises:
      ValueError: reasoning-gym is missing, or a dataset or its settings cannot be used.
    """

    def __init__(
        self,
        datasets: str | Mapping[str, Mapping[str, Any] | None],
        train: int = 2048,
        test: int = 128,
        seed: int = 0,
        answer: Literal["tags", "number"] = "tags",
        system: str | None = "default",
        suffix: str = "",
        chat: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
        run_code: bool = False,
        deadline_s: float = 5.0,
        workers: int = 2,
    ):
        require(answer in ("tags", "number"), "task.args.answer", answer, "tags or number")
        require(seed >= 0, "task.args.seed", seed, ">= 0")
        has_own = system not in (None, "default")
        require(chat or not has_own, "task.args.system", system, "absent without chat messages")
        kwargs, where = chat_template_kwargs, "task.args.chat_template_kwargs"
        require(chat or not kwargs, where, kwargs, "null without chat messages")
        form = "a name, or a mapping of names to settings"
        require(isinstance(datasets, str | Mapping), "task.args.datasets", datasets, form)
        mixture = {datasets: {}} if isinstance(datasets, str) else datasets
        self._parts = _parts(mixture, {"train": train, "test": test}, run_code)
        self._specs = [
            # Some datasets cannot be indexed beyond their size.
            spec_of(part.name.partition("/")[0], part.settings, seed, sum(part.counts.values()))
            for part in self._parts
        ]
        self._answer, self._suffix, self._chat = answer, suffix, chat
        self._messages = _system_message(system) if chat else ()
        self._kwargs = chat_template_kwargs or {}
        check = f"{worker.__name__}:{worker.check.__name__}"
        try:
            self._pool = VerifierPool(check, workers=workers, deadline_s=deadline_s)
        except ValueError as error:
            raise ValueError(f"task.args.{error}") from error
        self._splits: dict[str, list[Problem]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of "train" or "test"; those of a mixture alternate by their shares.

        Raises:
          ValueError: There is no such split, a dataset refuses its settings, or its judge does not
            accept its own answers.
        """
        if split not in ("train", "test"):
            raise ValueError(unknown("split", split, ["train", "test"]))
        if split not in self._splits:
            indices = [part.indices(split) for part in self._parts]
            found = worker.generate(self._specs, [(of.start, of.stop) for of in indices])
            for part, entries in zip(self._parts, found, strict=True):
                _check_own_answers(part.name, entries)
            self._splits[split] = [
                self._problem(number, indices[number][i], found[number][i])
                for number, i in interleave([len(entries) for entries in found])
            ]
        return self._splits[split]

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Judged]:
        """One grade per completion; UNPARSABLE without an answer."""
        answers = self.final_answers(completions)
        items, places = [], []
        for i, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
            if answer is not None and len(answer) <= _MAX_ANSWER:
                number, index = divmod(problem.id, ID_STRIDE)
                items.append((self._specs[number], str(index), answer))
                places.append(i)
        judged: list[Judged] = [Verdict.UNPARSABLE] * len(problems)
        for place, judgement in zip(places, self._pool.judge(items), strict=True):
            judged[place] = judgement
        return judged

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The answer in each completion, or None."""
        if self._answer == "number":
            return [_last_number(text) for text in completions]
        return [_last_tagged(text) for text in completions]

    def close(self) -> None:
        """Stop the worker processes."""
        self._pool.close()

    def _problem(self, number: int, index: int, entry: dict[str, Any]) -> Problem:
        return Problem(
            id=number * ID_STRIDE + index,
            prompt=entry["question"] + self._suffix,
            answer=entry["answer"],
            chat=self._chat,
            messages=self._messages,
            chat_template_kwargs=self._kwargs,
            source=self._parts[number].name if len(self._parts) > 1 else "",
        )


def _last_tagged(text: str) -> str | None:
    """The text of the last <answer>...</answer>, which begins at the nearest <answer>."""
    start = text.rfind(_OPEN, 0, max(text.rfind(_CLOSE), 0))
    return None if start < 0 else text[start + len(_OPEN) :].partition(_CLOSE)[0].strip()


def _last_number(text: str) -> str | None:
    """The last number of a text in decimal digits: 10000 for 10,000 or 1e4; None if it has none."""
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007
        pass
    if found is None:
        return None
    number = found[0]
    if found["item"] and len(_ITEM.findall(text)) > 1:  # its - is no sign
        number = number.removeprefix("- ")
    number = re.sub(r"[^-.0-9eE+]", "", number.replace("\u2212", "-"))
    whole, _, fraction = f"{Decimal(number):f}".partition(".")
    return f"{whole}.{fraction}" if fraction.strip("0") else whole


def _parts(
    mixture: Mapping[str, Mapping[str, Any] | None],
    sizes: dict[str, int],
    run_code: bool,
) -> list[Part]:
    """Check the datasets of a mixture, and share the problems out by weights."""
    try:
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError:
        raise ValueError(
            "task.name: must be a task that is installed, got reasoning_gym without its package; "
            f"`{install_command('environments')}` installs it"
        ) from None
    require(bool(mixture), "task.args.datasets", mixture, "at least one dataset")
    weights, settings = {}, {}
    for name, given in mixture.items():
        path = f"task.args.datasets.{name}"
        if name not in DATASETS:
            raise ValueError(unknown("task.args.datasets", name, sorted(DATASETS)))
        if name in UNUSABLE:
            raise ValueError(f"{path}: must be a dataset that can be judged, but {UNUSABLE[name]}")
        require(
            run_code or name not in RUN_CODE,
            path,
            name,
            "used with task.args.run_code: true, because its judge runs answers as Python code",
        )
        weight, given = split_weight(path, given)
        levels = {name: {}}
        if "levels" in given:
            found = settings_of_levels(name, f"{path}.levels", given.pop("levels"))
            levels = {f"{name}/{level}": more for level, more in found.items()}
        for source, more in levels.items():
            twice = [setting for setting in more if setting in given]
            require(not twice, path, twice, "without settings that its levels decide")
            weights[source], settings[source] = weight / len(levels), given | more
    return make_parts(weights, settings, sizes, "dataset")


def _system_message(system: str | None) -> tuple[tuple[str, str], ...]:
    from reasoning_gym.utils import SYSTEM_PROMPTS

    return () if system is None else (("system", SYSTEM_PROMPTS.get(system, system)),)


def _check_own_answers(name: str, entries: Sequence[dict[str, Any]]) -> None:
    """Refuse a dataset whose right answers its judge does not accept."""
    wrong = [entry for entry in entries if entry["own_score"] < 1]
    if wrong:
        raise ValueError(
            f"task.args.datasets.{name}: must accept its own answers, got a grade of "
            f"{wrong[0]['own_score']:g} for {wrong[0]['answer']!r:.60} ({len(wrong)} of "
            f"{len(entries)} problems)"
        )
