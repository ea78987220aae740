"""The verifier of data that name their source, as the files of verl do."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection

from entropy_rl.tasks.data_files.files import read_rows
from entropy_rl.tasks.math.formatting import DAPO_FORMAT, READS
from entropy_rl.tasks.math.sets import Source

logger = logging.getLogger(__name__)

# What verl judges by DAPO's rule (`verl/utils/reward_score/__init__.py`).
_DAPO_SOURCE = re.compile(r"math_dapo|math_dapo_reasoning|aime.*")


def find_verifier(sources: Collection[Source]) -> str:
    """Return the verifier for data whose prompts are used as they are.

    Args:
      sources: The sources of a task.

    Returns:
      `dapo` if the first row of each source has a `data_source` that verl judges by DAPO's rule
      and a prompt that asks for "Answer: $Answer" and no box; otherwise `math-verify`.
    """
    if not sources or not all(map(_is_dapo, sources)):
        return "math-verify"
    logger.warning(
        "task.args.verifier: dapo, because of data_source and prompts of %s",
        " and ".join(dict.fromkeys(source.title for source in sources)),
    )
    return "dapo"


def _is_dapo(source: Source) -> bool:
    if not source.files:
        return False
    try:
        _, row = next(read_rows(source.files))
    except ValueError:  # reported when the problems are read
        return False
    name, prompt = row.get("data_source"), str(row.get("prompt"))
    is_dapo = isinstance(name, str) and _DAPO_SOURCE.fullmatch(name) is not None
    asks_for_box = any(mark in prompt for mark in READS["math-verify"])
    return is_dapo and DAPO_FORMAT in prompt and not asks_for_box
