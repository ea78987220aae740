"""JSON Schema of the configs, for editors: completion, descriptions and errors in YAML files."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import docstring_parser

from entropy_rl.cli.help import field_documents, own_documents
from entropy_rl.cli.method_names import method_names
from entropy_rl.config.values import default_of, has_default, unused_fields

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def config_schema(cls: type, verb: str) -> dict[str, Any]:
    """Return the JSON Schema of the files of a verb.

    No field of a config is required: others may come from another file or the command line.

    Args:
      cls: The config class.
      verb: The verb of the command line.
    """
    found = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"entropy-rl {verb}",
        "description": docstring_parser.parse(cls.__doc__).short_description,
        **_section(cls, ""),
    }
    for path, document in own_documents(cls).items():
        _property(found, path)["description"] = document
    for path in unused_fields(cls):
        field = _property(found, path)
        default = field["default"]
        field.clear()
        field |= {"description": f"`{verb}` does not use it.", "enum": [default]}
    return found


def _property(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the schema of the field at a dotted path."""
    for name in path.split("."):
        options = [schema, *schema.get("anyOf", ())]
        schema = next(o["properties"][name] for o in options if name in o.get("properties", ()))
    return schema


def _section(cls: type, above: str) -> dict[str, Any]:
    hints, documents = typing.get_type_hints(cls), field_documents(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        path = f"{above}{field.name}"
        found = {"description": documents[field.name]} | _value(hints[field.name], path)
        if has_default(field) and not dataclasses.is_dataclass(default := default_of(field)):
            found["default"] = default
        properties[field.name] = found
    # A section whose lines are all commented out is null.
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _value(hint: Any, path: str) -> dict[str, Any]:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _section(hint, f"{path}.")
    if origin in (typing.Union, types.UnionType):
        values = [_value(option, path) for option in options]
        if len(values) == 2 and values[0].get("type") == "array" and options[1] is type(None):
            return values[0] | {"type": ["array", "null"]}  # an error keeps its place in the list
        return {"anyOf": values}
    if origin is typing.Literal:
        return {"enum": list(options)}
    if origin is list:
        return {"type": "array", "items": _value(options[0], path)}
    if origin is dict:
        return _mapping(options[1], path)
    return {"type": _TYPES[hint]} if hint in _TYPES else {}


def _mapping(values: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "additionalProperties": _value(values, path)}
    if names := method_names(path):
        own = {"type": "string", "pattern": ":"}  # module:function
        found |= {"properties": {"name": {"anyOf": [{"enum": names}, own]}}, "required": ["name"]}
    return found
