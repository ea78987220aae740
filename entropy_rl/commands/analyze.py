"""`entropy-rl analyze`: entropy by behavior of tokens and sentences (arXiv 2506.14758, sec. 2)."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from entropy_rl.analysis import (
    Annotated,
    Response,
    analyze,
    annotate,
    compile_patterns,
    find_rare,
    tf_idf,
    word_patterns,
)
from entropy_rl.analysis.behaviors import check_expressions
from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.files import check_creatable, expand_home
from entropy_rl.config.values import refuse_unused
from entropy_rl.escape import echo
from entropy_rl.version import __version__

if TYPE_CHECKING:
    from entropy_rl.evaluation.load_samples import Row


@dataclasses.dataclass(frozen=True)
class AnalyzeConfig:
    """Entropy of pivotal tokens, reflective actions and rare behaviors: `entropy-rl analyze`.

    Args:
      samples: Directory of an evaluation or a training run, or a JSONL file of recorded samples or
        of texts {"prompt": .., "completion": ..}.
      base: Samples of the base model on the same problems, for rare behaviors; null to skip these.
      encoder: Sentence encoder for the distances, `module:function` of a function (list of n
        texts) -> array [n, d]; null for TF-IDF.
      output: Directory for analysis.json, sentences.csv and the figures.
      model: Model that scores texts without entropies. For recorded samples it is needed only if no
        config next to them names their model.
      temperature: Temperature at which texts are scored. Recorded entropies are at the sampling
        temperature.
      max_tokens_per_micro_batch: Tokens of texts per micro-batch; does not affect the result.
      words: Class -> words, the pivotal tokens; null for those of the task of the samples, or
        classes of English words if it has none.
      reflective: Python regular expressions; a sentence that matches one is a reflective action.
        Null as above.
      min_count: Minimum count of the tokens listed as most entropic.
      neighbors: The distance of a sentence to the base model is the mean over this many nearest
        base sentences.
      rare_share: Fraction of the sentences, those with the largest distances, that count as rare.
      max_sentences: Maximum number of sentences of the samples, and of the base; more are
        subsampled.
      seed: Seed of resampling and subsampling.
    """

    samples: str
    base: str | None = None
    encoder: str | None = None
    output: str = "analysis"
    model: ModelConfig | None = None
    temperature: float = 1.0
    max_tokens_per_micro_batch: int = 8192
    words: dict[str, list[str]] | None = None
    reflective: list[str] | None = None
    min_count: int = 20
    neighbors: int = 5
    rare_share: float = 0.1
    max_sentences: int = 5000
    seed: int = 0

    def __post_init__(self):
        check_numbers(self, "")
        expand_home(self, "samples", "base", "output")
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
        if self.base is None:
            of_base = ("neighbors", "rare_share", "max_sentences")
            refuse_unused(self, "", "because base is null", *of_base)


def main(config: AnalyzeConfig) -> None:
    """Run the command `analyze`."""
    # Imported here so that `analyze --help` does not load jax.
    import jax

    from entropy_rl.evaluation.dynamics import run_dynamics
    from entropy_rl.evaluation.load_samples import words_of
    from entropy_rl.evaluation.sentence_encoder import load_embedding
    from entropy_rl.report import (
        analysis_text,
        dynamics_text,
        write_analysis_figures,
        write_sentences,
    )
    from entropy_rl.runs.directory import to_plain
    from entropy_rl.runs.hub import pin_models
    from entropy_rl.runs.jsonl import finite, write_atomically
    from entropy_rl.runs.model_files import is_run

    directory, path = Path(config.output), Path(config.samples)
    read = check_config(config)  # all samples, before any is scored
    of_task = words_of(path)
    lists = config.words or of_task[0], config.reflective or of_task[1]
    words, reflective = word_patterns(lists[0]), compile_patterns(lists[1])
    embed = tf_idf if config.encoder is None else load_embedding(config.encoder)
    config = pin_models(config, directory)
    responses_of = _make_responses_of(config)
    prompts: dict[Path, list[str]] = {}

    def annotated(path: Path) -> list[Annotated]:
        rows = read(path)
        prompts[path] = [row.prompt for row in rows]
        return [annotate(response, words, reflective) for response in responses_of(path, rows)]

    own = annotated(path)
    result = analyze(own, min_count=config.min_count, seed=config.seed)
    left_out = 0
    if config.base is not None:
        base = Path(config.base)
        of_base = annotated(base)
        one, other = set(prompts[path]), set(prompts[base])
        left_out = len(one ^ other)
        rare = find_rare(
            [a for a, prompt in zip(own, prompts[path], strict=True) if prompt in other],
            [a for a, prompt in zip(of_base, prompts[base], strict=True) if prompt in one],
            base_name=config.base,
            embed=embed,
            neighbors=config.neighbors,
            share=config.rare_share,
            max_sentences=config.max_sentences,
            seed=config.seed,
        )
        result = dataclasses.replace(result, rare=rare)
    dynamics = run_dynamics(path, own, annotated) if is_run(path) else None

    directory.mkdir(parents=True, exist_ok=True)
    versions = {"entropy_rl": __version__, "numpy": np.__version__, "jax": jax.__version__}
    settings = to_plain(config) | {"words": lists[0], "reflective": lists[1]}
    plain = {"versions": versions, "settings": settings} | dataclasses.asdict(result)
    plain["dynamics"] = None if dynamics is None else dataclasses.asdict(dynamics)
    if result.rare is not None:
        del plain["rare"]["placed"]
    write_sentences(directory, result.rare)
    write_atomically(directory / "analysis.json", json.dumps(finite(plain), indent=1) + "\n")
    echo(analysis_text(result))
    if left_out:
        print(f"\nleft out of the rare sentences: {left_out} problems that only one of both has")
    if config.base is not None and result.rare is None:
        print("\n=> not tested: rare sentences (no sentences, or too few of the base)")
    if dynamics is not None:
        echo(f"\n{dynamics_text(dynamics)}")
    figures = write_analysis_figures(directory, result, dynamics)
    echo(f"\nnumbers{' and figures' if figures else ''}: {directory}")


def check_config(config: AnalyzeConfig) -> Callable[[Path], list[Row]]:
    """Check the output and the model, and read the samples.

    Returns:
      `read_rows`, which has the rows of these samples until they are asked for.

    Raises:
      ValueError: If something in the config cannot work.
    """
    from entropy_rl.evaluation.load_samples import read_rows
    from entropy_rl.evaluation.samples import refuse_run
    from entropy_rl.evaluation.sentence_encoder import load_embedding
    from entropy_rl.runs.load_model import check_models

    refuse_run(Path(config.output))
    check_creatable(Path(config.output))
    if config.encoder is not None:
        load_embedding(config.encoder)
    check_models(config, fetch=False)
    found = {
        path: read_rows(path) for path in map(Path, filter(None, (config.samples, config.base)))
    }
    if not set.intersection(*({row.prompt for row in rows} for rows in found.values())):
        raise ValueError(
            f"base: must have samples of problems of {config.samples}, got no common prompt in "
            f"{config.base}"
        )
    return lambda path: found.pop(path, None) or read_rows(path)


def _make_responses_of(config: AnalyzeConfig) -> Callable[[Path, list[Row]], list[Response]]:
    """Make a function from a file and its rows to responses; a model is loaded once, if needed."""
    from entropy_rl.evaluation.load_samples import model_of, responses_of
    from entropy_rl.evaluation.score_texts import score_rows
    from entropy_rl.models.hf_config import read_json
    from entropy_rl.runs.load_model import find_model, load_model, load_tokenizer, model_files

    load = functools.cache(load_model)

    def of_path(path: Path, rows: list[Row]) -> list[Response]:
        if rows[0].tokens is not None:
            model = model_of(path) if config.model is None else find_model(config.model.path)
            directory = model_files(model)
            vocab_size = read_json(directory / "config.json").get("vocab_size")
            return responses_of(rows, load_tokenizer(directory), vocab_size)
        if config.model is None:
            raise ValueError(
                f"{path}: must have entropies, or give --model.path, a model to score its texts"
            )
        model = load(config.model)
        settings = dict(
            temperature=config.temperature,
            max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        )
        return responses_of(score_rows(rows, model, **settings), model.tokenizer)

    return of_path
