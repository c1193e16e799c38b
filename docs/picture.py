"""Writes docs/live-view.svg and docs/batch-view.svg from real runs, each as it stood near its end.

    python docs/picture.py

The bundled pair is asked about a shipped clip, and captions all of them.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType

from lvspec_cli import pipeline
from lvspec_cli.batch.remote import run
from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.batch.work import make_work
from lvspec_cli.events import Answered, Event
from lvspec_cli.output.records import Record
from lvspec_cli.pairs.registry import load_registry, settings_of_pair
from lvspec_cli.request import AskRequest, PairChoice
from lvspec_cli.types import DEFAULT_PROMPT, VideoRequest
from lvspec_cli.ui.batch import BatchPicture
from lvspec_cli.ui.render import Picture
from lvspec_cli.ui.state import BatchView, View, add_event, add_row, fold

ROOT = Path(__file__).parents[1]
CLIPS = sorted((ROOT / "lvspec_cli/demo/clips").glob("*.mp4"))
QUESTION = "Describe the video."


CHOICE = PairChoice(*load_registry().pair("demo"))


def request(clip: Path, question: str) -> AskRequest:
    defaults = CHOICE.pair.defaults
    video = VideoRequest(clip, max_frames=defaults.frames, fps=defaults.fps, max_pixels=defaults.max_pixels)
    return AskRequest(video, (question,), settings_of_pair(CHOICE.pair))


def answer_view() -> View:
    """The view of one question, just before its answer ended."""
    asked = request(CLIPS[0], QUESTION)
    view = View(CHOICE.name, asked.settings.mode.value, asked.settings.gamma)

    def listen(event: Event) -> None:
        nonlocal view
        if not isinstance(event, Answered):
            view = fold(view, event)

    pipeline.ask(CHOICE, asked, listen)
    return view


def batch_picture() -> BatchPicture:
    """The view of a batch, just before the last caption ended."""
    load_plan, base = pipeline.prepared(CHOICE, replace(request(CLIPS[0], DEFAULT_PROMPT), task="caption"))
    works = [make_work(load_plan, replace(base, video=replace(base.video, path=clip))) for clip in CLIPS]
    empty = View(CHOICE.name, base.settings.mode.value, base.settings.gamma)
    view, seconds = BatchView(total=len(works), skipped=0, places=(empty,)), 0.0

    def listen(event: Event) -> None:
        nonlocal view
        if view.done < len(works):
            view = add_event(view, event)

    def write(record: Record) -> None:
        nonlocal view, seconds
        if view.done < len(works) - 1:
            view = add_row(view, record)
            assert record.stats is not None
            seconds += record.stats.decode_s + record.stats.prefill_s

    plan = WorkerPlan(load_plan, base, decode_workers=1, decode_bytes=2**28, on_out_of_memory="shrink")
    run(works, [plan], write=write, listen=listen)
    return BatchPicture(view, seconds, stage_seconds=(0.0,))


def save(picture: RenderableType, rows: int, title: str, name: str) -> None:
    console = Console(
        file=io.StringIO(), record=True, width=80, height=rows, force_terminal=True, markup=False
    )
    console.print(picture, height=rows)
    # The picture fetches no font: the reader's own monospace does.
    svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)
    (ROOT / "docs" / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    save(Picture(answer_view()), 20, f'lvspec ask {CLIPS[0].name} "{QUESTION}"', "live-view.svg")
    save(batch_picture(), 14, "lvspec caption ./clips --out captions.jsonl", "batch-view.svg")
