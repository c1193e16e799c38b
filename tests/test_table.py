"""A table for a pipe, as Markdown, and in a terminal."""

from __future__ import annotations

from lvspec_cli.table import Table, markdown_lines, plain
from lvspec_cli.ui.tables import terminal

TABLE = Table(
    ("mode", "speed"), [["ar", "1.00"], ["a\tb|c", "2.00 (1.90-2.10)"]], "Speeds", styles={1: "best"}
)


def test_a_pipe_gets_a_line_a_row_whatever_is_in_it() -> None:
    assert plain(TABLE) == "mode\tspeed\nar\t1.00\na\\tb|c\t2.00 (1.90-2.10)\n"


def test_markdown_has_the_title_and_an_empty_line_behind() -> None:
    assert list(markdown_lines(TABLE)) == [
        "Speeds:", "", "| mode | speed |", "| --- | --- |", "| ar | 1.00 |",
        "| a\tb\\|c | 2.00 (1.90-2.10) |", "",
    ]  # fmt: skip
    assert list(markdown_lines(Table(("mode",), [], "Nothing"))) == []


def test_a_terminal_has_an_interval_below_its_figure_and_the_best_row_in_bold() -> None:
    lines = terminal(TABLE).splitlines()
    assert "\x1b[1m" in lines[-3]
    assert lines[-3].rstrip().endswith("2.00\x1b[0m")
    assert "1.90-2.10" in lines[-2]


def test_columns_are_chosen_by_their_headings() -> None:
    chosen = TABLE.columns("speed")
    assert (chosen.headings, chosen.rows) == (("speed",), [["1.00"], ["2.00 (1.90-2.10)"]])
    assert chosen.styles == TABLE.styles
