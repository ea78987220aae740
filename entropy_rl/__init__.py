"""Reinforcement learning of language-model reasoning in JAX, with entropy-shaped advantages.

The functional core, ready for notebooks. Everything is a pure function over arrays and pytrees:

    model     = load_model("asset:countdown")                 policy, parameters, tokenizer
    generate  = make_generate(model.policy, ...)              prompts -> Rollout
    advantage = chain(group_normalize(...), shape_by_entropy(...))
    update    = make_update(model.policy, advantage, ...)     (state, batch) -> (state, metrics)

Whole programs: `train(config)` and `evaluate(config)` with a config of `load_config`. All methods
are in the namespaces `advantages`, `losses`, `rewards`, `curricula` and `contrib`; the other
namespaces are `learner`, `lm_head`, `models`, `rollout`, `stats` and `tasks`.

Importing this package touches no device and loads neither jax, transformers nor data libraries; a
name is imported when it is first used.
"""

import sys as _sys
from types import ModuleType as _ModuleType
from typing import Any as _Any

from etils import epy as _epy

from entropy_rl.version import __version__ as __version__

with _epy.lazy_api_imports(globals()):
    from entropy_rl import advantages as advantages
    from entropy_rl import contrib as contrib
    from entropy_rl import curricula as curricula
    from entropy_rl import learner as learner
    from entropy_rl import lm_head as lm_head
    from entropy_rl import losses as losses
    from entropy_rl import models as models
    from entropy_rl import rewards as rewards
    from entropy_rl import rollout as rollout
    from entropy_rl import stats as stats
    from entropy_rl import tasks as tasks
    from entropy_rl.advantages.baselines import group_normalize as group_normalize
    from entropy_rl.advantages.shaping import shape_by_entropy as shape_by_entropy
    from entropy_rl.advantages.transform import Transform as Transform
    from entropy_rl.advantages.transform import chain as chain
    from entropy_rl.api import evaluate as evaluate
    from entropy_rl.api import load_config as load_config
    from entropy_rl.api import train as train
    from entropy_rl.config.common import ModelConfig as ModelConfig
    from entropy_rl.config.evaluate import EvaluateConfig as EvaluateConfig
    from entropy_rl.config.rewards import RewardConfig as RewardConfig
    from entropy_rl.config.rollout import DecodingConfig as DecodingConfig
    from entropy_rl.config.train import CriticConfig as CriticConfig
    from entropy_rl.config.train import LossConfig as LossConfig
    from entropy_rl.config.train import TrainConfig as TrainConfig
    from entropy_rl.evaluation.result import Evaluation as Evaluation
    from entropy_rl.experience.prompts import Prompts as Prompts
    from entropy_rl.experience.scoring import score as score
    from entropy_rl.learner.batch import make_batch as make_batch
    from entropy_rl.learner.pass_settings import PassSettings as PassSettings
    from entropy_rl.learner.stats_pass import make_stats_pass as make_stats_pass
    from entropy_rl.learner.update import init_state as init_state
    from entropy_rl.learner.update import make_update as make_update
    from entropy_rl.lm_head.log_probs import log_prob_and_entropy as log_prob_and_entropy
    from entropy_rl.losses.build import build_loss as build_loss
    from entropy_rl.losses.loss import Loss as Loss
    from entropy_rl.models.decoder import DecoderConfig as DecoderConfig
    from entropy_rl.models.decoder import make_policy as make_policy
    from entropy_rl.models.hf import load_hf as load_hf
    from entropy_rl.models.hf import save_hf as save_hf
    from entropy_rl.rollout.generate import make_generate as make_generate
    from entropy_rl.rollout.stop_strings import StopStrings as StopStrings
    from entropy_rl.runs.load_model import Model as Model
    from entropy_rl.runs.load_model import load_model as load_model
    from entropy_rl.tasks import load_task as load_task
    from entropy_rl.tasks.task import Judgement as Judgement
    from entropy_rl.tasks.task import Problem as Problem
    from entropy_rl.tasks.task import Verdict as Verdict
    from entropy_rl.types import CriticState as CriticState
    from entropy_rl.types import Policy as Policy
    from entropy_rl.types import Rollout as Rollout
    from entropy_rl.types import TokenStats as TokenStats
    from entropy_rl.types import TrainBatch as TrainBatch
    from entropy_rl.types import TrainState as TrainState

__all__ = [
    "CriticConfig",
    "CriticState",
    "DecoderConfig",
    "DecodingConfig",
    "EvaluateConfig",
    "Evaluation",
    "Judgement",
    "Loss",
    "LossConfig",
    "Model",
    "ModelConfig",
    "PassSettings",
    "Policy",
    "Problem",
    "Prompts",
    "RewardConfig",
    "Rollout",
    "StopStrings",
    "TokenStats",
    "TrainBatch",
    "TrainConfig",
    "TrainState",
    "Transform",
    "Verdict",
    "__version__",
    "advantages",
    "build_loss",
    "chain",
    "contrib",
    "curricula",
    "evaluate",
    "group_normalize",
    "init_state",
    "learner",
    "lm_head",
    "load_config",
    "load_hf",
    "load_model",
    "load_task",
    "log_prob_and_entropy",
    "losses",
    "make_batch",
    "make_generate",
    "make_policy",
    "make_stats_pass",
    "make_update",
    "models",
    "rewards",
    "rollout",
    "save_hf",
    "score",
    "shape_by_entropy",
    "stats",
    "tasks",
    "train",
]

_PROGRAMS = ("train", "evaluate")


class _Program(_ModuleType):
    """The module `entropy_rl.train` or `entropy_rl.evaluate`, callable like its function."""

    def __call__(self, config: _Any) -> _Any:
        from entropy_rl import api

        return getattr(api, self.__name__.rpartition(".")[2])(config)


class _Package(_ModuleType):
    """Keeps `entropy_rl.train(config)` callable after `import entropy_rl.train`.

    The import system sets a submodule as an attribute of its package, where it would hide the
    function of the same name.
    """

    def __setattr__(self, name: str, value: _Any) -> None:
        if name in _PROGRAMS and type(value) is _ModuleType:
            value.__class__ = _Program
        super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
