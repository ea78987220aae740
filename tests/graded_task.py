"""A task whose grades count as correct from 0.5 on."""

from entropy_rl.tasks import Problem

SPEC = {"name": f"{__name__}:Half"}


class Half:
    """Grades every completion 0.5."""

    correct_at = 0.5

    def problems(self, split):
        return [Problem(0, "?", "", chat=True)]

    def judge(self, problems, completions):
        return [0.5 for _ in completions]
