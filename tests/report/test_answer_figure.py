"""The picture of a completion: every character once, shaded as on a terminal, nothing unescaped."""

from xml.etree import ElementTree

from entropy_rl.report.answer_figure import COLUMNS, answer_figure
from entropy_rl.report.terminal import shade

TOKENS = [("4", 1.5), (" -", 0.75), (" 2", 0.0), (" <b>&", 0.3), ("\n", 0.3), ("x" * 200, None)]


def elements(figure, name):
    return list(ElementTree.fromstring(figure).iter(f"{{http://www.w3.org/2000/svg}}{name}"))


def test_the_picture_has_every_character_of_the_answer_in_order():
    texts = [e.text for e in elements(answer_figure("1 : 1", TOKENS, {"length": "6"}), "text")]
    assert texts[0] == "1 : 1" and texts[-1] == "length: 6"
    answer = "".join(texts[1 : texts.index("entropy in nats ")])
    assert answer == "4 - 2 <b>&" + "x" * 200


def test_a_token_has_the_shade_of_the_terminal_and_a_decided_one_has_none():
    figure = answer_figure("", TOKENS, {})
    shades = [e.attrib["fill"] for e in elements(figure, "rect")[1:4]]
    assert shades == ["rgb({}, {}, {})".format(*shade(h)) for h in (1.5, 0.75, 0.3)]
    assert shade(0.0) is None
    titles = [e.text for e in elements(figure, "title")][:3]
    assert titles == ["1.500", "0.750", "0.300"]


def test_what_xml_does_not_allow_is_written_out():
    texts = elements(answer_figure("a\ufffe", [("\uffff\x00", 0.5)], {}), "text")
    assert texts[0].text == "a\\ufffe"


def test_no_line_is_longer_than_the_picture():
    figure = answer_figure("word " * 60, [(" word", 0.5)] * 60, {})
    right = [float(e.attrib["x"]) + float(e.attrib["textLength"]) for e in elements(figure, "text")]
    width = float(ElementTree.fromstring(figure).attrib["width"])
    assert max(right) <= width and len(right) > 2 * 300 // COLUMNS
