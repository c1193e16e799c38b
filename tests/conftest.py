"""Parts that several folders of tests share: a tiny pair, a short clip, and the command line around them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import settings

from lvspec_cli.pairs.registry import PACKAGE, load_registry
from lvspec_cli.request import LoadPlan, PairChoice
from lvspec_cli.types import Loading, Quantisation
from tests.batch.processes import Processes
from tests.warm import AT_IMPORT, LEAN_PATH, cold_starts, entry_after, warm_starts

# A busy machine is no failure.
settings.register_profile("lvspec", deadline=None)
settings.load_profile("lvspec")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a job in the background is started: processes of the tests would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
PATIENCE = 600.0  # seconds until a process counts as hung


def write_video(path: Path, seconds: float = 2.0, size: int = 64, rate: int = 8) -> Path:
    """A moving bar on grey, H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(int(seconds * rate)):
            pixels = np.full((size, size, 3), 90, np.uint8)
            pixels[:, (3 * index) % size : (3 * index) % size + 8] = (200, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def demo_plan() -> LoadPlan:
    """The bundled pair on a CPU, as it is loaded there."""
    plain = Loading(Quantisation.NONE, Quantisation.NONE, "float32", "cpu")
    models = PACKAGE / "demo" / "pair"
    choice = PairChoice(*load_registry(environment={}).pair("demo"), device="cpu")
    return LoadPlan(choice, models / "target", models / "draft", plain)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a sampled test's cases, and of a family's in tests/conformance, `make test` takes a tenth.

    Each family has other cases than the one before it, and at least one. Long tests come first: else workers
    wait for them.
    """
    groups: dict[str, dict[object, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if item.get_closest_marker("sampled") or {"subject"} < given.keys():
            groups[item.nodeid.partition("[")[0]][given.get("subject")].append(item)
    for families in groups.values():
        for first, cases in enumerate(families.values()):
            for number, item in enumerate(cases, first):
                if number % min(10, len(cases)):
                    item.add_marker(pytest.mark.thorough)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def _warm() -> Iterator[None]:
    """Processes that tests start are forked from one that has imported torch and the rest."""
    with warm_starts():
        yield


_AT_START = dict(os.environ)


@pytest.fixture(autouse=True)
def _variables_of_the_start() -> None:
    """What libraries set when they are imported (cv2, gptqmodel) is not for the processes of later tests."""
    for name in {name for name in {*os.environ, *_AT_START} if name.startswith(AT_IMPORT)}:
        if name in _AT_START:
            os.environ[name] = _AT_START[name]
        else:
            del os.environ[name]


@pytest.fixture
def cold() -> Iterator[None]:
    """Processes start as they do for users."""
    with cold_starts():
        yield


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell has started the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models.yaml whose default pair is tiny and random."""
    from tests.tiny_models import save_pair

    folder = tmp_path_factory.mktemp("tiny")
    save_pair(folder, "qwen2_5_vl")
    models = folder / "models.yaml"
    models.write_text(
        "default: tiny\n"
        "pairs:\n"
        "  tiny:\n"
        "    target: {folder: target}\n"
        "    draft: {folder: draft}\n"
        "    defaults: {frames: 4, gamma: 4, max_new_tokens: 40, fallback: false}\n"
    )
    return models


@pytest.fixture(scope="session")
def endless_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair that goes on until it is stopped."""
    from tests.tiny_models import never_end, save_pair

    folder = tmp_path_factory.mktemp("endless")
    for model in save_pair(folder, "qwen2_5_vl"):
        never_end(model)
    models = folder / "models.yaml"
    models.write_text(
        "default: endless\npairs:\n  endless:\n    target: {folder: target}\n    draft: {folder: draft}\n"
        "    defaults: {frames: 2, max_new_tokens: 100000}\n"
    )
    return models


@dataclass(frozen=True)
class Shell:
    """Runs the real command line in a process of its own, away from the user's files."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)
    first: str = ""  # Python that each process runs before the command line

    @property
    def environment(self) -> dict[str, str]:
        users = ("LVSPEC", "XDG", "HF_", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(users)}
        home = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "config"), "HF_HUB_OFFLINE": "1"}
        home["XDG_STATE_HOME"] = str(self.home / "state")
        path = {"PYTHONPATH": LEAN_PATH, "OMP_NUM_THREADS": "1"}
        return {**kept, **home, **path, **self.extra}

    @property
    def command(self) -> list[str]:
        return entry_after(self.first) if self.first else [sys.executable, "-m", "lvspec_cli"]

    def run(self, *arguments: object, first: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Both streams are captured, stdin is empty, and a process that hangs is ended.

        ``first``: as the shell's own, for this process.
        """
        command = [*replace(self, first=first or self.first).command, *map(str, arguments)]
        common = {"env": self.environment, "capture_output": True, "text": True, "input": ""}
        return subprocess.run(command, **{"timeout": PATIENCE, **common, **options}, check=False)


@pytest.fixture(scope="session")
def lvspec(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Processes]:
    """Starts real processes with the tiny pair."""
    started = Processes(tmp_path_factory.mktemp("home"), tiny_models)
    yield started
    started.kill_all()


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without what takes most of their time; tests/bench/test_report.py draws them."""
    monkeypatch.setattr("lvspec_cli.bench.charts.svg", lambda *made, **how: "<svg></svg>")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Knows the shipped pairs only."""
    return Shell(tmp_path)


@pytest.fixture
def tiny_shell(tmp_path: Path, tiny_models: Path) -> Shell:
    """Answers with the tiny pair."""
    return Shell(tmp_path, {"LVSPEC_MODELS": str(tiny_models)})


@dataclass(frozen=True)
class Printed:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Printed]:
    """Runs the command line in this process: the same code, without the seconds that imports take."""

    def run(*arguments: object, stdin: str = "", environment: Mapping[str, str] | None = None) -> Printed:
        from lvspec_cli.cli.main import main

        for name in ("LVSPEC_PAIR", "LVSPEC_MODELS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {
            "XDG_CONFIG_HOME": str(tmp_path),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            **(environment or {}),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["lvspec", *map(str, arguments)])
        typed = io.BytesIO(stdin.encode(errors="surrogateescape"))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed))
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Printed(ended.value.code, printed.out, printed.err)

    return run
