"""Levels of difficulty of reasoning-gym's datasets, by the attributes of their curricula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.config.values import unknown


def settings_of_levels(name: str, path: str, levels: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of a dataset at each of some levels.

    A level is an index into the values that the dataset's curriculum has for an attribute, such as
    the number of digits; 0 is the easiest. Of an attribute with a range, only the values of the
    level itself are used, and not those of the levels below.

    Args:
      name: The dataset.
      path: Dotted path of the levels.
      levels: A list of levels of all attributes, which end at the last one of each; or a mapping
        from an attribute to its list of levels.

    Returns:
      Label of a level -> settings of the dataset's config.

    Raises:
      ValueError: The dataset has no curriculum, or no such attribute or level.
    """
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import create_curriculum, has_curriculum

    require(has_curriculum(name), path, levels, f"absent, as {name} has no levels")
    attributes = create_curriculum(name).attributes
    chosen, most = [*attributes], max(len(a.levels) for a in attributes.values())
    if isinstance(levels, Mapping):
        require(len(levels) == 1, path, dict(levels), "a list, or a mapping with one attribute")
        ((attribute, levels),) = levels.items()
        if attribute not in attributes:
            raise ValueError(unknown(path, attribute, chosen))
        chosen, most = [attribute], len(attributes[attribute].levels)
        path = f"{path}.{attribute}"
    is_list = isinstance(levels, list) and all(type(level) is int for level in levels)
    in_range = is_list and levels and all(0 <= level < most for level in levels)
    allowed = f"a list of different levels from 0 to {most - 1}"
    require(bool(in_range) and len(set(levels)) == len(levels), path, levels, allowed)
    found = {}
    for level in levels:
        curriculum, settings = create_curriculum(name), {}
        context = DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
        for attribute in map(attributes.get, chosen):
            curriculum.set_attr_level(attribute.name, min(level, len(attribute.levels) - 1))
            value = context.get_attr_value(curriculum, attribute)
            if hasattr(attribute, "field_name"):
                settings[attribute.field_name] = value
            else:
                settings[attribute.lower_field_name] = min(value)
                settings[attribute.upper_field_name] = max(value)
        found[str(level)] = settings
    return found
