import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import UsageError
from lvspec_cli.video.sample import format_time, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("1:30", 90.0),
        ("0:01:30.5", 90.5),
        ("0", 0.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("90:00", 5400.0),
        ("100:00:01", 360001.0),
        (" 7 ", 7.0),
    ],
)
def test_times_as_people_write_them(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1:60",
        "1:2:3:4",
        "1:60:00",
        "1e3",
        "nan",
        "1:",
        ":30",
        "1.5:00",
        ".",
        "١",
        "9" * 400,
        "9" * 5000 + ":00",
    ],
)
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="is not a time"):
        parse_time(text)


@given(st.integers(0, 10**7))
def test_format_is_read_back(tenths):
    assert parse_time(format_time(tenths / 10)) == pytest.approx(tenths / 10)
