"""The YAML of configs: numbers and truth values of YAML 1.2, and records of earlier versions."""

import json
import math
from pathlib import Path

import pytest
import yaml

from entropy_rl.yaml_text import AmbiguousError, dump_yaml, has_comment, load_yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("008", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1e-4", 1e-4),
        ("-1E+3", -1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("=", "="),
        ("y", "y"),
        ("1e", "1e"),
        ("nope", "nope"),
        ("_1", "_1"),
        ("'1_000'", "1_000"),
        ('"no"', "no"),
        ("!!int 010", 10),
        ("{a: 1, <<: {b: 2}}", {"a": 1, "b": 2}),
    ],
)
def test_plain_scalars_are_those_of_the_core_schema_of_yaml_1_2(text, value):
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["yes", "No", "ON", "off", "1_000", "-1_0.5", "2_0e3", "1_"])
def test_texts_that_were_truth_values_or_numbers_in_yaml_1_1_are_refused(text):
    with pytest.raises(AmbiguousError, match=f"{text} must be .*, or in quotes if it is a text"):
        load_yaml(f"a: 1\nb: [{text}]\n")


@pytest.mark.parametrize(
    "text",
    ["1e-5", "008", "010", "no", "1_000", "0o7", "1:30", "2024-01-01", "=", "<<", "null", "a # b"],
)
def test_what_is_written_reads_the_same_in_yaml_1_1_and_1_2(text):
    plain = {"b": [text, "\U0001f600", "ä"], "a": {"x": 1e-5, "y": 1e22, "z": -3, "t": True}}
    written = dump_yaml(plain)
    assert load_yaml(written) == load_yaml(written, recorded=True) == plain
    assert yaml.safe_load(written) == plain and list(load_yaml(written)) == ["b", "a"]


def test_texts_in_the_records_of_earlier_versions_are_texts():
    plain = {"lr": "1e-5", "tag": "008", "rate": 1e-5}
    assert load_yaml(yaml.safe_dump(plain), recorded=True) == plain


def test_the_recipes_read_as_in_yaml_1_1():
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        # But for the numbers without a dot, which were texts.
        assert load_yaml(file.read_text()) == _with_floats(yaml.safe_load(file.read_text())), file


def _with_floats(plain):
    if isinstance(plain, dict):
        return {name: _with_floats(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [_with_floats(value) for value in plain]
    return load_yaml(plain) if isinstance(plain, str) and plain[:2] in ("1e", "2e") else plain


def test_json_is_yaml():
    plain = {"a": "\U0001f600 \u2028 \x7f # b", "b": [1e-5, None, True, "no", "010", "1e5"]}
    assert load_yaml(json.dumps(plain)) == plain
    with pytest.raises(yaml.YAMLError, match="is not a valid str"):
        load_yaml(r'"\ud83d"')


@pytest.mark.parametrize(
    ("text", "has_one"),
    [
        ("a # b", True),
        ("'x' # y", True),
        ("[a, b] # c", True),
        ("#", True),
        ("x: y # z", True),
        ("a#b", False),
        ('"a # b"', False),
        ("[a, '# b']", False),
        ("# é".replace("# ", "é#"), False),
    ],
)
def test_a_comment_is_seen(text, has_one):
    assert has_comment(text) is has_one
