"""Rows are found again where their files are named from another folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.work import TRIED, Again, Moved, Work, moved_rows, outstanding
from lvspec_cli.output.jsonl import RowInfo
from lvspec_cli.output.records import FileIdentity
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import DecodeSettings, Mode, VideoRequest
from tests.batch.conftest import Caption, rows
from tests.conftest import demo_plan, write_video

PLAN = demo_plan()


def work(
    name: str, content: str = "one", *, mode: Mode = Mode.LVSPEC, prompts: tuple[str, ...] = ("?",)
) -> Work:
    request = AskRequest(VideoRequest(Path(name)), prompts, DecodeSettings(mode=mode))
    bare = Work(request, FileIdentity(name.encode(), 1, content), tuple(range(1, len(prompts) + 1)), ())
    return Work(request, bare.identity, bare.numbers, bare.keys_as(PLAN, bare.name))


def captioned(*works: Work, status: str = "ok") -> dict[str, RowInfo]:
    return {key: RowInfo(status, None, each.name) for each in works for key in each.keys}


def found(works: list[Work], kept: dict[str, RowInfo]) -> dict[str, str]:
    """What each work's file is called in the row that stands for it."""
    planned = {key for each in works for key in each.keys}
    return {os.fsdecode(m.new): os.fsdecode(m.old) for m in moved_rows(PLAN, works, kept, planned).values()}


@pytest.mark.parametrize(
    ("before", "now"),
    [("a.mp4", "d1/a.mp4"), ("d1/a.mp4", "a.mp4"), ("d1/a.mp4", "d9/a.mp4"), ("x/d1/a.mp4", "d1/e/a.mp4")],
)
def test_a_row_is_found_whatever_the_folders_are_called(before: str, now: str):
    assert found([work(now)], captioned(work(before))) == {now: before}


def test_nothing_else_is_taken_for_the_same():
    now = [work("d1/a.mp4")]
    for other in (
        work("a.mp4", "two"),
        work("b.mp4"),
        work("a.mp4", mode=Mode.AR),
        work("a.mp4", prompts=("!",)),
    ):
        assert found(now, captioned(other)) == {}
    assert found(now, captioned(work("a.mp4"), *now)) == {}, "its own row stands for it"
    assert found([work("d1/a.mp4", "")], captioned(work("a.mp4", ""))) == {}, (
        "of neither is the content known"
    )


def test_of_two_copies_each_has_its_own_row():
    first, second = work("d1/a.mp4"), work("d2/a.mp4")
    assert found([first, second], captioned(work("a.mp4"))) == {"d1/a.mp4": "a.mp4"}
    assert found([first, second], captioned(second)) == {}
    above = work("a.mp4")
    assert found([above, first], captioned(above, work("a.mp4", mode=Mode.AR))) == {}
    assert found([first, second], captioned(work("x/d1/a.mp4"), work("x/d2/a.mp4"))) == {
        "d1/a.mp4": "x/d1/a.mp4",
        "d2/a.mp4": "x/d2/a.mp4",
    }


def test_another_file_may_have_the_old_name_now():
    works = [work("a.mp4", "new"), work("d1/a.mp4", "old")]
    kept = captioned(work("a.mp4", "old"))
    assert found(works, kept) == {"d1/a.mp4": "a.mp4"}
    assert outstanding(PLAN, works, kept, Again.NOTHING).others == 0


def test_each_prompt_is_judged_for_itself():
    asked = work("d1/a.mp4", prompts=("?", "!"))
    left = outstanding(PLAN, [asked], captioned(work("a.mp4", prompts=("!",))), Again.NOTHING)
    assert [(each.name, each.numbers) for each in left.works] == [(b"d1/a.mp4", (1,))]
    assert (left.done, left.count, left.others) == (1, 1, 0)
    assert left.moved == {asked.keys[1]: Moved(work("a.mp4", prompts=("!",)).keys[0], b"a.mp4", b"d1/a.mp4")}


@pytest.mark.parametrize(
    ("status", "again", "is_redone"),
    [
        ("ok", Again.NOTHING, False),
        ("ok", Again.ERRORS, False),
        ("ok", Again.ALL, True),
        ("error", Again.NOTHING, False),
        ("error", Again.ERRORS, True),
    ],
)
def test_what_is_done_again_is_taken_out_under_its_old_name(status: str, again: Again, is_redone: bool):
    old = captioned(work("a.mp4"), status=status)
    left = outstanding(PLAN, [work("d1/a.mp4")], old, again)
    assert left.removed == (old.keys() if is_redone else set())
    assert (left.count, len(left.moved)) == ((1, 0) if is_redone else (0, 1))
    assert (left.done, left.failed) == (not is_redone and status == "ok", not is_redone and status == "error")


NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(
    lambda parts: "/".join(parts) + ".mp4"
)


@given(st.dictionaries(NAMES, st.sampled_from(["one", "two"]), max_size=6), st.sampled_from(["d1", "x/d1"]))
def test_a_folder_that_is_named_from_elsewhere_leaves_nothing_to_do(files: dict[str, str], above: str):
    here = [work(name, content) for name, content in files.items()]
    there = [work(f"{above}/{name}", content) for name, content in files.items()]
    for before, now in ((here, there), (there, here)):
        left = outstanding(PLAN, now, captioned(*before), Again.NOTHING)
        assert (left.count, left.done, left.others) == (0, len(files), 0)
        assert {each.row for each in left.moved.values()} == {key for each in before for key in each.keys}


def test_few_names_are_tried_where_thousands_of_folders_have_the_same_file(monkeypatch: pytest.MonkeyPatch):
    tried: list[bytes] = []
    original = Work.keys_as

    def counted(self: Work, plan: LoadPlan, name: bytes) -> tuple[str, ...]:
        tried.append(name)
        return original(self, plan, name)

    before = captioned(*(work(f"x/{number}/video.mp4", f"{number}") for number in range(300)))
    now = [work(f"{number}/video.mp4", f"{number}") for number in range(300)]
    monkeypatch.setattr(Work, "keys_as", counted)
    assert len(found(now, before)) == 300
    assert len(tried) <= 300 * (TRIED + 2)
    tried.clear()
    assert found(now, captioned(*(work(os.fsdecode(each.name), "else") for each in now))) == {}
    assert not tried[300:], "names of this command's own files are not those of others"


@pytest.fixture
def folders(clips: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with five clips and one; the second's has a name and the content of one of the first."""
    (tmp_path / "d2").mkdir()
    shutil.copy(clips / "a.mp4", tmp_path / "d2" / "a.mp4")
    return clips.rename(tmp_path / "d1"), tmp_path / "d2"


def names(path: Path) -> list[str]:
    return [row["file_name"] for row in rows(path)]


def test_a_folder_and_then_two_captions_the_second_alone(
    caption: Caption, folders: tuple[Path, Path], tmp_path: Path
):
    assert caption("d1", "--out", "out.jsonl").returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    planned = caption("d1", "d2", "--out", "out.jsonl", "--dry-run")
    assert "1 caption to do, 5 done, 0 failed, 0 unreadable" in planned.stderr
    printed = caption("d1", "d2", "--out", "out.jsonl", "--to", "txt")
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr.splitlines()[:2] == [
        "5 done, 0 failed, 1 to do",
        "5 of these rows stand under other names (a.mp4 is d1/a.mp4 here) and are skipped; "
        "--redo does them again",
    ]
    assert (tmp_path / "out.jsonl").read_bytes().startswith(before)
    assert names(tmp_path / "out.jsonl")[5:] == ["d2/a.mp4"]
    beside = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")}
    assert beside == {"d1/a.txt", "d1/b.txt", "d1/c.txt", "d1/d.txt", "d1/more/e.txt", "d2/a.txt"}
    for arguments in (("d1", "d2"), ("d1",), ("d2",), (tmp_path / "d1" / "more",), ("d1/more/e.mp4",)):
        again = caption(*arguments, "--out", "out.jsonl")
        assert ", 0 failed, 0 to do" in again.stderr, arguments
    assert len(rows(tmp_path / "out.jsonl")) == 6


def test_redo_and_retry_find_rows_by_their_old_names(
    caption: Caption, folders: tuple[Path, Path], tmp_path: Path
):
    out = tmp_path / "out.jsonl"
    (tmp_path / "d1" / "b.mp4").write_bytes(b"no video")
    assert caption("d1", "--out", "out.jsonl").returncode == 1
    skipped = caption("d1", "d2", "--out", "out.jsonl")
    assert skipped.returncode == 1, "a failure that was only skipped is still one"
    assert "4 done, 1 failed, 1 to do" in skipped.stderr
    planned = caption("d1", "d2", "--out", "out.jsonl", "--dry-run")
    assert "0 captions to do, 5 done, 1 failed, 1 unreadable" in planned.stderr
    write_video(tmp_path / "d1" / "b.mp4")
    assert "5 done, 0 failed, 1 to do" in caption("d1", "d2", "--out", "out.jsonl").stderr, "it has changed"
    (tmp_path / "d1" / "b.mp4").write_bytes(b"no video")
    assert "5 done, 0 failed, 1 to do" in caption("d1", "d2", "--out", "out.jsonl", "--retry-errors").stderr
    assert names(out).count("b.mp4") == 0, "the old row is taken out"
    assert sorted(row["status"] for row in rows(out) if row["file_name"] == "d1/b.mp4") == ["error", "ok"]
    printed = caption("d1", "d2", "--out", "out.jsonl", "--redo")
    assert "0 done, 0 failed, 6 to do" in printed.stderr
    assert "other names" not in printed.stderr
    assert sorted(set(names(out))) == [
        "d1/a.mp4",
        "d1/b.mp4",
        "d1/c.mkv",
        "d1/d.mp4",
        "d1/more/e.mp4",
        "d2/a.mp4",
    ]
    assert len(rows(out)) == 7, "all but the row of another content are new"


def test_a_dry_run_tells_failures_under_other_names(
    caption: Caption, folders: tuple[Path, Path], tmp_path: Path
):
    short = ("--out", "out.jsonl", "--max-new-tokens", 2)
    assert caption("d2", *short, "--fail-on", "length").returncode == 1
    planned = caption("d1", "d2", *short, "--dry-run")
    told = [(line.split("\t")[0], line.split("\t")[-1]) for line in planned.stdout.splitlines()[1:]]
    assert told[0] == ("d1/a.mp4", "failed before"), "the first of two copies"
    assert {what for _, what in told[1:]} == {"to do"}
    assert "5 captions to do, 0 done, 1 failed" in planned.stderr


def test_names_that_are_not_utf_8_are_found_again(caption: Caption, clips: Path, tmp_path: Path):
    for folder in (b"caf\xe9", b"th\xe9"):
        (tmp_path / os.fsdecode(folder)).mkdir()
        shutil.copy(
            clips / ("a.mp4" if folder == b"th\xe9" else "b.mp4"), os.fsdecode(folder) + "/\udcff.mp4"
        )
    assert caption("caf\udce9", "--out", "out.jsonl").returncode == 0
    printed = caption("caf\udce9", "th\udce9", "--out", "out.jsonl", "--to", "srt")
    assert "1 done, 0 failed, 1 to do" in printed.stderr
    assert "(\\xff.mp4 is caf\\xe9/\\xff.mp4 here)" in printed.stderr
    assert len(list(tmp_path.rglob("*.srt"))) == 2


def test_audits_of_rows_under_other_names_are_summed_up_too(
    caption: Caption, folders: tuple[Path, Path], tmp_path: Path
):
    short = ("--out", "out.jsonl", "--max-new-tokens", 4, "--audit", "100%")
    assert "audit" in caption("d1", *short).stderr
    assert any("6 of 6" in line for line in caption("d1", "d2", *short).stderr.splitlines())
