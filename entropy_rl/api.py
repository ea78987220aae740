"""The programs `train` and `evaluate` as functions, and the configs that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

from entropy_rl.cli.failure import BAD_INPUT, error_line
from entropy_rl.cli.parse import check_built, parse_config
from entropy_rl.config.checks import require
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.train import TrainConfig

if TYPE_CHECKING:
    from entropy_rl.evaluation import Evaluation
    from entropy_rl.types import TrainState

C = TypeVar("C")
T = TypeVar("T")


@overload
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig: ...


@overload
def load_config(path: str | Path, overrides: Sequence[str], cls: type[C]) -> C: ...


@overload
def load_config(path: str | Path, overrides: Sequence[str] = (), *, cls: type[C]) -> C: ...


def load_config(path: str | Path, overrides: Sequence[str] = (), cls: type = TrainConfig) -> object:
    """Read a config from a YAML file, as `--config` of the command line does.

    Args:
      path: A YAML file, or the name of a recipe.
      overrides: Options as on the command line, such as `["--steps", "4"]`.
      cls: The config class, such as `TrainConfig` or `EvaluateConfig`.

    Raises:
      ValueError: If a name, type or value is wrong; one line, as on the command line.
    """
    for override in overrides:
        require(isinstance(override, str), "overrides", override, "strings, as on the command line")
    return parse_config(cls, "train", ["--config", str(path), *overrides])


def train(config: TrainConfig) -> TrainState:
    """Train a policy, or resume the run in `config.run.directory`.

    Args:
      config: All settings of the run; see `load_config`. Their types are checked as in a file;
        numbers of NumPy and JAX, tuples and paths are converted.

    Returns:
      The last state.

    Raises:
      ValueError: If the config cannot work; the line that the command line prints.
      Interrupted: If the run was asked to stop; its state is saved.
      FloatingPointError: If too many updates had a gradient that is not finite.
      JudgeError: If a verifier or an environment does not start or gives no judgement.
      OSError: If a file cannot be written.
    """
    from entropy_rl.train import train as run

    return _call(lambda: run(check_built(TrainConfig, "train", config)))


def evaluate(config: EvaluateConfig) -> Evaluation | None:
    """Evaluate a model or a run: sample every problem and estimate Pass@K.

    Args:
      config: All settings of the evaluation; see `load_config`, and `train`.

    Returns:
      The result; None while other processes have samples to add.

    Raises:
      ValueError: If the config cannot work; the line that the command line prints.
      Interrupted: If it was asked to stop; every finished sample is on disk.
      FloatingPointError: If log-probs of samples are not finite.
      JudgeError: If a verifier or an environment does not start or gives no judgement.
      OSError: If a file cannot be written.
    """
    from entropy_rl.evaluate import evaluate_model

    return _call(lambda: evaluate_model(check_built(EvaluateConfig, "evaluate", config)))


def _call(program: Callable[[], T]) -> T:
    try:
        return program()
    except BAD_INPUT as error:
        raise ValueError(error_line(error)) from error
