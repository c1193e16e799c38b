"""The file of records: locked, mended, never torn, never doubled."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from codecs import BOM_UTF8
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import LvspecError, NoInputError, OutputError
from lvspec_cli.output.files import sync_open
from lvspec_cli.output.jsonl import RecordFile, RowInfo, prevails, read_records
from lvspec_cli.output.records import Record, to_line
from tests.output.rows import caption, failure, room_for

APPENDER = """
import sys
from pathlib import Path
from lvspec_cli.output.jsonl import RecordFile
from tests.output.rows import caption
with RecordFile.open(Path(sys.argv[1])) as file:
    print("open", flush=True)
    for number in range(int(sys.argv[2])):
        row = caption(b"%d.mp4" % number, "x" * 3000)
        if row.key not in file.existing:
            file.append(row)
    print("done", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def lines(*records: Record) -> bytes:
    return b"".join(to_line(record).encode() + b"\n" for record in records)


def changed(**facts: Any) -> bytes:
    """The line of a record of which some facts are others."""
    line = json.loads(to_line(caption(b"a.mp4")))
    for part in (line["segment"], line["sampling"]):
        part |= {name: fact for name, fact in facts.items() if name in part}
    return json.dumps(line).encode() + b"\n"


def appender(path: Path, count: int) -> subprocess.Popen[str]:
    """A process that appends what is missing of ``count`` rows and waits for the end of its stdin."""
    command = [sys.executable, "-c", APPENDER, str(path), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    return process


def keys(path: Path) -> list[str]:
    """The keys of all lines, which must be whole."""
    return [json.loads(line)["key"] for line in path.read_bytes().splitlines()]


def left(path: Path) -> list[str]:
    """The names of all that is in the file's folder."""
    return [entry.name for entry in path.parent.iterdir()]


def test_rows_are_appended_and_found_again(path: Path):
    first, second, third = caption(b"a.mp4"), failure(b"b.mp4"), caption(b"caf\xe9.mp4", "Un café.")
    with RecordFile.open(path) as file:
        file.append(first)
        file.append(second)
        assert path.read_bytes() == lines(first, second), "each row is there when append returns"
    with RecordFile.open(path) as file:
        assert file.existing == {
            first.key: RowInfo("ok", None, b"a.mp4"),
            second.key: RowInfo("error", "damaged", b"b.mp4"),
        }
        file.append(third)
        assert file.existing[third.key].name == b"caf\xe9.mp4"
    assert list(read_records(path)) == [first, second, third]
    assert left(path) == [path.name], "no lock is left"


@pytest.mark.parametrize("earlier", [(), (caption(b"a.mp4"),)])
def test_a_truncation_at_every_byte_of_the_last_row_is_mended(path: Path, earlier: tuple[Record, ...]):
    last = caption(b"z.mp4", "名 café\n")
    before, row = lines(*earlier), lines(last)
    for cut in range(len(row) + 1):
        path.write_bytes(before + row[:cut])
        with RecordFile.open(path) as file:
            whole = cut >= len(row) - 1  # only the line feed is missing
            assert (last.key in file.existing) == whole
            assert path.read_bytes() == before + (row if whole else b"")
            if not whole:
                file.append(last)
        assert path.read_bytes() == before + row


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, b'{"schema": "lvspec\0\0\0', b"\0\0\0 text\n", b'{"sch\0\0\n', b"\n\n", b'{"no']
)
def test_what_a_power_cut_leaves_is_cut_off(path: Path, tail: bytes):
    kept = lines(caption(b"a.mp4"), caption(b"b.mp4"))
    path.write_bytes(kept + tail)
    with RecordFile.open(path) as file:
        assert len(file.existing) == 2
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        (b"one\ntwo\n", 1, "not JSON"),
        (b"my notes, without a line feed", 1, "not JSON"),
        (b'{"a": 1}', 1, "no key"),
        (b"[1]\n", 1, "not an object"),
        (b'{"schema": 1', 1, "not JSON"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isom", 1, "not JSON"),
        (lines(caption(b"a.mp4")) + b"note\n" + lines(caption(b"b.mp4")), 2, "not JSON"),
        (
            lines(caption(b"a.mp4")) + lines(caption(b"b.mp4"))[:50] + b"\n" + lines(caption(b"c.mp4")),
            2,
            "not JSON",
        ),
        (lines(caption(b"a.mp4")) + b"\n" + b"\0\0\n" + lines(caption(b"b.mp4")), 3, "not JSON"),
        (lines(caption(b"a.mp4")) + b'{"a": 1}', 2, "no key"),
        (lines(caption(b"a.mp4")) + BOM_UTF8 + lines(caption(b"b.mp4")), 2, "not JSON"),
        (lines(caption(b"a.mp4")).decode().encode("utf-16"), 1, "UTF-16, not UTF-8"),
        (
            lines(caption(b"a.mp4")).replace(b"record.1", b"record.9"),
            1,
            "schema: Input should be 'lvspec.record.1'",
        ),
        (
            lines(caption(b"a.mp4")).replace(b'"start": 0.0', b'"start": "soon"'),
            1,
            "segment.start: Input should be a valid number, unable to parse string as a number",
        ),
        (
            lines(caption(b"caf\xe9.mp4")).replace(b"Y2Fm6S5tcDQ=", b"Y2Fm6S5tcDQ"),
            1,
            "file_name_b64: Value error, Incorrect padding",
        ),
        (changed(start="NaN"), 1, "segment.start is not a time"),
        (lines(caption(b"a.mp4")) + changed(start="Infinity"), 2, "segment.start is not a time"),
        (changed(start=-7195.0), 1, "segment.start is not a time"),
        (changed(end="Infinity"), 1, "segment.end is not a time"),
        (changed(end=1e308).replace(b"1e+308", b"1e309"), 1, "segment.end is not a time"),
        (changed(end=-1), 1, "segment.end is not a time"),
        (changed(duration="-Infinity"), 1, "sampling.duration is not a time"),
        (changed(begins="NaN"), 1, "sampling.begins is not a time"),
        (changed(timestamps=[0.0, "NaN"]), 1, "sampling.timestamps.1 is not a time"),
        (changed(decoded=2**63), 1, "sampling.decoded is not a count"),
        (changed(frames_expected=-1), 1, "sampling.frames_expected is not a count"),
    ],
    # Rows hold the time at which they were made: in their names, processes would name tests differently.
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_a_line_that_is_not_a_record_is_named_and_stays(path: Path, content: bytes, line: int, why: str):
    path.write_bytes(content)
    said = re.escape(f"captions.jsonl, line {line}: not a record of lvspec ({why})")
    with pytest.raises(OutputError, match=f"{said}$") as caught:
        RecordFile.open(path)
    assert caught.value.remedy
    assert path.read_bytes() == content
    with pytest.raises(LvspecError, match=f"{said}$") as caught_reading:
        list(read_records(path))
    assert caught_reading.value.exit_code == 1
    assert left(path) == [path.name]


@pytest.mark.parametrize("tail", [b"", b'{"schema": "lvsp', b"\n"])
def test_a_file_that_begins_with_a_byte_order_mark_is_read_and_gone_on_with(path: Path, tail: bytes):
    first, second = caption(b"a.mp4"), caption(b"b.mp4")
    path.write_bytes(BOM_UTF8 + lines(first) + tail)
    assert list(read_records(path)) == [first]
    with RecordFile.open(path) as file:
        file.append(second)
    assert list(read_records(path)) == [first, second]
    with RecordFile.open(path) as file:
        file.remove([first.key])
    assert list(read_records(path)) == [second]


@pytest.mark.parametrize("torn", [b"", b'{"schema": "lvsp'])
def test_a_byte_order_mark_without_a_row_is_an_empty_file(path: Path, torn: bytes):
    path.write_bytes(BOM_UTF8 + torn)
    row = caption(b"a.mp4")
    with RecordFile.open(path) as file:
        file.append(row)
    assert list(read_records(path)) == [row]


def with_more(record: Record) -> bytes:
    """The record's line with fields that this version does not know, in it and in all of its parts."""

    def more(value: Any) -> Any:
        return (
            {name: more(part) for name, part in value.items()} | {"rating": 5}
            if isinstance(value, dict)
            else value
        )

    return json.dumps(more(json.loads(to_line(record)))).encode() + b"\n"


def test_further_fields_are_read_past_and_stay_where_rows_are_rewritten(path: Path):
    rows = [caption(b"a.mp4"), failure(b"b.mp4"), caption(b"c.mp4")]
    path.write_bytes(b"".join(map(with_more, rows)))
    first, second, _ = read_records(path)
    assert (first.text, first.segment, first.stats) == (rows[0].text, rows[0].segment, None)
    assert second.error == rows[1].error
    with RecordFile.open(path) as file:
        file.remove([rows[1].key])
    assert path.read_bytes() == with_more(rows[0]) + with_more(rows[2])


def test_rows_of_unusual_times_are_records(path: Path):
    """As a jobs file can ask for, and as pictures have that begin before time 0."""
    path.write_bytes(changed(start=1e15, end=1e308, begins=-0.5, timestamps=[-0.25, 1.0], duration=0.0))
    (row,) = read_records(path)
    assert row.segment.end == 1e308


def test_a_torn_end_of_endless_brackets_is_passed_over(path: Path):
    path.write_bytes(lines(caption(b"a.mp4")) + b"[" * 200_000)
    assert len(list(read_records(path))) == 1


def test_a_torn_end_is_passed_over_in_reading(path: Path):
    first, torn = caption(b"a.mp4"), lines(caption(b"b.mp4"))[:-9]
    path.write_bytes(lines(first) + torn)
    warnings: list[str] = []
    assert list(read_records(path, warnings.append)) == [first]
    assert warnings == [f"{path}, line 2: cut off in its middle, left out"]
    assert path.read_bytes().endswith(torn), "reading changes nothing"
    with pytest.raises(NoInputError, match=r"none\.jsonl: no such file"):
        list(read_records(path.with_name("none.jsonl")))


def test_of_two_rows_with_one_key_ok_beats_error_and_later_beats_earlier(path: Path):
    ok, wrong = caption(b"a.mp4"), failure(b"a.mp4")
    assert ok.key == wrong.key
    path.write_bytes(lines(ok, wrong))
    with RecordFile.open(path) as file:
        assert file.existing[ok.key].status == "ok"
    assert [prevails(new, old) for new, old in (("ok", "ok"), ("error", "error"), ("ok", "error"))] == [
        True
    ] * 3
    assert not prevails("error", "ok")


@given(st.lists(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_removing_takes_out_these_rows_and_leaves_the_others_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], gone: set[int]
):
    path = tmp_path_factory.mktemp("removing") / "captions.jsonl"
    rows = [caption(b"%d.mp4" % number) for number in numbers]
    chosen = {caption(b"%d.mp4" % number).key for number in gone}
    path.write_bytes(lines(*rows))
    path.chmod(0o640)
    more = caption(b"more.mp4")
    with RecordFile.open(path) as file:
        file.remove(chosen)
        assert not file.existing.keys() & chosen
        file.append(more)
    assert path.read_bytes() == lines(*(row for row in rows if row.key not in chosen), more)
    assert path.stat().st_mode & 0o777 == 0o640
    assert left(path) == [path.name]


def test_a_rewrite_goes_through_a_link(path: Path):
    row = caption(b"a.mp4")
    real = path.with_name("real.jsonl")
    real.write_bytes(lines(row))
    path.symlink_to(real.name)
    with RecordFile.open(path) as file:
        with pytest.raises(OutputError, match="is being written by process"):
            RecordFile.open(real)
        file.remove([row.key])
    assert path.is_symlink()
    assert real.read_bytes() == b""


def test_a_full_disk_leaves_whole_rows_and_writing_goes_on_when_there_is_room(path: Path):
    rows = [caption(b"%d.mp4" % number, "x" * 500) for number in range(4)]
    with RecordFile.open(path) as file:
        file.append(rows[0])
        file.append(rows[1])
        with room_for(len(lines(*rows[:3])) - 20), pytest.raises(OutputError) as caught:
            file.append(rows[2])
        assert caught.value.cause == f"{path}: File too large"
        assert "make room" in caught.value.remedy
        assert rows[2].key not in file.existing
        with room_for(100), pytest.raises(OutputError):
            file.remove([rows[0].key])
        assert path.read_bytes() == lines(*rows[:2])
        file.append(rows[3])
    assert path.read_bytes() == lines(rows[0], rows[1], rows[3])
    assert left(path) == [path.name]


def gone(path: Path, fate: str) -> None:
    """What may happen to a file while it is written."""
    match fate:
        case "deleted":
            path.unlink()
        case "its folder is deleted":
            shutil.rmtree(path.parent)
        case "its folder is a file now":
            shutil.rmtree(path.parent)
            path.parent.touch()
        case "replaced":
            path.with_name("new").touch()
            path.with_name("new").replace(path)
        case "moved":
            path.rename(path.with_name("aside.jsonl"))
        case _:
            path.with_name("second.jsonl").hardlink_to(path)
            path.unlink()


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("deleted", "was deleted or replaced while it was written, and what it held is lost"),
        ("its folder is deleted", "was deleted or replaced"),
        ("its folder is a file now", "was deleted or replaced"),
        ("replaced", "was deleted or replaced"),
        ("moved", r"was moved while it was written: what it held is in .*aside\.jsonl$"),
        ("a second name is left", "was moved while it was written, and what it held with it$"),
    ],
)
def test_a_file_that_goes_while_it_is_written_is_missed_at_the_next_row(tmp_path: Path, fate: str, said: str):
    path = tmp_path / "folder" / "captions.jsonl"
    path.parent.mkdir()
    first, second = caption(b"a.mp4"), caption(b"b.mp4")
    with RecordFile.open(path) as file:
        file.append(first)
        file.check()
        gone(path, fate)
        for touch in (file.check, lambda: file.append(second), lambda: file.remove([first.key])):
            with pytest.raises(OutputError, match=said) as caught:
                touch()
            assert "what is missing is done again" in caught.value.remedy
    assert second.key not in file.existing
    if fate == "moved":
        assert list(read_records(path.with_name("aside.jsonl"))) == [first], "nothing is added to it"


def test_a_row_that_is_torn_after_a_rewrite_leaves_no_hole(path: Path):
    rows = [caption(b"%d.mp4" % number, "x" * 500) for number in range(4)]
    with RecordFile.open(path) as file:
        file.append(rows[0])
        file.append(rows[1])
        file.remove([rows[0].key])
        with room_for(len(lines(*rows[1:3])) - 20), pytest.raises(OutputError):
            file.append(rows[2])
        file.append(rows[3])
    assert path.read_bytes() == lines(rows[1], rows[3])


def test_a_second_process_is_refused_and_told_who_holds_the_file(path: Path):
    process = appender(path, 1)
    with pytest.raises(OutputError) as caught:
        RecordFile.open(path)
    assert (
        f"is being written by process {process.pid} on {os.uname().nodename} since 20" in caught.value.cause
    )
    process.communicate()
    RecordFile.open(path).close()
    assert len(keys(path)) == 1


def test_a_lock_that_a_killed_process_left_is_not_in_the_way(path: Path):
    process = appender(path, 2)
    assert process.stdout
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert path.with_name("captions.jsonl.lock").exists()
    with RecordFile.open(path) as file:
        assert len(file.existing) == 2
    assert left(path) == [path.name]


def test_whoever_waited_at_a_removed_lock_file_does_not_share_the_file(path: Path):
    """The old lock file is opened, its holder ends and removes it, a third process locks a new one."""
    with RecordFile.open(path):
        old = os.open(path.with_name("captions.jsonl.lock"), os.O_RDWR)
    fcntl.flock(old, fcntl.LOCK_EX)  # free, but of no file that is there
    with RecordFile.open(path), pytest.raises(OutputError, match=f"process {os.getpid()}"):
        RecordFile.open(path)
    os.close(old)


def test_a_file_is_held_under_all_of_its_names(path: Path):
    row = caption(b"a.mp4")
    path.write_bytes(lines(row))
    second = path.with_name("second.jsonl")
    second.hardlink_to(path)
    said = r"second\.jsonl is being written by another process, maybe under another name"
    with RecordFile.open(path), pytest.raises(OutputError, match=said):
        RecordFile.open(second)
    RecordFile.open(second).close()
    assert sorted(left(path)) == [path.name, second.name]


def test_a_file_is_held_even_where_somebody_removes_its_lock_file(path: Path):
    row, other = caption(b"a.mp4"), caption(b"b.mp4")
    path.write_bytes(lines(row, other))
    beside = path.with_name("captions.jsonl.lock")
    with RecordFile.open(path) as file:
        for touch in (lambda: None, lambda: file.remove([row.key]), lambda: file.append(row)):
            touch()
            beside.unlink(missing_ok=True)
            with pytest.raises(OutputError, match="is being written by another process"):
                RecordFile.open(path)
    with RecordFile.open(path) as file:
        assert len(file.existing) == 2
    assert path.read_bytes() == lines(other, row)


OTHER_USER = """
import os, sys
from pathlib import Path
from lvspec_cli.output.jsonl import RecordFile
from tests.output.rows import caption
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with RecordFile.open(Path(sys.argv[1])) as file:
    file.append(caption(b"b.mp4"))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run as another user")
@pytest.mark.parametrize("mode", [0o666, 0o644, 0o600])
def test_a_lock_file_of_another_user_that_nobody_holds_is_no_obstacle(mode: int):
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        path = Path(name) / "captions.jsonl"
        path.parent.chmod(0o1777)  # sticky: what is another's cannot be removed
        path.write_bytes(lines(caption(b"a.mp4")))
        path.chmod(0o666)
        beside = path.with_name("captions.jsonl.lock")
        beside.touch()
        beside.chmod(mode)
        code = [sys.executable, "-c", OTHER_USER, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(code, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(keys(path)) == 2
        assert beside.exists()
        held = os.open(path if mode == 0o600 else beside, os.O_RDWR)  # who cannot read it meets the other
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(code, env=environment, capture_output=True, text=True)
        os.close(held)
        assert "OutputError" in done.stderr
        assert "is being written by" in done.stderr


DRAFTER = """
import sys
from pathlib import Path
from lvspec_cli.output.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"half a file")
    stream.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


def drafter(path: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of replacing the file until its stdin ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", DRAFTER, str(path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    return process


def test_the_next_run_removes_the_draft_of_a_killed_one_but_none_that_is_being_written(path: Path):
    other = path.with_name("other.jsonl")
    foreign = path.with_name(".lvspec-notes.tmp")
    foreign.touch()
    killed, living = drafter(other), drafter(other)
    killed.kill()
    killed.communicate()
    assert len(left(path)) == 3
    with RecordFile.open(path):
        (draft,) = set(left(path)) - {path.name, foreign.name, "captions.jsonl.lock"}
    living.communicate()
    assert living.returncode == 0
    assert other.read_bytes() == b"half a file"
    assert sorted(left(path)) == sorted([path.name, foreign.name, other.name]), draft


def test_a_kill_within_a_rewrite_leaves_nothing_after_the_next_run(path: Path):
    rows_ = [caption(b"%d.mp4" % number, "x" * 3000) for number in range(300)]
    path.write_bytes(lines(*rows_))
    code = (
        "import sys; from pathlib import Path; from lvspec_cli.output.jsonl import RecordFile\n"
        "file = RecordFile.open(Path(sys.argv[1])); print(flush=True)\n"
        "while True: file.remove([next(iter(file.existing))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout
        process.stdout.readline()
        while not any(path.parent.glob(".lvspec-*.tmp")):
            assert process.poll() is None
        process.kill()
        process.communicate()
    with RecordFile.open(path) as file:
        assert rows_[-1].key in file.existing
    assert left(path) == [path.name]


@pytest.mark.thorough
def test_kill_at_random_moments_loses_and_doubles_nothing(path: Path):
    moments = random.Random(3)
    for _ in range(8):
        process = appender(path, 400)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = appender(path, 400)
    process.communicate()
    assert process.returncode == 0
    assert sorted(keys(path)) == sorted(caption(b"%d.mp4" % number).key for number in range(400))
    assert left(path) == [path.name]


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "no folder", "loop", "lock is a link"])
def test_what_cannot_be_a_file_of_records_is_refused(path: Path, kind: str):
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/full")
        case "no folder":
            path = path.parent / "none" / "captions.jsonl"
        case "loop":
            path.symlink_to(path.name)
        case _:
            path.with_name("captions.jsonl.lock").symlink_to("elsewhere")
    with pytest.raises(OutputError) as caught:
        RecordFile.open(path)
    assert caught.value.remedy
    assert (kind == "no folder") == ("there is no such folder" in caught.value.cause)
    assert not Path("/dev/full.lock").exists()


def test_what_cannot_be_synced_is_no_failure():
    ends = os.pipe()  # as files of some network disks
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(ends[1])
    sync_open(ends[1])
    for end in ends:
        os.close(end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_open(ends[1])


@given(st.text(st.characters(exclude_categories=())))
def test_a_message_with_any_characters_gives_a_row_that_reads_back(message: str):
    row = failure(b"a.mp4")
    assert row.error
    row = row.model_copy(update={"error": row.error.model_copy(update={"message": message})})
    back = Record.model_validate_json(to_line(row).encode())
    assert back.error
    assert back.error.message == re.sub("[\ud800-\udfff]", readable, message)


def readable(match: re.Match[str]) -> str:
    """A byte that is not UTF-8 as ``\\xff``; other lone surrogates stand for nothing."""
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"
