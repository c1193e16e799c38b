"""What goes to the terminal, and what to the log of libraries."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvspec_cli.cli.reporting import reporting, say
from lvspec_cli.host import LONGEST_LOG, install_command, libraries_logged, message_stream


def libraries_print() -> None:
    """In all the ways that torch, its extensions and worker processes do."""
    os.write(2, b"W1128 from C\n")
    handler = logging.StreamHandler()
    logging.Logger("library", handler.level).addHandler(handler)
    handler.emit(logging.makeLogRecord({"msg": "from a logger"}))
    print("from Python", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)


def test_what_libraries_print_goes_to_the_log_and_own_messages_do_not(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    log = tmp_path / "state" / "libraries.log"
    with libraries_logged(log) as logged:
        say("captioned")
        libraries_print()
        with libraries_logged(log):
            say("within")
        assert logged().splitlines()[:3] == ["W1128 from C", "from a logger", "from Python"]
    assert capfd.readouterr().err == "captioned\nwithin\n"
    assert "from a child" in log.read_text()
    os.write(2, b"after")
    assert (capfd.readouterr().err, message_stream()) == ("after", sys.stderr)


def test_a_log_that_cannot_be_written_or_is_long_stops_nothing(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "file").touch()
    for log in (None, tmp_path / "file" / "log"):
        with libraries_logged(log) as logged:
            libraries_print()
            assert logged() == ""
    long = tmp_path / "log"
    long.write_bytes(b"x" * (LONGEST_LOG + 1))
    with libraries_logged(long):
        pass
    assert b"x" not in long.read_bytes()
    assert long.read_bytes().endswith(b"process %d\n" % os.getpid())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("prefix", "has_pip", "said"),
    [
        ("/home/a/.local/pipx/venvs/lvspec", True, "pipx inject lvspec pyarrow"),
        ("/home/a/.local/share/uv/tools/lvspec", False, "uv tool install lvspec --with pyarrow"),
        ("/home/a/my env", True, "'/home/a/my env/bin/python' -m pip install pyarrow"),
        ("/home/a/env", False, "uv pip install --python /home/a/env/bin/python pyarrow"),
    ],
)
def test_a_package_is_installed_where_lvspec_runs(prefix: str, has_pip: bool, said: str):
    python = f"{prefix}/bin/python"
    assert install_command("pyarrow", prefix=prefix, python=python, has_pip=has_pip) == said


def test_whether_pip_is_there_is_found_out_without_a_trace() -> None:
    """On Python 3.11 setuptools, which kernels are compiled with, fails behind ``find_spec("pip")``."""
    code = "from lvspec_cli.host import install_command; print(install_command('x')); import setuptools"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" x\n")


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_what_libraries_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, debug: bool
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with reporting(debug):
        libraries_print()
        say("captioned")
    assert capfd.readouterr().err.splitlines() == (
        [
            "captioned",
            *(
                f"library: {line}"
                for line in ("W1128 from C", "from a logger", "from Python", "from a child")
            ),
        ]
        if debug
        else ["captioned"]
    )
