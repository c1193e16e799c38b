"""Inputs -> works: cuts each video into stretches, and fills in the prompts of each stretch.

The fields of a prompt are ``{name}``, ``{duration}`` and ``{subtitles}``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, groupby
from pathlib import Path, PurePath
from string import Formatter

from lvspec_cli.batch.cutting import Stretch, even_segments
from lvspec_cli.batch.names import Input
from lvspec_cli.batch.work import Work, make_work
from lvspec_cli.errors import DecodeTimeoutError, LvspecError, NoInputError, UsageError, VideoError
from lvspec_cli.output.exports.export import is_own_export
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.text_file import lines_of
from lvspec_cli.types import VideoInfo, VideoRequest
from lvspec_cli.video.messages import Cue
from lvspec_cli.video.sample import format_time
from lvspec_cli.video.source import is_picture, shown

Probes = Callable[[Iterable[Path]], Iterator[VideoInfo | LvspecError]]
Subtitles = Callable[[Iterable[Path]], Iterator[tuple[Cue, ...] | LvspecError]]
Scenes = Callable[[VideoRequest], Sequence[Stretch]]


@dataclass(frozen=True)
class Cutting:
    """How videos are cut: every ``seconds`` with ``overlap``, or at changes of the scene."""

    seconds: float | None = None
    overlap: float = 0.0
    scenes: bool = False

    @property
    def whole(self) -> bool:
        return self.seconds is None and not self.scenes


def lay_out(
    inputs: Sequence[Input],
    plan: LoadPlan,
    base: AskRequest,
    cutting: Cutting,
    *,
    probes: Probes,
    scenes: Scenes,
    subtitles: Subtitles = lambda paths: iter(()),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Work]:
    """The works of all inputs, in their order.

    ``base`` has the templates of the prompts in ``questions``, and all options of the video except its path.
    A file that cannot be read is not cut: decoding gives the same error for its record. A file whose cuts
    took too long to find gets an error here, because the user did not ask for a caption of the whole file.
    So does one with subtitles beside it that cannot be read.

    :param subtitles: what is said in each file, for prompts that have a place for it.
    """
    requests = [request_for(base, item) for item in inputs]
    needs_probe = [
        not cutting.whole or any("{duration" in text for text in request.questions) for request in requests
    ]
    probed = iter(probes(request.video.path for request in compress(requests, needs_probe)))
    speaks = [any("{subtitles" in text for text in request.questions) for request in requests]
    sources = [
        subtitle_file(request.video.path) if needed else None
        for request, needed in zip(requests, speaks, strict=True)
    ]
    said = iter(subtitles(source for source in sources if source is not None))
    works: list[Work] = []
    for number, (request, needed, source) in enumerate(
        zip(requests, needs_probe, sources, strict=True), start=1
    ):
        result = next(probed) if needed else None
        info = result if isinstance(result, VideoInfo) else None
        duration = info.duration if info else None
        cues = next(said, ()) if source is not None else ()
        if isinstance(cues, LvspecError):
            # Of the video itself, decoding will give the same error.
            error = None if source == request.video.path else _unread(source, cues)
            cues = ()
            if error is not None:
                works.append(replace(make_work(plan, _with_prompts(request, duration)), error=error))
                progress(number, len(inputs))
                continue
        try:
            if isinstance(result, DecodeTimeoutError) and not cutting.whole:
                raise result
            stretches = _cut(request, cutting, info, scenes)
            works += [make_work(plan, _with_prompts(stretch, duration, cues)) for stretch in stretches]
        except DecodeTimeoutError as error:
            works.append(replace(make_work(plan, _with_prompts(request, duration)), error=error))
        progress(number, len(inputs))
    return works


def subtitle_file(video: Path) -> Path:
    """Where a video's subtitles are: a file beside it, or the video itself.

    Subtitles that lvspec has exported say what it saw, not what is said.
    """
    names = (name for suffix in (".srt", ".vtt") for name in (video.stem + suffix, video.name + suffix))
    paths = map(video.with_name, names)
    return next((path for path in paths if path.is_file() and not is_own_export(path)), video)


def _unread(file: Path | None, error: LvspecError) -> LvspecError:
    name = shown(file or Path())
    return VideoError(f"its subtitles cannot be read: {name}", f"fix or move that file ({error.cause})")


def what_is_said(cues: Iterable[Cue], start: float, end: float | None) -> str:
    """The cues on show in a stretch, on one line, each once in a row; ``none`` if there are none."""
    inside = [cue.text for cue in cues if cue.end > start and (end is None or cue.start < end)]
    return " ".join(text for text, _ in groupby(inside)) or "none"


def request_for(base: AskRequest, item: Input) -> AskRequest:
    """The request of one input, before it is cut and its prompts are filled in."""
    start = item.start if item.start is not None else base.video.start
    end = item.end if item.end is not None else base.video.end
    return replace(
        base,
        video=replace(base.video, path=item.path, start=start, end=end),
        questions=item.prompts or base.questions,
        name=item.name,
        id=item.id,
    )


def _with_prompts(request: AskRequest, duration: float | None, cues: Sequence[Cue] = ()) -> AskRequest:
    """The request with its prompts filled in."""
    said = what_is_said(cues, request.video.start or 0.0, request.video.end)
    start, end = request.video.start or 0.0, request.video.end if request.video.end is not None else duration
    length = None if end is None else end - start
    stem = PurePath(os.fsdecode(request.name or b"")).stem
    name = stem.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return replace(
        request,
        questions=tuple(fill(text, name=name, duration=length, subtitles=said) for text in request.questions),
    )


def _cut(
    request: AskRequest, cutting: Cutting, info: VideoInfo | None, scenes: Scenes
) -> Iterator[AskRequest]:
    video = request.video
    stretches: Sequence[Stretch] = ()
    if is_picture(video.path):
        pass
    elif cutting.scenes and info is not None:
        try:
            stretches = scenes(video)
        except DecodeTimeoutError:
            raise
        except (VideoError, NoInputError, UsageError):
            pass  # decoding will give the same error
    elif cutting.seconds is not None and info is not None and info.duration is not None:
        end = info.duration if video.end is None else min(video.end, info.duration)
        cut = even_segments(video.start or 0.0, end, cutting.seconds, cutting.overlap)
        stretches = [stretch for stretch in cut if stretch.end > info.begins]  # earlier ones have no picture
    if not stretches:
        yield request
    for stretch in stretches:
        yield replace(request, video=replace(video, start=stretch.start, end=stretch.end))


FIELDS = ("name", "duration", "subtitles")


def check_template(template: str, where: str) -> None:
    """
    :param where: the flag, or the file and line, that the prompt comes from.
    :raises UsageError: a field is unknown or its braces are wrong.
    """
    try:
        _filled(template, dict.fromkeys(FIELDS, ""))
    except UsageError as error:
        raise UsageError(f"{where}: {error.cause}", error.remedy) from None


def check_file(text: str, file: str) -> None:
    """As ``check_template``, for a file with one prompt. The error names the line."""
    for number, line in lines_of(text):
        check_template(line.removesuffix("\n"), f"{file}, line {number}")


def fill(template: str, *, name: str, duration: float | None, subtitles: str = "none") -> str:
    """``template`` with its fields filled; ``{{`` and ``}}`` are braces.

    :param name: the stem of the file's name.
    :param duration: seconds of the clip, None when unknown.
    :param subtitles: what is said in the clip.
    :raises UsageError: as ``check_template``.
    """
    length = "unknown" if duration is None else format_time(duration)
    return _filled(template, {"name": name, "duration": length, "subtitles": subtitles})


def _filled(template: str, values: Mapping[str, str]) -> str:
    parts = []
    try:
        for text, field, spec, conversion in Formatter().parse(template):
            parts.append(text)
            if field is not None:
                written = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                if written not in values:
                    raise _wrong(template, f"the unknown field {{{written}}}")
                parts.append(values[written])
    except ValueError:
        raise _wrong(template, "a single brace") from None
    return "".join(parts)


def _wrong(template: str, what: str) -> UsageError:
    start = template if len(template) <= 60 else template[:59] + "…"
    return UsageError(
        f"{what} in the prompt {start!r}",
        "use {name}, {duration} and {subtitles}; write {{ and }} for braces",
    )
