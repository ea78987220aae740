"""Updates of policy and critic: batches, passes, gradients, losses, metrics, replay."""

from etils import epy as _epy

# Lazy: modules of this package import packages whose modules import one of this package.
with _epy.lazy_api_imports(globals()):
    from entropy_rl.learner.batch import make_batch as make_batch
    from entropy_rl.learner.critic import init_critic as init_critic
    from entropy_rl.learner.critic import make_critic_gradient as make_critic_gradient
    from entropy_rl.learner.critic import make_critic_update as make_critic_update
    from entropy_rl.learner.critic import make_values_pass as make_values_pass
    from entropy_rl.learner.critic import mean_critic_metrics as mean_critic_metrics
    from entropy_rl.learner.distillation import Teacher as Teacher
    from entropy_rl.learner.gradient import make_gradient as make_gradient
    from entropy_rl.learner.metrics import mean_metrics as mean_metrics
    from entropy_rl.learner.pass_settings import PassSettings as PassSettings
    from entropy_rl.learner.replay_rule import Replay as Replay
    from entropy_rl.learner.stats_pass import make_stats_pass as make_stats_pass
    from entropy_rl.learner.update import init_state as init_state
    from entropy_rl.learner.update import make_update as make_update

__all__ = [
    "PassSettings",
    "Replay",
    "Teacher",
    "init_critic",
    "init_state",
    "make_batch",
    "make_critic_gradient",
    "make_critic_update",
    "make_gradient",
    "make_stats_pass",
    "make_update",
    "make_values_pass",
    "mean_critic_metrics",
    "mean_metrics",
]
