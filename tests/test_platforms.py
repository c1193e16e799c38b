"""Other systems, as far as Linux can pass for one: what they lack is taken away, in child processes too.

What only Windows has, such as sockets that are shared with a child, is not run here.
"""

from __future__ import annotations

import json
import ntpath
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvspec_cli.batch import names
from lvspec_cli.batch.names import Location, names_of
from lvspec_cli.errors import OutputError
from lvspec_cli.output import files
from lvspec_cli.output.jsonl import RecordFile
from lvspec_cli.output.merging import merge_records
from tests.conftest import Shell
from tests.output.rows import caption
from tests.test_floors import MODULES

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "lvspec_cli/demo/clips/clip_0001.mp4"

# A sitecustomize.py: Python imports it as it starts. Libraries that differ between systems are here those for
# Linux, and stay whole.
LACKING = """
import asyncio, fcntl, filelock, getpass, multiprocessing.util, os, pathlib, psutil, shutil, signal, socket
import subprocess, sys, tarfile, tempfile
from types import ModuleType

import huggingface_hub.utils

msvcrt = ModuleType("msvcrt")
msvcrt.LK_LOCK, msvcrt.LK_NBLCK = 1, 2


def locking(descriptor, mode, count, flock=fcntl.flock, ways=(fcntl.LOCK_EX, fcntl.LOCK_NB)):
    try:
        flock(descriptor, ways[0] | (0 if mode == msvcrt.LK_LOCK else ways[1]))
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error


msvcrt.locking = locking
sys.modules["msvcrt"] = msvcrt
sys.modules |= dict.fromkeys(("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"))
for module, names in LACKING.items():
    for name in names.split():
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
"""
FOR_ANSWERS = {
    "os": "sched_getaffinity geteuid getuid getpgid setsid killpg fchmod pread pwrite sync sysconf fork "
    "mkfifo O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK",
    "signal": "SIGALRM SIGHUP SIGUSR1 SIGUSR2 setitimer ITIMER_REAL alarm",
}
FOR_IMPORTS = {**FOR_ANSWERS, "socket": "AF_UNIX SCM_RIGHTS"}  # with which Linux hands a file to a process


def elsewhere(folder: Path, lacking: Mapping[str, str], **more: str) -> Shell:
    """The command line on a system without all that."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(LACKING.replace("LACKING", repr(lacking)))
    return Shell(folder, {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))), **more})


def run_python(shell: Shell, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=shell.environment, capture_output=True, text=True, check=False)


def test_every_module_is_imported_where_the_ways_of_linux_are_missing(tmp_path: Path):
    modules = sorted(set(MODULES) - {"lvspec_cli.__main__"})  # which is the command itself
    code = (
        "import importlib, os, sys, traceback\n"
        "assert not hasattr(os, 'sched_getaffinity') and sys.modules['fcntl'] is None\n"
        f"for name in {modules!r}:\n"
        "    try:\n        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if error.name not in ('triton', 'lmms_eval'):\n"
        "            print(name, traceback.format_exc())\n"
        "    except Exception:\n        print(name, traceback.format_exc())\n"
        "print('END')\n"
    )
    done = run_python(elsewhere(tmp_path, FOR_IMPORTS), code)
    assert done.stdout == "END\n", done.stdout + done.stderr


@pytest.fixture
def shell(tmp_path: Path, tiny_models: Path) -> Shell:
    return elsewhere(tmp_path / "there", FOR_ANSWERS, LVSPEC_MODELS=str(tiny_models))


@pytest.mark.thorough
def test_several_workers_write_records_that_are_held_and_gone_on_with_there(shell: Shell, tmp_path: Path):
    """And where decord is asked for, it is said not to read."""
    out = tmp_path / "captions.jsonl"
    clips = [CLIP.with_name(f"clip_000{number}.mp4") for number in (1, 2)]
    for done_before in (0, 2):
        done = shell.run("caption", *clips, "--workers", 2, "--decoder", "decord", "-o", out)
        assert (done.returncode, len(out.read_text().splitlines())) == (0, 2), done.stderr
        assert f"{done_before} done" in done.stderr
    for line in out.read_text().splitlines():
        assert json.loads(line)["status"] == "ok"
        assert "not decord: this system cannot keep it to one file" in line
    code = (
        "import subprocess\nfrom pathlib import Path\nfrom lvspec_cli.output.jsonl import RecordFile\n"
        f"with RecordFile.open(Path({str(out)!r})):\n"
        f"    subprocess.run({[*shell.command, 'caption', str(CLIP), '-o', str(out)]!r})\n"
    )
    done = run_python(shell, code)
    assert "captions.jsonl is being written by process " in done.stderr
    assert list(tmp_path.glob("*.lock")) == []


@pytest.mark.thorough
def test_a_chat_template_that_does_not_end_is_ended_there(shell: Shell):
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    code = (
        "from lvspec_cli.models import read\n"
        "try:\n"
        f"    read.rendered({template!r}, '{{}}')\n"
        "except read._NoEndError:\n"
        "    print(read.rendered('{{ 1 + 1 }}', '{}'))\n"
    )
    done = run_python(shell, code)
    assert done.stdout == "2\n", done.stderr


def test_what_windows_does_not_do_with_open_files_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "REPLACES_OPEN_FILES", False)
    row, path = caption(b"a.mp4"), tmp_path / "captions.jsonl"
    with RecordFile.open(path) as file:
        file.append(row)
        with pytest.raises(OutputError, match="Windows does not replace a file that is open"):
            file.remove([row.key])
    with pytest.raises(OutputError, match="Windows does not replace"):
        merge_records([path], path, force=True, warn=print)
    with files.replacing(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def test_names_of_files_have_slashes_on_windows(monkeypatch: pytest.MonkeyPatch):
    windows = SimpleNamespace(path=ntpath, sep="\\", fsencode=os.fsencode)
    monkeypatch.setattr(names, "os", windows)
    root = b"C:\\clips"
    places = [Location(b"C:\\clips\\a.mp4", root), Location(b"C:\\clips\\more\\b.mp4", root)]
    assert names_of(places) == [b"a.mp4", b"more/b.mp4"]
    assert names_of([*places, Location(b"D:\\c.mp4", b"D:\\")])[::2] == [b"C:/clips/a.mp4", b"D:/c.mp4"]
    assert names.is_in(b"C:\\clips\\a.mp4", root)
    assert not names.is_in(b"C:\\clipsa.mp4", root)
