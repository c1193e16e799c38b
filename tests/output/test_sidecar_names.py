"""Names of sidecars: no two alike, and none that is a video's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.output.exports.captions import Spot, is_inside, numbers, sidecar_names, tracks


def spot(start: float, end: float | None, number: int = 1) -> Spot:
    return Spot(start, end, number, None)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({b"a.mp4": [""]}, [b"a.txt"]),
        ({b"d/a.b.mp4": [""], b"a.mp4": [""]}, [b"d/a.b.txt", b"a.txt"]),
        ({b"a.mp4": [""], b"a.webm": [""], b"b.mp4": [""]}, [b"a.mp4.txt", b"a.webm.txt", b"b.txt"]),
        ({b"a.mp4": [""], b"A.webm": [""]}, [b"a.mp4.txt", b"A.webm.txt"]),
        ({b"a.mp4": [".001", ".002"]}, [b"a.001.txt", b"a.002.txt"]),
        ({b"a.mp4": [".1"], b"a.1.mp4": [""]}, [b"a.mp4.1.txt", b"a.1.mp4.txt"]),
        ({b"caf\xe9.mp4": [""]}, [b"caf\xe9.txt"]),
        ({b".mp4": [""], b"none": [""]}, [b".mp4.txt", b"none.txt"]),
        ({b"..mp4": [""], b"d/..1": [""], b"d.e/f": [""]}, [b"..mp4.txt", b"d/..1.txt", b"d.e/f.txt"]),
        ({b"a.txt": [""]}, [b"a.txt.txt"]),
        ({b"a.mp4": [""], b"a.txt": [""]}, [b"a.mp4.txt", b"a.txt.txt"]),
    ],
)
def test_names_of_sidecars(wanted: Mapping[bytes, Sequence[str]], names: list[bytes]):
    given = sidecar_names(wanted, "txt")
    assert [name for of_video in given.values() for name in of_video.values()] == names


NAMES = st.text("aA.1/", min_size=1, max_size=6).map(lambda stem: stem.encode()).filter(is_inside)
SUFFIXED = st.builds(bytes.__add__, NAMES, st.sampled_from([b".mp4", b".webm", b".txt", b".1", b""]))


@given(st.dictionaries(SUFFIXED, st.lists(st.sampled_from(["", ".1", ".2", ".001"]), min_size=1), max_size=8))
def test_no_two_sidecars_share_a_name_and_each_is_beside_its_video(wanted: dict[bytes, list[str]]):
    names = sidecar_names(wanted, "txt")
    flat = [name.lower() for of_video in names.values() for name in of_video.values()]
    # Videos that differ in case only share their names on such a disk already.
    videos = {video.lower() for video in wanted}
    if len(videos) == len(wanted):
        assert len({*flat, *videos}) == len(flat) + len(videos)
    for video, of_video in names.items():
        assert of_video.keys() == set(wanted[video])
        assert {name.rpartition(b"/")[0] for name in of_video.values()} == {video.rpartition(b"/")[0]}


def test_numbers_tell_stretches_and_prompts_apart():
    assert numbers([spot(0, None)]) == [""]
    assert numbers([spot(0, 5), spot(5, 9)]) == [".001", ".002"]
    assert numbers([spot(0, None), spot(0, None, 2)]) == [".1", ".2"]
    assert numbers([spot(0, 5), spot(0, 5, 2), spot(5, 9)]) == [".001.1", ".001.2", ".002.1"]
    assert tracks([spot(0, 5), spot(0, 5, 2), spot(5, 9)]) == [".1", ".2", ".1"]
    assert tracks([spot(0, 5), spot(5, 9)]) == ["", ""]


@pytest.mark.parametrize("name", [b"a.mp4", b"d/e/a.mp4", b"..a", b"a..", b"caf\xe9"])
def test_names_that_stay_in_the_folder(name: bytes):
    assert is_inside(name)


@pytest.mark.parametrize("name", [b"", b"/a", b"../a", b"d/../../a", b"d/..", b"./a", b"d//a", b"a\0b"])
def test_names_that_lead_out_of_the_folder(name: bytes):
    assert not is_inside(name)
