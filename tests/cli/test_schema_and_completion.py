"""The JSON Schema of configs accepts what the program does; the shell completes what there is."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from entropy_rl.cli.completion import completion_parser
from entropy_rl.cli.help import config_help
from entropy_rl.cli.main import config_classes, main
from entropy_rl.cli.schema import config_schema
from entropy_rl.config.registry import import_object
from entropy_rl.config.values import leaf_fields, section_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))


def errors(schema, value, path=""):
    """Where a value is against a schema, by the keywords that `config_schema` writes."""
    assert schema.keys() <= {
        *("$schema", "title", "description", "default", "type", "properties", "required"),
        *("additionalProperties", "items", "anyOf", "enum", "pattern"),
    }
    if "anyOf" in schema and all(list(errors(s, value, path)) for s in schema["anyOf"]):
        yield f"{path}: none of anyOf"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: not in enum"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: not as pattern"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(is_of(value, kind) for kind in kinds):
        yield f"{path}: {value!r} is no {kinds}"
        return
    for name, item in value.items() if isinstance(value, dict) else ():
        inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
        if inner is False:
            yield f"{path}.{name}: unknown"
        else:
            yield from errors(inner, item, f"{path}.{name}")
    for name in schema.get("required", []) if isinstance(value, dict) else ():
        if name not in value:
            yield f"{path}.{name}: missing"
    for i, item in enumerate(value) if isinstance(value, list) else ():
        yield from errors(schema.get("items", {}), item, f"{path}[{i}]")


def is_of(value, kind):
    classes = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in classes:
        return isinstance(value, classes[kind])
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int or (kind == "number" and isinstance(value, float))


def schema_of(verb):
    return config_schema(import_object("verb", config_classes()[verb]), verb)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_of_its_verb_accepts_a_recipe(path):
    verb = re.search(r"entropy-rl (\w+) --config", path.read_text())[1]
    assert not list(errors(schema_of(verb), yaml.safe_load(path.read_text())))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"stepps": 3}, ".stepps: unknown"),
        ({"steps": 1.5}, ".steps: 1.5 is no ['integer']"),
        ({"steps": True}, ".steps: True is no ['integer']"),
        ({"model": {"path": "x", "remat": "some"}}, ".model.remat: not in enum"),
        ({"advantage": [{"name": "group_normalise"}]}, ".advantage[0].name: none of anyOf"),
        ({"advantage": [{"alpha": 0.4}]}, ".advantage[0].name: missing"),
    ],
)
def test_the_schema_names_what_is_wrong(content, error):
    assert list(errors(schema_of("train"), content)) == [error]


def test_the_schema_allows_an_own_method_an_empty_section_and_null():
    content = {"advantage": [{"name": "mine:f", "beta": 1}], "loss": None, "critic": None}
    assert not list(errors(schema_of("train"), content))


def test_the_verb_prints_the_schema_of_every_verb(capsys):
    for verb, cls in config_classes().items():
        assert main(["schema", verb]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["title"] == f"entropy-rl {verb}" and found["description"]
        assert found["properties"].keys() == {
            field.name for field in dataclasses.fields(import_object("", cls))
        }
    assert main(["schema", "trian"]) == 2
    assert "verb: must be one of train, " in capsys.readouterr().err


UNUSED = {
    "sft": ["run.samples_per_step", "optimizer.offload", "model.decode_attention"],
    "plan-sft": ["run.samples_per_step", "optimizer.offload", "model.decode_attention"],
    "evaluate": ["task.train_split", "model.remat"],
    "data select": ["data.validation", "data.held_out", "model.remat", "model.decode_attention"],
}


@pytest.mark.parametrize("verb", UNUSED)
def test_settings_that_a_verb_does_not_use_are_not_offered(verb, capsys):
    cls = import_object("verb", config_classes()[verb])
    assert sorted(cls.UNUSED) == sorted(UNUSED[verb])
    help_ = config_help(cls, verb)
    with pytest.raises(SystemExit):
        main([*verb.split(), "--print_config"])
    template, fields = yaml.safe_load(capsys.readouterr().out), dict(leaf_fields(cls))
    for path in UNUSED[verb]:
        section, name = path.split(".")
        assert f"--{path} " not in help_ and path not in fields
        assert name not in (template[section] or {})
        # A file of an earlier version may have the default, and nothing else.
        changed = {section: {name: "other"}}
        assert list(errors(schema_of(verb), changed))
        default = default_of(cls, section, name)
        assert not list(errors(schema_of(verb), {section: {name: default}}))


def default_of(cls, section, name):
    of_section = section_of(typing.get_type_hints(cls)[section])
    (field,) = (field for field in dataclasses.fields(of_section) if field.name == name)
    return field.default


def test_sft_says_once_what_its_interval_of_validations_is():
    cls = import_object("verb", config_classes()["sft"])
    text = " ".join(config_help(cls, "sft").split())
    meaning = "Steps between validation losses, with `data`; 0 for the last step only."
    assert f"--run.evaluate_every INT {meaning} Default: 0." in text
    assert text.count("evaluate_every") == 1 and "0 evaluates before" not in text
    run = schema_of("sft")["properties"]["run"]["properties"]
    assert run["evaluate_every"]["description"] == meaning
    assert "0 evaluates before" in config_help(
        import_object("verb", config_classes()["train"]), "train"
    )


def test_the_shell_is_offered_all_fields_of_a_verb_and_their_values():
    parser = completion_parser(config_classes())
    (verbs,) = parser._actions
    assert {"train", "evaluate", "data", "debug-update"} <= verbs.choices.keys()
    (sets,) = verbs.choices["data"]._actions
    assert "prepare" in sets.choices
    options = verbs.choices["train"]._option_string_actions
    assert options["--model.remat"].choices == ["none", "dots", "full"]
    assert options["--optimizer.offload"].choices == ["true", "false"]
    assert options["--critic.learning_rate"].choices is None and "--config" in options


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("entropy-rl tr", {"train", "train-stacked"}),
        ("entropy-rl data pre", {"prepare"}),
        ("entropy-rl train --model.rem", {"--model.remat"}),
        ("entropy-rl train --model.remat d", {"dots"}),
        ("entropy-rl train --config countdown_grpo_entropy_", {"countdown_grpo_entropy_bonus"}),
    ],
)
def test_argcomplete_completes_a_line(line, found, tmp_path):
    pytest.importorskip("argcomplete")
    out = tmp_path / "completions"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "entropy_rl.cli.main"]
    subprocess.run(command, env=os.environ | environment, timeout=60, cwd=tmp_path)
    assert {word.strip() for word in out.read_text().split("\n") if word.strip()} == found
