"""What operating systems do in different ways: open and lock files, and run child processes.

lvspec is tested on Linux. What is here for Windows was never run there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import IO, Any, Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Elsewhere a file that is open can be given a new name, or be replaced by another one.
REPLACES_OPEN_FILES: Final = sys.platform != "win32"
_LOCKED_BYTE: Final = 2**31 - 2  # far behind what is written: Windows lets nobody read a locked byte


def open_file(path: Path, flags: int, *more: str) -> int:
    """Opens a file for bytes. ``more``: names of flags of ``os``, which are set where the system has them."""
    for name in ("O_BINARY", *more):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o666)


def lock_file(descriptor: int, *, wait: bool = False) -> None:
    """Locks an open file for this process alone, until it is closed, however the process ends.

    :param wait: for another process that holds it; on Windows ten seconds at most.
    :raises BlockingIOError: another process holds it.
    :raises OSError: it cannot be locked.
    """
    if sys.platform != "win32" and fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    windows: Any = msvcrt
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        windows.locking(descriptor, windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from error
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def is_of_another_user(status: os.stat_result) -> bool:
    """Whether a file is; Windows does not say, and there the answer is no."""
    return hasattr(os, "geteuid") and status.st_uid != os.geteuid()


def connect_child() -> tuple[Connection, socket.socket]:
    """This process's end of a connection, and the child's, to be closed when the child has started."""
    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), theirs


def start_child(
    module: str, theirs: socket.socket, errors: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Runs ``python -m MODULE SOCKET`` with its end of a connection, which ``parent_of`` opens there.

    Not multiprocessing: its children import the parent's main module, with all that it imports. A process
    group of its own keeps the terminal's Ctrl-C from it; -P keeps the current folder's modules out.
    """
    command = [sys.executable, "-P", "-m", module]
    paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    common: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": errors,
        "env": {**os.environ, "PYTHONPATH": paths},
    }
    if sys.platform == "win32":  # sockets are handed to a process whose number is known
        group = subprocess.CREATE_NEW_PROCESS_GROUP
        process = subprocess.Popen([*command, "-"], stdin=subprocess.PIPE, creationflags=group, **common)  # noqa: S603
        assert process.stdin is not None
        with process.stdin as stream:
            stream.write(theirs.share(process.pid))
        return process
    number = theirs.fileno()
    return subprocess.Popen(  # noqa: S603
        [*command, str(number)], stdin=subprocess.DEVNULL, pass_fds=(number,), process_group=0, **common
    )


def parent_of(argument: str) -> Connection:
    """A child's end of the connection to its parent; ``argument``: what it was started with."""
    if sys.platform == "win32":
        return Connection(socket.fromshare(sys.stdin.buffer.read()).detach())
    return Connection(int(argument))


def socket_of(connection: Connection) -> socket.socket:
    """The socket of a connection, for bytes as they are; it is closed apart."""
    return socket.socket(fileno=socket.dup(connection.fileno()))


def send_file(connection: Any, descriptor: int, pid: int) -> None:
    """Gives the process ``pid``, at the other end, an open file."""
    if sys.platform == "win32":
        import msvcrt

        descriptor = msvcrt.get_osfhandle(descriptor)
    send_handle(connection, descriptor, pid)


def receive_file(connection: Any) -> int:
    """The descriptor of a file that ``send_file`` gives."""
    handle = recv_handle(connection)
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY)
    return handle


def how_ended(code: int) -> str:
    """How a process ended: ``SIGKILL`` or ``exit code 3``."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def has_crashed(code: int) -> bool:
    """Whether the system ended it: by a signal, on Windows with a code of its own."""
    return code < 0 or code >= 0xC0000000
