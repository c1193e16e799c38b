"""What --modes and --gamma mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvspec_cli.bench.variants import ALL_MODES, parse_gammas, parse_modes, settings_of, variants_of
from lvspec_cli.errors import UsageError
from lvspec_cli.figures.answers import BenchMode, Variant
from lvspec_cli.types import DecodeSettings, Mode, RelevanceName, RuleSettings

BASE = DecodeSettings(
    gamma=8, rule=RuleSettings(relevance=RelevanceName.ATTENTION), max_new_tokens=99, temperature=0.5, seed=3
)


def test_modes_are_read_once_each_and_in_order():
    found = parse_modes("ar, exact,lvspec:random,ar,lvspec")
    assert found == (
        Variant(BenchMode.AR),
        Variant(BenchMode.EXACT),
        Variant(BenchMode.LVSPEC, relevance=RelevanceName.RANDOM),
        Variant(BenchMode.LVSPEC),
    )
    assert [variant.name for variant in found] == ["ar", "exact", "lvspec:random", "lvspec"]
    assert len(parse_modes(",".join(ALL_MODES))) == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ar,fast", "does not know 'fast'"),
        ("ar,exact:random", "only loose modes have a relevance"),
        ("ar,lvspec:magic", "no relevance 'magic'"),
        ("lvspec,hf-assisted", "nothing to compare with"),
        ("", "nothing to compare with"),
    ],
)
def test_modes_that_make_no_sense_are_refused(text: str, said: str):
    with pytest.raises(UsageError, match=said):
        parse_modes(text)


def test_gammas_are_read_in_ascending_order():
    assert parse_gammas("8, 3,12,3") == (3, 8, 12)
    assert parse_gammas("auto,12,3,auto") == (3, 12, "auto")


@pytest.mark.parametrize("text", ["0", "65", "3,x", "-2", "1.5", ",", "²"])
def test_gammas_out_of_range_are_refused(text: str):
    with pytest.raises(UsageError, match="--gamma"):
        parse_gammas(text)


def test_plain_modes_have_no_gamma_and_the_assistant_also_its_own():
    found = variants_of(parse_modes("ar,lvspec:lexicon,hf-ar,hf-assisted"), (3, 8))
    lexicon = RelevanceName.LEXICON
    assert found == (
        Variant(BenchMode.AR),
        Variant(BenchMode.LVSPEC, 3, lexicon),
        Variant(BenchMode.LVSPEC, 8, lexicon),
        Variant(BenchMode.HF_AR),
        Variant(BenchMode.HF_ASSISTED),
        Variant(BenchMode.HF_ASSISTED, 3),
        Variant(BenchMode.HF_ASSISTED, 8),
    )
    assert str(found[1]) == "lvspec:lexicon γ=3"
    assert str(found[0]) == "ar"


def test_auto_is_one_more_gamma_which_transformers_does_not_know():
    assert variants_of(parse_modes("ar,lvspec,hf-assisted"), (3, "auto")) == (
        Variant(BenchMode.AR),
        Variant(BenchMode.LVSPEC, 3),
        Variant(BenchMode.LVSPEC, "auto"),
        Variant(BenchMode.HF_ASSISTED),
        Variant(BenchMode.HF_ASSISTED, 3),
    )
    base = replace(BASE, gamma=5, fallback=True)
    adapting = settings_of(Variant(BenchMode.LVSPEC, "auto"), base, 0.1)
    assert (adapting.gamma, adapting.fallback) == ("auto", False)


def test_all_modes_are_greedy_and_have_the_same_budget():
    modes = variants_of(parse_modes("ar,exact,lvspec"), (5,))
    for settings in (settings_of(variant, BASE, 0.1) for variant in modes):
        assert (settings.temperature, settings.max_new_tokens, settings.repetition_guard) == (0.0, 99, False)
        assert settings.seed == 3
        assert settings.draft_keep == 1.0


def test_a_variant_changes_what_its_name_says():
    pruned = settings_of(Variant(BenchMode.EXACT_PRUNED, 3), BASE, 0.25)
    assert (pruned.mode, pruned.gamma, pruned.draft_keep) == (Mode.EXACT, 3, 0.25)
    loose = settings_of(Variant(BenchMode.LVSPEC_PRUNED, 5, RelevanceName.RANDOM), BASE, 0.25)
    assert (loose.mode, loose.gamma, loose.draft_keep) == (Mode.LVSPEC, 5, 0.25)
    assert loose.rule.relevance is RelevanceName.RANDOM
    control = settings_of(Variant(BenchMode.CONTROL), BASE, 0.25)
    assert (control.mode, control.vary, control.draft_keep) == (Mode.AR, 1.0, 1.0)
    own = settings_of(Variant(BenchMode.LVSPEC, 8), BASE, 0.25)
    assert own.vary == 0
    assert own.rule == BASE.rule
    with pytest.raises(ValueError, match="hf-ar"):
        settings_of(Variant(BenchMode.HF_AR), BASE, 0.1)
