"""At which tokens and sentences a model is undecided: the entropy analysis of arXiv 2506.14758,
section 2.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from entropy_rl.analysis import (
    REFLECTIVE,
    WORDS,
    Annotated,
    Response,
    analyze,
    annotate,
    compile_patterns,
    find_rare,
    tf_idf,
    word_patterns,
)
from entropy_rl.analysis.behaviors import ALL_CLASSES, REFLECTIVE_NAME
from entropy_rl.cli.main import run_verb
from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.train import ModelConfig
from entropy_rl.version import __version__


def default_words() -> dict[str, list[str]]:
    """A copy of `WORDS`, for a config."""
    return {name: list(words) for name, words in WORDS.items()}


def check_expressions(words: dict[str, list[str]], reflective: list[str]) -> None:
    """Checks the fields of a config that say what is looked for.

    Raises:
      ValueError: If nothing could be found by them.
    """
    require(bool(words), "words", words, "a mapping with at least one class")
    for name, of_class in words.items():
        named = isinstance(name, str) and name not in (ALL_CLASSES, REFLECTIVE_NAME)
        require(named, "words", name, f"a name other than {ALL_CLASSES!r} and {REFLECTIVE_NAME!r}")
        good = bool(of_class) and all(word.strip() for word in of_class)
        require(good, f"words.{name}", of_class, "a non-empty list of non-empty words")
    good = bool(reflective) and all(reflective)
    require(good, "reflective", reflective, "a non-empty list of non-empty expressions")
    try:
        compile_patterns(reflective)
    except ValueError as error:
        raise ValueError(f"reflective: {error}") from None


@dataclasses.dataclass(frozen=True)
class AnalyzeConfig:
    """Entropy of pivotal tokens, reflective actions and rare behaviors: `entropy-rl analyze`.

    Args:
      samples: What is analyzed: what `evaluate` wrote, a training run, one of its evaluations, or a
        file with recorded samples, or with texts as {"prompt": .., "completion": ..}, one a line.
      base: The same of the base model, to tell what is rare; null leaves that out.
      encoder: Sentence encoder for the distances, as `module:function` of a function (list of n
        texts) -> array [n, d]; null for TF-IDF.
      output: Directory for analysis.json, the sentences on the map, and the figures.
      model: Scores texts that have no entropies. Recorded samples need it only where nothing beside
        them says whose tokens they are.
      temperature: Of the distribution whose entropy texts get. Recorded entropies are those of
        sampling.
      max_tokens_per_micro_batch: Tokens of texts that are computed at once. Changes no result.
      words: Class -> words, the pivotal tokens. What is given takes the place of all.
      reflective: Regular expressions of Python; a sentence that has one is a reflective action.
      min_count: The most entropic tokens are those that occur as often at least.
      neighbors: A sentence's distance to the base model is the mean one to so many of its
        sentences.
      rare_share: Share of the sentences, the most distant ones, that are called rare.
      max_sentences: Sentences of each that are looked at for that, drawn at random where there are
        more.
      seed: Of the resampling and of that draw.
    """

    samples: str
    base: str | None = None
    encoder: str | None = None
    output: str = "analysis"
    model: ModelConfig | None = None
    temperature: float = 1.0
    max_tokens_per_micro_batch: int = 8192
    words: dict[str, list[str]] = dataclasses.field(default_factory=default_words)
    reflective: list[str] = dataclasses.field(default_factory=lambda: list(REFLECTIVE))
    min_count: int = 20
    neighbors: int = 5
    rare_share: float = 0.1
    max_sentences: int = 5000
    seed: int = 0

    def __post_init__(self):
        check_numbers(self, "")
        check_expressions(self.words, self.reflective)
        require(
            self.base != self.samples,
            "base",
            self.base,
            "different from samples",
        )
        without = self.encoder is None or self.base is not None
        require(without, "encoder", self.encoder, "null without base")
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        require(0 < self.rare_share < 1, "rare_share", self.rare_share, "> 0 and < 1")
        require_at_least(
            1, "", self, "max_tokens_per_micro_batch", "min_count", "neighbors", "max_sentences"
        )
        require_at_least(0, "", self, "seed")


def main(config: AnalyzeConfig) -> None:
    """The verb `analyze` of the command line."""
    # Here: `analyze --help` need not wait for jax.
    import jax

    from entropy_rl.evaluation.dynamics import run_dynamics
    from entropy_rl.evaluation.samples import RESULT_FILE
    from entropy_rl.evaluation.sentence_encoder import load_embedding
    from entropy_rl.report import (
        analysis_text,
        dynamics_text,
        write_analysis_figures,
        write_sentences,
    )
    from entropy_rl.runs.directory import CONFIG_FILE, to_plain
    from entropy_rl.runs.jsonl import finite, write_atomically
    from entropy_rl.runs.load_model import is_run

    directory, path = Path(config.output), Path(config.samples)
    if (directory / RESULT_FILE).exists() or (directory / CONFIG_FILE).exists():
        raise ValueError(f"output: {directory} holds a run; choose another directory")
    words, reflective = word_patterns(config.words), compile_patterns(config.reflective)
    embed = tf_idf if config.encoder is None else load_embedding(config.encoder)
    responses_of = _make_responses_of(config)

    def annotated(path: Path) -> list[Annotated]:
        return [annotate(response, words, reflective) for response in responses_of(path)]

    own = annotated(path)
    result = analyze(own, min_count=config.min_count, seed=config.seed)
    if config.base is not None:
        rare = find_rare(
            own,
            annotated(Path(config.base)),
            embed=embed,
            neighbors=config.neighbors,
            share=config.rare_share,
            max_sentences=config.max_sentences,
            seed=config.seed,
        )
        result = dataclasses.replace(result, rare=rare)
    course = run_dynamics(path, own, annotated) if is_run(path) else None

    directory.mkdir(parents=True, exist_ok=True)
    versions = {"entropy_rl": __version__, "numpy": np.__version__, "jax": jax.__version__}
    plain = {"versions": versions, "settings": to_plain(config)} | dataclasses.asdict(result)
    plain["dynamics"] = None if course is None else dataclasses.asdict(course)
    if result.rare is not None:
        del plain["rare"]["placed"]
    write_sentences(directory, result.rare)
    write_atomically(directory / "analysis.json", json.dumps(finite(plain), indent=1) + "\n")
    print(analysis_text(result))
    if config.base is not None and result.rare is None:
        print("\n=> nothing can be said of rare sentences: none to look at, or too few of the base")
    if course is not None:
        print(f"\n{dynamics_text(course)}")
    figures = write_analysis_figures(directory, result, course)
    print(f"\nnumbers{' and figures' if figures else ''} are in {directory}")


def _make_responses_of(config: AnalyzeConfig) -> Callable[[Path], list[Response]]:
    """From files to responses; a model is loaded once, and only if it is needed."""
    from entropy_rl.evaluation.load_samples import model_of, read_rows, responses_of
    from entropy_rl.evaluation.score_texts import score_rows
    from entropy_rl.runs.load_model import find_model, load_model, load_tokenizer, model_files

    load = functools.cache(load_model)

    def of_path(path: Path) -> list[Response]:
        rows = read_rows(path)
        if rows[0].tokens is not None:
            model = model_of(path) if config.model is None else find_model(config.model.path)
            return responses_of(rows, load_tokenizer(model_files(model)))
        if config.model is None:
            raise ValueError(
                f"{path}: has no entropies; give --model.path, a model to score its texts"
            )
        model = load(config.model)
        settings = dict(
            temperature=config.temperature,
            max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        )
        return responses_of(score_rows(rows, model, **settings), model.tokenizer)

    return of_path


if __name__ == "__main__":
    sys.exit(run_verb("analyze", sys.argv[1:]))
