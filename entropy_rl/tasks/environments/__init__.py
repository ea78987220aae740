"""Environments: tasks whose episodes have several turns."""

from entropy_rl.tasks.environments.environment import Done, Environment, Observation, is_environment

__all__ = ["Done", "Environment", "Observation", "is_environment"]
