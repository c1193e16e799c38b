"""What is said in a video: cues of a text track, or of a ``.srt`` or ``.vtt`` file beside the video.

FFmpeg reads both, in the child process (``video.worker``).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle

from lvspec_cli.types import VideoRequest
from lvspec_cli.video.container import FORMATS, open_container
from lvspec_cli.video.messages import Cue

_TEXT_CODECS = ("srt", "subrip", "webvtt", "mov_text", "ass", "ssa", "text")
_STYLES = re.compile(r"\{\\[^}]*\}")  # of ASS, to which FFmpeg converts the others
MOST_CUES = 100_000  # of a track
MOST_LETTERS = 10_000  # of a cue


def cues_of(file: io.RawIOBase, request: VideoRequest) -> tuple[Cue, ...]:
    """The cues of an open file, in order of time. Empty if it has no track of text.

    :raises VideoError: it cannot be read.
    """
    with open_container(file, request.path, request.limits, f"{FORMATS},srt,webvtt") as container:
        track = _track(container)
        if track is None:
            return ()
        begins = (container.start_time or 0) / 1e6  # FFmpeg's AV_TIME_BASE
        return tuple(sorted(_cues(container, track, begins), key=lambda cue: cue.start))


def _track(container: InputContainer) -> SubtitleStream | None:
    """The default track of text, else the first one."""
    tracks = [track for track in container.streams.subtitles if track.codec_context.name in _TEXT_CODECS]
    default = (track for track in tracks if track.disposition & Disposition.default)
    return next(default, tracks[0] if tracks else None)


def _cues(container: InputContainer, track: SubtitleStream, begins: float) -> Iterable[Cue]:
    count = 0
    for packet in container.demux(track):
        if not packet.size or packet.pts is None or packet.time_base is None:
            continue
        start = float(packet.pts * packet.time_base) - begins
        end = start + float((packet.duration or 0) * packet.time_base)
        try:
            parts = packet.decode()
        except FFmpegError:
            continue  # what is damaged says nothing
        for part in parts:
            text = plain(part.dialogue) if isinstance(part, AssSubtitle) else ""
            if text and count < MOST_CUES:
                count += 1
                yield Cue(start, end, text[:MOST_LETTERS])


def plain(dialogue: bytes) -> str:
    """A cue's text on one line, without styles."""
    text = _STYLES.sub("", dialogue.decode("utf-8", "replace"))
    return " ".join(text.replace("\\N", " ").replace("\\n", " ").replace("\\h", " ").split())
