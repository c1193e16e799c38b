"""Processes of lvspec that start at once: each is forked from one that has done the imports before.

The imports of torch and transformers take seconds of every process that a test starts. While ``warm_starts``
lasts, ``subprocess`` hands these commands to such a process, a "forker", instead of starting an interpreter:

- ``python -m lvspec_cli ...``, the command line;
- ``python -P -m lvspec_cli.video.worker SOCKET``, and the workers of batch and bench;
- ``python -P .../template_child.py``, which renders chat templates;
- ``python -c CODE ...``, where CODE begins with ``WARM``.

What comes of it is a process like any other: a child of its caller, with a number, streams, a folder, limits,
a session and a group of its own, that is waited for and signalled by the calls of the system. Only its
imports are done. A command whose imports might differ starts an interpreter as ever: with ``preexec_fn``,
with another PYTHONPATH, or with another value of a variable that is read while modules are imported. Tests of
imports and of how lvspec starts use ``cold_starts``.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARM = "# may run in a process that has imported lvspec\n"
LEAN_PATH = os.pathsep.join((str(Path(__file__).with_name("lean")), str(Path(__file__).parents[1])))
FORKER = "forker"  # its name in /proc/PID/comm; the name of a fork is the end of its module's

# Two forkers: a decoder and a renderer of templates have limits on their memory, and no need of torch.
SMALL = (
    "av", "jinja2.ext", "jinja2.sandbox", "multiprocessing.connection", "lvspec_cli.video.messages",
    "lvspec_cli.video.reading", "lvspec_cli.video.survey",
)  # fmt: skip
WHOLE = (
    "av", "scipy.stats", "rich.live", "lvspec_cli.cli.main", "lvspec_cli.cli.caption_run",
    "lvspec_cli.models.load", "lvspec_cli.models.prompt", "lvspec_cli.speculation.engine",
    "lvspec_cli.batch.remote", "lvspec_cli.batch.serve", "lvspec_cli.bench.measure",
    "lvspec_cli.bench.remote",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
)  # fmt: skip

AT_IMPORT = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_", "TORCH_", "TRANSFORMERS_", "HF_", "TYPER_")
_USUAL = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # where a command does not say
_TAKEN_OVER = {"PYTHONPATH", "HF_HUB_OFFLINE"}  # by a fork, whatever its forker had
_LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_PR_SET_CHILD_SUBREAPER = 36  # of Linux' <sys/prctl.h>


@dataclass(frozen=True)
class Job:
    """What a fork is to run, and as what. Its streams and files come beside it, as descriptors."""

    kind: str  # module, file or code
    name: str
    arguments: list[str]
    is_safe: bool  # -P: the current folder's modules stay out
    folder: str
    environment: dict[str, str]
    files: list[int]  # numbers that the files beside the streams have there
    parent: int
    has_session: bool
    group: int  # of processes; -1: its parent's
    limits: dict[str, tuple[int, int]]
    ignored: list[int]  # signals

    @property
    def is_small(self) -> bool:
        return self.name.endswith((".video.worker", "template_child.py"))

    @property
    def has_workers(self) -> bool:
        return not self.is_safe and not {"--workers", "--processes"}.isdisjoint(self.arguments)


# The caller's side.


class Forker:
    """A process that has imported ``modules``, and starts others: of its parent, which this is a part of."""

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._channel, self._process = channel, process

    @classmethod
    def start(cls, modules: Sequence[str], environment: Mapping[str, str]) -> Forker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "tests.warm", str(theirs.fileno()), *modules]
        own = {**environment, "PYTHONPATH": LEAN_PATH}
        with theirs:
            return cls(
                ours, subprocess.Popen(command, env=own, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            )

    def fork(self, job: Job, descriptors: Sequence[int]) -> int:
        """The number of the process that does the job, a child of this one.

        :raises OSError: its folder cannot be entered.
        """
        prctl = ctypes.CDLL(None).prctl
        # The forker's child forks once more and ends: the system then gives its child to this process.
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self._channel, [json.dumps(asdict(job)).encode()], descriptors)
            answer = json.loads(self._channel.recv(4096) or "null")
        finally:
            prctl(_PR_SET_CHILD_SUBREAPER, 0)
        if answer is None:
            raise RuntimeError("the process that starts others has ended")
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), job.folder)
        return int(answer["pid"])

    def end(self) -> None:
        self._channel.close()
        if self._process is not None:
            self._process.wait()


class Starter:
    """Stands in for the function of ``subprocess`` that starts a program."""

    def __init__(self, forkers: dict[bool, Forker] | None = None) -> None:
        """``forkers``: by whether they are small; those that are missing start when they are needed."""
        self.forkers = forkers or {}
        self._may_start = forkers is None
        self._imported = _read_at_import(os.environ)
        self._lock = threading.RLock()  # a forker is started in the midst of starting another process

    def __call__(self, *arguments: Any) -> int:
        """The arguments are subprocess's own; the result is the number of the new process."""
        with self._lock:
            if (found := self._job(*arguments)) is None:
                return _fork_exec(*arguments)
            job, descriptors = found
            if job.is_small not in self.forkers:
                if not self._may_start:
                    return _fork_exec(*arguments)
                modules = SMALL if job.is_small else WHOLE
                self.forkers[job.is_small] = Forker.start(modules, _USUAL | os.environ)
            return self.forkers[job.is_small].fork(job, descriptors)

    def _job(
        self,
        line: Sequence[Any], executables: object, closes: bool, files: Sequence[int], folder: Any,
        environment: Sequence[bytes] | None, stdin: int, _1: int, _2: int, stdout: int, _3: int, stderr: int,
        _4: int, errors: int, restores: bool, has_session: bool, group: int, gid: object, gids: object,
        uid: object, umask: int, before: object, *_: object,
    ) -> tuple[Job, list[int]] | None:  # fmt: skip
        """The job of a forker and the descriptors that go with it; None if it takes a new interpreter."""
        variables = dict(os.environ)
        if environment is not None:
            variables = dict(os.fsdecode(each).split("=", 1) for each in environment)
        words = [os.fsdecode(word) for word in line]
        is_safe = words[1:2] == ["-P"]
        match words[1 + is_safe :]:
            case ["-m", "lvspec_cli" as name, *rest]:
                kind = "module"
            case ["-m", name, *rest] if name.startswith("lvspec_cli.") and name.endswith(".worker"):
                kind = "module"
            case ["-c", name, *rest] if name.startswith(WARM):
                kind = "code"
            case [name, *rest] if name.endswith("/template_child.py"):
                kind = "file"
            case _:
                return None
        if (
            words[0] != sys.executable
            or before is not None
            or (closes, gid, gids, uid, umask) != (True, None, None, None, -1)
            or not (is_safe or variables.get("PYTHONPATH") == LEAN_PATH)
            or _read_at_import(variables) != self._imported
        ):
            return None
        kept = [number for number in files if number != errors]
        job = Job(
            kind=kind,
            name=name,
            arguments=rest,
            is_safe=is_safe,
            folder=os.fsdecode(folder) if folder else str(Path.cwd()),
            environment=variables,
            files=kept,
            parent=os.getpid(),
            has_session=has_session,
            group=group,
            limits={name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS},
            ignored=[number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_IGN],
        )
        streams = [own if own >= 0 else number for number, own in enumerate((stdin, stdout, stderr))]
        return job, [*streams, *kept]


_fork_exec: Any = vars(subprocess)["_fork_exec"]


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in environment.items() if name.startswith(AT_IMPORT)}
    return _USUAL | {name: found[name] for name in found.keys() - _TAKEN_OVER}


@contextmanager
def warm_starts() -> Iterator[None]:
    """Within it, processes of lvspec are forked. Their forkers end with it. On Linux only."""
    if not sys.platform.startswith("linux"):
        yield
        return
    starter = Starter()
    vars(subprocess)["_fork_exec"] = starter
    try:
        yield
    finally:
        vars(subprocess)["_fork_exec"] = _fork_exec
        for forker in starter.forkers.values():
            forker.end()


def entry_after(code: str) -> list[str]:
    """A command line that runs ``code`` first: it sets limits, or replaces calls of the system."""
    whole = f"{WARM}import os, resource\n{code}\nfrom lvspec_cli.cli.main import entry\nentry()\n"
    return [sys.executable, "-c", whole]


@contextmanager
def cold_starts() -> Iterator[None]:
    """Within it, every process starts as a new interpreter."""
    before = vars(subprocess)["_fork_exec"]
    vars(subprocess)["_fork_exec"] = _fork_exec
    try:
        yield
    finally:
        vars(subprocess)["_fork_exec"] = before


# The side of the forker and of its forks.


def serve(channel: socket.socket) -> tuple[Job, list[int]]:
    """Forks for each job. Returns in the forks only, with the job; the forker ends with its caller."""
    _name_process(FORKER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its caller
    gc.collect()
    gc.freeze()  # what was imported stays in pages that all forks share
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 2**20, 64)
        if not message:
            os._exit(0)
        if (between := os.fork()) == 0:
            if os.fork():
                os._exit(0)
            job = Job(**json.loads(message))
            while os.getppid() != job.parent:
                time.sleep(0.0002)
            try:
                os.chdir(job.folder)
            except OSError as error:
                channel.send(json.dumps({"errno": error.errno}).encode())
                os._exit(1)
            if job.has_session:
                os.setsid()
            if job.group >= 0:
                os.setpgid(0, job.group)
            channel.send(json.dumps({"pid": os.getpid()}).encode())
            channel.close()
            return job, descriptors
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)


def become(job: Job, descriptors: list[int]) -> None:
    """Turns a fork into what an interpreter would be that was started for the job."""
    _place_files([0, 1, 2, *job.files], descriptors)
    if job.has_session and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that the terminal's keys reach it
    for name, (soft, hard) in job.limits.items():
        if resource.getrlimit(getattr(resource, name)) != (soft, hard):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in job.ignored else signal.SIG_DFL)
    if signal.SIGINT not in job.ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _name_process(job.name.removesuffix(".py").split("/")[-1].removeprefix("lvspec_cli.")[:15])
    os.environ.clear()
    os.environ.update(job.environment)
    own = [] if job.is_safe else [job.folder if job.kind == "module" else ""]
    behind = [path for path in sys.path if path not in LEAN_PATH.split(os.pathsep)]
    sys.path[:] = [*own, *job.environment.get("PYTHONPATH", "").split(os.pathsep), *behind]
    sys.argv = ["-c" if job.kind == "code" else job.name, *job.arguments]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = _writer(1, "strict", line_buffering=os.isatty(1))
    sys.stderr = _writer(2, "backslashreplace", line_buffering=True)
    if hub := sys.modules.get("huggingface_hub.constants"):  # it has read the forker's variables
        importlib.reload(hub)
    gc.enable()


def get_own_forker() -> tuple[Job, list[int]] | None:
    """Gives this process a forker of its own: that of its caller starts only children of the caller.

    Returns None here, and in each fork of that forker what ``serve`` returns.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        vars(subprocess)["_fork_exec"] = Starter({False: Forker(ours)})
        return None
    ours.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)
    return serve(theirs)


def _place_files(numbers: list[int], descriptors: list[int]) -> None:
    """Gives each descriptor its number, and closes all others."""
    top = max(numbers) + 1
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, top) for descriptor in descriptors]
    for number, descriptor in zip(numbers, aside, strict=True):
        os.dup2(descriptor, number)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(entry) not in numbers:
            with suppress(OSError):
                os.close(int(entry))


def _writer(descriptor: int, errors: str, *, line_buffering: bool) -> io.TextIOWrapper:
    file = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(file), errors=errors, line_buffering=line_buffering)


def _name_process(name: str) -> None:
    Path("/proc/self/comm").write_text(name)


def run(job: Job) -> None:
    if job.kind == "module":
        runpy.run_module(job.name, run_name="__main__", alter_sys=True)
    elif job.kind == "file":
        runpy.run_path(job.name, run_name="__main__")
    else:
        exec(job.name, {"__name__": "__main__"})


def main(channel: str, *modules: str) -> None:
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    job, descriptors = serve(socket.socket(fileno=int(channel)))
    become(job, descriptors)
    if job.has_workers and (other := get_own_forker()):
        job, descriptors = other
        become(job, descriptors)
    run(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
