"""Tables: every text is plain in LaTeX and Markdown, and numbers are numbers in CSV."""

import csv
import io

from entropy_rl.report.tables import csv_table, latex_table, latex_text, markdown_table


def test_special_characters_are_escaped_and_signs_of_numbers_are_minus_signs():
    assert latex_text(r"100% of a_b & {c} #1 \x ~^") == (
        r"100\% of a\_b \& \{c\} \#1 \textbackslash{}x \textasciitilde{}\textasciicircum{}"
    )
    assert latex_text("-0.05 [-0.1, +0.2]") == "$-$0.05 [$-$0.1, +0.2]"
    assert latex_text("top-5 1e-05") == "top-5 1e-05"
    assert latex_text("`a`") == r"\textasciigrave{}a\textasciigrave{}"  # no quotation marks


def test_a_table_has_booktabs_rules_and_as_many_cells_as_columns():
    text = latex_table(("arm", "Pass@1"), [("a_b", "-0.5"), ("c", "1")], "50% of it")
    assert text.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50\% of it}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"arm & Pass@1 \\",
        r"\midrule",
        r"a\_b & $-$0.5 \\",
        r"c & 1 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_numbers_stay_numbers_in_csv_and_formulas_do_not():
    assert csv_table(("arm", "d"), [("=1+1", "-0.5"), ("+x", "+1.5e-3")]) == (
        "arm,d\n'=1+1,-0.5\n'+x,+1.5e-3\n"
    )
    cells = ("-", "+0.1843 [+0.1369, +0.2317]", "-1 [-2, 3e-5]", "-1 [A1, 2]", "-x")
    (row,) = csv.reader(io.StringIO(csv_table(cells, [])))
    assert row == ["-", "+0.1843 [+0.1369, +0.2317]", "-1 [-2, 3e-5]", "'-1 [A1, 2]", "'-x"]


def test_a_cell_of_markdown_is_one_line_and_does_not_end_early():
    assert markdown_table(("arm", "n"), [("a|b\nc", "1")]) == (
        "| arm | n |\n| --- | --- |\n| a\\|b c | 1 |"
    )
    assert markdown_table(("arm", "n"), []) == ""
