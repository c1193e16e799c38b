"""What is left to do, as a decision on values."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.work import Again, Work, outstanding
from lvspec_cli.output.jsonl import RowInfo
from lvspec_cli.output.records import FileIdentity
from lvspec_cli.request import AskRequest
from lvspec_cli.types import DecodeSettings, VideoRequest
from tests.conftest import demo_plan

PLAN = demo_plan()


def work(name: str, *keys: str) -> Work:
    request = AskRequest(VideoRequest(Path(name)), tuple(keys), DecodeSettings())
    return Work(request, FileIdentity(name.encode(), 1, ""), tuple(range(1, len(keys) + 1)), keys)


def kept(status: str, kind: str | None = None, name: str = "a.mp4") -> RowInfo:
    return RowInfo(status, kind, name.encode())


def test_only_what_has_no_row_is_left() -> None:
    left = outstanding(
        PLAN,
        [work("a.mp4", "1", "2"), work("b.mp4", "3")],
        {"1": kept("ok"), "3": kept("error", "damaged", "b.mp4"), "9": kept("ok")},
        Again.NOTHING,
    )
    assert [(item.name, item.numbers) for item in left.works] == [(b"a.mp4", (2,))]
    assert (left.done, left.failed, left.count, left.others) == (1, 1, 1, 1)
    assert left.removed == frozenset()


def test_a_key_that_two_works_share_is_done_once() -> None:
    left = outstanding(PLAN, [work("a.mp4", "1"), work("b.mp4", "1", "2")], {}, Again.NOTHING)
    assert [(item.name, item.numbers) for item in left.works] == [(b"a.mp4", (1,)), (b"b.mp4", (2,))]


KEYS = st.sampled_from("abcdefgh")
ROWS = st.dictionaries(
    KEYS, st.sampled_from([kept("ok"), kept("error", "damaged"), kept("error", "interrupted")])
)
WORKS = st.lists(st.lists(KEYS, min_size=1, max_size=3, unique=True), max_size=5)


@given(WORKS, ROWS, st.sampled_from(Again))
def test_afterwards_every_key_has_exactly_one_row(
    planned: list[list[str]], there: dict[str, RowInfo], again: Again
) -> None:
    left = outstanding(PLAN, [work(f"{keys}", *keys) for keys in planned], there, again)
    added = [item.keys[number - 1] for item in left.works for number in item.numbers]
    after = [key for key in there if key not in left.removed] + added
    assert len(after) == len(set(after))
    assert {key for keys in planned for key in keys} <= set(after)
    assert set(there) <= set(after)
    assert all(there[key].error_kind == "interrupted" for key in left.removed) or again is not Again.NOTHING
    if again is Again.ERRORS:
        assert all(there[key].status == "error" for key in left.removed)
