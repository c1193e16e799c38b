"""Presentation times from packets: decisions on numbers alone."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.video.pyav_frames import _Counted, runs
from lvspec_cli.video.timeline import UNKNOWN, Packets, StreamClock, closed_key_frames, timeline_of

TICKS = 3600  # a frame, at 25 a second in units of 1 / 90,000 s
TS = StreamClock(Fraction(1, 90_000), Fraction(25), None, spliced=True)
MP4 = StreamClock(Fraction(1, 90_000), Fraction(25), None, indexed=True)
GROUP = (0, 3, 1, 2, 6, 4, 5, 9, 7, 8)  # I P B B P B B P B B: places in order of presentation


def packets(pts, *, dts=None, group=10, corrupt=(), duration=TICKS):
    count = len(pts)
    dts = [TICKS * number for number in range(count)] if dts is None else dts
    numbers = np.arange(count)
    return Packets(
        pts=np.asarray(pts, np.int64),
        dts=np.asarray(dts, np.int64),
        sizes=numbers + 100,
        positions=188 * numbers,
        keys=np.arange(0, count, group),
        corrupt=np.asarray(corrupt, np.int64),
        duration=duration,
    )


def shown(groups, first=1):
    """Presentation times of whole groups, the first frame shown ``first`` frames after its decoding."""
    return [TICKS * (10 * group + place + first) for group in range(groups) for place in GROUP]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_a_clean_place_parts_what_is_shown_before_and_after(pts, keys):
    clean = closed_key_frames(np.asarray(pts), sorted(keys))
    assert clean == [
        k for k in sorted(keys) if all(p < pts[k] for p in pts[:k]) and all(p > pts[k] for p in pts[k + 1 :])
    ]


def test_a_plain_stream_is_read_as_it_is():
    timeline = timeline_of(packets(shown(3)), MP4)
    assert timeline.times == pytest.approx(np.arange(30) / 25)
    assert (timeline.duration, timeline.begins) == (1.2, 0.0)
    assert timeline.frame_rate == pytest.approx(25)
    assert [key.tick for key in timeline.key_frames] == [TICKS * (1 + 10 * n) for n in range(3)]
    assert (timeline.restamped, timeline.by_count, timeline.random_access) == (False, False, True)


def test_time_0_is_where_the_first_stream_of_the_file_begins():
    clock = StreamClock(Fraction(1, 90_000), Fraction(25), TICKS - 180_000)
    timeline = timeline_of(packets(shown(2)), clock)
    assert (timeline.begins, timeline.duration) == (2.0, 2.8)
    late_sound = StreamClock(Fraction(1, 90_000), Fraction(25), 180_000)
    assert timeline_of(packets(shown(2)), late_sound).begins == 0.0


def test_groups_that_lean_on_the_one_before_are_no_random_access_but_can_be_begun_at():
    pts = shown(2)
    pts[11], pts[9] = pts[9], pts[11]  # a frame decoded after the second key frame is shown before it
    timeline = timeline_of(packets(pts), MP4)
    assert not timeline.random_access
    assert [key.index for key in timeline.key_frames] == [0, 10]


@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(1, 4)), min_size=1, max_size=5))
def test_joined_streams_get_one_clock_that_only_grows(pieces):
    pts, dts = [], []
    end = None
    for offset, groups in pieces:
        if end is not None and -90_000 / 4 <= offset - end <= 90_000 * 10:
            offset = end + TICKS  # less of a break is none
        pts += [offset + tick for tick in shown(groups)]
        dts += [offset + TICKS * number for number in range(10 * groups)]
        end = dts[-1]
    timeline = timeline_of(packets(pts, dts=dts), TS)
    assert timeline.times == pytest.approx(np.arange(len(pts)) / 25)
    order = [10 * (number // 10) + GROUP[number % 10] for number in range(len(pts))]
    assert timeline.stamps.tolist() == [timeline.ticks[0] + TICKS * place for place in order]


def test_a_pause_is_a_pause_unless_a_stream_may_be_spliced():
    pts = shown(2)
    late = [tick + 90_000 * 60 * (number >= 10) for number, tick in enumerate(pts)]
    dts = [TICKS * number + 90_000 * 60 * (number >= 10) for number in range(20)]
    assert timeline_of(packets(late, dts=dts), MP4).duration == pytest.approx(60.8)
    assert timeline_of(packets(late, dts=dts), TS).duration == pytest.approx(0.8)


@given(
    st.lists(st.integers(-2, 2), min_size=40, max_size=200),
    st.sampled_from([Fraction(25), Fraction(30_000, 1001), Fraction(24_000, 1001)]),
    st.data(),
)
def test_frames_whose_times_are_guessed_keep_an_even_rate(jitter, rate, data):
    step = Fraction(90_000) / rate
    guessed = [round(step * number) + round(step) * off * (number > 0) for number, off in enumerate(jitter)]
    known = data.draw(st.sets(st.integers(1, len(jitter) - 1), max_size=len(jitter) - 2))
    pts = [
        step * 1 + time if number in known or number == 0 else UNKNOWN for number, time in enumerate(guessed)
    ]
    pts[1 if 1 not in known else min(set(range(1, len(pts))) - known)] = UNKNOWN
    clock = StreamClock(Fraction(1, 90_000), rate, None, spliced=False)
    timeline = timeline_of(packets([int(tick) for tick in pts], dts=sorted(guessed)), clock)
    assert timeline.by_count
    assert np.diff(timeline.times) == pytest.approx(float(1 / rate), abs=2e-5)
    assert len(timeline.ticks) == len(jitter)


def test_packets_that_share_a_time_are_counted():
    pts = [TICKS * (number // 2 * 2) for number in range(40)]
    timeline = timeline_of(packets(pts), TS)
    assert timeline.by_count
    assert timeline.times == pytest.approx(np.arange(40) / 25, abs=0.05)


def test_a_field_without_a_time_is_no_frame_of_its_own():
    pts = [TICKS * number if number % 2 == 0 else UNKNOWN for number in range(40)]
    clock = StreamClock(Fraction(1, 90_000), Fraction(25), None, spliced=True, fields=True)
    timeline = timeline_of(packets(pts), clock)
    assert (timeline.by_count, len(timeline.ticks)) == (False, 20)


def test_a_recording_that_begins_between_key_frames_begins_with_the_first():
    pts = shown(3)[4:]
    late = packets(pts, dts=[TICKS * number for number in range(4, 30)])
    late = Packets(late.pts, late.dts, late.sizes, late.positions, np.asarray([6, 16]), late.corrupt, TICKS)
    timeline = timeline_of(late, StreamClock(TS.time_base, TS.rate, min(pts), spliced=True))
    assert (timeline.skipped, len(timeline.ticks)) == (6, 20)
    assert timeline.begins == pytest.approx(6 / 25)
    assert [key.index for key in timeline.key_frames] == [0, 10]


def test_an_incomplete_packet_puts_the_rest_of_its_group_in_doubt():
    timeline = timeline_of(packets(shown(3), corrupt=[14]), TS)
    assert timeline.broken == ((TICKS * 17, TICKS * 21),)
    assert timeline_of(packets(shown(3), corrupt=[25]), TS).broken[0][0] == TICKS * 25


def test_where_two_streams_were_joined_packets_only_seem_to_be_missing():
    pts, dts = shown(1) + shown(1), [TICKS * number for number in range(10)] * 2
    assert timeline_of(packets(pts, dts=dts, corrupt=[8, 10]), TS).broken == ()


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.integers(0, 3),
)
def test_counting_finds_its_place_at_the_next_key_frame(triples, leading, begin):
    """Groups of a key frame, leading frames shown before it, and triples P B B; leading ones drop first."""
    order, index = [], 0  # indices of packets in the order in which frames come out
    keys = []
    for lead, length in zip(leading, triples, strict=False):
        keys.append(index)
        order += [index + 1 + number for number in range(lead)] + [index]
        index += 1 + lead
        for _ in range(length):
            order += [index + 1, index + 2, index]
            index += 3
    timeline = timeline_of(
        Packets(
            pts=np.full(index, UNKNOWN),
            dts=np.arange(index) * TICKS,
            sizes=np.arange(index),
            positions=np.arange(index),
            keys=np.asarray(keys),
            corrupt=np.zeros(0, np.int64),
            duration=0,
        ),
        StreamClock(Fraction(1, 90_000), Fraction(25), None, stamped=False),
    )
    begin = keys[min(begin, len(keys) - 1)]
    counted = _Counted(timeline)
    after = [number for number in keys if number > begin]
    for number in order:
        came_out = number >= begin and not (begin < number <= begin + leading[keys.index(begin)])
        if came_out:
            tick = counted.tick(number)
            if after and order.index(number) >= order.index(after[0]):
                assert tick == order.index(number) * TICKS


def test_reading_skips_to_key_frames_where_it_pays():
    timeline = timeline_of(packets(shown(20)), MP4)
    assert runs([0, 5, 30, 45, 100, 101, 199], timeline) == [
        (None, [0, 5, 30, 45]),
        (10, [100, 101]),
        (19, [199]),
    ]


def test_reading_a_stretch_begins_at_its_key_frame():
    timeline = replace(timeline_of(packets(shown(20)), MP4), whole=False, from_first=False)
    assert runs([3, 15], timeline) == [(0, [3, 15])]


def test_counting_begins_a_group_early():
    timeline = timeline_of(packets([UNKNOWN] * 200), StreamClock(TS.time_base, TS.rate, None, stamped=False))
    assert runs([3, 105], timeline) == [(None, [3]), (7, [105])]  # the frame 89 is where the key 8 may be
