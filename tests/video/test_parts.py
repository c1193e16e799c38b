"""Where joined files begin, and a part of a file as a file of its own."""

import io
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.video.source import Part, Slice, parts_of
from tests.video.clips import make_clip

KINDS: dict[str, dict[str, Any]] = {
    "a.mkv": {},
    "a.webm": {"codec": "libvpx"},
    "live.webm": {"codec": "libvpx", "container_options": {"live": "1"}},
    "a.flv": {},
    "a.avi": {"codec": "mpeg4"},
    "a.mp4": {},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "faststart.mov": {"container_options": {"movflags": "faststart"}},
}


def parts(path):
    with io.FileIO(path) as file:
        found = parts_of(file)
        assert file.tell() == 0
        return found


@pytest.mark.parametrize("name", KINDS)
def test_each_joined_file_is_a_part(tmp_path, name):
    whole = make_clip(tmp_path / name, **KINDS[name]).read_bytes()
    assert parts(tmp_path / name) == (Part(0, len(whole)),)
    (tmp_path / name).write_bytes(3 * whole)
    assert parts(tmp_path / name) == tuple(Part(n * len(whole), (n + 1) * len(whole)) for n in range(3))


def test_a_stream_without_headers_is_one_part(tmp_path):
    data = 2 * make_clip(tmp_path / "a.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(data)
    assert parts(tmp_path / "a.ts") == (Part(0, len(data)),)


@pytest.mark.parametrize("name", KINDS)
@given(place=st.floats(0, 1), noise=st.binary(max_size=40))
def test_headers_that_lie_end_the_search(tmp_path_factory, name, place, noise):
    folder = tmp_path_factory.getbasetemp() / "lies"
    folder.mkdir(exist_ok=True)
    path = folder / name
    if not path.exists():
        make_clip(path, count=2, **KINDS[name])
    data = bytearray(path.read_bytes())
    begin = int(place * len(data))
    data[begin : begin + len(noise)] = noise
    (folder / f"hurt-{name}").write_bytes(data)
    found = parts(folder / f"hurt-{name}")
    assert (found[0].begin, found[-1].end) == (0, len(data))
    assert all(one.end == other.begin for one, other in pairwise(found))


@given(
    st.binary(min_size=1, max_size=60),
    st.data(),
    st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-40, 80), st.integers(-1, 80)), max_size=8),
)
def test_a_slice_reads_like_a_file_of_its_own(tmp_path_factory, content, data, steps):
    begin = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(begin, len(content)))
    path = tmp_path_factory.getbasetemp() / "slice"
    path.write_bytes(content)
    own = io.BytesIO(content[begin:end])
    with io.FileIO(path) as file:
        part = Slice(file, Part(begin, end))
        for whence, offset, size in steps:
            base = {0: 0, 1: own.tell(), 2: end - begin}[whence]
            if base + offset >= 0:
                assert part.seek(offset, whence) == own.seek(offset, whence)
            assert part.read(size) == own.read(size)
            assert part.tell() == own.tell()
