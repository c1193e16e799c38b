"""Bytes, times and counts as people read them."""

from __future__ import annotations

import pytest

from lvspec_cli.table import clock, counted, gigabytes, size


@pytest.mark.parametrize(
    ("count", "text", "in_gigabytes"),
    [(16_700_000, "16.7 MB", "0.0 GB"), (10**9, "1.0 GB", "1.0 GB"), (66_900_000_000, "66.9 GB", "66.9 GB")],
)
def test_bytes(count: int, text: str, in_gigabytes: str) -> None:
    assert (size(count), gigabytes(count)) == (text, in_gigabytes)


def test_fractions_of_a_second_are_carried() -> None:
    assert clock(59.96, digits=1) == "1:00.0"
    assert clock(3599.9996, digits=3, whole=True) == "01:00:00.000"
    assert clock(1.25, digits=3, whole=True) == "00:00:01.250"


def test_one_has_no_plural() -> None:
    assert [counted(number, "thread") for number in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
