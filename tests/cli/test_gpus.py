"""The command line on GPUs that compute on the CPU, with passes that are captured as they are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Printed, write_video
from tests.recorded import Recorder
from tests.stand_in import Gpus, gpus

# bitsandbytes has kernels of its own, which look for a driver.
PLAIN = ("--dtype", "float32", "--quant-target", "none", "--quant-draft", "none")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    recorders: list[Recorder] = []

    def graphs(_: object) -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    monkeypatch.setattr("lvspec_cli.models.steps.cuda_graphs", graphs)
    monkeypatch.setattr("lvspec_cli.memory.resolve._has_gpu_file", lambda: True)
    with gpus() as found:
        yield found
    assert any(recorder.recorded for recorder in recorders)


@pytest.mark.sampled
@pytest.mark.parametrize("mode", ["lvspec", "exact", "ar"])
def test_ask_says_the_same(
    here: Callable[..., Printed], tiny_models: Path, video_file: Path, made: Gpus, mode: str
) -> None:
    def said(*where: str) -> str:
        plain = PLAIN[:-2] if mode == "ar" else PLAIN
        asked = ("ask", video_file, "What moves?", "--mode", mode, "--max-new-tokens", 20, *plain)
        printed = here(*asked, *where, environment={"LVSPEC_MODELS": str(tiny_models)})
        assert printed.returncode == 0, printed.stderr
        return printed.stdout

    expected = said("--device", "cpu")
    assert not made.waits["to the host"]
    assert said("--device", "cuda") == expected
    assert made.waits["to the host"]
    if mode != "ar":
        assert said("--device", "cuda:1", "--draft-device", "cuda:0") == expected


def test_caption_writes_the_same(
    here: Callable[..., Printed], tiny_models: Path, tmp_path: Path, made: Gpus
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for seconds in (1, 2, 3):
        write_video(folder / f"{seconds}.mp4", seconds)
    texts = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.jsonl"
        flags = ("--max-new-tokens", 12, "--at-once", 3, "--device", device, "--out", out, *PLAIN)
        printed = here("caption", folder, *flags, environment={"LVSPEC_MODELS": str(tiny_models)})
        assert printed.returncode == 0, printed.stderr
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert {row["settings"]["loading"]["device"] for row in rows} == {device}
        texts.append({row["file_name"]: row["text"] for row in rows})
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3
    assert made.waits["to the host"]


@pytest.mark.sampled
@pytest.mark.parametrize("quantisation", ["bf16", "int4", "fp8"])
def test_weights_of_fewer_bits_are_made_and_read(
    here: Callable[..., Printed], tiny_models: Path, video_file: Path, made: Gpus, quantisation: str
) -> None:
    flags = ("--quant-target", quantisation, "--quant-draft", quantisation, "--device", "cuda", "--json")
    asked = ("ask", video_file, "What moves?", "--max-new-tokens", 8, *flags)
    printed = here(*asked, environment={"LVSPEC_MODELS": str(tiny_models)})
    assert printed.returncode == 0, printed.stderr
    record = json.loads(printed.stdout)
    loading = {"target": quantisation, "draft": quantisation, "dtype": "bfloat16", "device": "cuda"}
    assert record["settings"]["loading"] == loading
    assert record["stats"]["output_tokens"] == 8
    assert made.waits["to the host"]
