"""Writes docs/live-view.svg from a real run: the live view as it stood when the answer was nearly done.

    python docs/picture.py [VIDEO] [QUESTION]

Without arguments it asks the bundled pair about a shipped clip.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from lvspec_cli import pipeline
from lvspec_cli.events import Answered, Event
from lvspec_cli.registry import load_registry, rule_of
from lvspec_cli.types import DecodeSettings, Looseness, VideoRequest
from lvspec_cli.ui.render import Picture
from lvspec_cli.ui.state import View, fold

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "lvspec_cli/demo/clips/clip_0001.mp4"


def main(video: str = str(CLIP), question: str = "Describe the video.") -> None:
    name, pair = load_registry().pair(None)
    defaults = pair.defaults
    settings = DecodeSettings(
        gamma=defaults.gamma,
        rule=rule_of(pair, Looseness.BALANCED),
        max_new_tokens=defaults.max_new_tokens,
    )
    clip = VideoRequest(
        Path(video), max_frames=defaults.frames, fps=defaults.fps, max_pixels=defaults.max_pixels
    )
    view = View(name, settings.mode.value, settings.gamma)

    def listen(event: Event) -> None:
        nonlocal view
        if not isinstance(event, Answered):
            view = fold(view, event)

    pipeline.ask(pipeline.AskRequest(clip, (question,), name, pair, settings), listen)
    console = Console(file=io.StringIO(), record=True, width=80, height=20, force_terminal=True, markup=False)
    console.print(Picture(view), height=20)
    title = f'lvspec ask {Path(video).name} "{question}"'
    # The picture fetches no font: the reader's own monospace does.
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)
    (ROOT / "docs/live-view.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
