"""Workers on the nodes of a Ray cluster.

An actor holds what Ray reserves for a worker. It starts the worker process of ``--workers`` on its node, and
passes on messages in both directions, as bytes. So the crew, the protocol and the one writer are the same as
on one machine; Ray chooses the nodes, and says which are lost. A worker ends with its actor, and its actor
with the command: on Ctrl-C, at its end, or when it is killed.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from lvspec_cli import __version__
from lvspec_cli.batch.names import absolute
from lvspec_cli.batch.serve import EventSent, Row
from lvspec_cli.batch.work import Work
from lvspec_cli.errors import LvspecError, MachineError, NoInputError, UsageError
from lvspec_cli.events import Noted
from lvspec_cli.host import install_command
from lvspec_cli.output.records import Failure, Record
from lvspec_cli.request import LoadPlan
from lvspec_cli.table import counted
from lvspec_cli.workers import start_worker

T = TypeVar("T")
REACH = 3.0  # seconds for a connection to the cluster's address
JOIN = 30.0  # seconds for Ray to join the cluster
PATIENCE = 20.0  # seconds without room for a worker, after which the user is told
_POLL = 0.2  # seconds between checks for a signal
_REST = 1.0  # seconds that an actor waits for a message of its worker before it answers
_MOST = 256  # messages in one answer
FOLDERS = 64  # of videos, that are looked for on each node
UNSEEN = "unseen"  # the kind of a record's error
_SAME = "let videos and models lie at the same paths on all machines of the cluster"
_TOGETHER = "install the same on all machines of the cluster"
_START = "start one with `ray start --head`, or take another --ray ADDRESS; `ray status` shows what runs"


@dataclass(frozen=True)
class Share:
    """What each worker takes of a node.

    ``gpus``: may be a part of one. ``cpus``: what Ray reserves. ``threads``: of torch. ``side_by_side``:
    workers on one device. ``on_a_node``: workers on one node, at most.
    """

    gpus: float
    cpus: int
    threads: int
    side_by_side: int
    on_a_node: int

    def __str__(self) -> str:
        return counted(self.cpus, "CPU") + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def fits(self, node: Mapping[str, float]) -> int:
        """How many workers a node with these resources has room for."""
        by_cpus = int(node.get("CPU", 0) // self.cpus)
        return min(by_cpus, _parts(node, self.gpus)) if self.gpus else by_cpus


def _parts(node: Mapping[str, float], gpus: float) -> int:
    return int(node.get("GPU", 0) / gpus + 1e-6)


def share_of(nodes: Sequence[Mapping[str, float]], gpus: float | None, threads: int | None) -> Share:
    """The share of each worker, the same for all: GPUs, or without any as many CPUs as the smallest node has.

    :param nodes: the resources of each, in Ray's terms.
    :param gpus: of each worker; None: 1 if the cluster has any.
    :param threads: of torch, if the user has named a number.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if not gpus:
        cpus = threads or min((int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1), default=1)
        most = max(1, *(int(node.get("CPU", 0) // cpus) for node in nodes), 1)
        return Share(0.0, cpus, cpus, side_by_side=most, on_a_node=most)
    counts = [(int(node.get("CPU", 0)), _parts(node, gpus)) for node in nodes if _parts(node, gpus)]
    each = min((cpus // count for cpus, count in counts), default=1)
    return Share(
        gpus,
        cpus=1,
        threads=threads or max(1, each),
        side_by_side=max(1, round(1 / gpus)),
        on_a_node=max((count for _, count in counts), default=1),
    )


@dataclass(frozen=True)
class Needed:
    """Paths that each node has to see: the models' folders, and some of the folders with videos."""

    models: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


def needed(works: Sequence[Work], plan: LoadPlan) -> Needed:
    """What the nodes need for these works."""
    models = (str(folder) for folder in (plan.target, plan.draft) if folder is not None)
    folders = dict.fromkeys(str(work.request.video.path.parent) for work in works)
    return Needed(tuple(dict.fromkeys(models)), tuple(folders)[:FOLDERS])


def with_absolute_path(work: Work) -> Work:
    """The work as another machine finds it."""
    video = work.request.video
    path = Path(os.fsdecode(absolute(video.path)))
    return replace(work, request=replace(work.request, video=replace(video, path=path)))


def check_here(plan: LoadPlan) -> None:
    """
    :raises MachineError: the folders of a plan that was made on a node are not on this machine.
    """
    for folder in (plan.target, plan.draft):
        if folder is not None and not folder.exists():
            cause = f"the cluster's nodes have the model in {folder}, which this machine does not see"
            raise MachineError(cause, _SAME)


@dataclass(frozen=True)
class Node:
    """A node as a worker's actor finds it. ``unseen``: of the paths that it was asked for."""

    name: str
    versions: Mapping[str, str]
    unseen: frozenset[str] = frozenset()

    @classmethod
    def read(cls, found: tuple[str, dict[str, str], list[str]]) -> Node:
        name, versions, unseen = found
        return cls(name, versions, frozenset(unseen))


def versions() -> dict[str, str]:
    """What has to be the same everywhere. The builds of torch may differ: the command needs no GPU."""
    found = {"lvspec": __version__, "Python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def differing(node: Node, own: Mapping[str, str]) -> MachineError | None:
    """The error for a node with other versions than this machine's."""
    others = [
        f"{what} {node.versions.get(what, 'none')}, here it is {mine}"
        for what, mine in own.items()
        if node.versions.get(what) != mine
    ]
    return MachineError(f"node {node.name} has {'; '.join(others)}", _TOGETHER) if others else None


def blind(node: Node, paths: Needed) -> LvspecError | str | None:
    """What a node does not see: an error if it cannot do any work, a line for the user if it can do some."""
    for model in paths.models:
        if model in node.unseen:
            return MachineError(f"node {node.name} does not see the model in {model}", _SAME)
    missing = [folder for folder in paths.folders if folder in node.unseen]
    if not missing:
        return None
    if len(missing) == len(paths.folders):
        return NoInputError(f"node {node.name} does not see {missing[0]}", _SAME)
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"node {node.name} does not see {missing[0]}{more}: what it is given of these videos fails"


def said_of_node(record: Record, node: str) -> Record:
    """The record. If the file, which is on this machine, was not there on its node, the error says so."""
    if record.error is None or record.error.kind != NoInputError.kind:
        return record
    message = f"node {node} does not see it: {record.error.message}"
    return record.model_copy(update={"error": Failure(kind=UNSEEN, message=message)})


class Actor:
    """The part of a worker's actor that runs on its node. It knows bytes and built-in types only."""

    def __init__(self) -> None:
        self._worker: Any = None

    def look(self, paths: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
        return facts(paths)

    def start(self, module: str, folder: str) -> None:
        """:param folder: the command's current one, which Ray puts before the modules of the environment."""
        sys.path[:] = [path for path in sys.path if path not in ("", folder)]
        self._worker = start_worker(module)

    def exchange(self, messages: Sequence[bytes], started: None) -> tuple[list[bytes], int | None]:
        """Sends messages; returns those that have come, and the worker's exit code if it has ended.

        Waits a little for the first one only.

        :param started: what ``start`` gives. If it has failed, so does this.
        """
        process, connection = self._worker
        received: list[bytes] = []
        with suppress(OSError):  # it has ended, as receiving tells
            for message in messages:
                connection.send_bytes(message)
        try:
            waiting = _REST
            while len(received) < _MOST and connection.poll(waiting):
                received.append(connection.recv_bytes())
                waiting = 0.0
        except (EOFError, OSError):
            return received, process.wait()
        return received, None


def facts(paths: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    """This node's name and versions, and which of the paths it does not see."""
    return platform.node(), versions(), [path for path in paths if not os.path.exists(path)]  # noqa: PTH110


def call_here(wanted: Mapping[str, str], call: bytes) -> tuple[Any, bytes | None]:
    """Runs a pickled function on a node with the wanted versions. Returns the node's facts and the result."""
    found = facts(())
    if found[1] != wanted:
        return found, None
    function, arguments = pickle.loads(call)  # noqa: S301
    try:
        return found, pickle.dumps(function(*arguments))
    except LvspecError as error:
        return found, pickle.dumps(error)


@dataclass(eq=False)
class ActorLink:
    """A worker's process and the connection to it, on a node of the cluster."""

    ray: Any
    actor: Any
    module: str
    paths: Needed
    told: set[str]  # lines about nodes, which other links may have told
    node: str = ""  # its name, once the cluster has found it room
    since: float = field(default_factory=time.monotonic)
    _call: Any = None  # the answer that is under way
    _started: Any = None
    _outgoing: list[bytes] = field(default_factory=list)
    _incoming: deque[Any] = field(default_factory=deque)
    _ended: int | str | None = None

    @property
    def has_news(self) -> bool:
        """Whether ``recv`` returns at once."""
        return bool(self._incoming) or self._ended is not None

    def ask(self) -> Any:
        """The answer that is under way. Asks for one if there is none."""
        if self._call is None:
            if self._started is not None:
                outgoing, self._outgoing = self._outgoing, []
                self._call = self.actor.exchange.remote(outgoing, self._started)
            else:
                self._call = self.actor.look.remote([*self.paths.models, *self.paths.folders])
        return self._call

    def take(self) -> None:
        """Takes the answer, which has come."""
        call, self._call = self._call, None
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayError as error:  # also where it may be reached again: something is lost
            self._ended = how_lost(error)
            return
        if self._started is not None:
            messages, self._ended = answer
            self._incoming.extend(map(pickle.loads, messages))
            return
        self._open(Node.read(answer))

    def _open(self, node: Node) -> None:
        self.node = node.name
        problem = differing(node, versions()) or blind(node, self.paths)
        if isinstance(problem, LvspecError):
            self._incoming.append(problem)
            return
        if problem is not None and problem not in self.told:
            self.told.add(problem)
            self.tell(problem)
        self._started = self.actor.start.remote(self.module, os.getcwd())  # noqa: PTH109

    def tell(self, text: str) -> None:
        """Lets the user know a line."""
        self._incoming.append(EventSent(Noted(text)))

    def send(self, message: Any, /) -> None:
        """The message goes with the next question for an answer."""
        self._outgoing.append(pickle.dumps(message))

    def recv(self) -> Any:
        """
        :raises EOFError: the worker has ended.
        """
        if not self._incoming:
            raise EOFError
        message = self._incoming.popleft()
        return Row(said_of_node(message.record, self.node)) if isinstance(message, Row) else message

    def kill(self) -> None:
        """Ends the worker. An answer that has come is still there to be received."""
        if self._ended is None and self._call is not None:
            if self.ray.wait([self._call], timeout=0)[0]:
                self.take()
            self._call = None
        self._ended = self._ended if self._ended is not None else "it was stopped"
        self.close()

    def wait(self) -> int | str:
        return self._ended if self._ended is not None else "it was stopped"

    def close(self) -> None:
        """Gives back what it holds of the cluster."""
        self.ray.kill(self.actor)


def how_lost(error: Exception) -> str:
    """In words, why an actor has ended.

    :param error: one of Ray's.
    """
    text = str(error)
    if "No module named 'lvspec_cli" in text:
        return f"its node has no lvspec {__version__}"
    if "out of memory" in text.lower() or type(error).__name__ == "OutOfMemoryError":
        return "Ray ended it because its node was short of memory"
    if type(error).__name__.startswith("RayTaskError"):  # an exception on the node
        cause = getattr(error, "cause", error)
        return " ".join(f"{type(cause).__name__}: {cause}".split())
    return "its node was lost"


def workers_of(nodes: Sequence[Mapping[str, float]], share: Share) -> int:
    """How many workers the nodes have room for, if nothing else runs there.

    :raises MachineError: none.
    """
    count = sum(map(share.fits, nodes))
    if not count:
        remedy = "take less with --gpus-per-worker or --threads, or wait for more nodes with --workers 1"
        raise MachineError(f"no node of the cluster has {share} for a worker", remedy)
    return count


class Cluster:
    """A Ray cluster that this process has joined, and how many workers it runs for it."""

    def __init__(self, ray: Any, workers: int | None, gpus: float | None, threads: int | None) -> None:
        """The parameters are those of ``joined``."""
        self._ray = ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.share = share_of(nodes, gpus, threads)
        self.workers = workers or workers_of(nodes, self.share)
        reserved = {"num_cpus": self.share.cpus, "num_gpus": self.share.gpus, "scheduling_strategy": "SPREAD"}
        self._told: set[str] = set()
        self._actor = ray.remote(**reserved, max_restarts=0)(Actor)
        self._call = ray.remote(**reserved)(call_here)

    def call(self, function: Callable[..., T], *arguments: Any, tell: Callable[[str], None]) -> T:
        """The result of a function that runs on a node like a worker does.

        :param tell: gets a line if there is no room for it yet.
        :raises LvspecError: the function does, or the node is not usable.
        """
        own, told = versions(), time.monotonic() + PATIENCE
        answer = self._call.remote(own, pickle.dumps((function, arguments)))
        while not self._ray.wait([answer], timeout=_POLL)[0]:
            if time.monotonic() > told:
                tell(self.waiting)
                told = float("inf")
        try:
            found, result = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise MachineError(f"it cannot be run on the cluster: {how_lost(error)}", _TOGETHER) from error
        if problem := differing(Node.read(found), own):
            raise problem
        returned = pickle.loads(result)  # noqa: S301
        if isinstance(returned, LvspecError):
            raise returned
        return returned

    @property
    def waiting(self) -> str:
        """A line for the user."""
        return f"the cluster has no room yet: a worker takes {self.share}"

    def start_worker(self, module: str, paths: Needed) -> ActorLink:
        """A worker on whichever node has room for it first."""
        return ActorLink(self._ray, self._actor.remote(), module, paths, self._told)

    def ready(self, links: Sequence[ActorLink], timeout: float | None) -> Sequence[ActorLink]:
        """Those that have a message, or whose worker has ended; waits for the first."""
        if links and all(not link.node and time.monotonic() > link.since + PATIENCE for link in links):
            links[0].tell(self.waiting)
            for link in links:
                link.since = float("inf")
        calls = {link.ask(): link for link in links if not link.has_news}
        if calls:
            wait = 0 if len(calls) < len(links) else timeout
            for call in self._ray.wait(list(calls), timeout=wait)[0]:
                calls[call].take()
        return [link for link in links if link.has_news]


@contextmanager
def joined(
    address: str, workers: int | None = None, gpus: float | None = None, threads: int | None = None
) -> Iterator[Cluster]:
    """The cluster at an address; ``auto`` is the one that this machine is a part of.

    :param workers: None: as many as its nodes have room for.
    :param gpus: of each worker; None: 1 if the cluster has any.
    :param threads: of each worker's torch; None: its share of a node's CPUs.
    :raises UsageError: Ray is not installed, or the address is none.
    :raises MachineError: no cluster answers, it has other versions, or no room.
    """
    if find_spec("ray") is None:
        install = f"install it with: {install_command('lvspec[ray]')}"
        raise UsageError("--ray needs the package ray", install)
    import ray
    import ray._private.services as services
    import ray._private.worker as driver

    if "://" in address:
        raise UsageError(
            f"--ray {address}: lvspec has to run on one of the cluster's machines",
            "run it there with --ray auto, or as a job: ray job submit -- lvspec caption ...",
        )
    try:
        place = services.canonicalize_bootstrap_address_or_die(address)
        host, _, port = place.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except ValueError as error:
        raise UsageError(f"--ray {address} is no address", "write auto, or host:6379") from error
    except OSError as error:  # a ConnectionError of Ray's, too
        raise MachineError(f"no Ray cluster answers at {address}", _START) from error
    vars(driver)["_worker_logs_enabled"] = False  # else losses of nodes would be printed among the rows
    _join(ray, place)
    try:
        yield Cluster(ray, workers, gpus, threads)
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Joins in a thread: Ray can wait for minutes, deaf to signals, and takes their handlers away."""
    failure: list[Exception | SystemExit] = []

    def join() -> None:
        try:
            ray.init(address, log_to_driver=False, logging_level="CRITICAL")
        except (Exception, SystemExit) as error:
            failure.append(error)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(JOIN)
    for number, handler in handlers.items():
        if handler is not None:  # of Python
            signal.signal(number, handler)
    if thread.is_alive():
        raise MachineError(f"the Ray cluster at {address} does not answer within {JOIN:.0f} s", _START)
    if failure:
        text = " ".join(str(failure[0]).split())
        is_other = "ersion mismatch" in text
        raise MachineError(
            f"the Ray cluster at {address}: {text}", _TOGETHER if is_other else _START
        ) from failure[0]
