"""Records in other formats, each read back by what others read it with."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.host import install_command
from lvspec_cli.output.exports.captions import gather
from lvspec_cli.output.exports.export import LEDGER, check_places, export_records, report_lines
from lvspec_cli.output.exports.formats import apart, blocks
from lvspec_cli.output.exports.trainers import Labelled, shards
from lvspec_cli.output.exports.types import ExportFormat, ExportPlaces, ExportReport, Skipped
from lvspec_cli.output.records import Record, Requested, Sampling
from tests.output.rows import caption, failure, part, room_for

TXT, SRT, VTT, CSV, PARQUET = (
    ExportFormat.TXT,
    ExportFormat.SRT,
    ExportFormat.VTT,
    ExportFormat.CSV,
    ExportFormat.PARQUET,
)
Export = Callable[..., ExportReport]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with files that are named as videos."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for name in (b"a.mp4", b"a.webm", b"b.mp4", b"deep/caf\xe9.mp4"):
        (folder / os.fsdecode(name)).touch()
    return folder


def files(folder: Path) -> dict[bytes, str]:
    """What lies in and below a folder, but for the empty videos and the ledger."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return {os.fsencode(path.relative_to(folder)): path.read_text() for path in found if path.name != LEDGER}


def sampled(*timestamps: float, **times: float) -> Sampling:
    asked = Requested(frames=8, fps=None, max_pixels=None, decoder="pyav")
    return Sampling(requested=asked, decoded=len(timestamps), timestamps=timestamps).model_copy(update=times)


def test_text_files_lie_beside_their_clips(videos: Path):
    rows = [
        caption(b"a.mp4", "One."),
        caption(b"a.webm", "Two."),
        failure(b"b.mp4"),
        caption(b"deep/caf\xe9.mp4", "名 café"),
    ]
    report = export_records(rows, TXT, ExportPlaces(videos), prefix="ohwx, ", suffix=" end")
    assert files(videos) == {
        b"a.mp4.txt": "ohwx, One. end\n",
        b"a.webm.txt": "ohwx, Two. end\n",
        b"deep/caf\xe9.txt": "ohwx, 名 café end\n",
    }
    assert (len(report.written), report.captions, report.failed) == (3, 3, 1)
    again = export_records(rows, TXT, ExportPlaces(videos), prefix="ohwx, ", suffix=" end")
    assert (len(again.written), len(again.unchanged)) == (0, 3)


def test_text_files_in_a_folder_of_their_own_need_no_clips(tmp_path: Path):
    rows = [caption(b"deep/er/a.mp4"), caption(b"b.mp4", "B.")]
    export_records(rows, TXT, ExportPlaces(out_dir=tmp_path / "new"))
    assert files(tmp_path / "new") == {b"deep/er/a.txt": "A.\n", b"b.txt": "B.\n"}


def test_a_failed_clip_keeps_its_place_so_that_names_do_not_change_when_it_is_done(videos: Path):
    segments = [part(0, 5), part(5, 9), part(9, None)]
    rows = [caption(b"b.mp4", str(index), segment=segment) for index, segment in enumerate(segments)]
    broken = [*rows[:1], failure(b"b.mp4", segment=segments[1]), rows[2], failure(b"a.webm")]
    export_records([*broken, caption(b"a.mp4")], TXT, ExportPlaces(videos))
    assert files(videos) == {b"b.001.txt": "0\n", b"b.003.txt": "2\n", b"a.mp4.txt": "A.\n"}
    export_records([*broken, rows[1]], TXT, ExportPlaces(videos))
    assert files(videos)[b"b.002.txt"] == "1\n"


def test_several_prompts_are_numbered_as_they_were_given_whatever_order_the_rows_have(videos: Path):
    rows = [
        caption(b"b.mp4", text, prompt=text, id=f"b.mp4#{number}")
        for number, text in ((10, "tenth"), (2, "second"), (1, "first"))
    ]
    export_records(rows, TXT, ExportPlaces(videos))
    assert files(videos) == {b"b.1.txt": "first\n", b"b.2.txt": "second\n", b"b.3.txt": "tenth\n"}


def test_a_later_caption_of_the_same_clip_and_prompt_counts_in_all_but_tables(videos: Path, tmp_path: Path):
    rows = [caption(b"b.mp4", "Old."), caption(b"b.mp4", "New.").model_copy(update={"key": "other settings"})]
    report = export_records(rows, TXT, ExportPlaces(videos))
    assert files(videos) == {b"b.txt": "New.\n"}
    assert report.superseded == 1
    export_records(rows, CSV, ExportPlaces(out=tmp_path / "t.csv"))
    assert [row["text"] for row in csv.DictReader((tmp_path / "t.csv").open())] == ["Old.", "New."]


def test_what_somebody_else_wrote_or_changed_is_left_alone(videos: Path):
    where = ExportPlaces(videos)
    rows = [caption(b"a.mp4", "One."), caption(b"b.mp4", "Two."), caption(b"deep/caf\xe9.mp4", "Three.")]
    (videos / "b.txt").write_text("by hand\n")
    report = export_records(rows, TXT, where)
    assert report.foreign == (videos / "b.txt",)
    (videos / "a.txt").write_text("mended by hand\n")
    changed = [row.model_copy(update={"text": "New."}) for row in rows]
    report = export_records(changed, TXT, where)
    assert set(report.foreign) == {videos / "a.txt", videos / "b.txt"}
    assert [os.fsencode(path.name) for path in report.written] == [b"caf\xe9.txt"], "its own, and replaced"
    assert files(videos) == {
        b"a.txt": "mended by hand\n",
        b"b.txt": "by hand\n",
        b"deep/caf\xe9.txt": "New.\n",
    }
    assert not export_records(changed, TXT, where, force=True).foreign
    assert set(files(videos).values()) == {"New.\n"}
    assert not export_records(rows, TXT, where).foreign, "what was forced is lvspec's own from then on"


def test_what_only_an_earlier_export_of_the_same_videos_had_goes(videos: Path, tmp_path: Path):
    def cut(count: int) -> list[Record]:
        return [caption(b"b.mp4", f"{n}", segment=part(n, n + 1)) for n in range(count)]

    for where in (ExportPlaces(videos), ExportPlaces(videos, out_dir=tmp_path / "out")):
        folder = where.out_dir or videos
        export_records([*cut(5), caption(b"a.mp4", "A.")], TXT, where)
        export_records([caption(b"b.mp4")], SRT, where)
        (folder / "b.004.txt").write_text("mended by hand")
        (videos / "b.005.webm").touch()  # a video of its own, whose caption that may be
        again = export_records(cut(2), TXT, where)
        assert again.removed == (folder / "b.003.txt",)
        kept = {"a.txt", "b.001.txt", "b.002.txt", "b.004.txt", "b.005.txt", "b.srt"}
        assert {os.fsdecode(name) for name in files(folder)} == kept
        whole = export_records([caption(b"b.mp4", "B."), caption(b"a.webm", "Other.")], TXT, where)
        assert whole.removed == (folder / "b.001.txt", folder / "b.002.txt")
        both = export_records([caption(b"a.webm", "Other."), caption(b"a.mp4", "A.")], TXT, where)
        assert both.removed == (folder / "a.txt",)
        for path in (videos / "b.005.webm", folder / "b.004.txt"):
            path.unlink()


@pytest.mark.parametrize("ledger", ["", "[]", '{"sha256": 3}', None])
def test_a_lost_ledger_overwrites_nothing(videos: Path, ledger: str | None):
    export_records([caption(b"b.mp4", "One.")], TXT, ExportPlaces(videos))
    if ledger is None:
        (videos / LEDGER).unlink()
    else:
        (videos / LEDGER).write_text(ledger)
    assert export_records([caption(b"b.mp4", "Two.")], TXT, ExportPlaces(videos)).foreign
    assert export_records([caption(b"b.mp4", "One.")], TXT, ExportPlaces(videos)).unchanged


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_what_is_no_regular_file_is_foreign(videos: Path, tmp_path: Path, kind: str):
    target = tmp_path / "elsewhere.txt"
    if kind == "folder":
        (videos / "b.txt").mkdir()
    else:
        (videos / "b.txt").symlink_to(target)
    if kind == "link":
        target.write_text("precious")
    assert export_records([caption(b"b.mp4")], TXT, ExportPlaces(videos)).foreign == (videos / "b.txt",)
    assert not target.exists() or target.read_text() == "precious"


def test_a_video_that_is_named_like_a_sidecar_is_never_written_to(videos: Path):
    (videos / "a.txt").write_text("a video in disguise")
    rows = [caption(b"a.mp4", "One."), caption(b"a.txt", "Two.")]
    export_records(rows, TXT, ExportPlaces(videos), force=True)
    assert files(videos) == {
        b"a.txt": "a video in disguise", b"a.mp4.txt": "One.\n", b"a.txt.txt": "Two.\n"
    }  # fmt: skip


def test_names_that_lead_elsewhere_and_clips_that_are_gone_are_skipped(videos: Path):
    names = [b"../out.mp4", b"/tmp/out.mp4", b"gone.mp4", b"x" * 300, b"b.mp4"]
    report = export_records(map(caption, names), TXT, ExportPlaces(videos))
    assert report.skipped == (
        Skipped(b"../out.mp4", "its name leads out of the folder"),
        Skipped(b"/tmp/out.mp4", "its name leads out of the folder"),
        Skipped(b"gone.mp4", f"there is no such file in {videos}"),
        Skipped(b"x" * 300, "File name too long"),
    )
    assert [path.name for path in report.written] == ["b.txt"]
    assert not (videos.parent / "out.txt").exists()


def test_one_sidecar_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path):
    (tmp_path / "deep").write_text("a file where a folder has to be")
    long = b"x" * 251 + b".mp4"
    rows = [caption(b"deep/a.mp4"), caption(long), caption(b"b.mp4")]
    report = export_records(rows, TXT, ExportPlaces(out_dir=tmp_path))
    assert [skipped.name for skipped in report.skipped] == [b"deep/a.mp4"]
    assert len(report.written) == 2
    report = export_records([caption(b"x" * 255), caption(b"c.mp4")], TXT, ExportPlaces(out_dir=tmp_path))
    assert "File name too long" in report.skipped[0].reason
    assert [path.name for path in report.written] == ["c.txt"]


def test_a_link_out_of_the_folder_is_not_followed(videos: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.mp4").touch()
    (videos / "out").symlink_to(elsewhere)
    (videos / "in").symlink_to("deep")
    (videos / "deep" / "d.mp4").touch()
    rows = [caption(b"out/c.mp4"), caption(b"out/new/e.mp4"), caption(b"in/d.mp4", "D."), caption(b"b.mp4")]
    for where in (ExportPlaces(videos), ExportPlaces(out_dir=videos)):
        report = export_records(rows, TXT, where, force=True)
        out = next(skipped for skipped in report.skipped if skipped.name == b"out/c.mp4")
        assert out.reason == f"{videos / 'out'} is a link out of {videos}"
    assert [path.name for path in elsewhere.iterdir()] == ["c.mp4"]
    assert (videos / "deep" / "d.txt").read_text() == "D.\n"
    link = tmp_path / "link"
    link.symlink_to(videos)
    assert not export_records(rows[3:], TXT, ExportPlaces(link)).skipped, "the folder itself may be one"


def test_drafts_of_killed_exports_go(videos: Path):
    for folder in (videos, videos / "deep"):
        (folder / ".lvspec-0123456789ab.tmp").touch()
    export_records([caption(b"b.mp4"), caption(b"deep/caf\xe9.mp4")], TXT, ExportPlaces(videos))
    assert not list(videos.rglob(".lvspec-*.tmp"))


def subtitles(path: Path) -> list[tuple[float, float, str]]:
    """Start, end and text of each cue, as FFmpeg reads them."""
    with av.open(str(path)) as container:
        return [
            (
                float(packet.pts * packet.time_base),
                float((packet.pts + packet.duration) * packet.time_base),
                bytes(packet).decode(),
            )
            for packet in container.demux()
            if packet.pts is not None and packet.time_base is not None and packet.duration
        ]


@pytest.mark.parametrize("to", [SRT, VTT])
def test_subtitles_are_read_by_ffmpeg(videos: Path, to: ExportFormat):
    rows = [
        caption(b"b.mp4", "Last --> of all.", segment=part(3661.5, None), sampling=sampled(3661.5, 3670.25)),
        caption(b"b.mp4", "First line.\n\n \nSecond line.", segment=part(0, 2.0004)),
        caption(b"b.mp4", " ", segment=part(2, 3)),
        failure(b"b.mp4", segment=part(3, 4)),
        caption(b"a.mp4", "Whole.", sampling=sampled(0.0, 7.5)),
    ]
    report = export_records(rows, to, ExportPlaces(videos))
    assert sorted(path.name for path in report.written) == [f"a.{to}", f"b.{to}"]
    arrow = "Last -> of all." if to is SRT else "Last --&gt; of all."
    assert subtitles(videos / f"b.{to}") == [
        (0.0, 2.0, "First line.\nSecond line."),
        (3661.5, 3670.25, arrow),
    ]
    assert subtitles(videos / f"a.{to}") == [(0.0, 7.5, "Whole.")]


FORGED = "Real.\n7\n00:00:05,000 --> 00:59:00,000\nFORGED\n8\n00:00:06,000 ---> 00:00:07,000\nToo."


@pytest.mark.parametrize("to", [SRT, VTT])
def test_no_text_becomes_a_cue_of_its_own(videos: Path, to: ExportFormat):
    rows = [
        caption(b"b.mp4", FORGED, segment=part(0, 2)),
        caption(b"b.mp4", "Next.", segment=part(2, 4)),
    ]
    export_records(rows, to, ExportPlaces(videos))
    *parts, following = subtitles(videos / f"b.{to}")
    assert (parts[0][0], parts[-1][1]) == (0.0, 2.0)
    lines = [line for _, _, text in parts for line in text.splitlines()]
    assert (len(lines), lines[3]) == (7, "FORGED")
    assert following == (2.0, 4.0, "Next.")


def test_a_long_caption_becomes_several_cues_of_two_short_lines(videos: Path):
    text = "A cat sits on a wall, " * 9 + "and then it leaves."
    rows = [
        caption(b"b.mp4", text, segment=part(0, 12)),
        caption(b"b.mp4", "The end.", segment=part(10, 20)),  # as with --overlap
    ]
    export_records(rows, SRT, ExportPlaces(videos))
    cues = subtitles(videos / "b.srt")
    assert len(cues) == 4
    assert " ".join(part for _, _, part in cues[:-1]).replace("\n", " ") == text
    assert all(len(part.splitlines()) == 2 for _, _, part in cues[:-1])
    assert (cues[0][0], cues[-2][1], cues[-1]) == (0.0, 10.0, (10.0, 20.0, "The end."))


times = st.floats(0, 1000)


@given(st.lists(st.tuples(times, times).map(lambda two: (min(two), max(two))), max_size=9).map(sorted))
def test_stretches_never_overlap_and_none_is_lost(stretches: list[tuple[float, float]]):
    cut = apart(stretches)
    assert len(cut) == len(stretches)
    assert all(end > start for start, end in cut)
    assert all(end <= start for (_, end), (start, _) in pairwise(cut))


@given(st.text(alphabet="ab -\n", max_size=400))
def test_blocks_keep_every_word_and_are_small(text: str):
    found = blocks(text)
    assert "".join(found).replace("\n", "").replace(" ", "") == "".join(text.split())
    assert all(1 <= len(block.split("\n")) <= 2 for block in found)
    assert all(0 < len(line) <= 42 for block in found for line in block.split("\n"))


def test_times_and_numbers_beyond_all_clocks_stop_no_export(videos: Path):
    rows = [
        caption(b"a.mp4", "A.", segment=part(1e300, 1e308), id="a.mp4#" + "7" * 5000),
        caption(b"b.mp4", "B.", sampling=sampled(-1.0, begins=-1.0, duration=-7195.0)),
    ]
    export_records(rows, SRT, ExportPlaces(videos))
    assert "99:59:59,999 --> 99:59:59,999\nA." in (videos / "a.srt").read_text()
    assert "00:00:00,000 --> 00:00:01,000\nB." in (videos / "b.srt").read_text()


@pytest.mark.parametrize("to", [SRT, VTT])
def test_a_cue_spans_what_was_asked_about_and_can_be_seen(videos: Path, to: ExportFormat):
    rows = [
        caption(b"a.mp4", "All.", sampling=sampled(4.96, begins=0.0, duration=10.0)),
        caption(b"b.mp4", "From 2 on.", segment=part(0, 4), sampling=sampled(3.0, begins=2.0, duration=9.5)),
        caption(
            b"b.mp4", "To the end.", segment=part(8, 12), sampling=sampled(9.0, begins=2.0, duration=9.5)
        ),
    ]
    export_records(rows, to, ExportPlaces(videos))
    assert subtitles(videos / f"a.{to}") == [(0.0, 10.0, "All.")]
    assert subtitles(videos / f"b.{to}") == [(2.0, 4.0, "From 2 on."), (8.0, 9.5, "To the end.")]


@pytest.mark.parametrize("to", [SRT, VTT])
def test_a_cue_of_a_stretch_before_the_picture_does_not_run_backwards(videos: Path, to: ExportFormat):
    rows = [caption(b"a.mp4", "A.", segment=part(0, 1), sampling=sampled(2.0, begins=2.0, duration=9.5))]
    export_records(rows, to, ExportPlaces(videos))
    assert subtitles(videos / f"a.{to}") == [(2.0, 3.0, "A.")]


def test_subtitles_to_the_letter(videos: Path):
    rows = [
        caption(b"b.mp4", "A <b> & {c}.", segment=part(0, 1.5)),
        caption(b"b.mp4", "D.", segment=part(1.5, 36000)),
    ]
    for to in (SRT, VTT):
        export_records(rows, to, ExportPlaces(videos))
    assert (videos / "b.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:01,500\nA <b> & {c}.\n\n2\n00:00:01,500 --> 10:00:00,000\nD.\n"
    )
    assert (videos / "b.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nA &lt;b&gt; &amp; {c}.\n\n"
        "00:00:01.500 --> 10:00:00.000\nD.\n"
    )


def test_several_prompts_give_a_track_each(videos: Path):
    rows = [
        caption(b"b.mp4", f"{prompt} {start}", prompt=prompt, segment=part(start, start + 1))
        for start in (0, 1)
        for prompt in ("p", "q")
    ]
    export_records(rows, SRT, ExportPlaces(videos))
    assert [text for _, _, text in subtitles(videos / "b.1.srt")] == ["p 0", "p 1"]
    assert [text for _, _, text in subtitles(videos / "b.2.srt")] == ["q 0", "q 1"]


ROWS = [
    caption(b"a.mp4", 'Says "hi",\nthen leaves.', sampling=sampled(0.0, 1.5)),
    failure(b"b.mp4"),
    caption(b"caf\xe9.mp4", "名", segment=part(1, 2.5)),
]
TABLE: list[dict[str, Any]] = [
    {"file_name": "a.mp4", "file_name_b64": None, "start": 0.0, "end": None,
     "text": 'Says "hi",\nthen leaves.', "frames": 2, "last_frame": 1.5, "lossless": False,
     "output_tokens": None},
    {"file_name": "caf\\xe9.mp4", "file_name_b64": "Y2Fm6S5tcDQ=", "start": 1.0, "end": 2.5, "text": "名",
     "frames": None, "last_frame": None, "lossless": False, "output_tokens": None},
]  # fmt: skip


def test_csv(tmp_path: Path):
    path = tmp_path / "t.csv"
    export_records(ROWS, CSV, ExportPlaces(out=path))
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [{name: row[name] for name in TABLE[0]} for row in rows] == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in TABLE
    ]
    assert {row["key"] for row in rows} == {ROWS[0].key, ROWS[2].key}


def test_no_text_of_a_csv_is_a_formula(tmp_path: Path):
    texts = ["=1+1", "+1", "-1 a bullet", "@SUM(A1)", "\tx", "\rx", "plain = text", ""]
    rows = [
        caption(b"=%d.mp4" % number, text, prompt=text or "p", system=text, pair="=p")
        for number, text in enumerate(texts)
    ]
    rows.append(caption(b"\xf8.mp4", sampling=sampled(-0.5)))  # its name in base64 begins with +
    path = tmp_path / "t.csv"
    export_records(rows, CSV, ExportPlaces(out=path))
    with path.open(newline="") as stream:
        *found, coded = csv.DictReader(stream)
    marked = [f"'{text}" for text in texts[:6]]
    assert [row["text"] for row in found] == [*marked, *texts[6:]]
    assert [row["prompt"] for row in found] == [*marked, "plain = text", "p"]
    assert [row["system"] for row in found] == [*marked, "plain = text", ""]
    assert {row["id"][:2] for row in found} == {row["file_name"][:2] for row in found} == {"'="}
    assert {row["pair"] for row in found} == {"'=p"}
    assert coded["file_name_b64"] == "+C5tcDQ="
    assert coded["last_frame"] == "-0.5", "a number stays one"


def test_parquet(tmp_path: Path):
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    export_records(ROWS, PARQUET, ExportPlaces(out=path))
    table = parquet.read_table(path)
    assert table.select(list(TABLE[0])).to_pylist() == TABLE
    types = dict(zip(table.column_names, map(str, table.schema.types), strict=True))
    assert (types["end"], types["frames"], types["lossless"]) == ("double", "int64", "bool")
    export_records([failure(b"a.mp4")], PARQUET, ExportPlaces(out=tmp_path / "none.parquet"))
    empty = parquet.read_table(tmp_path / "none.parquet")
    assert (empty.num_rows, empty.schema) == (0, table.schema), "the types do not depend on the rows"


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; sys.modules['pyarrow'] = None\n"
        "from lvspec_cli.output.exports.export import export_records, ExportFormat, ExportPlaces\n"
        "from lvspec_cli.errors import OutputError\n"
        "try:\n    export_records([], ExportFormat.PARQUET, ExportPlaces(out=Path(sys.argv[1])))\n"
        "except OutputError as error:\n    print(error.cause, '|', error.remedy)\n"
    )
    path = tmp_path / "t.parquet"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert f"pyarrow, which is not installed | {install_command('pyarrow')}" in done.stdout
    assert not path.exists()


def load(folder: Path, home: Path) -> list[dict[str, Any]]:
    """A VideoFolder as ``datasets`` loads it: rows with the path of each video in place of its frames."""
    import datasets

    loaded = datasets.load_dataset("videofolder", data_dir=str(folder), split="train", cache_dir=str(home))
    loaded = loaded.cast_column("video", datasets.Video(decode=False))
    return [{**row, "video": os.path.relpath(row["video"]["path"], folder)} for row in loaded]


def test_datasets_loads_a_videofolder(tmp_path: Path, video_file: Path):
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/é.mp4", "left out.mp4"):
        shutil.copy(video_file, folder / name)
    rows = [
        caption(b"a.mp4", "One.\nTwo."),
        caption("deep/é.mp4".encode(), "名."),
        failure(b"left out.mp4"),
    ]
    report = export_records(rows, ExportFormat.VIDEOFOLDER, ExportPlaces(folder), prefix="ohwx ")
    assert report.written == (folder / "metadata.jsonl",)
    assert load(folder, tmp_path / "cache") == [
        {"video": "a.mp4", "text": "ohwx One.\nTwo."},
        {"video": "deep/é.mp4", "text": "ohwx 名."},
    ]


def test_datasets_loads_stretches_and_prompts_from_above_the_videos(tmp_path: Path, video_file: Path):
    (tmp_path / "set" / "clips").mkdir(parents=True)
    shutil.copy(video_file, tmp_path / "set" / "clips" / "a.mp4")
    rows = [
        caption(b"a.mp4", f"{prompt}{start}", prompt=prompt, segment=part(start, end))
        for start, end in ((0, 1), (1, None))
        for prompt in ("p", "q")
    ]
    where = ExportPlaces(tmp_path / "set" / "clips", out_dir=tmp_path / "set")
    export_records(rows, ExportFormat.VIDEOFOLDER, where)
    common = {"video": "clips/a.mp4"}
    assert load(tmp_path / "set", tmp_path / "cache") == [
        {**common, "text": "p0", "start": 0.0, "end": 1.0, "prompt": "p"},
        {**common, "text": "q0", "start": 0.0, "end": 1.0, "prompt": "q"},
        {**common, "text": "p1", "start": 1.0, "end": None, "prompt": "p"},
        {**common, "text": "q1", "start": 1.0, "end": None, "prompt": "q"},
    ]


def test_a_videofolder_cannot_hold_some_names(videos: Path):
    (videos / "back\\slash.mp4").touch()
    rows = [caption(b"deep/caf\xe9.mp4"), caption(b"back\\slash.mp4"), caption(b"b.mp4")]
    report = export_records(rows, ExportFormat.VIDEOFOLDER, ExportPlaces(videos))
    assert [skipped.name for skipped in report.skipped] == [b"deep/caf\xe9.mp4", b"back\\slash.mp4"]
    assert json.loads((videos / "metadata.jsonl").read_text()) == {"file_name": "b.mp4", "text": "A."}


def test_musubi_takes_one_caption_of_each_whole_video(videos: Path, tmp_path: Path):
    rows = [
        caption(b"b.mp4", "second", prompt="q", id="b.mp4#2"),
        caption(b"b.mp4", "first", prompt="p", id="b.mp4#1"),
        caption(b"a.mp4", "part", segment=part(1, 2)),
        caption(b"deep/caf\xe9.mp4", "名"),
    ]
    path = tmp_path / "m.jsonl"
    report = export_records(rows, ExportFormat.MUSUBI, ExportPlaces(videos, out=path))
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert found == [
        {"video_path": str(videos / "b.mp4"), "caption": "first"},
        {"video_path": str(videos / "deep/caf\udce9.mp4"), "caption": "名"},
    ]
    assert all(Path(row["video_path"]).is_file() for row in found)
    assert [skipped.name for skipped in report.skipped] == [b"b.mp4", b"a.mp4"]


@pytest.fixture
def labelled(videos: Path) -> list[Record]:
    """Captions of whole videos and of parts, in two folders, one of a picture, some that no trainer takes."""
    return [
        caption(b"b.mp4", "second,\nline", prompt="q", id="b.mp4#2"),
        caption(b"b.mp4", "first,\nline", prompt="p", id="b.mp4#1"),
        caption(b"a.mp4", "part", segment=part(1, 2)),
        caption(b"deep/caf\xe9.mp4", "its name is not UTF-8"),
        caption("deep/é.png".encode(), "名"),
    ]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# By each program's documentation: names, columns and lists of the files that it reads.
TRAINERS: dict[ExportFormat, tuple[dict[str, Callable[[Path], Any]], dict[str, Any]]] = {
    ExportFormat.DIFFUSION_PIPE: (
        {"captions.json": read_json, "deep/captions.json": read_json},
        {
            "captions.json": {"b.mp4": ["first,\nline", "second,\nline"]},
            "deep/captions.json": {"é.png": ["名"]},
        },
    ),
    ExportFormat.FINETRAINERS: (
        {"videos.txt": lines, "prompts.txt": lines},
        {"videos.txt": ["b.mp4", "deep/é.png"], "prompts.txt": ["first, line", "名"]},
    ),
    ExportFormat.LTX: (
        {"dataset.json": read_json},
        {
            "dataset.json": [
                {"caption": "first,\nline", "media_path": "b.mp4"},
                {"caption": "名", "media_path": "deep/é.png"},
            ]
        },
    ),
    ExportFormat.DIFFSYNTH: (
        {"metadata.csv": read_table},
        {
            "metadata.csv": [
                {"video": "b.mp4", "prompt": "first,\nline"},
                {"video": "deep/é.png", "prompt": "名"},
            ]
        },
    ),
    ExportFormat.VIDEOX_FUN: (
        {"metadata.json": read_json},
        {
            "metadata.json": [
                {"file_path": "b.mp4", "text": "first,\nline", "type": "video"},
                {"file_path": "deep/é.png", "text": "名", "type": "image"},
            ]
        },
    ),
}


@pytest.mark.parametrize("to", TRAINERS)
def test_a_trainer_finds_its_files_in_the_folder_of_the_videos(
    to: ExportFormat, videos: Path, labelled: list[Record]
):
    (videos / "deep/é.png").touch()
    readers, wanted = TRAINERS[to]
    report = export_records(labelled, to, ExportPlaces(videos))
    assert {path.relative_to(videos).as_posix() for path in report.written} == wanted.keys()
    assert {name: read(videos / name) for name, read in readers.items()} == wanted
    several = to is ExportFormat.DIFFUSION_PIPE
    assert report.captions == 2 + several
    left = [b"b.mp4", b"a.mp4", b"deep/caf\xe9.mp4"][several:]
    assert sorted(skipped.name for skipped in report.skipped) == sorted(left)
    assert export_records(labelled, to, ExportPlaces(videos)).written == ()


def test_datasets_loads_shards_that_hold_the_videos(
    tmp_path: Path, video_file: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    folder, out = tmp_path / "clips", tmp_path / "shards"
    (folder / "deep").mkdir(parents=True)
    names = ("a.b.MP4", "deep/c.mp4", "deep/d.mp4")
    for name in names:
        shutil.copy(video_file, folder / name)
    rows = [caption(name.encode(), f"{name} {p}", prompt=p) for name in names for p in ("p", "q")]
    where = ExportPlaces(folder, out_dir=out)
    assert export_records(rows, ExportFormat.WEBDATASET, where).written == (out / "captions-000000.tar",)
    assert export_records(rows, ExportFormat.WEBDATASET, where).unchanged == (out / "captions-000000.tar",)
    monkeypatch.setattr("lvspec_cli.output.exports.export.shards", partial(shards, most=1))
    assert len(export_records(rows, ExportFormat.WEBDATASET, where).written) == 3
    monkeypatch.undo()
    fewer = export_records(rows, ExportFormat.WEBDATASET, where)
    assert fewer.removed == (out / "captions-000001.tar", out / "captions-000002.tar")
    assert report_lines(fewer, ExportFormat.WEBDATASET, 10)[1:] == [
        f"removed, as only an earlier export had it: {out}/captions-000001.tar and 1 more"
    ]
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(out / "*.tar"), split="train", streaming=True
    ).decode(False)
    for name, row in zip(names, loaded, strict=True):
        assert row["mp4"]["bytes"] == video_file.read_bytes()
        assert row["txt"] == f"{name} p"
        assert row["json"]["file_name"] == name
        assert row["json"]["captions"] == [{"prompt": p, "text": f"{name} {p}"} for p in ("p", "q")]


def test_a_shard_is_not_larger_than_it_may_be(tmp_path: Path):
    for name, size in (("a.mp4", 6), ("b.mp4", 4), ("c.mp4", 1), ("d.mp4", 99)):
        (tmp_path / name).write_bytes(bytes(size))
    videos = [Labelled(f"{name}.mp4", (("p", "t"),)) for name in "abcd"]
    found = dict(shards(videos, tmp_path, most=10))
    members = {}
    for name, fill in found.items():
        stream = io.BytesIO()
        fill(stream)
        stream.seek(0)
        with tarfile.open(fileobj=stream) as archive:
            members[name] = [member for member in archive.getnames() if member.endswith(".mp4")]
    assert members == {
        "captions-000000.tar": ["00000000.mp4", "00000001.mp4"],
        "captions-000001.tar": ["00000002.mp4"],
        "captions-000002.tar": ["00000003.mp4"],
    }


FOLDER = Path("folder")


@pytest.mark.parametrize(
    ("to", "where", "cause"),
    [
        (TXT, ExportPlaces(), "txt files need a folder"),
        (SRT, ExportPlaces(FOLDER, out=Path("x.srt")), "--out names one file, and srt has one a video"),
        (CSV, ExportPlaces(FOLDER), "csv needs a place"),
        (CSV, ExportPlaces(out=Path("t.csv"), out_dir=FOLDER), "--out and --out-dir are both given"),
        (ExportFormat.MUSUBI, ExportPlaces(out=Path("m.jsonl")), "musubi needs the videos"),
        (ExportFormat.VIDEOFOLDER, ExportPlaces(out_dir=FOLDER), "videofolder needs the videos"),
        (ExportFormat.LTX, ExportPlaces(), "ltx needs the videos"),
        (
            ExportFormat.LTX,
            ExportPlaces(FOLDER, out=Path("x.json")),
            "--out names one file, and ltx",
        ),
        (ExportFormat.LTX, ExportPlaces(FOLDER, out_dir=Path("other")), "from the folder of the videos"),
        (ExportFormat.WEBDATASET, ExportPlaces(FOLDER), "webdataset needs a folder for its shards"),
        (ExportFormat.VIDEOFOLDER, ExportPlaces(FOLDER, out_dir=Path("other")), "metadata.jsonl cannot lie"),
        (
            ExportFormat.VIDEOFOLDER,
            ExportPlaces(FOLDER, out_dir=FOLDER / "deep"),
            "metadata.jsonl cannot lie",
        ),
    ],
)
def test_places_that_do_not_fit_the_format(to: ExportFormat, where: ExportPlaces, cause: str):
    with pytest.raises(UsageError, match=cause) as caught:
        check_places(to, where)
    assert caught.value.remedy


@pytest.mark.parametrize("to", list(ExportFormat))
def test_every_format_can_be_written_where_it_belongs(to: ExportFormat, videos: Path, tmp_path: Path):
    out_dir = tmp_path / "shards" if to is ExportFormat.WEBDATASET else None
    where = ExportPlaces(videos, out_dir, to.beside(tmp_path / "captions.jsonl"))
    report = export_records([caption(b"b.mp4")], to, where)
    *_, path = report.written
    names = {TXT: "videos/b.txt", SRT: "videos/b.srt", VTT: "videos/b.vtt"}
    more = {
        ExportFormat.VIDEOFOLDER: "videos/metadata.jsonl",
        ExportFormat.MUSUBI: "captions.musubi.jsonl",
        ExportFormat.WEBDATASET: "shards/captions-000000.tar",
        **{trainer: f"videos/{list(files)[-1]}" for trainer, (_, files) in TRAINERS.items()},
    }
    more[ExportFormat.DIFFUSION_PIPE] = "videos/captions.json"
    assert path == tmp_path / {**names, **more}.get(to, f"captions.{to}")


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file") as caught:
        export_records([caption(b"b.mp4")], TXT, ExportPlaces(out_dir=tmp_path / "file" / "deep"))
    assert caught.value.remedy


def test_a_full_disk_stops_an_export_with_whole_files(tmp_path: Path):
    rows = [caption(b"a.mp4", "short"), caption(b"b.mp4", "long " * 2000), caption(b"c.mp4", "short")]
    where = ExportPlaces(out_dir=tmp_path)
    with room_for(5000), pytest.raises(OutputError, match=r"b\.txt: File too large") as caught:
        export_records(rows, TXT, where)
    assert "make room" in caught.value.remedy
    assert files(tmp_path) == {b"a.txt": "short\n"}
    assert len(export_records(rows, TXT, where).written) == 2


def test_a_row_says_when_and_how_it_was_made():
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    (row,) = gather([caption(b"a.mp4", created=made)]).rows
    assert (row.created, row.finish_reason, row.mode) == ("2026-01-02T03:04:05+00:00", "stop", "lvspec")
