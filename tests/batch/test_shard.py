import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.work import Shard, parse_shard
from lvspec_cli.errors import UsageError


def test_shares_as_people_write_them():
    assert parse_shard("3/16") == Shard(3, 16)
    assert parse_shard(" 1/1 ") == Shard(1, 1)


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "1/2/3", "a/b", "1.0/2", "١/٢", "1 / 2"]
)
def test_what_is_no_share(text):
    with pytest.raises(UsageError, match="is not a share"):
        parse_shard(text)


@given(st.binary(), st.integers(1, 64))
def test_every_name_is_in_one_share(name, count):
    assert [Shard(index, count).holds(name) for index in range(1, count + 1)].count(True) == 1


def test_shares_stay_the_same_between_versions_and_machines():
    names = [b"a.mp4", b"sub/b.mp4", b"\xff.mp4", b""]
    held = [[Shard(index, 16).holds(name) for index in range(1, 17)].index(True) for name in names]
    assert held == [0x0, 0xD, 0xC, 0x4]  # the last of the digest's first 16 digits


def test_shares_are_of_about_one_size():
    sizes = [
        sum(Shard(index, 16).holds(b"clip_%05d.mp4" % n) for n in range(16_000)) for index in range(1, 17)
    ]
    assert all(850 < size < 1150 for size in sizes)
