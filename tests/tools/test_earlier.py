"""Answers taken over from an earlier run: which lines may be, and what stands beside what afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Header, JournalContent, open_journal, read_journal
from lvspec_cli.bench.measure import Plan
from lvspec_cli.bench.run import words_digest
from lvspec_cli.bench.variants import rule_fields
from lvspec_cli.figures.answers import BenchMode, Variant
from lvspec_cli.figures.summary import Measured
from lvspec_cli.models.words import TokenSets
from lvspec_cli.types import DecodeSettings, RelevanceName, RuleSettings, VideoRequest
from tests.bench.made import ENVIRONMENT, SETTINGS, block, drafted, item, plain
from tools.demo_report.earlier import asked_of, is_same_line, lines_kept, with_earlier, without

RULE = RuleSettings(relevance=RelevanceName.PLAUSIBLE, filler_margin=1.0)
DICE = replace(RULE, relevance=RelevanceName.RANDOM)
WORDS = replace(RULE, relevance=RelevanceName.LEXICON)
AR, EXACT, OWN = Variant(BenchMode.AR), Variant(BenchMode.EXACT, 4), Variant(BenchMode.LVSPEC, 4)
RANDOM, LEXICON = (Variant(BenchMode.LVSPEC, 4, label=name) for name in ("random", "lexicon"))


def settings(rule: RuleSettings, rules: dict[str, RuleSettings] | None = None, **fields: Any):
    named = {name: rule_fields(each) for name, each in (rules or {}).items()}
    return SETTINGS.model_copy(update={"rule": rule_fields(rule), "rules": named, "timed": False, **fields})


HELD = settings(RULE, {"random": DICE, "lexicon": WORDS})
ONE, TWO = item("one.mp4"), item("two.mp4")


def said(line: Variant, text: str):
    if line.mode.is_plain:
        return plain(0.0, text=text)
    return drafted(0.0, (2, 1), line.mode, 4, text=text, label=line.label)


def earlier(*blocks, **fields: Any) -> JournalContent:
    header = Header(**{"settings": HELD, "environment": ENVIRONMENT, "inputs": "same", **fields})
    return JournalContent(header, {ONE.id: ONE, TWO.id: TWO}, blocks)


def test_the_rule_changes_its_own_lines_and_no_lossless_one():
    narrower = replace(RULE, filler_margin=0.5)
    wanted = settings(
        narrower, {"random": replace(DICE, filler_margin=0.5), "lexicon": replace(WORDS, filler_margin=0.5)}
    )
    found = {line: is_same_line(HELD, wanted, line) for line in (AR, EXACT, OWN, RANDOM, LEXICON)}
    # The die asks for no margin: whatever it spares passes.
    assert found == {AR: True, EXACT: True, OWN: False, RANDOM: True, LEXICON: False}
    assert is_same_line(HELD, HELD, OWN)
    gone = settings(RULE)
    assert not is_same_line(HELD, gone, LEXICON)
    assert not is_same_line(gone, HELD, LEXICON)
    assert not is_same_line(gone, gone, LEXICON)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"max_new_tokens": 7}, {"threads": 3}, {"sampling": {"frames": 2}}]
)
def test_what_is_asked_for_changes_every_line(changed: dict[str, Any]):
    wanted = settings(RULE, {"random": DICE}, **changed)
    assert not any(is_same_line(HELD, wanted, line) for line in (AR, EXACT, OWN, RANDOM))


@pytest.mark.parametrize("changed", [{"adaptation": {"most": 4}}, {"draft_keep": 0.3}])
def test_what_drafts_go_by_changes_no_line_without_one(changed: dict[str, Any]):
    wanted = settings(RULE, {"random": DICE}, **changed)
    assert [is_same_line(HELD, wanted, line) for line in (AR, EXACT, OWN)] == [True, False, False]


def test_other_words_change_the_loose_lines():
    wanted = HELD.model_copy(update={"words": "others"})
    found = {line: is_same_line(HELD, wanted, line) for line in (AR, EXACT, OWN, RANDOM)}
    assert found == {AR: True, EXACT: True, OWN: False, RANDOM: False}


def test_words_are_told_apart_by_what_they_are():
    sets = [
        TokenSets(),
        TokenSets(ends=frozenset({1})),
        TokenSets(protected=frozenset({1})),
        TokenSets(function=frozenset({1})),
        TokenSets(stops=frozenset({1})),
        TokenSets(meanings={1: frozenset({(0, 0)})}),
        TokenSets(meanings={1: frozenset({(0, 1)})}),
    ]
    assert len({words_digest(each) for each in sets}) == len(sets)
    left, right = (1, frozenset({(0, 0), (2, 3)})), (2, frozenset({(0, 1)}))
    one, other = (TokenSets(meanings=dict(each)) for each in ([left, right], [right, left]))
    assert words_digest(one) == words_digest(other)


def test_other_lines_beside_it_change_none():
    wanted = settings(RULE, modes=("ar",), gammas=(8,), first={"ar": 3})
    assert is_same_line(HELD, wanted, OWN)


@pytest.mark.parametrize(
    ("fields", "timed", "kept"),
    [
        ({}, False, (AR, OWN)),
        ({"inputs": "others"}, False, ()),
        ({"environment": ENVIRONMENT.model_copy(update={"threads": 1})}, False, ()),
        ({}, True, ()),
    ],
)
def test_lines_that_were_answered_whole_are_kept(fields, timed: bool, kept: tuple[Variant, ...]):
    held = HELD.model_copy(update={"timed": timed})
    wanted = Header(settings=held, environment=ENVIRONMENT, inputs="same")
    run = earlier(
        block(ONE, said(AR, "a"), said(OWN, "b"), said(RANDOM, "c")),
        block(TWO, said(AR, "a")),
        **{"settings": held, **fields},
    )
    # Of OWN and RANDOM the second item is missing; OWN is asked about the first alone.
    asked = {AR: {ONE.id, TWO.id}, OWN: {ONE.id}, RANDOM: {ONE.id, TWO.id}, LEXICON: {ONE.id}}
    assert lines_kept(run, wanted, asked) == kept


def test_answers_stand_side_by_side_in_the_order_that_is_asked_for():
    run = earlier(
        block(ONE, said(AR, "old"), said(OWN, "old"), said(RANDOM, "old")),
        block(TWO, said(AR, "old"), said(OWN, "old"), said(RANDOM, "old")),
    )
    new = Measured({ONE.id: ONE, TWO.id: TWO}, (block(TWO, said(OWN, "new")), block(ONE, said(OWN, "new"))))
    asked = {OWN: {ONE.id, TWO.id}, AR: {ONE.id, TWO.id}, RANDOM: {ONE.id}}
    found = with_earlier(new, run, (AR, RANDOM), asked)
    assert found.items == {ONE.id: ONE, TWO.id: TWO}
    assert [(each.item, [one.text for one in each.measurements]) for each in found.blocks] == [
        (ONE.id, ["new", "old", "old"]),
        (TWO.id, ["new", "old"]),
    ]
    assert [each.variant for each in found.blocks[0].measurements] == [OWN, AR, RANDOM]
    # A clip that could not be read again has no answer of a line that has changed.
    less = with_earlier(Measured({}, new.blocks[1:]), run, (AR, RANDOM), asked)
    assert [each.variant for each in less.blocks[1].measurements] == [AR]


def test_what_is_left_of_a_plan_needs_no_more_than_its_rules():
    plan = Plan((AR, OWN, RANDOM), DecodeSettings(), 0.1, rules={"random": DICE}, first={OWN: 2, RANDOM: 1})
    left = without(plan, (AR, RANDOM))
    assert (left.variants, left.first, left.rules) == ((OWN,), {OWN: 2}, {})
    assert without(plan, (AR,)).rules == {"random": DICE}
    clips = tuple(BenchClip(VideoRequest(Path(each.file_name)), (each,)) for each in (ONE, TWO))
    assert asked_of(clips, plan) == {AR: {ONE.id, TWO.id}, OWN: {ONE.id, TWO.id}, RANDOM: {ONE.id}}


def test_a_journal_is_read_without_being_changed(tmp_path: Path):
    assert read_journal(tmp_path) is None
    header = Header(settings=HELD, environment=ENVIRONMENT, inputs="same")
    answer = block(ONE, said(AR, "a"))
    with open_journal(tmp_path, header) as kept:
        kept.add_item(ONE)
        kept.add_block(answer)
        before = kept.path.read_bytes()
        kept.path.write_bytes(before + b'{"block":')  # torn
        assert read_journal(tmp_path) == JournalContent(header, {ONE.id: ONE}, (answer,))
        assert kept.path.read_bytes() == before + b'{"block":'
