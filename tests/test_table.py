"""A table for a pipe, as Markdown, and in terminals of any width; lines that end between words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from lvspec_cli.bench.lines import contrast_table, result_table
from lvspec_cli.bench.relevance import RelevanceResults, SchemeResult
from lvspec_cli.bench.report import scheme_table
from lvspec_cli.bench.results import Margins, compare_results
from lvspec_cli.bench.search import Score
from lvspec_cli.bench.tune import Trial, Tuned, finalist_table
from lvspec_cli.bench.variants import NamedRule
from lvspec_cli.figures.answers import BenchMode, Contrast, Estimate, ModeResult, Spread
from lvspec_cli.figures.statistics import Point
from lvspec_cli.memory.choose import StoredPair
from lvspec_cli.memory.plan import GIGABYTE, Device, Machine
from lvspec_cli.memory.resolve import fit_pair, workload_of_pair
from lvspec_cli.pairs.files import Stored
from lvspec_cli.pairs.registry import Registry, load_registry
from lvspec_cli.table import Table, command_lines, markdown_lines, plain, wrapped
from lvspec_cli.types import RelevanceName, RuleSettings
from lvspec_cli.ui.pairs import detail_table, fit_table
from lvspec_cli.ui.summary import _COSTS, _GAINS, _SETTINGS, change_table
from lvspec_cli.ui.tables import ForecastRow, cell_lines, forecast_table, pair_table, terminal
from tests.bench.made import ENVIRONMENT, item, results

TABLE = Table(
    ("mode", "speed"), [["ar", "1.00"], ["a\tb|c", "2.00 (1.90-2.10)"]], "Speeds", styles={1: "best"}
)


def drawn(table: Table, width: int) -> list[str]:
    return Text.from_ansi(terminal(table, width)).plain.splitlines()


def test_a_pipe_gets_a_line_a_row_whatever_is_in_it() -> None:
    assert plain(TABLE) == "mode\tspeed\nar\t1.00\na\\tb|c\t2.00 (1.90-2.10)\n"


def test_markdown_has_the_title_and_an_empty_line_behind() -> None:
    assert list(markdown_lines(TABLE)) == [
        "Speeds:", "", "| mode | speed |", "| --- | --- |", "| ar | 1.00 |",
        "| a\tb\\|c | 2.00 (1.90-2.10) |", "",
    ]  # fmt: skip
    assert list(markdown_lines(Table(("mode",), [], "Nothing"))) == []


def test_a_terminal_has_an_interval_below_its_figure_and_the_best_row_in_bold() -> None:
    assert [line.rstrip() for line in drawn(TABLE, 80)] == [
        "Speeds:",
        "mode        speed",
        "─────────────────",
        "ar           1.00",
        "a\\tb|c       2.00",
        "        1.90-2.10",
    ]
    assert "\x1b[1m" in terminal(TABLE, 80).splitlines()[-2]


def test_columns_are_chosen_by_their_headings() -> None:
    chosen = TABLE.columns("speed")
    assert (chosen.headings, chosen.rows) == (("speed",), [["1.00"], ["2.00 (1.90-2.10)"]])
    assert chosen.styles == TABLE.styles


FACTS = Table(
    ("pair", "size", "licence", "empty"),
    [["a-long-name", "146.8 GB", "Research (non-commercial)", ""], ["b", "9.0 GB", "MIT", ""]],
    prose=("licence",),
    optional=("licence",),
    legend={"size": "of the weights", "licence": "of both"},
)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, [
            "pair             size  licence",
            "────────────────────────────────────────────────",
            "a-long-name  146.8 GB  Research (non-commercial)",
            "b              9.0 GB  MIT",
            "size: of the weights; licence: of both",
        ]),
        (40, [
            "pair             size  licence",
            "────────────────────────────────────────",
            "a-long-name  146.8 GB  Research",
            "                       (non-commercial)",
            "b              9.0 GB  MIT",
            "size: of the weights; licence: of both",
        ]),
        (30, [
            "pair             size",
            "─────────────────────",
            "a-long-name  146.8 GB",
            "b              9.0 GB",
            "no room for: licence",
            "size: of the weights",
        ]),
        (20, [
            "a-long-name",
            "  size: 146.8 GB",
            "  licence: Research",
            "  (non-commercial)",
            "b",
            "  size: 9.0 GB",
            "  licence: MIT",
            "size: of the",
            "  weights; licence:",
            "  of both",
        ]),
    ],
)  # fmt: skip
def test_columns_give_way_before_words_break_and_then_rows_are_stacked(width: int, lines: list[str]) -> None:
    assert [line.rstrip() for line in drawn(FACTS, width)] == lines


def test_a_legend_explains_what_is_shown_and_nothing_else() -> None:
    whole, narrow = ("\n".join(drawn(fits(), width)) for width in (120, 60))
    for shown in (whole, narrow):
        assert "none, int8, nf4: weights as they are" in shown
    assert ("-: does not fit" in whole, "-: does not fit" in narrow) == (True, False)


# --- every table that is printed -----------------------------------------------------------


@cache
def shipped() -> Registry:
    return load_registry(environment={"XDG_CONFIG_HOME": "/nowhere"})


def pairs() -> Table:
    here = Stored("cached", Path("/somewhere"), parameters=73_400_000_000, size=146_800_000_000)
    pairs = [StoredPair(name, pair, here, here) for name, pair in shipped().pairs.items()]
    return pair_table(pairs, "llava-onevision-72b-0.5b")


@cache
def fits() -> Table:
    card = Device("cuda:0", 24 * GIGABYTE, 24 * GIGABYTE, "a card")
    machine = Machine(Device("cpu", 64 * GIGABYTE, 64 * GIGABYTE), (card,))
    names = ("qwen2.5-vl-7b-3b", "qwen2.5-vl-72b-7b", "llava-onevision-72b-0.5b")
    chosen = {name: shipped().pairs[name] for name in names}
    return fit_table([fit_pair(name, pair, machine, workload_of_pair(pair)) for name, pair in chosen.items()])


def details() -> Table:
    pair = shipped().pairs["qwen2.5-vl-72b-7b"]
    cards = tuple(Device(f"cuda:{number}", 24 * GIGABYTE, 24 * GIGABYTE, "a card") for number in range(4))
    machine = Machine(Device("cpu", 64 * GIGABYTE, 64 * GIGABYTE), cards)
    return detail_table(fit_pair("qwen2.5-vl-72b-7b", pair, machine, workload_of_pair(pair)))


ESTIMATE = Estimate(value=0.765, low=0.7651, high=1.0)
SPREAD = Spread(median=12.34, low=11.15, high=17.13)
MODES = (
    ModeResult(mode=BenchMode.AR, speedup_vs_ar=Spread(median=1.0, low=1.0, high=1.0), tokens_per_s=2.9),
    *(
        ModeResult(
            mode=BenchMode.LVSPEC_PRUNED, gamma=gamma, label="without-shift", speedup_vs_ar=SPREAD,
            end_to_end_speedup_vs_ar=SPREAD, mean_accepted_length=11.67, acceptance_rate=0.73,
            retention=ESTIMATE, tokens_per_s=1230.1, c=0.113, v=1.93, o=0.04, predicted_speedup=2.73,
        )
        for gamma in ("auto", 12)
    ),
)  # fmt: skip
BENCHED = results(
    MODES,
    items=tuple(item(f"{number}.mp4") for number in range(20)),
    contrasts=(
        Contrast(line="lvspec γ=auto", other="lvspec/without-shift γ=12", speed=SPREAD, quality=ESTIMATE),
    ),
)


def tuned() -> Table:
    rule = NamedRule("attention-12", RuleSettings(), 12)
    trial = Trial(rule, Score("attention-12", 20, 3.47, 11.67, ESTIMATE))
    scheme = RelevanceName.ATTENTION
    return finalist_table(Tuned("facts", 20, (trial,), {scheme: trial}, {}, None)).columns(*_SETTINGS)


def changes() -> Table:
    slower = MODES[1].model_copy(update={"speedup_vs_ar": Spread(median=1.0, low=None, high=None)})
    return change_table(compare_results(results(MODES[1:]), results((slower, MODES[2])), Margins()))


def schemes() -> Table:
    point = Point(threshold=0.01234, precision=0.765, recall=1.0)
    result = SchemeResult(
        relevance=RelevanceName.ATTENTION, layer=12, head=31, auc=0.987, auc_by_clip=ESTIMATE, best=point,
        at_threshold=point, score_us=1234.0, prepare_ms=56.7,
    )  # fmt: skip
    return scheme_table(
        RelevanceResults(
            environment=ENVIRONMENT, pair="tiny", target="target", clips=9, facts=9, fillers=9, gamma=8,
            threshold=0.1, schemes=(result,),
        )
    )  # fmt: skip


def forecast() -> Table:
    row = ForecastRow(
        "holiday/IMG_20240817_123456_edited_final.mp4", 0.0, 12.5, 3725.4, 64, 64, True, 1920, 1080, 12_345, 1
    )
    return forecast_table([row, replace(row, frames=32, to_do=0, prompts=2), ForecastRow("b", problem="why")])


EVERY: dict[str, Callable[[], Table]] = {
    "models": pairs,
    "fit": fits,
    "fit of one": details,
    "gains": lambda: result_table(BENCHED).columns(*_GAINS),
    "costs": lambda: result_table(BENCHED, drafting=True).columns(*_COSTS),
    "contrasts": lambda: contrast_table(BENCHED),
    "settings": tuned,
    "changes": changes,
    "schemes": schemes,
    "dry run": forecast,
}


@pytest.mark.parametrize("name", EVERY)
def test_no_name_and_no_figure_of_any_table_is_cut_or_broken(name: str) -> None:
    table = EVERY[name]()
    shown = {}
    for width in (60, 80, 100, 120, 200):
        lines = drawn(table, width)
        assert max(map(cell_len, lines)) <= width
        missing = [line.split(": ")[1].split(", ") for line in lines if line.startswith("no room for: ")]
        shown[width] = [heading for heading in table.headings if not any(heading in left for left in missing)]
        for heading in shown[width]:
            cells = table.cells(heading)
            if heading in table.prose:
                whole = [word for cell in cells for word in cell.split()]
            else:
                whole = [part for cell in cells for part in cell_lines(cell) if part]
            for part in whole:
                by_itself = rf"(?<![^\s(]){re.escape(part)}(?![^\s)])"
                assert any(re.search(by_itself, line) for line in lines), (width, heading, part, lines)
        assert set(shown[width]) >= set(table.headings) - set(table.optional)
    assert shown[200] == list(table.headings)


words = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)


@settings(max_examples=30)
@given(st.lists(st.lists(words, min_size=3, max_size=3), min_size=1, max_size=4), st.integers(1, 60))
def test_every_cell_of_what_is_shown_is_whole_at_any_width(rows: list[list[str]], width: int) -> None:
    table = Table(("a", "b", "c"), rows, optional=("b",))
    text = "\n".join(drawn(table, width))
    is_left_out = "no room for: b" in " ".join(text.split())
    for row in rows:
        for index in (0, 2) if is_left_out else range(3):
            assert row[index] in text


@settings(max_examples=30)
@given(st.lists(words, max_size=30), st.integers(1, 90))
def test_lines_end_between_words(parts: list[str], width: int) -> None:
    lines = wrapped(" ".join(parts), width, "  ").splitlines()
    assert [word for line in lines for word in line.split()] == parts
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)
    assert wrapped(" ".join(parts), None) == " ".join(parts)


def test_a_command_stays_together_or_goes_on_in_a_way_that_can_be_pasted() -> None:
    text = "try one of these: `lvspec models pull smolvlm2` or another"
    assert wrapped(text, 40, "  ").splitlines() == [
        "try one of these:",
        "  `lvspec models pull smolvlm2` or",
        "  another",
    ]
    words = ["lvspec", "caption", "'my clips'", "--out", "captions.jsonl"]
    assert command_lines("try:", words, 30).splitlines() == [
        "try: lvspec caption \\",
        "    'my clips' --out \\",
        "    captions.jsonl",
    ]
    assert command_lines("try:", words, None) == "try: lvspec caption 'my clips' --out captions.jsonl"
