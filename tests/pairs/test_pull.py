"""Downloads from a hub on this machine, by the real command line and the hub's own client."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lvspec_cli.pairs.hub import ANSWER_S, HubUnreachableError, check_reachable
from tests.cli.terminal import Terminal
from tests.conftest import Shell, write_video
from tests.pairs.server import COMMIT, Hub, blob, serve
from tests.tiny_models import save_pair

WEIGHTS = save({"weight": np.arange(600_000, dtype=np.float32)})
FILES = {
    "config.json": b'{"model_type": "made up"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "modeling_made_up.py": b"raise SystemExit",
    "onnx/model.safetensors": b"not this one",
    "README.md": b"# Made up",
}
ROOMY = """
import shutil
from types import SimpleNamespace
shutil.disk_usage = lambda path: SimpleNamespace(free=10**15)
"""
TAKEN = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({"some/large": dict(FILES), "some/small": dict(FILES)})
    server = serve(hub)
    yield hub
    hub.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(tmp_path: Path, hub: Hub) -> Shell:
    """A command line that knows one pair and may ask the hub."""
    models = tmp_path / "models.yaml"
    models.write_text("pairs:\n  made-up:\n    target: {repo: some/large}\n    draft: {repo: some/small}\n")
    extra = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    return Shell(tmp_path, {**extra, "LVSPEC_MODELS": str(models), "HF_HUB_DISABLE_XET": "1"})


@pytest.fixture
def roomy(online: Shell) -> Shell:
    """The same, on a disk with room for anything: that of the tests may be small."""
    return replace(online, first=ROOMY)


def offline(shell: Shell) -> Shell:
    return Shell(shell.home, {**shell.extra, "HF_HUB_OFFLINE": "1"})


def snapshot(shell: Shell, repo: str) -> Path:
    return Path(shell.extra["HF_HOME"]) / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


def test_a_pair_comes_without_pickles_and_code(online: Shell, hub: Hub) -> None:
    done = online.run("models", "pull", "made-up")
    assert (done.returncode, done.stdout.splitlines()) == (
        0, [str(snapshot(online, "some/large")), str(snapshot(online, "some/small"))],
    )  # fmt: skip
    assert "some/large: 4 files of main, no commit is pinned, 0.0 GB to download" in done.stderr
    assert {path.name for path in snapshot(online, "some/large").iterdir()} == TAKEN
    assert {path for path, _ in hub.given} == TAKEN
    before = len(hub.given)
    again = online.run("models", "pull", "made-up")
    assert (again.returncode, len(hub.given)) == (0, before)
    assert "all of it is here" in again.stderr
    listed = offline(online).run("models", "list").stdout
    assert "made-up\t0.6M, 2.4 MB\t0.6M, 2.4 MB\tcached" in listed


def test_a_connection_that_breaks_goes_on_in_the_file(online: Shell, hub: Hub) -> None:
    weights = save({"weight": np.zeros(6_000_000, np.float32)})
    hub.repos["some/large"]["model.safetensors"] = weights
    hub.cut["model.safetensors"] = 15_000_000  # the client keeps pieces of 10 MiB
    done = online.run("models", "pull", "made-up")
    assert done.returncode == 0, done.stderr
    ranges = [asked for path, asked in hub.given if path == "model.safetensors"]
    assert any(asked and asked != "bytes=0-" for asked in ranges)
    assert (snapshot(online, "some/large") / "model.safetensors").read_bytes() == weights


def test_what_was_whole_when_it_was_killed_is_not_asked_for_again(online: Shell, hub: Hub) -> None:
    hub.held = "model.safetensors"
    process = subprocess.Popen(
        [*online.command, "models", "pull", "made-up"],
        env=online.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert hub.holding.wait(30)
        small = [snapshot(online, "some/large") / name for name in TAKEN - {"model.safetensors"}]
        for _ in range(200):
            if all(path.is_file() for path in small):
                break
            hub.release.wait(0.1)
    finally:
        process.kill()
        process.wait()
    assert not (snapshot(online, "some/large") / "model.safetensors").exists()
    shown = offline(online).run("models", "list").stdout
    assert "made-up\t-\t-\tnot downloaded" in shown
    hub.held = None
    hub.release.set()
    hub.given.clear()
    done = online.run("models", "pull", "made-up")
    assert done.returncode == 0, done.stderr
    assert hub.given[0][0] == "model.safetensors"
    assert len(hub.given) == 1 + len(TAKEN)


def test_more_than_ten_gigabytes_are_asked_about(roomy: Shell, hub: Hub) -> None:
    hub.claimed["model.safetensors"] = 6 * 10**9
    done = roomy.run("models", "pull", "made-up")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == [
        "error: made-up is 12.0 GB to download",
        "try: say --yes, as there is no terminal to ask on",
    ]
    terminal = Terminal(roomy, "models", "pull", "made-up")
    assert terminal.read(lambda text: "Go on? [y/N]" in text)
    terminal.type("n\n")
    assert terminal.finish() == 2
    assert "was not downloaded" in terminal.text
    assert hub.given == []


def test_yes_is_not_asked(roomy: Shell, hub: Hub) -> None:
    hub.claimed["model.safetensors"] = 6 * 10**9
    done = roomy.run("models", "pull", "made-up", "--yes")
    assert "to download\ntry: say --yes" not in done.stderr
    assert hub.given  # files of that size do not come, but they are asked for


def test_no_room_on_the_disk_is_said_before_anything_comes(online: Shell, hub: Hub) -> None:
    hub.claimed["model.safetensors"] = 10**18
    done = online.run("models", "pull", "made-up", "--yes")
    assert (done.returncode, hub.given) == (3, [])
    assert "error: 2000000000.0 GB are to be downloaded, and " in done.stderr
    assert done.stderr.splitlines()[-1] == "try: make room, or set HF_HOME to a folder on another disk"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE keeps some/large from being downloaded\ntry: unset it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached for some/large"),
    ],
)
def test_no_hub_is_said(online: Shell, change: dict[str, str], message: str) -> None:
    done = Shell(online.home, {**online.extra, **change}).run("models", "pull", "made-up")
    assert (done.returncode, done.stdout) == (3, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_repository_that_is_not_there_or_has_pickles_only(online: Shell, hub: Hub) -> None:
    del hub.repos["some/large"]
    done = online.run("models", "pull", "made-up")
    assert (done.returncode, "the hub has no some/large" in done.stderr) == (3, True)
    hub.repos["some/large"] = {name: FILES[name] for name in FILES if not name.endswith("model.safetensors")}
    done = online.run("models", "pull", "made-up")
    assert (done.returncode, "some/large holds no safetensors" in done.stderr) == (3, True)


def test_files_are_compared_with_their_hashes(
    online: Shell, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert online.run("models", "pull", "made-up").returncode == 0
    from lvspec_cli.checks.verify import LocalModel, check_files
    from lvspec_cli.pairs.hub import hashes_of
    from lvspec_cli.pairs.registry import Source

    folder = snapshot(online, "some/large")
    half = LocalModel("target", Source(repo="some/large"), folder)
    found = check_files(half, {}, lambda *_: None)
    assert (found.state, found.detail) == ("ok", "4 files match the hashes in the cache's names")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    known = hashes_of(half.source, COMMIT)
    assert known == {path: blob(path, content) for path, content in FILES.items()}
    assert check_files(half, known, lambda *_: None).detail == "4 files match the hub's hashes"
    newer = check_files(half, {**known, "config.json": "0" * 40}, lambda *_: None)
    assert (newer.state, "config.json" in newer.detail) == ("failed", True)
    weights = (folder / "model.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(WEIGHTS[:-1] + b"x")
    found = check_files(half, {}, lambda *_: None)
    assert (found.state, "model.safetensors is not the file" in found.detail) == ("failed", True)


@pytest.fixture
def real(online: Shell, hub: Hub, tmp_path: Path) -> Shell:
    """A tiny real pair in the cache, of main: no commit of it is pinned."""
    for repo, folder in zip(("some/large", "some/small"), save_pair(tmp_path, "smolvlm"), strict=True):
        hub.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert online.run("models", "pull", "made-up").returncode == 0
    return online


@contextmanager
def black_hole() -> Iterator[tuple[str, list[socket.socket]]]:
    """The address of a server that takes connections and never says a word, and those that it took."""
    taken: list[socket.socket] = []

    def take() -> None:
        with suppress(OSError):
            while True:
                taken.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


NOBODY = "http://127.0.0.1:9"
IMPATIENT = "import lvspec_cli.pairs.hub as hub\nhub.ANSWER_S, hub.LIST_S = 0.5, 2.0"


@pytest.mark.parametrize("address", [NOBODY, "http://nowhere.invalid", "black hole"])
def test_a_hub_that_does_not_answer_is_given_up_within_seconds(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with black_hole() as (hole, _):
        address = hole if address == "black hole" else address
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        began = time.monotonic()
        with pytest.raises(HubUnreachableError) as caught:
            check_reachable()
    assert caught.value.cause == f"the hub, {address}, cannot be reached"
    assert time.monotonic() - began < 2 * ANSWER_S + 5  # a busy machine is no failure


def test_hf_hub_offline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        check_reachable()


def test_without_a_hub_what_is_in_the_cache_is_used(real: Shell, tmp_path: Path) -> None:
    """One line, and nothing of the client's; an answer needs no hub at all."""
    with black_hole() as (address, taken):
        shell = Shell(real.home, {**real.extra, "HF_ENDPOINT": address})
        checked = shell.run(
            "models", "verify", "made-up", "--no-self-test", "--device", "cpu", first=IMPATIENT
        )
        assert checked.returncode == 0, checked.stderr
        lost = f"the hub, {address}, cannot be reached"
        assert checked.stderr == f"{lost}; the cache's own hashes are taken\n"
        assert checked.stdout.count("match the hashes in the cache's names\n") == 2
        assert len(taken) == 1  # the other model did not ask again
        video = write_video(tmp_path / "v.mp4")
        few = ("--frames", "2", "--max-new-tokens", "4", "--quiet")
        answered = shell.run("ask", video, "What?", "--pair", "made-up", *few)
        assert (answered.returncode, answered.stderr) == (0, "")
        assert len(taken) == 1
    pulled = Shell(real.home, {**real.extra, "HF_ENDPOINT": NOBODY}).run(
        "models", "pull", "made-up", "--quiet"
    )
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stderr.splitlines() == [
        f"the hub, {NOBODY}, cannot be reached for {repo}; the files that are here are taken"
        for repo in ("some/large", "some/small")
    ]


def test_a_hub_that_answers_and_then_gives_no_list(real: Shell, hub: Hub) -> None:
    """What it is asked for takes longer than anybody waits: said once, and the other model asks no more."""
    hub.held, before = "tree", len(hub.asked)
    done = real.run("models", "verify", "made-up", "--no-self-test", "--device", "cpu", first=IMPATIENT)
    assert (done.returncode, done.stdout.count("match the hashes in the cache's names\n")) == (0, 2)
    assert done.stderr.splitlines() == [
        f"the hub, {hub.address}, cannot be reached for some/large; the cache's own hashes are taken"
    ]
    assert not [path for path in hub.asked[before:] if "some/small" in path]


def test_a_repository_that_is_nowhere_is_not_asked_for(real: Shell, hub: Hub, tmp_path: Path) -> None:
    """``show`` and ``ask`` look into the cache alone: the server hears nothing."""
    models = tmp_path / "other.yaml"
    models.write_text("pairs:\n  other:\n    target: {repo: some/other}\n    draft: {repo: some/small}\n")
    before = len(hub.asked)
    shown = real.run("models", "show", "other", "--models", models)
    assert (shown.returncode, "not downloaded" in shown.stdout) == (0, True)
    video = write_video(tmp_path / "v.mp4")
    done = real.run("ask", video, "What?", "--pair", "other", "--models", models)
    assert (done.returncode, done.stderr.splitlines()) == (
        3,
        [
            "error: some/other is not wholly in the local cache",
            "try: download it with: lvspec models pull other",
        ],
    )
    assert len(hub.asked) == before


def test_a_pair_of_folders_that_are_not_there_says_so(online: Shell, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "pairs:\n  made-up:\n    target: {repo: some/large}\n    draft: {folder: nowhere}\n"
    )
    done = online.run("models", "pull", "made-up")
    assert done.returncode == 3
    assert f"there is no folder {tmp_path}/nowhere" in done.stderr
    assert "all of it is here" not in done.stderr
    assert not snapshot(online, "some/large").exists()
