"""The environment of this process: user folders, processors, messages of libraries, the standard streams."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePath
from shlex import quote
from typing import Any, Final, NoReturn, TextIO

STDERR_NAMES: Final = ("/dev/stderr", "/dev/fd/2", "/proc/self/fd/2")
LONGEST_LOG: Final = 2**20  # bytes; a longer one begins anew with the next run
LONGEST_EXTRACT: Final = 2**16  # bytes of it that are shown


def state_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder for data that is kept between runs (XDG_STATE_HOME)."""
    return _folder(environment.get("XDG_STATE_HOME"), ".local/state")


def config_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder for the user's configuration (XDG_CONFIG_HOME)."""
    return _folder(environment.get("XDG_CONFIG_HOME"), ".config")


def _folder(named: str | None, below_home: str) -> Path | None:
    try:
        return (Path(named) if named else Path.home() / below_home) / "lvspec"
    except RuntimeError:  # HOME is not set, and the system knows of no such user
        return None


def usable_cores() -> int:
    """The number of cores that this process may use, at least 1. A cluster's job often gets only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def terminal_width(stream: TextIO) -> int | None:
    """The columns of the terminal that a stream writes to; None where it writes to none."""
    if not stream.isatty():
        return None
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named):
        return int(named)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def may_be_seen(stream: TextIO) -> bool:
    """Whether a terminal may show what is written: it goes to one, or into a pipe, as with ``| tee``."""
    try:
        return stream.isatty() or stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def install_command(
    *packages: str, prefix: str = sys.prefix, python: str = sys.executable, has_pip: bool | None = None
) -> str:
    """The command that installs packages where this lvspec runs, in an environment of pipx, of uv or another.

    :param prefix: the environment's folder.
    :param has_pip: whether pip is in it; None finds out.
    """
    parts, names = PurePath(prefix).parts, " ".join(map(quote, packages))
    if "pipx" in parts and "venvs" in parts:
        return f"pipx inject {quote(parts[-1])} {names}"
    if "uv" in parts and "tools" in parts:
        wanted = " ".join(f"--with {quote(package)}" for package in packages)
        return f"uv tool install {quote(parts[-1])} {wanted}"
    if has_pip if has_pip is not None else _has_pip():
        return f"{quote(python)} -m pip install {names}"
    return f"uv pip install --python {quote(python)} {names}"


def _has_pip() -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("pip")  # not find_spec, after which setuptools cannot be imported on Python 3.11
    except PackageNotFoundError:
        return False
    return True


def quieten_libraries() -> None:
    """Suppresses warnings of libraries, which are for programmers. Errors are still shown."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # where torchao is installed
    warnings.simplefilter("ignore")


def drop_lost_interrupts() -> None:
    """Lets a Ctrl-C that Python cannot raise, in a destructor for example, leave no trace on stderr.

    For the rest of the process. While a command runs, ``cli.reporting.stopping`` makes sure that none is
    lost; afterwards the process ends anyway.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)


class _Lossy(io.FileIO):
    """A descriptor whose writes never fail. Data that cannot be written is dropped."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            written: int | None = super().write(data)
            if written is not None:  # None: writing would block
                return written
        return len(data)


def steady_streams() -> None:
    """Makes writes to stderr never fail, for the rest of the process: only rows and answers matter.

    First, closed descriptors among 0 to 2 are opened as the null device. Otherwise the next file would get
    such a number, and libraries would write into it. Python sets such a stdin or stdout to None.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stderr = _steady(2)


def _steady(descriptor: int) -> io.TextIOWrapper:
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    raw = io.BufferedWriter(_Lossy(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)


def exit_at_once(code: int) -> NoReturn:
    """Ends the process without Python's cleanup, which takes seconds with torch. All work must be safe."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads
            stream.flush()
    if chat := sys.modules.get("lvspec_cli.models.read"):  # atexit functions are not called
        with suppress(KeyboardInterrupt):  # the child is killed already: a second Ctrl-C only ends the wait
            chat.end_child()
    os._exit(code)


class _LibraryStream(io.TextIOWrapper):
    """``sys.stderr`` as libraries see it. ``own`` is the stream for messages of lvspec itself."""

    own: TextIO


def message_stream() -> TextIO:
    """Stderr for lvspec's own messages, also while that of libraries is a log."""
    own: TextIO = getattr(sys.stderr, "own", sys.stderr)
    return own


@contextmanager
def libraries_logged(log: Path | None) -> Iterator[Callable[[], str]]:
    """Keeps what libraries print to stderr off the terminal while the block runs: it goes to ``log``.

    That holds for Python, for C and for processes that are started in the block. Yields a function that gives
    the end of what has been logged since.

    :param log: it is made if need be; if it is None or cannot be written, what libraries print is dropped.
    """
    try:
        own_descriptor = os.dup(2)
    except OSError:  # too few open files, which the command itself will say
        yield str
        return
    before, own = sys.stderr, message_stream()
    libraries = _LibraryStream(
        io.BufferedWriter(_Lossy(2, "w", closefd=False)),
        "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    own.flush()
    libraries.own = _steady(own_descriptor) if _descriptor_of(own) == 2 else own
    began = _log_to(log)
    sys.stderr = libraries
    try:
        yield lambda: _logged_since(log, began)
    finally:
        for stream in (libraries, libraries.own):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stderr = before
        os.dup2(own_descriptor, 2)
        os.close(own_descriptor)


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _log_to(log: Path | None) -> int | None:
    """Makes descriptor 2 the log, or else the null device; returns where in the log this run begins."""
    if log is not None:
        with suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            return _redirect(os.open(log, flags, 0o600))
    with suppress(OSError):
        _redirect(os.open(os.devnull, os.O_WRONLY))
    return None


def _redirect(descriptor: int) -> int:
    """Makes descriptor 2 the open file, in which a line about this run is added; returns the file's size."""
    try:
        if os.fstat(descriptor).st_size > LONGEST_LOG:
            os.ftruncate(descriptor, 0)
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} process {os.getpid()}\n"
        os.write(descriptor, line.encode())
        os.dup2(descriptor, 2)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _logged_since(log: Path | None, began: int | None) -> str:
    if log is None or began is None:
        return ""
    with suppress(OSError), log.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(began, size - LONGEST_EXTRACT))
        return stream.read(LONGEST_EXTRACT).decode(errors="replace")
    return ""
