"""The verb `data overlap`: test problems that occur in a training set."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Iterator
from typing import ClassVar

from entropy_rl.config.checks import check_numbers, require_at_least
from entropy_rl.escape import echo


@dataclasses.dataclass(frozen=True)
class OverlapConfig:
    """Test problems that occur in a training set: `entropy-rl data overlap TRAIN TEST`.

    Args:
      train: A prepared set, or a data file, a directory or a pattern of them.
      test: A prepared set, or a data file, a directory or a pattern of them.
      ngram: Words per n-gram; 13 as in appendix C of the GPT-3 paper, arXiv 2005.14165. A problem
        with fewer words is a single n-gram.
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
      problem_field: Field of the problem in a file; null to look for it by name.
      answer_field: Field of the answer in a file; null to look for it by name.
    """

    POSITIONAL: ClassVar = ("train", "test")

    train: str
    test: str
    ngram: int = 13
    data_dir: str | None = None
    problem_field: str | None = None
    answer_field: str | None = None

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(1, "", self, "ngram")


def overlap(config: OverlapConfig) -> None:
    """The verb `data overlap`."""
    from entropy_rl.tasks.math import sets
    from entropy_rl.tasks.math.overlap import (
        common_grams,
        count_matches,
        find_overlap,
        split_words,
        worst_matches,
    )

    sources = [
        sets.find_source(role, getattr(config, role), role, config.data_dir)
        for role in ("train", "test")
    ]
    train, test = (
        [
            row.problem
            for row in sets.read_source(source, config.problem_field, config.answer_field).rows
        ]
        for source in sources
    )
    words = [split_words(text) for text in test]
    matches = find_overlap(map(split_words, train), words, config.ngram)
    counts = count_matches(matches)
    short = sum(len(of_problem) < config.ngram for of_problem in words)
    echo(f"{len(test):,} test problems of {sources[1].title}")
    echo(f"{len(train):,} training problems of {sources[0].title}")
    for name, count in (
        ("the same problem", counts["exact"]),
        (f"at least half of the {config.ngram}-grams", counts["half"]),
        (f"any {config.ngram}-gram", counts["any"]),
    ):
        echo(f"  {name:30}{count:6,} of {len(test):,} ({count / len(test):.1%})")
    echo(
        f"  {'looked for as a whole':30}{short:6,} of {len(test):,} (less than {config.ngram} "
        "words)"
    )
    common = len(common_grams(words, config.ngram))
    if common:
        echo(f"  left out: {common:,} {config.ngram}-grams of more than 1% of the test problems")
    for match in worst_matches(matches, 5):
        same = "the same as" if match.exact else f"{match.train_share:.0%} in"
        echo(
            f"\n== test {match.test}: {match.share:.0%} in the training set, {same} train "
            f"{match.train}"
        )
        for text in (test[match.test], train[match.train]):
            echo(textwrap.shorten(text, 78, placeholder=" ..."))


def contamination(name: str, data_dir: str | None) -> Iterator[str]:
    """Yield descriptions of the overlap of a set with each prepared set of the other role."""
    from entropy_rl.tasks.math import sets
    from entropy_rl.tasks.math.overlap import count_matches, find_overlap, split_words

    parts = []
    for other in sets.prepared_names(data_dir):
        splits = sets.read_metadata(other, data_dir)["splits"]
        parts += [(other, split, role) for split, role in sets.splits_by_role(other, splits)]
    # A set of the user's own has both roles, but is not compared with itself.
    pairs = [
        (train, test)
        for train in parts
        for test in parts
        if (train[2], test[2]) == ("train", "test")
        and train[:2] != test[:2]
        and name in (train[0], test[0])
    ]
    words = {}
    for part in sorted({test[:2] for _, test in pairs}):
        try:
            words[part] = [split_words(text) for text in _prepared_problems(part, data_dir)]
        except ValueError as error:
            yield f"not looked for in {part[0]}: {error}"
    # One training set at a time, as text: as words it takes many times the memory.
    for train, of_train in itertools.groupby(pairs, key=lambda pair: pair[0][:2]):
        try:
            problems = _prepared_problems(train, data_dir)
        except ValueError as error:
            yield f"not looked for in {train[0]}: {error}"
            continue
        for _, test in of_train:
            if test[:2] not in words:
                continue
            counts = count_matches(find_overlap(map(split_words, problems), words[test[:2]]))
            yield (
                f"of {counts['problems']:,} problems of {test[0]}, {train[0]} has "
                f"{counts['exact']:,}; {counts['half']:,} by half of their 13-grams, "
                f"{counts['any']:,} by any"
            )
    if not pairs:
        yield "not looked for: no set of the other role is prepared"


def _prepared_problems(part: tuple[str, str], data_dir: str | None) -> list[str]:
    """Read the problems of a prepared set, given as its name and split."""
    from entropy_rl.tasks.math import sets

    name, split = part
    return [row["problem"] for row in sets.read_prepared(sets.set_directory(name, data_dir), split)]
