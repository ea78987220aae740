"""Texts of data, models and configs are escaped for terminals and spreadsheets."""

import sys

import pytest

from entropy_rl.escape import csv_cell, echo, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc é 中", "a\tb\nc é 中"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\rb", "a\\rb"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\u2028", "\\u2028"),
        ("\u200f", "\\u200f"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\x00\x7f", "\\x00\\x7f"),
    ],
)
def test_control_characters_are_written_out(text, expected):
    assert printable(text) == expected
    printable(text).encode()


def test_texts_are_echoed_to_either_stream(capsys):
    echo("a\x1b[2J")
    echo("b\r", file=sys.stderr)
    assert capsys.readouterr() == ("a\\x1b[2J\n", "b\\r\n")


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1+cmd", "'-1+cmd"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\x1b=1", "\\x1b=1"),
        ("a=1", "a=1"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_a_cell_is_no_formula(value, cell):
    assert csv_cell(value) == cell
