from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.cutting import Stretch, check_lengths, even_segments
from lvspec_cli.errors import UsageError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 30, 10), [(0, 10), (10, 20), (20, 30)]),
        ((0, 25, 10), [(0, 10), (10, 20), (20, 25)]),
        ((0, 30.9, 10), [(0, 10), (10, 20), (20, 30.9)]),  # less than a tenth joins
        ((0, 31, 10), [(0, 10), (10, 20), (20, 30), (30, 31)]),
        ((0, 4, 10), [(0, 4)]),
        ((0, 10.5, 10), [(0, 10.5)]),
        ((0, 25, 10, 2), [(0, 10), (8, 18), (16, 25)]),
        ((0, 26, 10, 2), [(0, 10), (8, 18), (16, 26)]),
        ((3, 12, 4, 1), [(3, 7), (6, 10), (9, 12)]),
        ((0, 0.9, 0.3, 0.1), [(0, 0.3), (0.2, 0.5), (0.4, 0.7), (0.6, 0.9)]),
        ((5, 5, 10), []),
        ((7, 5, 10), []),
    ],
)
def test_segments(arguments, expected):
    assert even_segments(*arguments) == tuple(Stretch(*times) for times in expected)


@given(st.floats(0, 1e5), st.floats(0.001, 1000), st.data())
def test_laws(start, duration, data):
    length = data.draw(st.floats(max(0.1, duration / 300), 1000))
    overlap = data.draw(st.floats(0, 0.9).map(lambda share: share * length))
    end = start + duration
    segments = even_segments(start, end, length, overlap)
    assert (segments[0].start, segments[-1].end) == (start, end)
    for before, after in pairwise(segments):
        assert abs(before.end - after.start - overlap) < 3e-6
        assert before.start < after.start
        assert before.end < after.end
    if len(segments) > 1:
        new = segments[-1].end - segments[-2].end
        assert new >= 0.1 * length - 3e-6
    for segment in segments[:-1]:
        assert abs(segment.end - segment.start - length) < 3e-6
    assert segments[-1].end - segments[-1].start < 1.1 * length + 3e-6


@pytest.mark.parametrize(
    ("length", "overlap", "flag"),
    [
        *((length, 0, "--segment") for length in (0, -1, 0.05, float("inf"), float("nan"))),
        *((10, overlap, "--overlap") for overlap in (-1, 9.5, float("nan"))),
    ],
)
def test_lengths_out_of_range(length, overlap, flag):
    with pytest.raises(UsageError, match=f"{flag} .* is out of range"):
        check_lengths(length, overlap)
