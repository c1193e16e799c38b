"""Scenes that were found before: to find them all of a video is decoded, and a batch may start often."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from math import inf
from pathlib import Path

from pydantic import TypeAdapter

from lvspec_cli.batch.segments import Stretch
from lvspec_cli.errors import OutputError, UsageError
from lvspec_cli.output.files import replacing
from lvspec_cli.output.records import identify, key_of
from lvspec_cli.text_file import PROMPTS, read_own
from lvspec_cli.types import VideoRequest

LOOK = 2  # how ``scenes`` shows a video to the detector: another way finds other scenes
Scenes = tuple[Stretch, ...]
_SCENES = TypeAdapter(Scenes)


def known_scenes(
    request: VideoRequest, folder: Path | None, find: Callable[[VideoRequest], Scenes]
) -> Scenes:
    """What ``find`` said of the same content and stretch before, else what it says now, kept in ``folder``.

    A folder that is not there and cannot be written is no failure; what is broken in it is found again.
    Raises what ``find`` does.
    """
    if folder is None:
        return find(request)
    try:
        identity = identify(request.path, b"")
    except OSError:
        return find(request)
    by = f"{version('scenedetect-headless')}, {LOOK}"
    facts = {"start": request.start, "end": request.end, "by": by}
    file = folder / f"{key_of(identity, facts)}.json"
    with suppress(OSError, ValueError, UsageError):
        if _are_sound(known := _SCENES.validate_json(read_own(file, PROMPTS))):
            return known
    found = find(request)
    with suppress(OSError, OutputError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file, sync=False) as stream:
            stream.write(_SCENES.dump_json(found))
    return found


def _are_sound(scenes: Scenes) -> bool:
    return bool(scenes) and all(0 <= each.start < each.end < inf for each in scenes)
