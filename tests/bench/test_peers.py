"""The bundled pair as transformers runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lvspec_cli.bench.own import measure_own
from lvspec_cli.bench.peers import measure_peer
from lvspec_cli.bench.variants import settings_of
from lvspec_cli.figures.answers import BenchMode, Item, Variant
from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.types import Clip, DecodeSettings, VideoRequest
from lvspec_cli.video.decode import read_clip
from tests.conftest import write_video
from tools.train_demo.evaluate import PAIR_FOLDER

SECONDS = 12.0
TOKENS = 96
AR, HF_AR = Variant(BenchMode.AR), Variant(BenchMode.HF_AR)


@pytest.fixture(scope="module")
def pair() -> LoadedPair:
    return load_pair(PAIR_FOLDER / "target", None, device="cpu", dtype="float32")


def bar(folder: Path) -> Clip:
    """A file that is twelve seconds long."""
    path = write_video(folder / "bar.mp4", seconds=SECONDS, size=96, rate=4)
    return read_clip(VideoRequest(path, max_frames=8))


def scene(folder: Path) -> Clip:
    """A scene of the demo world, slowed down to twelve seconds: a long answer."""
    clip = read_clip(VideoRequest(PAIR_FOLDER.parent / "clips" / "clip_0001.mp4", max_frames=8))
    slower = SECONDS / clip.timestamps[-1]
    return replace(clip, timestamps=tuple(slower * time for time in clip.timestamps), duration=SECONDS)


@pytest.mark.sampled
@pytest.mark.parametrize("made", [bar, scene])
def test_ar_is_what_generate_says_of_twelve_seconds(made, pair: LoadedPair, tmp_path: Path):
    """The farther apart the frames, the farther from the prompt's end the answer's positions begin."""
    clip = made(tmp_path)
    assert clip.timestamps[-1] > 10
    item = Item(id="clip#1", file_name="clip", prompt="Describe this video in detail.")
    settings = settings_of(AR, DecodeSettings(max_new_tokens=TOKENS), 1.0)
    ours = measure_own(pair, clip, item, AR, settings)
    theirs = measure_peer(pair, clip, item, HF_AR, TOKENS)
    assert theirs.error is None
    assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
    assert ours.output_tokens > 20
