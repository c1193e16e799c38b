"""Workers on a Ray cluster: of two nodes, which these tests start and stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
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
from lvspec_cli.batch.remote import after_death, run
from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.batch.work import Work, make_work
from lvspec_cli.errors import LvspecError, MachineError, NoInputError
from lvspec_cli.events import Event, Noted
from lvspec_cli.host import install_command
from lvspec_cli.output.records import Record
from lvspec_cli.types import VideoRequest
from tests.batch.conftest import lasting, rows
from tests.batch.processes import Processes, until
from tests.batch.test_moved import PLAN, work
from tests.conftest import Printed, write_video
from tests.warm import LEAN_PATH

COUNT = 10
QUIET = {
    "PYTHONPATH": LEAN_PATH,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}


class TwoNodes:
    """A cluster with one CPU on each of two nodes, of which the second may be lost, and come back."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._second: Any = self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def lose_second(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    def complete(self) -> None:
        self._second = self._second or self._cluster.add_node(num_cpus=1)

    def workers(self) -> list[psutil.Process]:
        """The worker processes on the nodes."""
        return _running("lvspec_cli.batch.worker", psutil.Process())

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
            for name, value in QUIET.items():
                patch.setenv(name, value)
            nodes = TwoNodes(folder)
        yield nodes
        nodes.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers need no models: what becomes of them is the same."""
    monkeypatch.setattr("lvspec_cli.batch.remote.WORKER", "tests.batch.short_worker")


def made(folder: Path, *names: str) -> list[Work]:
    """Works of files that are there."""
    for name in names:
        (folder / name).write_bytes(b"no video")
    like = work("a.mp4").request
    return [make_work(PLAN, replace(like, video=VideoRequest(folder / name))) for name in names]


def run_there(
    address: str, works: Sequence[Work], write: Callable[[Record], None], workers: int | None = None
) -> list[str]:
    """Answers works on a cluster, and gives the lines for the user."""
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Noted):
            told.append(event.text)

    with joined(address, workers) as cluster:
        plans = [WorkerPlan(PLAN, works[0].request, 1, 2**20, "fail")] * cluster.workers
        run(works, plans, write=write, listen=listen, cluster=cluster)
    return told


def test_stopping_gives_back_the_nodes_and_a_node_that_is_lost_costs_no_clip(
    nodes: TwoNodes, lvspec: Processes, here: Callable[..., Printed], tmp_path: Path
) -> None:
    clips, out, alone = tmp_path / "clips", tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    clips.mkdir()
    for number in range(COUNT):
        write_video(clips / f"{number:02}.mp4", seconds=0.5 + number / 20)
    what = ("--pair", "demo", "--frames", 4, "--max-new-tokens", 16)
    command = ("caption", "clips", *what, "--out", out, "--ray", nodes.address)

    def whole_rows() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    first = lvspec.start(tmp_path, *command, "--workers", 1)
    assert until(lambda: whole_rows() >= 1), first.stderr
    began = time.monotonic()
    first.kill(signal.SIGINT)
    assert first.wait() == 130
    assert time.monotonic() - began < 5  # far less on a quiet machine
    assert until(lambda: not nodes.workers(), 10)
    assert "the same command goes on from there" in first.stderr
    done = whole_rows()
    assert len(rows(out)) == done
    assert 1 <= done < COUNT

    second = lvspec.start(tmp_path, *command)
    assert until(nodes.second_has_work), second.stderr
    nodes.lose_second()
    assert second.wait() == 0, second.stderr
    assert f"{done} done, 0 failed, {COUNT - done} to do" in second.stderr
    assert "a worker has ended (its node was lost): " in second.stderr
    assert "raylet" not in second.stderr  # Ray's own messages
    assert (tmp_path / "stdout.txt").read_text() == ""
    assert not nodes.workers()
    assert here("caption", str(clips), *what, "--out", alone).returncode == 0
    assert sorted(map(str, map(lasting, rows(out)))) == sorted(map(str, map(lasting, rows(alone))))


def test_a_killed_command_leaves_nothing_on_the_nodes(
    nodes: TwoNodes, lvspec: Processes, tmp_path: Path
) -> None:
    nodes.complete()
    write_video(tmp_path / "a.mp4")
    run = lvspec.start(tmp_path, "caption", "a.mp4", "--pair", "demo", "--ray", nodes.address)
    assert until(lambda: bool(nodes.workers())), run.stderr
    run.kill(signal.SIGKILL)
    run.wait()
    assert until(lambda: not nodes.workers(), 20)


def test_a_clip_that_ends_two_workers_fails_and_the_others_are_done(
    nodes: TwoNodes, short: None, tmp_path: Path
) -> None:
    nodes.complete()
    works = made(tmp_path, "a.mp4", "killer.mp4", "b.mp4", "c.mp4")
    done: list[Record] = []
    told = run_there(nodes.address, works, done.append)
    errors = {record.file_name: record.error for record in done}
    assert len(done) == len(errors) == 4
    killer = errors.pop("killer.mp4")
    assert killer is not None
    assert (killer.kind, killer.message) == ("worker_died", "two workers ended at this clip (SIGKILL)")
    assert {error and error.message for error in errors.values()} == {"read"}
    assert any(line.startswith("a worker has ended (SIGKILL): ") for line in told)


def test_what_a_node_does_not_see_is_said_in_the_row_and_before(
    nodes: TwoNodes, short: None, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    works = [*made(tmp_path, "a.mp4"), *made(tmp_path / "gone", "b.mp4")]
    (tmp_path / "gone" / "b.mp4").unlink()
    (tmp_path / "gone").rmdir()
    done: list[Record] = []
    told = run_there(nodes.address, works, done.append, workers=1)
    assert [line for line in told if "gone" in line and "does not see" in line]
    kinds = {record.file_name: record.error and record.error.kind for record in done}
    assert kinds == {"a.mp4": "video", "b.mp4": UNSEEN}
    with pytest.raises(NoInputError, match="does not see"):  # one that sees none takes none
        run_there(nodes.address, works[1:], done.append, workers=1)
    assert len(done) == 2


def test_nodes_with_other_versions_are_refused(
    nodes: TwoNodes, short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lvspec_cli.batch.cluster.versions", lambda: versions() | {"torch": "1.0"})
    done: list[Record] = []
    with pytest.raises(MachineError, match=r"^node .* has torch \d.*, here it is 1\.0$"):
        run_there(nodes.address, made(tmp_path, "a.mp4"), done.append)
    with (
        joined(nodes.address, 1) as cluster,
        pytest.raises(MachineError, match=r"^node .* has torch \d.*, here it is 1\.0$"),
    ):
        cluster.call(os.getpid, tell=print)
    assert not done


def test_what_a_command_needs_to_know_of_the_node_comes_from_there(nodes: TwoNodes) -> None:
    told: list[str] = []
    with joined(nodes.address) as cluster:
        assert cluster.call(os.getpid, tell=told.append) != os.getpid()
        with pytest.raises(LvspecError, match="no model there"):
            cluster.call(_fail, "no model there", tell=told.append)
    assert not told


def _fail(cause: str) -> None:
    raise LvspecError(cause)


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


def test_the_first_worker_that_dies_may_have_been_lost_with_its_node() -> None:
    a, b = work("/a.mp4"), work("/b.mp4")
    failed, left = after_death([a, b], slots=1, tries=2)
    assert (failed, left) == ((), [replace(a, alone=True), b])
    assert after_death(left, slots=1, tries=2) == (left[:1], left[1:])
