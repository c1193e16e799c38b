"""Results against doctored ones."""

from __future__ import annotations

import pytest

from lvspec_cli.bench.results import Margins, compare_results, differences, unmeasured
from lvspec_cli.figures.answers import BenchMode, Estimate, Fidelity, ModeResult, Spread
from lvspec_cli.ui.summary import change_table
from tests.bench.made import ENVIRONMENT, SETTINGS, item, results


def _mode(**fields) -> ModeResult:
    return ModeResult(
        **{
            "mode": BenchMode.LVSPEC,
            "gamma": 8,
            "speedup_vs_ar": Spread(median=3.0, low=2.9, high=3.1),
            "end_to_end_speedup_vs_ar": Spread(median=2.0, low=1.9, high=2.1),
            "mean_accepted_length": 8.0,
            "retention": Estimate(value=0.999, low=0.998, high=1.0),
            "tokens_per_s": 100.0,
            **fields,
        }
    )


AS_IT_WAS = results((_mode(),))


def worse(after, margins: Margins | None = None) -> list[str]:
    changes = compare_results(AS_IT_WAS, after, margins or Margins())
    return [change.figure for change in changes if change.regression]


def test_the_same_results_have_not_changed():
    changes = compare_results(AS_IT_WAS, AS_IT_WAS, Margins(0.0, 0.0))
    assert [change.share for change in changes] == [0.0] * 5
    assert worse(AS_IT_WAS, Margins(0.0, 0.0)) == []


@pytest.mark.parametrize(
    ("fields", "figure"),
    [
        ({"speedup_vs_ar": Spread(median=2.8, low=2.7, high=2.9)}, "speedup"),
        ({"end_to_end_speedup_vs_ar": Spread(median=1.8, low=1.8, high=1.8)}, "end-to-end speedup"),
        ({"mean_accepted_length": 7.5}, "mean accepted length"),
        ({"retention": Estimate(value=0.9965, low=0.99, high=1.0)}, "retention"),
    ],
)
def test_a_figure_that_falls_beyond_the_margin_is_a_regression(fields, figure):
    assert worse(results((_mode(**fields),))) == [figure]


def test_without_labels_the_words_that_are_kept_tell_that_texts_got_worse():
    def judged(share: float) -> ModeResult:
        kept = Estimate(value=share, low=share, high=share)
        return _mode(retention=None, fidelity=Fidelity(answers=1, clips=1, content_kept=kept))

    def fallen(share: float) -> list[str]:
        changes = compare_results(results((judged(0.9),)), results((judged(share),)), Margins())
        return [each.figure for each in changes if each.regression]

    assert fallen(0.85) == ["content kept"]
    assert fallen(0.86) == fallen(0.95) == []


def test_within_the_margin_and_upwards_nothing_is_worse():
    after = _mode(
        speedup_vs_ar=Spread(median=2.86, low=2.7, high=2.9),
        mean_accepted_length=9.0,
        retention=Estimate(value=0.9975, low=0.99, high=1.0),
        tokens_per_s=10.0,  # of another machine
    )
    assert worse(results((after,))) == []
    assert worse(results((after,)), Margins(speed=0.04)) == ["speedup"]
    assert worse(results((after,)), Margins(retention=0.001)) == ["retention"]


def test_a_mode_that_cannot_run_any_more_is_a_regression():
    broken = ModeResult(mode=BenchMode.LVSPEC, gamma=8, error="ValueError: no", failed=3)
    assert worse(results((broken,))) == ["speedup", "end-to-end speedup", "mean accepted length", "retention"]


def test_what_was_not_measured_is_no_worse_and_is_named_once():
    exact = _mode(mode=BenchMode.EXACT)
    both = results((exact, _mode(gamma=12), _mode()))
    assert compare_results(both, AS_IT_WAS, Margins()) == compare_results(AS_IT_WAS, AS_IT_WAS, Margins())
    assert list(unmeasured(both, AS_IT_WAS)) == ["not measured in B: exact γ=8, lvspec γ=12"]
    assert list(unmeasured(AS_IT_WAS, both)) == ["not measured in A: exact γ=8, lvspec γ=12"]
    assert list(unmeasured(both, both)) == []
    table = change_table(compare_results(AS_IT_WAS, results((_mode(retention=None),)), Margins()))
    assert [row[-1] for row in table.rows] == ["", "", "", "not measured", ""]


def test_what_was_not_the_same_is_told():
    assert list(differences(AS_IT_WAS, AS_IT_WAS)) == []
    after = results(
        (_mode(),),
        environment=ENVIRONMENT.model_copy(update={"threads": 1, "versions": {"torch": "3"}}),
        settings=SETTINGS.model_copy(update={"gammas": (3, 8)}),
        items=(item("one.mp4"), item("two.mp4")),
    )
    assert list(differences(AS_IT_WAS, after)) == [
        "threads: 2, now 1",
        "versions: lvspec 1, torch 2, now torch 3",
        "gammas: 4, now 3, 8",
        "items: 1, now 2, or others",
    ]
