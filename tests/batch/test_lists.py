"""Lists of paths, and jobs in CSV and JSONL."""

import csv
import json
import os
from codecs import BOM_UTF16_BE
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.batch.lists import is_jobs_file, read_jobs, read_paths
from lvspec_cli.batch.names import Input
from lvspec_cli.errors import NoInputError, UsageError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        (b"a.mp4\nb/c.mp4\n", ["a.mp4", "b/c.mp4"]),
        (b"\xef\xbb\xbfa.mp4\r\n\r\n  \nb c .mp4\r\n", ["a.mp4", "b c .mp4"]),
        (b"last line without an end", ["last line without an end"]),
        (b"caf\xe9.mp4\n", ["caf\udce9.mp4"]),
        (b"\xff\xfe.mp4\n\xfe\xff.mp4\n", ["\udcff\udcfe.mp4", "\udcfe\udcff.mp4"]),
        (b"a.mp4\r\rb.mp4\r", ["a.mp4", "b.mp4"]),
        (b"a\rb.mp4\n", ["a\rb.mp4"]),
        ("été 名.mp4\r\nb.mp4\r\n".encode("utf-16"), ["été 名.mp4", "b.mp4"]),
        (BOM_UTF16_BE + "été 名.mp4\r\nb.mp4\r\n".encode("utf-16-be"), ["été 名.mp4", "b.mp4"]),
    ],
)
def test_paths_on_lines(raw, expected):
    assert read_paths(raw, "list.txt") == tuple(map(Path, expected))


@given(st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name)))
def test_paths_ended_by_nul_are_read_as_they_are(names):
    paths = tuple(Path(os.fsdecode(n)) for n in names)
    assert read_paths(b"".join(name + b"\0" for name in names), "stdin", nul=True) == paths
    assert read_paths(b"\0".join(names), "stdin", nul=True) == paths


@pytest.mark.parametrize("raw", [b"\na.mp4\0b.mp4\0", "\na.mp4\n".encode("utf-16-le")])
def test_nul_among_lines_is_said(raw):
    with pytest.raises(
        UsageError, match=r"^stdin, line \d: a NUL: UTF-16 without a byte order mark"
    ) as caught:
        read_paths(raw, "stdin")
    assert caught.value.remedy == "add -0 if the paths are separated by NULs, else save it as UTF-8 text"


def test_which_files_hold_jobs():
    names = ("a.csv", "b.JSONL", "c.json", "d.mp4", "csv", ".csv", "e.tsv")
    assert [name for name in names if is_jobs_file(Path(name))] == ["a.csv", "b.JSONL", "e.tsv"]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_jobs_in_csv(tmp_path):
    file = write(
        tmp_path,
        "jobs.csv",
        b"\xef\xbb\xbfpath, start,end,prompt,id\r\n"
        b"a.mp4,1:30,0:02:00.5,,\r\n"
        b"\r\n"
        b'"b, c.mp4",,,"Two\r\nlines, ""quoted""",7\r\n'
        b"sub/caf\xe9.mp4\r\n"
        b" ,,, ,\r\n"
        b" \r\n",
    )
    assert read_jobs(file) == (
        Input(tmp_path / "a.mp4", b"a.mp4", 90.0, 120.5),
        Input(tmp_path / "b, c.mp4", b"b, c.mp4", None, None, ('Two\r\nlines, "quoted"',), "7"),
        Input(tmp_path / "sub/caf\udce9.mp4", b"sub/caf\xe9.mp4"),
    )


def test_jobs_of_a_spreadsheet_that_parts_cells_with_semicolons(tmp_path):
    file = write(
        tmp_path, "jobs.csv", "path;start;end;prompt\na,b.mp4;1,5;0:02:00,25;So, and so\nc.mp4;;;\n;;;\n"
    )
    assert read_jobs(file) == (
        Input(tmp_path / "a,b.mp4", b"a,b.mp4", 1.5, 120.25, ("So, and so",)),
        Input(tmp_path / "c.mp4", b"c.mp4"),
    )


def test_a_table_of_one_column_has_no_delimiter(tmp_path):
    assert read_jobs(write(tmp_path, "a.tsv", "path\na,b.mp4\n"))[0].path == tmp_path / "a,b.mp4"
    assert read_jobs(write(tmp_path, "a.csv", 'path\n"a,b.mp4"\n'))[0].path == tmp_path / "a,b.mp4"


def test_a_job_knows_the_line_that_it_comes_from(tmp_path):
    file = write(tmp_path, "jobs.csv", "path\n\na.mp4\n")
    assert read_jobs(file)[0].origin == f"{file}, line 3"


def test_jobs_in_jsonl(tmp_path):
    rows = [
        {"path": "a.mp4", "start": 1.5, "end": "0:02", "prompt": ["one", " two "], "id": "first"},
        {"path": "/elsewhere/b.mp4", "start": 0, "prompt": "three", "id": 7, "end": None},
        {"path": "c\udcff.mp4"},
    ]
    file = write(tmp_path, "jobs.jsonl", "\n\n".join(map(json.dumps, rows)) + "\r\n")
    first, second, third = read_jobs(file)
    assert first == Input(tmp_path / "a.mp4", first.name, 1.5, 2.0, ("one", "two"), "first")
    assert second == Input(Path("/elsewhere/b.mp4"), b"elsewhere/b.mp4", 0.0, None, ("three",), "7")
    assert third.path == tmp_path / "c\udcff.mp4"
    assert [each.name for each in (first, third)] == [
        os.fsencode(tmp_path / n)[1:] for n in ("a.mp4", "c\udcff.mp4")
    ]


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.csv", "", "line 1: no header"),
        ("a.csv", "a.mp4\nb.mp4\n", "line 1: unknown column or key 'a.mp4'"),
        ("a.csv", "start,end\n1,2\n", "line 1: no column path"),
        ("a.csv", "path,path\n1,2\n", "line 1: column 'path' twice"),
        ("a.csv", "path,speed\na.mp4,2\n", "line 1: unknown column or key 'speed'"),
        ("a.csv", "path,start\na.mp4,soon\n", "line 2: start: 'soon' is not a time"),
        ("a.csv", "path,prompt\na.mp4,so, and so\n", "line 2: 3 cells under 2 columns"),
        ("a.csv", 'path,prompt\na.mp4,"open\n', "line 2: not CSV (unexpected end of data)"),
        ("a.csv", 'path,prompt\na,"two\nlines"\nb,"a"b\n', "line 4: not CSV (',' expected after '\"')"),
        ("a.csv", "path,start,end\na.mp4,5,5\n", "line 2: end: it is not after start"),
        ("a.csv", "path,end\na.mp4,0\n", "line 2: end: it is not after start"),
        ("a.csv", "path,id\na.mp4,x\nb.mp4,\nc.mp4,x\n", "line 4: id 'x' is also that of line 2"),
        ("a.csv", b"path,prompt\na.mp4,caf\xe9\n", r"line 2: prompt: 'caf\udce9' is not UTF-8"),
        ("a.csv", "path\na\0.mp4\n", "line 2: a NUL: UTF-16 without a byte order mark, or no text at all"),
        ("a.csv", "path;id\na.mp4;1\n".encode("utf-16-le"), "line 1: a NUL: UTF-16 without"),
        ("a.csv", "path;id\na.mp4;1\n".encode("utf-16") + b"\n", "line 3: begins as UTF-16 and is not"),
        ("a.csv", "path;id\na.mp4;x;y\n", "line 2: 3 cells under 2 columns"),
        ("a.csv", "path\tstart\na.mp4\t1,5\n", "line 2: start: '1,5' is not a time"),
        ("a.csv", ";;\n\npath;speed\na.mp4;2\n", "line 3: unknown column or key 'speed'"),
        ("a.tsv", "path\tpath\n", "line 1: column 'path' twice"),
        ("a.jsonl", '{"path": "a.mp4"}\r{"path"\r', "line 2: not JSON"),
        ("a.jsonl", '{"path": "a.mp4"}\n'.encode("utf-16-be"), "line 1: a NUL: UTF-16 without"),
        ("a.jsonl", '{"path": "a\\u0000.mp4"}', r"line 1: path: 'a\x00.mp4' is not a file's path"),
        ("a.jsonl", '{"path": "a.mp4"}\n{"path"\n', "line 2: not JSON (Expecting ':' delimiter at"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON (maximum recursion depth exceeded"),
        ("a.jsonl", '["a.mp4"]', "line 1: not an object"),
        ("a.jsonl", "{}", "line 1: no path"),
        ("a.jsonl", '{"path": null}', "line 1: no path"),
        ("a.jsonl", '{"path": ""}', "line 1: path: '' is not a file's path"),
        ("a.jsonl", '{"path": 3}', "line 1: path: 3 is not a file's path"),
        ("a.jsonl", '{"path": "\\ud800.mp4"}', r"line 1: path: '\ud800.mp4' is not a file's path"),
        ("a.jsonl", '{"path": "a", "fps": 2}', "line 1: unknown column or key 'fps'"),
        ("a.jsonl", '{"path": "a", "start": -1}', "line 1: start: -1 is not a time"),
        ("a.jsonl", '{"path": "a", "start": true}', "line 1: start: True is not a time"),
        ("a.jsonl", '{"path": "a", "start": NaN}', "line 1: start: nan is not a time"),
        ("a.jsonl", '{"path": "a", "start": Infinity}', "line 1: start: inf is not a time"),
        ("a.jsonl", '{"path": "a", "end": 1' + "0" * 400 + "}", "line 1: end: int too large"),
        ("a.jsonl", '{"path": "a", "prompt": [""]}', "line 1: prompt: '' is not a text"),
        ("a.jsonl", '{"path": "a", "prompt": 5}', "line 1: prompt: 5 is not a text"),
        ("a.jsonl", '{"path": "a", "id": {}}', "line 1: id: {} is not a text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, name, content, cause):
    file = write(tmp_path, name, content)
    with pytest.raises(UsageError) as caught:
        read_jobs(file)
    assert caught.value.cause.startswith(f"{file}, {cause}")


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(NoInputError, match="No such file"):
        read_jobs(tmp_path / "none.csv")


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)


ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])


@given(
    st.lists(st.tuples(cells.filter(lambda path: path[0] != "/"), cells), min_size=1),
    st.sampled_from([(".csv", ","), (".csv", ";"), (".csv", "\t"), (".tsv", "\t"), (".tsv", ",")]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([(), ("",), ("", " ")]),
    ENCODINGS,
    ENCODINGS,
)
def test_all_formats_and_encodings_say_the_same(tmp_path_factory, rows, form, end, padding, coded, other):
    suffix, delimiter = form
    folder = tmp_path_factory.mktemp("jobs")
    table = folder / f"a{suffix}"
    with table.open("w", newline="", encoding=coded) as stream:
        # Its other quoting lets a lone CR pass where lines end otherwise.
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        blank = ("",) * len(padding)
        writer.writerows([(*blank, " "), ("path", "prompt", *padding)])
        for row in rows:
            writer.writerows([(*row, *padding), padding, (" ", "")])
    lines = [json.dumps({"path": path, "prompt": prompt}, ensure_ascii=False) for path, prompt in rows]
    write(folder, "a.jsonl", (f"{end} {end}".join(lines)).encode(other))
    assert read_jobs(table) == read_jobs(folder / "a.jsonl")
    assert [job.path for job in read_jobs(table)] == [folder / path for path, _ in rows]
