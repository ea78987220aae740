"""TextArena's single-player games, played by the package of that name."""

from entropy_rl.tasks.textarena.task import TextArena

__all__ = ["TextArena"]
