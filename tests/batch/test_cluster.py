"""Workers on a Ray cluster: of two nodes, which these tests start and stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lvspec_cli.batch.cluster import (
    UNSEEN,
    Cluster,
    Needed,
    Node,
    Share,
    _join,
    blind,
    differing,
    how_lost,
    joined,
    share_of,
    versions,
    workers_of,
)
from lvspec_cli.batch.remote import _Crew, after_death, run
from lvspec_cli.batch.serve import Setup, WorkerPlan
from lvspec_cli.batch.work import Work, make_work
from lvspec_cli.errors import (
    LvspecError,
    MachineError,
    NoInputError,
    NotFiniteError,
    PairError,
    UsageError,
    VideoError,
)
from lvspec_cli.events import Event, Noted
from lvspec_cli.host import install_command
from lvspec_cli.output.records import Record
from lvspec_cli.types import VideoRequest
from tests.batch.conftest import lasting, rows
from tests.batch.processes import Processes, Run, until
from tests.batch.test_moved import PLAN, work
from tests.conftest import Printed, write_video
from tests.warm import LEAN_PATH

pytestmark = pytest.mark.long  # mostly waiting for Ray

COUNT = 16
SHORT = "tests.batch.short_worker"
QUIET = {
    "PYTHONPATH": LEAN_PATH,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
}


class TwoNodes:
    """A cluster with one CPU on each of two nodes, of which the second may be lost."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._second: Any = self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def lose_second(self) -> None:
        import ray

        ray.shutdown()  # of this process, which may have joined by way of that node
        self._cluster.remove_node(self._second, allow_graceful=False)

    def has_workers(self) -> bool:
        """Whether worker processes without models run on the nodes."""
        return bool(_running(SHORT, psutil.Process()))

    def second_has_work(self) -> bool:
        """Whether a video is decoded for the second node's worker."""
        raylet = psutil.Process(self._second.all_processes["raylet"][0].process.pid)
        return bool(_running("lvspec_cli.video.worker", raylet))

    def close(self) -> None:
        self._cluster.shutdown()


def _running(module: str, below: psutil.Process) -> list[psutil.Process]:
    time.sleep(0.1)  # asked again and again, this is work
    found = []
    for process in below.children(recursive=True):
        with suppress(psutil.Error):
            if module in process.cmdline():
                found.append(process)
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    # Not in pytest's folder: paths of sockets have to be short.
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**QUIET, "RAY_TMPDIR": folder}.items():
                patch.setenv(name, value)
            (
                Path(folder) / "ray"
            ).mkdir()  # where the address is noted; a folder that is not there is not made
            nodes = TwoNodes(folder)
        yield nodes
        nodes.close()


@pytest.fixture(scope="module")
def cluster(nodes: TwoNodes) -> Iterator[Cluster]:
    """The nodes, joined by this process."""
    with joined(nodes.address) as cluster:
        yield cluster


def made(folder: Path, *names: str) -> list[Work]:
    """Works of files that are there."""
    for name in names:
        (folder / name).write_bytes(b"no video")
    like = work("a.mp4").request
    return [make_work(PLAN, replace(like, video=VideoRequest(folder / name))) for name in names]


Answer = Callable[[Sequence[Work]], tuple[list[Record], list[str]]]


@pytest.fixture
def answer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Has works answered by one worker without models. Gives the records, and the lines for the user."""
    monkeypatch.setattr("lvspec_cli.batch.remote.WORKER", SHORT)

    def run_there(works: Sequence[Work]) -> tuple[list[Record], list[str]]:
        done: list[Record] = []
        told: list[str] = []

        def listen(event: Event) -> None:
            if isinstance(event, Noted):
                told.append(event.text)

        plan = WorkerPlan(PLAN, works[0].request, 1, 2**20, "fail")
        run(works, [plan], write=done.append, listen=listen, cluster=cluster)
        return done, told

    return run_there


def test_a_clip_that_ends_two_workers_fails_and_the_others_are_done(answer: Answer, tmp_path: Path) -> None:
    done, told = answer(made(tmp_path, "a.mp4", "killer.mp4", "b.mp4"))
    errors = {record.file_name: record.error for record in done}
    assert len(done) == len(errors) == 3
    killer = errors.pop("killer.mp4")
    assert killer is not None
    assert (killer.kind, killer.message) == ("worker_died", "two workers ended at this clip (SIGKILL)")
    assert {error and error.message for error in errors.values()} == {"read"}
    assert told == ["a worker has ended (SIGKILL): 1 clip to be done again"]


def test_what_a_node_does_not_see_is_said_in_the_row_and_before(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    works = [*made(tmp_path, "a.mp4"), *made(tmp_path / "gone", "b.mp4")]
    (tmp_path / "gone" / "b.mp4").unlink()
    (tmp_path / "gone").rmdir()
    done, told = answer(works)
    assert [line for line in told if line.endswith("gone: what it is given of these videos fails")]
    kinds = {record.file_name: record.error and record.error.kind for record in done}
    assert kinds == {"a.mp4": "video", "b.mp4": UNSEEN}
    with pytest.raises(NoInputError, match=r"^node .* does not see .*gone$"):  # one that sees none takes none
        answer(works[1:])


def test_nodes_with_other_versions_are_refused(
    cluster: Cluster, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    assert cluster.call(os.getpid, tell=told.append) != os.getpid()
    with pytest.raises(VideoError, match="no such model there"):
        cluster.call(_fail, "no such model there", tell=told.append)
    with pytest.raises(MachineError, match=r"cannot be run on the cluster: ZeroDivisionError: "):
        cluster.call(divmod, 1, 0, tell=told.append)
    monkeypatch.setattr("lvspec_cli.batch.cluster.versions", lambda: versions() | {"torch": "1.0"})
    refused = r"^node .* has torch \d.*, here it is 1\.0$"
    with pytest.raises(MachineError, match=refused):
        answer(made(tmp_path, "a.mp4"))
    with pytest.raises(MachineError, match=refused):
        cluster.call(os.getpid, tell=told.append)
    assert not told


def _fail(cause: str) -> None:
    raise VideoError(cause)


def test_however_the_command_ends_the_nodes_are_free(
    nodes: TwoNodes, lvspec: Processes, tmp_path: Path
) -> None:
    names, out = ("a.mp4", "b.mp4", "sleeper.mp4"), tmp_path / "out.jsonl"
    command = ("caption", *names, "--pair", "demo", "--workers", 1, "--out", out)
    for name in names:
        write_video(tmp_path / name, seconds=0.5)
    before = f"import lvspec_cli.batch.remote as remote; remote.WORKER = {SHORT!r}"

    def start() -> Run:
        return lvspec.start(tmp_path, *command, "--ray", nodes.address, before=before)

    def is_asleep() -> bool:
        return out.exists() and out.read_bytes().count(b"\n") == 2

    run = start()
    assert until(is_asleep), run.stderr
    began = time.monotonic()
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    assert time.monotonic() - began < 5  # 0.6 on a quiet machine
    assert until(lambda: not nodes.has_workers(), 10)
    assert "1 left: the same command goes on from there" in run.stderr
    assert len(rows(out)) == 2

    run = start()
    assert until(nodes.has_workers), run.stderr
    run.kill(signal.SIGKILL)
    run.wait()
    assert until(lambda: not nodes.has_workers(), 20)
    assert len(rows(out)) == 2


def test_no_cluster_is_one_line_at_once(here: Callable[..., Printed], video_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    failed = here("caption", video_file, "--ray", f"127.0.0.1:{port}")
    assert failed.returncode == 3
    assert f"error: no Ray cluster answers at 127.0.0.1:{port}\ntry: " in failed.stderr


def test_ray_is_not_waited_for_without_end_and_its_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where something else listens at the address, Ray tries for two minutes and then ends the process."""
    monkeypatch.setattr("lvspec_cli.batch.cluster.JOIN", 0.05)
    over = threading.Event()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(MachineError, match="head:1 does not answer within"):
        _join(SimpleNamespace(init=lambda *_, **__: over.wait()), "head:1")
    over.set()
    assert signal.getsignal(signal.SIGTERM) == handler

    def other_version(*_: object, **__: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n")

    with pytest.raises(MachineError) as caught:
        _join(SimpleNamespace(init=other_version), "head:1")
    assert caught.value.cause.endswith(": Version mismatch: The cluster was started with: Ray: 2.40.0")
    assert caught.value.remedy == "install the same on all machines of the cluster"


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--ray", "auto", "--devices", "cpu"), "--ray excludes --devices"),
        (("--ray", "auto", "--device", "cpu"), "--ray excludes --device:"),
        (("--ray", "auto", "--gpus-per-worker", "1.5"), "--gpus-per-worker 1.5 is no number of GPUs"),
        (("--gpus-per-worker", "1"), "--gpus-per-worker goes with --ray only"),
        (("--ray", "ray://head:10001"), "has to run on one of the cluster's machines"),
        (("--ray", "nowhere"), "--ray nowhere is no address"),
        (("--workers", "many"), "many is neither auto nor a number from 1 to 512"),
    ],
)
def test_flags_that_do_not_go_together(
    here: Callable[..., Printed], video_file: Path, flags: tuple[str, ...], cause: str
) -> None:
    failed = here("caption", video_file, *flags)
    assert failed.returncode == 2
    assert cause in failed.stderr


def test_without_ray_the_line_says_how_to_install_it(
    here: Callable[..., Printed], video_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvspec_cli.batch.cluster.find_spec", lambda name: None)
    failed = here("caption", video_file, "--ray", "auto")
    assert failed.returncode == 2
    assert "error: --ray needs the package ray\n" in failed.stderr
    assert install_command("lvspec[ray]") in failed.stderr


@pytest.mark.parametrize(
    ("nodes", "gpus", "threads", "share", "workers"),
    [
        ([{"CPU": 4}, {"CPU": 9}], None, None, Share(0, 4, 4, side_by_side=2, on_a_node=2), 3),
        ([{"CPU": 4}, {"CPU": 9}], None, 2, Share(0, 2, 2, side_by_side=4, on_a_node=4), 6),
        ([{"CPU": 16, "GPU": 8}, {"CPU": 4}, {"CPU": 0}], None, None, Share(1, 1, 2, 1, 8), 8),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 16, "GPU": 2}], 0.5, None, Share(0.5, 1, 4, 2, 4), 6),
        ([{"CPU": 16, "GPU": 5}], 2, 3, Share(2, 1, 3, 1, 2), 2),
        ([{"CPU": 16, "GPU": 5}], 0, None, Share(0, 16, 16, 1, 1), 1),
    ],
)
def test_what_a_worker_takes_of_a_node(
    nodes: list[dict[str, float]], gpus: float | None, threads: int | None, share: Share, workers: int
) -> None:
    assert share_of(nodes, gpus, threads) == share
    assert workers_of(nodes, share) == workers


def test_no_node_with_room_is_an_error() -> None:
    nodes = [{"CPU": 4.0}]
    with pytest.raises(MachineError, match="no node of the cluster has 1 CPU and 1 GPU for a worker"):
        workers_of(nodes, share_of(nodes, 1, None))


def test_what_a_node_lacks() -> None:
    own = {"lvspec": "1", "Python": "3.12", "torch": "2.11.0"}
    assert differing(Node("n", own), own) is None
    error = differing(Node("n", {"lvspec": "2", "Python": "3.12"}), own)
    assert error is not None
    assert error.cause == "node n has lvspec 2, here it is 1; torch none, here it is 2.11.0"
    paths = Needed(("/target",), ("/a", "/b", "/c"))
    assert blind(Node("n", own), paths) is None
    line = "node n does not see /a and 1 more: what it is given of these videos fails"
    assert blind(Node("n", own, frozenset({"/a", "/c"})), paths) == line
    assert isinstance(blind(Node("n", own, frozenset(paths.folders)), paths), NoInputError)
    assert isinstance(blind(Node("n", own, frozenset(paths.models)), paths), MachineError)
    assert how_lost(Exception("No module named 'lvspec_cli'")).startswith("its node has no lvspec ")


@pytest.mark.parametrize("error", [UsageError("a special token"), NotFiniteError("NaN")])
def test_an_error_that_every_node_would_have_ends_the_run(error: LvspecError) -> None:
    there: Any = object()
    crew = _Crew(deque(), lambda record: None, lambda event: None, cluster=there)
    with pytest.raises(type(error)):
        crew.worker_failed(there, error)


def test_loading_is_tried_again_elsewhere_but_not_without_end() -> None:
    """As on a cluster where every node is lost."""
    started: list[str] = []

    def start_worker(module: str, paths: Needed) -> Any:
        started.append(module)
        return SimpleNamespace(send=str, close=str, wait=lambda: "its node was lost")

    there: Any = SimpleNamespace(start_worker=start_worker)
    crew = _Crew(deque([work("/a.mp4")]), lambda record: None, lambda event: None, cluster=there)
    crew.start(Setup(WorkerPlan(PLAN, work("/a.mp4").request, 1, 2**20, "fail")))
    while crew.workers:
        crew.worker_ended(crew.workers[0])
    assert len(started) == 3
    with pytest.raises(PairError, match=r"while it loaded the pair \(its node was lost\)$"):
        crew.check_done()


def test_the_first_worker_that_dies_may_have_been_lost_with_its_node() -> None:
    a, b = work("/a.mp4"), work("/b.mp4")
    failed, left = after_death([a, b], under_way=1, tries=2)
    assert (failed, left) == ((), [replace(a, alone=True), b])
    assert after_death(left, under_way=1, tries=2) == (left[:1], left[1:])


def test_a_node_that_is_lost_costs_no_clip(
    nodes: TwoNodes, lvspec: Processes, here: Callable[..., Printed], tmp_path: Path
) -> None:
    """The last one: the second node does not come back."""
    clips, out, alone = tmp_path / "clips", tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    clips.mkdir()
    for number in range(COUNT):
        write_video(clips / f"{number:02}.mp4", seconds=0.5 + number / 20)
    what = ("--pair", "demo", "--frames", 4, "--max-new-tokens", 16, "--threads", 1)
    run = lvspec.start(tmp_path, "caption", "clips", *what, "--out", out, "--ray", nodes.address)
    assert until(nodes.second_has_work), run.stderr
    nodes.lose_second()
    assert run.wait() == 0, run.stderr
    assert "a worker has ended (its node was lost): " in run.stderr
    assert "raylet" not in run.stderr  # nothing of what Ray prints then
    assert (tmp_path / "stdout.txt").read_text() == ""
    assert here("caption", str(clips), *what, "--out", alone).returncode == 0
    assert sorted(map(str, map(lasting, rows(out)))) == sorted(map(str, map(lasting, rows(alone))))
