import itertools
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.figures.answers import Estimate
from lvspec_cli.figures.statistics import Point, auc, best_point, point_at, roc, threshold_counts

SCORES = (0.9, 0.8, 0.8, 0.4, 0.1)
FACTS = (True, True, False, True, False)


def test_auc_by_hand() -> None:
    # Of six pairs of a fact and a filler: .9 wins both, .8 draws one and wins one, .4 wins one.
    assert auc(SCORES, FACTS) == pytest.approx((2 + 1.5 + 1) / 6)
    assert auc((1, 0), (True, False)) == 1.0
    assert auc((0, 1), (True, False)) == 0.0
    assert auc((1, 1, 1), (True, False, False)) == 0.5
    assert auc((1, 1), (True, True)) is None


def test_points_by_hand() -> None:
    found = threshold_counts(SCORES, FACTS)
    assert best_point(found) == Point(threshold=0.4, precision=3 / 4, recall=1.0)
    assert point_at(found, 0.85) == Point(threshold=0.85, precision=1.0, recall=1 / 3)
    assert point_at(found, 0.8) == Point(threshold=0.8, precision=2 / 3, recall=2 / 3)
    assert point_at(found, 0.0) == Point(threshold=0.0, precision=3 / 5, recall=1.0)
    assert point_at(found, 2.0) == Point(threshold=2.0, precision=None, recall=0.0)


def test_the_curve_by_hand() -> None:
    found = ((0.0, 0.0), (0.0, 1 / 3), (0.5, 2 / 3), (0.5, 1.0), (1.0, 1.0))
    assert roc(threshold_counts(SCORES, FACTS)) == tuple(pytest.approx(point) for point in found)


def test_one_class_has_no_curve() -> None:
    with pytest.raises(ValueError, match="facts and fillers"):
        threshold_counts((1.0, 0.5), (True, True))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({fact for _, fact in rows}) == 2
    )
)
def test_the_area_is_that_under_the_curve(rows: list[tuple[int, bool]]) -> None:
    scores, facts = [score for score, _ in rows], [fact for _, fact in rows]
    points = roc(threshold_counts(scores, facts), points=1000)
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in itertools.pairwise(points))
    assert auc(scores, facts) == pytest.approx(area)
    assert points[-1] == (1.0, 1.0)


def test_schemes_are_ranked_over_all_captions() -> None:
    from lvspec_cli.bench.relevance import Scheme, SchemeScores, ScoredCaption, evaluate_schemes
    from lvspec_cli.types import RelevanceName

    good, poor = Scheme(RelevanceName.ATTENTION, 1), Scheme(RelevanceName.RANDOM)
    head = Scheme(RelevanceName.ATTENTION, 1, 0)

    def scored(facts: tuple[bool, ...], microseconds: float) -> ScoredCaption:
        sure = tuple(0.9 if fact else 0.1 for fact in facts)
        rows = (
            SchemeScores(**asdict(poor), scores=(1.0,) * len(facts), score_us=1.0, prepare_ms=0.0),
            SchemeScores(**asdict(good), scores=sure, score_us=microseconds, prepare_ms=2.0),
            SchemeScores(**asdict(head), scores=sure),
        )
        return ScoredCaption(places=tuple(range(len(facts))), facts=facts, schemes=rows)

    found = evaluate_schemes(
        [scored((True, False), 10), scored((True, True), 30), scored((False, True), 20)], 0.5
    )
    assert [each.scheme for each in found] == [good, head, poor]
    best = found[0]
    assert best.auc == 1.0
    assert best.auc_by_clip == Estimate(value=1.0, low=1.0, high=1.0)  # the caption of facts alone has none
    assert best.at_threshold == Point(threshold=0.5, precision=1.0, recall=1.0)
    assert best.score_us == 20
    assert found[1].score_us is None
    assert found[1].roc == ()
    assert found[2].auc == 0.5
