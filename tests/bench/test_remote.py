"""Texts by two processes: what one would have said, in one journal that goes on with any number of them."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Header, environment_of, open_journal
from lvspec_cli.bench.measure import Plan, clip_positions
from lvspec_cli.bench.remote import _Crew, measurer
from lvspec_cli.errors import PairError
from lvspec_cli.figures.answers import BenchMode, Item, Variant
from lvspec_cli.memory.resolve import SMALLEST_WORKLOAD, resolve
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.pairs.registry import read_models_file
from lvspec_cli.pipeline import load
from lvspec_cli.request import LoadPlan, PairChoice
from lvspec_cli.types import DecodeSettings, VideoRequest
from tests.bench.made import SETTINGS
from tests.conftest import write_video

DECODING = DecodeSettings(gamma=4, max_new_tokens=8)
AR, EXACT, LVSPEC = Variant(BenchMode.AR), Variant(BenchMode.EXACT, 4), Variant(BenchMode.LVSPEC, 4)
PLAN = Plan((AR, EXACT, LVSPEC), DECODING, draft_keep=1.0, timed=False, first={LVSPEC: 1})


@pytest.fixture
def plan(tiny_models: Path) -> LoadPlan:
    known = read_models_file(tiny_models).pairs["tiny"]
    return resolve(PairChoice("tiny", known), DECODING, SMALLEST_WORKLOAD)


@pytest.fixture
def pair(plan: LoadPlan) -> LoadedPair:
    return load(plan, SMALLEST_WORKLOAD)


@pytest.fixture
def clips(tmp_path: Path) -> tuple[BenchClip, ...]:
    found = []
    for number, name in enumerate(("one", "broken", "three")):
        path = write_video(tmp_path / f"{name}.mp4", seconds=1.0 + number / 4)
        if name == "broken":
            path.write_bytes(b"no video\n" * 100)
        items = tuple(
            Item(id=f"{name}#{index}", file_name=name, prompt=prompt)
            for index, prompt in enumerate(("What?", "Who?"), 1)
        )
        found.append(BenchClip(VideoRequest(path, max_frames=2), items))
    return tuple(found)


def test_two_processes_say_what_one_says_and_it_goes_on_with_either(
    pair: LoadedPair, plan: LoadPlan, clips: tuple[BenchClip, ...], tmp_path: Path
):
    header = Header(settings=SETTINGS, environment=environment_of(pair), inputs="")
    with open_journal(tmp_path / "one", header) as kept, measurer(pair, plan, SMALLEST_WORKLOAD, 1) as run:
        run(clips, PLAN, kept)
        alone, items = kept.blocks, kept.items
    said: list[str] = []
    told: list[tuple[int, int]] = []
    with open_journal(tmp_path / "two", header) as kept:
        with measurer(pair, plan, SMALLEST_WORKLOAD, 1) as run:
            run(clips[:1], PLAN, kept)
        with measurer(pair, plan, SMALLEST_WORKLOAD, 2) as run:
            run(clips, PLAN, kept, progress=lambda *done: told.append(done), warn=said.append)
        assert kept.blocks == alone
        crew = _Crew(plan, SMALLEST_WORKLOAD, 2)
        crew.measure(clips[:1], PLAN, kept)
        assert not crew.workers  # nothing was left to do
        assert kept.items == items
        assert kept.items["broken#2"].error
    assert len(said) == 1
    assert (told[0], told[-1]) == ((2, 6), (6, 6))
    assert [len(alone[f"{name}#1", 0].measurements) for name in ("one", "three")] == [3, 2]


@pytest.mark.parametrize(
    ("killed", "said"), [(True, r"ended by itself \(SIGKILL\)"), (False, "'tiny' is not here|gone")]
)
def test_a_process_that_ends_is_said_so(
    pair: LoadedPair,
    plan: LoadPlan,
    clips: tuple[BenchClip, ...],
    tmp_path: Path,
    killed: bool,
    said: str,
):
    header = Header(settings=SETTINGS, environment=environment_of(pair), inputs="")
    crew = _Crew(plan if killed else replace(plan, target=Path("gone")), SMALLEST_WORKLOAD, 1)
    crew.start()
    process = crew.workers[0].process
    assert isinstance(process, subprocess.Popen)
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    with open_journal(tmp_path / "out", header) as kept, pytest.raises(PairError, match=said):
        crew.measure(clips, PLAN, kept)
    crew.close()
    assert process.returncode is not None


def test_places_count_clips_and_items(clips: tuple[BenchClip, ...]):
    assert [(place.clip, place.item) for place in clip_positions(clips)] == [(0, 0), (1, 2), (2, 4)]
    assert PLAN.for_clip(0) is PLAN
    assert PLAN.for_clip(1).variants == (AR, EXACT)
