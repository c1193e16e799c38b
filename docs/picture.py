"""Writes docs/screens/*.svg: what commands show in real terminals of 80 and 120 columns.

    python docs/picture.py [NAME...]

Each command runs in tmux with the bundled pair and the shipped clips, and its screen is taken as it stands:
of a live view near its end, of anything else when it has ended, with the lines that have left the screen.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
SIZES = ((80, 24), (120, 40))
PATIENCE = 300.0  # seconds for a command
ENDED = "[ended]"


@dataclass(frozen=True)
class Scene:
    """A command, what is typed into it, and what its screen shows when it is taken; at its end by default.

    ``typed``: each line after the text that is waited for on the screen.
    """

    name: str
    command: str
    typed: tuple[tuple[str, str], ...] = ()
    live: str = ""


SCENES = (
    Scene("ask", 'lvspec ask clips/clip_0001.mp4 "Describe the video."', live="● answering"),
    Scene("answer", 'lvspec ask clips/clip_0001.mp4 "Describe the video."'),
    Scene("caption", "lvspec caption clips --workers 2", live=r"● (.|\n)*● (.|\n)*[12] of 4"),
    Scene("at-once", "lvspec caption clips --at-once 4", live="● answering(.|\n)*● answering"),
    Scene(
        "chat",
        "lvspec chat clips/clip_0002.mp4",
        (
            ("Ctrl-D ends", "What shape is the purple object?"),
            (r"object\?(.|\n)*tokens/s", "Does it change colour?"),
            (r"colour\?(.|\n)*tokens/s", "/quit"),
        ),
    ),
    Scene("models", "lvspec models"),
    Scene("bench", "lvspec bench --quick"),
)


def tmux(*arguments: str) -> str:
    command = ["tmux", "-L", "lvspec-pictures", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def screen(name: str, *, whole: bool = False, colours: bool = False) -> str:
    """The terminal's content; ``whole``: with the lines that have left it."""
    return tmux("capture-pane", "-p", "-t", name, *["-e"] * colours, *["-S", "-"] * whole)


def await_text(name: str, pattern: str) -> None:
    end = time.monotonic() + PATIENCE
    while not re.search(pattern, screen(name, whole=True)):
        if time.monotonic() > end:
            raise TimeoutError(f"{name}: {pattern} was not seen:\n{screen(name)}")
        time.sleep(0.05)


def play(scene: Scene, columns: int, rows: int, folder: Path) -> str:
    """The scene's screen, with its colours as escape sequences."""
    name = f"{scene.name}-{columns}"
    tmux("new-session", "-d", "-s", name, "-x", str(columns), "-y", str(rows), "-c", str(folder), "sh")
    tmux("send-keys", "-t", name, f"clear; {scene.command}; printf '\\033[8m{ENDED}'; read stop", "Enter")
    try:
        for after, line in scene.typed:
            await_text(name, after)
            tmux("send-keys", "-t", name, line, "Enter")
        if not scene.live:
            await_text(name, re.escape(ENDED) + r"\s*$")
            return screen(name, whole=True, colours=True).rpartition(ENDED)[0].rpartition("\n")[0]
        taken = ""
        while not screen(name).rstrip().endswith(ENDED):
            seen = screen(name, colours=True)
            taken = seen if re.search(scene.live, Text.from_ansi(seen).plain) else taken
            time.sleep(0.02)
        return taken.rstrip()
    finally:
        tmux("kill-session", "-t", name)


def svg(content: str, columns: int, title: str) -> str:
    """The content as an SVG that fetches no font: the reader's own monospace does."""
    lines = list(AnsiDecoder().decode(content))
    console = Console(
        file=io.StringIO(), record=True, width=columns, height=len(lines), force_terminal=True, markup=False
    )
    for line in lines:
        console.print(line, no_wrap=True, crop=True)
    drawn = console.export_svg(title=title, unique_id="s")
    for useless in (
        r"@font-face \{.*?\}",
        r'<clipPath id="s-line-.*?</clipPath>',
        r' clip-path="url\(#s-line-\d+\)"',
    ):
        drawn = re.sub(useless, "", drawn, flags=re.DOTALL)
    # Some programs drop no-break spaces at the ends of a text; all of them keep preserved ones.
    drawn = drawn.replace("&#160;", " ").replace("<text ", '<text xml:space="preserve" ')
    return re.sub(r"\n\s*\n+", "\n", drawn)


def main(names: list[str]) -> None:
    out = ROOT / "docs" / "screens"
    out.mkdir(exist_ok=True)
    for scene in (scene for scene in SCENES if not names or scene.name in names):
        for columns, rows in SIZES:
            with TemporaryDirectory() as folder:
                shutil.copytree(ROOT / "lvspec_cli/demo/clips", Path(folder, "clips"))
                content = play(scene, columns, rows, Path(folder))
            (out / f"{scene.name}-{columns}.svg").write_text(svg(content, columns, scene.command))


if __name__ == "__main__":
    main(sys.argv[1:])
