"""`entropy-rl schema`: the JSON Schema of the configs of a verb."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

from entropy_rl.cli.main import config_classes
from entropy_rl.cli.schema import config_schema
from entropy_rl.config.registry import import_object
from entropy_rl.config.values import unknown


@dataclasses.dataclass(frozen=True)
class SchemaConfig:
    """Print the JSON Schema of the config files of a verb, for editors: `entropy-rl schema`.

    Args:
      verb: The verb, such as train.
    """

    POSITIONAL: ClassVar = ("verb",)

    verb: str

    def __post_init__(self):
        if self.verb not in config_classes():
            raise ValueError(unknown("verb", self.verb, config_classes()))


def main(config: SchemaConfig) -> None:
    """The verb `schema` of the command line."""
    cls = import_object("verb", config_classes()[config.verb])
    print(json.dumps(config_schema(cls, config.verb), indent=1, ensure_ascii=False))
