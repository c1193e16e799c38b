"""The report's page: whole, harmless, the same each time, and drawn by a browser without a complaint."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli.bench.charts import quality_axis, speedup_bars, tradeoff
from lvspec_cli.bench.relevance import RelevanceResults, SchemeResult
from lvspec_cli.bench.report import choose_examples, report, shown_variants, write_report
from lvspec_cli.bench.results import Results, to_json
from lvspec_cli.figures.answers import (
    BenchMode,
    Costs,
    Estimate,
    Fidelity,
    Kinds,
    Measurement,
    ModeResult,
    RelativeQuality,
    Spread,
    Variant,
)
from lvspec_cli.figures.statistics import Point
from lvspec_cli.types import RelevanceName, TokenKind
from tests.bench import made

EVIL = '<script>alert("x")</script>&\x1b[31m\u202eevil $x_1$'


def spread(value: float) -> Spread:
    return Spread(median=value, low=value * 0.95, high=value * 1.05)


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def mode(name: BenchMode, gamma: int | None, speed: float, quality: float, **fields: Any) -> ModeResult:
    kept = RelativeQuality(mode=0.9 * quality, ar=0.9, count=100, retention=estimate(quality))
    fidelity = Fidelity(
        answers=4, clips=2, facts=kept, facts_by_kind={"colour": kept, "order": kept}, questions=kept,
        questions_by_kind={"size": kept}, log_probability_change=estimate(-0.1), chrf=estimate(90),
        rouge_l=estimate(91), identical=estimate(0.5), same_answers=estimate(0.75), short_answers=4,
    )  # fmt: skip
    drafts = {
        "mean_accepted_length": 3.5, "mean_accepted_length_interval": estimate(3.5), "acceptance_rate": 0.6,
        "kinds": Kinds(exact=60, filler=20, shift=5, target=40), "accepted_lengths": {1: 3, 4: 6, 9: 2},
        "c": 0.07, "v": 1.3, "o": 0.2, "predicted_speedup": speed * 1.1,
        "costs": Costs(
            answers=2, draft_step_s=0.001, verification_s=0.02, overhead_s=0.003, drafted_a_round=8,
            ar_step_s=0.015,
        ),
    }  # fmt: skip
    return ModeResult(
        **{
            "mode": name, "gamma": gamma, "answers": 4, "speedup_vs_ar": spread(speed),
            "end_to_end_speedup_vs_ar": spread(1 + (speed - 1) / 2), "tokens_per_s": 40 * speed,
            "retention": kept.retention, "fidelity": fidelity,
            **({} if name.is_plain else drafts), **fields,
        }
    )  # fmt: skip


def measured(name: BenchMode, gamma: int | None, text: str) -> Measurement:
    return Measurement(
        mode=name, gamma=gamma, text=text, output_tokens=3, rounds=None if name.is_plain else 2,
        pieces=(
            (text, TokenKind.TARGET), (" and", TokenKind.FILLER),
            (" so", TokenKind.SHIFT), ("!", TokenKind.EXACT),
        ),
    )  # fmt: skip


def made_results(text: str = "A ball") -> Results:
    items = (made.item("one.mp4", prompt=text), made.item("two.mp4", reference=text))
    variants = [(BenchMode.AR, None), (BenchMode.EXACT, 8), (BenchMode.LVSPEC, 3), (BenchMode.LVSPEC, 8)]
    blocks = tuple(
        made.block(
            item,
            *(
                measured(name, gamma, text + (" loosely" if name.is_loose and item is items[1] else ""))
                for name, gamma in variants
            ),
        )
        for item in items
    )
    return made.results(
        (
            mode(BenchMode.AR, None, 1.0, 1.0),
            mode(BenchMode.EXACT, 8, 1.6, 1.0),
            mode(BenchMode.LVSPEC, 3, 2.0, 0.999),
            mode(BenchMode.LVSPEC, 8, 2.6, 0.97),
            ModeResult(mode=BenchMode.HF_ASSISTED, gamma=8, error=text, failed=2),
        ),
        items=items,
        blocks=blocks,
        command=f"lvspec bench {text}",
    )


def made_relevance() -> RelevanceResults:
    point = Point(threshold=0.5, precision=0.8, recall=0.7)

    def scheme(name: RelevanceName, layer: int | None, head: int | None, area: float) -> SchemeResult:
        line = ((0.0, 0.0), (0.2, 0.8), (1.0, 1.0)) if head is None else ()
        return SchemeResult(
            relevance=name, layer=layer, head=head, auc=area, auc_by_clip=estimate(area), best=point,
            at_threshold=point, roc=line, score_us=120.0 if head is None else None,
        )  # fmt: skip

    return RelevanceResults(
        environment=made.ENVIRONMENT, pair="tiny", target="target", clips=2, facts=30, fillers=70, gamma=8,
        threshold=0.5,
        schemes=(
            *(scheme(RelevanceName.ATTENTION, layer, head, 0.9) for layer in (0, 1) for head in (None, 0, 1)),
            scheme(RelevanceName.RANDOM, None, None, 0.5),
        ),
    )  # fmt: skip


class Page(HTMLParser):
    """Tags that are open at the end, ids, attributes, and the text of each tag."""

    VOID = ("meta", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    return page


def test_the_page_is_whole_and_refers_to_nothing_outside() -> None:
    text = report(made_results(), made_relevance())
    page = parsed(text)
    assert page.open == []
    assert page.tags.count("svg") == 8
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|//\w|@import|<script|<image", text)


def test_the_page_shows_what_was_measured() -> None:
    text = report(made_results(), made_relevance())
    for wanted in ("2.60", "99.9 %", "cannot run", "A processor", "lvspec 1", "attention, layer 1", "colour"):
        assert wanted in text, wanted
    for name in ("lvspec", "exact"):  # 98.9 % at the lower end is not enough, and nothing slower wins
        assert f'<tr class="winner"><td>{name}' not in text
    assert "lvspec γ=3: 2.0 times as fast as ar; 99.9 % of ar&#39;s facts" in text
    assert "sure already: exact" in text
    assert '<span class="filler"> and</span>' in text
    assert '<span class="shift"> so</span>' in text


def test_text_from_outside_cannot_act() -> None:
    text = report(made_results(EVIL))
    page = parsed(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_same_results_give_the_same_bytes() -> None:
    results = made_results()
    assert report(results, None) == report(results, None)


def test_either_half_of_the_results_is_enough(tmp_path: Path) -> None:
    assert "Relevance" in report(None, made_relevance())
    bare = made.results((ModeResult(mode=BenchMode.AR, answers=1),))
    assert parsed(report(bare)).tags.count("svg") == 0
    (tmp_path / "results.json").write_text(to_json(made_results()))
    assert write_report(tmp_path).read_text() == report(
        made_results().model_copy(update={"created": created(tmp_path)})
    )


def created(folder: Path) -> Any:
    from lvspec_cli.bench.results import read_results

    return read_results(folder).created


def test_quality_is_what_there_is() -> None:
    full = mode(BenchMode.LVSPEC, 8, 2.0, 0.99)
    assert full.fidelity is not None
    unlabelled = full.model_copy(update={"retention": None})
    unscored = unlabelled.model_copy(
        update={"fidelity": full.fidelity.model_copy(update={"log_probability_change": None})}
    )
    labels = [axis[0] for each in (full, unlabelled, unscored) if (axis := quality_axis([each]))]
    assert [label.split()[0] for label in labels] == ["quality", "log", "chrF"]
    assert quality_axis([ModeResult(mode=BenchMode.AR)]) is None
    assert tradeoff([ModeResult(mode=BenchMode.AR)]) is None
    assert speedup_bars([]) is None


def test_examples_are_those_that_differ() -> None:
    results = made_results()
    variants = shown_variants(results.modes)
    assert variants == (Variant(BenchMode.AR), Variant(BenchMode.EXACT, 8), Variant(BenchMode.LVSPEC, 8))
    assert [block.item for block in choose_examples(results, variants)] == ["two.mp4#1", "one.mp4#1"]
    assert [block.item for block in choose_examples(results, variants, 1)] == ["two.mp4#1"]


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")
def test_a_browser_draws_it_without_a_complaint(tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(report(made_results(EVIL), made_relevance()))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
            "--window-size=1200,6000", f"--screenshot={picture}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr, done.stderr
