"""Inputs from real folders: what is taken, in which order, once, and under which name."""

import os
import socket
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvspec_cli.batch.inputs import collect
from lvspec_cli.batch.names import Input, Location, is_in, names_of
from lvspec_cli.errors import NoInputError, UsageError


def make(folder: Path, *names: str | bytes) -> Path:
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def names(*sources: Path, **options) -> list[bytes]:
    collected = collect(sources, **options)
    assert collected.problems == ()
    for item in collected.inputs:
        assert item.path.is_file()
    return [item.name for item in collected.inputs]


def problems(*sources: Path) -> list[tuple[bytes, str]]:
    return [(problem.name, problem.error.kind) for problem in collect(sources).problems]


@pytest.fixture
def clips(tmp_path):
    return make(
        tmp_path / "clips", "b.mp4", "a/z.MKV", "a/b/c.webm", "a.mp4", "a.txt", ".hidden.mp4", ".git/d.mp4"
    )


def test_a_folder_gives_its_videos_by_the_bytes_of_their_paths(clips):
    assert names(clips) == [b"a.mp4", b"a/b/c.webm", b"a/z.MKV", b"b.mp4"]
    assert names(clips, recursive=False) == [b"a.mp4", b"b.mp4"]


def test_a_folder_by_any_way_of_writing_it(clips, monkeypatch):
    monkeypatch.chdir(clips / "a")
    for way in (Path(".."), Path("../."), Path("b/../.."), clips / "a/..", Path("../../clips")):
        assert names(way) == names(clips)
    assert names(Path()) == [b"b/c.webm", b"z.MKV"]
    assert collect([Path()]).inputs[0].path == Path("b/c.webm")


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.txt", [b"a.txt"]),
        ("*", [b"a.mp4", b"a.txt", b"a/b/c.webm", b"a/z.MKV", b"b.mp4"]),
        ("[ab].*", [b"a.mp4", b"a.txt", b"b.mp4"]),
        ("a/*", [b"a/z.MKV"]),
        ("a/**", [b"a/b/c.webm", b"a/z.MKV"]),
        ("**/*.webm", [b"a/b/c.webm"]),
        ("*.{MKV,webm}", [b"a/b/c.webm", b"a/z.MKV"]),
    ],
)
def test_a_pattern_replaces_the_suffixes(clips, glob, expected):
    assert names(clips, glob=glob) == expected


def test_a_named_file_is_taken_whatever_its_suffix(clips):
    assert names(clips / "a.txt") == [b"a.txt"]
    assert names(clips / ".git/d.mp4") == [b"d.mp4"]


def test_several_sources_are_named_from_the_deepest_folder_that_holds_them(clips, tmp_path):
    other = make(tmp_path / "other", "a.mp4")
    assert names(clips / "a", other) == [b"clips/a/b/c.webm", b"clips/a/z.MKV", b"other/a.mp4"]
    assert names(clips / "b.mp4", clips / "a.mp4") == [b"b.mp4", b"a.mp4"]
    assert names(clips / "b.mp4", clips / "a/z.MKV") == [b"b.mp4", b"a/z.MKV"]
    assert names(clips / "a", clips / "b.mp4") == [b"a/b/c.webm", b"a/z.MKV", b"b.mp4"]


def test_a_file_met_twice_is_one_input(clips, tmp_path):
    (tmp_path / "link.mp4").symlink_to("clips/b.mp4")
    assert names(clips / "b.mp4", clips, tmp_path / "link.mp4", clips / "a/../b.mp4")[:2] == [
        b"b.mp4",
        b"a.mp4",
    ]
    assert len(names(clips, clips, clips / "a")) == len(names(clips))


def test_links_are_followed_and_their_loops_end(clips, tmp_path):
    outside = make(tmp_path / "outside", "deep/o.mp4", "p.mp4", "q")
    links = {
        "0_same_file.mp4": "b.mp4",
        "1_same_folder": "a",
        "2_here": ".",
        "a/3_up": "..",
        "4_root": "/",
        "5_itself": "5_itself",
        "6_out": "../outside",
        "7_out_again": "../outside/deep",
        "8_other_suffix.mp4": "../outside/q",
        "9_text.txt": "../outside/p.mp4",
    }
    for name, target in links.items():
        (clips / name).symlink_to(target)
    (outside / "back").symlink_to(clips)
    assert names(clips) == [
        b"6_out/deep/o.mp4",
        b"6_out/p.mp4",
        b"8_other_suffix.mp4",
        b"a.mp4",
        b"a/b/c.webm",
        b"a/z.MKV",
        b"b.mp4",
    ]


def test_a_link_that_leads_nowhere_is_a_problem(clips):
    (clips / "gone.mp4").symlink_to("nothing.mp4")
    (clips / "loop.mp4").symlink_to("loop.mp4")
    (clips / "gone.txt").symlink_to("nothing.txt")
    assert problems(clips) == [(b"gone.mp4", "no_input"), (b"loop.mp4", "video")]


def test_what_is_no_regular_file_is_left_out_of_a_folder_and_a_problem_when_named(clips, monkeypatch):
    os.mkfifo(clips / "pipe.mp4")
    monkeypatch.chdir(clips)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.mp4")
        (clips / "device.mp4").symlink_to("/dev/zero")
        assert problems(clips) == []
        assert len(names(clips)) == 4
        named = [
            clips / "pipe.mp4",
            clips / "socket.mp4",
            clips / "device.mp4",
            clips / "missing.mp4",
            clips / "b.mp4",
        ]
        assert problems(*named) == [
            (b"pipe.mp4", "not_a_video"),
            (b"socket.mp4", "not_a_video"),
            (b"device.mp4", "not_a_video"),
            (b"missing.mp4", "no_input"),
        ]


@contextmanager
def an_ordinary_user():
    """Root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_folders_that_cannot_be_read_are_problems_and_the_others_are_taken():
    with tempfile.TemporaryDirectory() as name:
        folder = make(Path(name), "open/a.mp4", "shut/b.mp4")
        folder.chmod(0o755)
        (folder / "shut").chmod(0)
        with an_ordinary_user():
            collected = collect([folder])
            alone = collect([folder / "shut"])
            within = collect([folder / "shut/b.mp4"])
        (folder / "shut").chmod(0o755)
    assert [item.name for item in collected.inputs] == [b"open/a.mp4"]
    (problem,) = collected.problems
    assert (problem.name, problem.error.kind, problem.path) == (b"shut", "video", folder / "shut")
    assert problem.message == f"the folder cannot be read (Permission denied): {folder / 'shut'}"
    assert [(problem.name, problem.path) for problem in alone.problems] == [(b"shut", folder / "shut")]
    assert [problem.message for problem in within.problems] == [
        f"no permission to read: {folder / 'shut/b.mp4'}"
    ]


def test_names_of_any_bytes_come_through(tmp_path):
    raw = [b"\xff\xfe.mp4", b"line\nbreak.mp4", b"caf\xc3\xa9/\x80.mp4", b"-rf.mp4", b"\x1b[31m.mp4"]
    make(tmp_path, *raw)
    collected = collect([tmp_path])
    assert [item.name for item in collected.inputs] == sorted(raw)
    assert all(item.path.read_bytes() == b"x" for item in collected.inputs)
    assert names(tmp_path, glob=os.fsdecode(b"\xff*")) == [b"\xff\xfe.mp4"]


def test_nothing_at_all_says_what_was_looked_for(tmp_path):
    make(tmp_path / "texts", "a.txt", "b/c.mp4")
    cases: list[tuple[list[Path], dict[str, Any], str]] = [
        ([], {}, "no video was named"),
        ([tmp_path / "x.mp4"], {}, f"no such file: {tmp_path / 'x.mp4'}"),
        ([tmp_path / "x\n.mp4", tmp_path / "y.mp4"], {}, f"no such file: {tmp_path}/x\\n.mp4, nor 1 more"),
        ([tmp_path / "texts"], {"recursive": False}, f"no video and no picture in {tmp_path / 'texts'}"),
        (
            [tmp_path / "texts"],
            {"glob": "*.mov"},
            f"no file that matches --glob *.mov in {tmp_path / 'texts'}",
        ),
    ]
    for sources, options, cause in cases:
        with pytest.raises(NoInputError) as caught:
            collect(sources, **options)
        assert caught.value.cause == cause
        assert caught.value.remedy
        assert caught.value.exit_code == 4


def test_jobs_and_folders_share_one_way_of_naming(clips, tmp_path):
    jobs = tmp_path / "jobs.csv"
    jobs.write_text(
        "path,start,prompt\nclips/b.mp4,,\nclips/b.mp4,1,\nclips/b.mp4,1,why?\nclips/b.mp4,1,why?\nx.mp4,,\n"
    )
    collected = collect([clips, jobs])
    assert collected.problems == ()
    assert [(item.name, item.start, item.prompts) for item in collected.inputs] == [
        (b"clips/a.mp4", None, ()),
        (b"clips/a/b/c.webm", None, ()),
        (b"clips/a/z.MKV", None, ()),
        (b"clips/b.mp4", None, ()),
        (b"clips/b.mp4", 1.0, ()),
        (b"clips/b.mp4", 1.0, ("why?",)),
        (b"x.mp4", None, ()),  # missing: its record will say so
    ]
    jobs.write_text("path,speed\nclips/b.mp4,2\n")
    with pytest.raises(UsageError, match="unknown column or key 'speed'"):
        collect([clips, jobs])


def test_ten_thousand_files_take_little_time(tmp_path):
    for number in range(100):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        for clip in range(100):
            (folder / f"{clip:02}.mp4").touch()
    began = time.process_time()
    collected = collect([tmp_path])
    assert time.process_time() - began < 3
    assert [item.name for item in collected.inputs] == [
        b"%02d/%02d.mp4" % (n // 100, n % 100) for n in range(10_000)
    ]


folder_names = st.sampled_from(["a", "b", "c", "a/b", "b/a", "c/c/c"])
targets = st.sampled_from(
    [".", "..", "../..", "/nowhere", "a", "b", "../a", "../c/c", "a/f.mp4", "../b/f.mp4", "l.mp4"]
)
links = st.dictionaries(st.tuples(folder_names, st.sampled_from(["l.mp4", "m"])), targets, max_size=6)


@settings(max_examples=60)
@given(st.sets(folder_names, min_size=1), links)
def test_any_tree_is_walked_to_its_end_with_each_file_once(folders, links):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "tree"
        own = {f"{folder}/f.mp4" for folder in folders}
        make(root, *own)
        for (folder, link), target in links.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / link).symlink_to(target)
        collected = collect([root])
        taken = [item.name for item in collected.inputs]
        assert taken == sorted(taken)
        assert len({os.path.realpath(item.path) for item in collected.inputs}) == len(taken)
        assert own <= set(map(os.fsdecode, taken))  # under their own names, whatever links lead to them
        assert all(item.path.is_file() for item in collected.inputs)
        assert collected == collect([root]) or collected.problems  # errors have no equality


parts = st.sampled_from([b"a", b"b", b"\xff", b"a.mp4"])
paths = st.lists(parts, min_size=1, max_size=4).map(lambda each: b"/" + b"/".join(each))


@given(st.lists(st.tuples(paths, st.integers(1, 4)), min_size=1, unique_by=lambda place: place[0]))
def test_different_files_have_different_names_that_lead_back_to_them(drawn):
    places = [
        Location(path, b"/".join(path.split(b"/")[: min(depth, path.count(b"/"))]) or b"/")
        for path, depth in drawn
    ]
    found = names_of(places)
    assert len(set(found)) == len(places)
    base = os.path.commonpath([place.root for place in places])
    assert [base.rstrip(b"/") + b"/" + each for each in found] == [place.path for place in places]
    assert all(is_in(place.path, base) for place in places)


def test_an_input_by_itself():
    assert Input(Path("a.mp4"), b"a.mp4") == Input(Path("a.mp4"), b"a.mp4", None, None, (), None)
