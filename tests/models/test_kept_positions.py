from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.models.decoder import kept_positions


def test_kept_video_tokens_are_evenly_spread_and_text_stays() -> None:
    video = torch.tensor([0, 0, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    assert kept_positions(video, 0.6).tolist() == [0, 1, 2, 4, 6, 7]
    assert kept_positions(video, 0.2).tolist() == [0, 1, 2, 7]
    assert kept_positions(video, 1.0).tolist() == list(range(8))


def test_with_scores_the_best_are_kept() -> None:
    video = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    scores = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.4, 0.8, 0.0])
    assert kept_positions(video, 2 / 7, scores).tolist() == [0, 1, 5, 7, 9]
    assert kept_positions(video, 1 / 7, scores).tolist() == [0, 1, 5, 9]
    # Scores of a model with fewer tokens for the same frames: its third of four is the fifth of seven.
    assert kept_positions(video, 1 / 7, torch.tensor([0.0, 0.1, 0.2, 0.1])).tolist() == [0, 1, 6, 9]


@given(
    st.lists(st.booleans(), min_size=1, max_size=80).filter(any),
    st.floats(0.01, 1.0),
    st.none() | st.lists(st.floats(0, 1, width=32), min_size=1, max_size=90),
)
def test_text_stays_and_the_share_is_kept(mask: list[bool], keep: float, scores: list[float] | None) -> None:
    video = torch.tensor(mask)
    places = kept_positions(video, keep, None if scores is None else torch.tensor(scores))
    assert places.tolist() == sorted(set(places.tolist()))
    assert set((~video).nonzero()[:, 0].tolist()) <= set(places.tolist())
    assert int(video[places].sum()) == max(1, round(keep * sum(mask)))
