"""Rules with names: the rule less one part, the controls, and what a file of them says."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import inf
from pathlib import Path

import pytest

from lvspec_cli.bench.variants import (
    ablations,
    controls,
    read_rules,
    rules_by_name,
    settings_of,
    variants_of,
    views_by_name,
)
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import BenchMode, Variant
from lvspec_cli.speculation.verify import is_exact
from lvspec_cli.types import WHOLE, DecodeSettings, DraftView, Mode, RelevanceName, RuleSettings

BASE = RuleSettings(anchor_margin=0.5, filler_margin=2.0, shift_window=2, defer=1, max_loss=0.1)


def rule_changes(rule: RuleSettings, base: RuleSettings) -> dict[str, object]:
    """The fields of a rule that differ from ``base``."""
    other = asdict(base)
    return {name: value for name, value in asdict(rule).items() if value != other[name]}


def test_each_ablation_takes_one_part_away():
    found = {each.name: rule_changes(each.rule, BASE) for each in ablations(BASE)}
    unlimited = {"max_loose_run": 1_000_000, "max_loose_in_window": 1_000_000}
    assert found == {
        "no-anchors": {"relevance": "plausible"},
        "no-ties": {"anchor_margin": 0.0},
        "no-fillers": {"filler_margin": 0.5},
        "no-sentences": {"sentence_margin": inf},
        "no-shift": {"shift_window": 0},
        "no-window": {"defer": 0},
        "no-budget": {"max_loss": inf},
        "no-limits": unlimited,
        "no-list": {**unlimited, "never_loosely": False},
    }
    listed = {each.name: each.rule for each in ablations(replace(BASE, contraries=True))}
    assert listed["no-contraries"] == BASE
    without = RuleSettings(relevance=RelevanceName.PLAUSIBLE, anchor_margin=0.0, shift_window=0)
    assert is_exact(ablations(without)[0].rule)


def test_a_part_that_is_not_there_is_put_in():
    bare = RuleSettings(relevance=RelevanceName.PLAUSIBLE, anchor_margin=0.0, shift_window=0)
    found = {each.name: rule_changes(each.rule, bare) for each in ablations(bare)}
    assert list(found) == [
        "no-fillers", "no-sentences", "no-limits", "no-list", "with-anchors", "with-shift", "with-window",
        "with-budget",
    ]  # fmt: skip
    assert found["with-anchors"] == {"relevance": "attention"}
    assert found["with-shift"] == {"shift_window": 2}
    assert found["with-window"] == {"defer": 2}
    assert found["with-budget"] == {"max_loss": 0.07}
    loosened = {each.name: each.rule for each in ablations(replace(bare, sentence_margin=inf))}
    assert "no-sentences" not in loosened
    assert loosened["with-sentences"].sentence_margin == 0


def test_controls_are_every_other_relevance():
    assert [each.name for each in controls(BASE)] == [
        f"lvspec:{name}"
        for name in (
            "similarity", "lens", "lexicon", "rank", "rank-attention", "paper", "plausible", "random"
        )
    ]  # fmt: skip


def test_a_file_says_what_is_other_than_in_the_pairs_rule(tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text(
        "bold: {filler_margin: .inf, gamma: 12}\n"
        "auto: {gamma: auto, shift_window: 0}\n"
        "pruned: {mode: lvspec-pruned, relevance: lexicon, layers: [3, -1]}\n"
        "few: {mode: exact, draft_frames: 4, draft_pixels: 9000}\n"
    )
    bold, auto, pruned, few = read_rules(file, BASE)
    assert (bold.rule.filler_margin, bold.rule.anchor_margin) == (inf, 0.5)
    assert bold.variant == Variant(BenchMode.LVSPEC, 12, label="bold")
    assert (auto.gamma, auto.rule.shift_window) == ("auto", 0)
    assert pruned.variant == Variant(BenchMode.LVSPEC_PRUNED, label="pruned")
    assert (pruned.rule.relevance, pruned.rule.layers) == (RelevanceName.LEXICON, (3, -1))
    named = variants_of([Variant(BenchMode.AR), *(each.variant for each in (bold, auto, pruned))], (4, 8))
    assert [str(each) for each in named] == [
        "ar", "lvspec/bold γ=12", "lvspec/auto γ=auto", "lvspec-pruned/pruned γ=4",
        "lvspec-pruned/pruned γ=8",
    ]  # fmt: skip
    settings = settings_of(named[3], DecodeSettings(rule=BASE), 0.1, rules_by_name([bold, pruned]))
    assert (settings.mode, settings.gamma, settings.draft_keep) == (Mode.LVSPEC, 4, 0.1)
    assert settings.rule == pruned.rule
    shown, views = DecodeSettings(rule=BASE, draft_frames=6), views_by_name([bold, few])
    rules = rules_by_name([bold, few, pruned])
    found = [settings_of(line.variant, shown, 0.1, rules, views).draft_view for line in (bold, few, pruned)]
    assert found == [DraftView(6), DraftView(4, 9000), WHOLE]
    assert settings_of(few.variant, shown, 0.1, rules, views).mode is Mode.EXACT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bold: {filler_margins: 2}", "line 1: bold.filler_margins: there is no such key"),
        ("a: {shift_window: 0}\nb: {shift_window: 99}", "line 2: b.shift_window: Input should be less"),
        ("bold: {mode: ar}", "bold.mode: Input should be 'exact'"),
        ("bold: {mode: exact, shift_window: 0}", "bold: mode exact has no rule"),
        ("bold: {mode: lvspec-pruned, draft_frames: 2}", "bold: in mode lvspec-pruned the draft sees"),
        ("bold: {draft_pixels: 100}", "bold.draft_pixels: Input should be greater"),
        ("bold: {gamma: 0}", "bold.gamma"),
        ("bold: {anchor_margin: -1}", "bold.anchor_margin: Input should be greater"),
        ("a/b: {shift_window: 0}", "a/b"),
        ("", "there is no rule in it"),
        ("[", "line 2"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str):
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_rules(file, BASE)
    assert said in refused.value.cause
    with pytest.raises(UsageError, match="No such file"):
        read_rules(tmp_path / "gone.yaml", BASE)


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(UsageError, match="'no-shift'"):
        rules_by_name([*ablations(BASE), ablations(BASE)[4]])
