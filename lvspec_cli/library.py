"""The library: a pair is loaded once, and answers about as many videos as wanted.

    import lvspec_cli as lvspec

    model = lvspec.load("demo")
    record = model.ask("clip.mp4", "What happens?")

Defaults are those of the command line: the pair's frames, its rule and its gamma.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lvspec_cli.answers import answers
from lvspec_cli.errors import ContextError, LvspecError, UsageError, VideoError
from lvspec_cli.memory.resolve import clip_workload, workload_of
from lvspec_cli.memory.short import memory_errors
from lvspec_cli.output.records import Record, failed_record
from lvspec_cli.pairs.registry import MTP, Defaults, load_registry, settings_of_pair
from lvspec_cli.pipeline import check_prompts, identify_video, prepared, shortened
from lvspec_cli.pipeline import load as load_models
from lvspec_cli.request import AskRequest, LoadPlan
from lvspec_cli.types import (
    DEFAULT_PROMPT,
    Clip,
    Constraint,
    DecodeSettings,
    Mode,
    Quantisation,
    VideoRequest,
)

if TYPE_CHECKING:
    from lvspec_cli.models.load import LoadedPair

_DECODED_AHEAD = 512 * 2**20  # bytes of frames that are decoded in advance


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled: at most ``frames``, ``fps`` a second, from ``start`` to ``end`` (seconds).

    Without ``frames`` and ``fps`` the pair's defaults for both are used; ``max_pixels`` has a default, too.
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class VideoModel:
    """A pair in memory, made by ``load``.

    ``plan``: how it was loaded. ``settings``: how answers are decoded; ``with_settings`` changes them.
    """

    pair: LoadedPair
    plan: LoadPlan
    settings: DecodeSettings

    def with_settings(self, settings: DecodeSettings) -> VideoModel:
        """The same models with other decoding settings."""
        return replace(self, settings=settings)

    def ask(
        self,
        video: str | Path,
        question: str,
        *,
        sampling: Sampling = Sampling(),
        system: str | None = None,
        think: bool = False,
        choices: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> Record:
        """The record of one answer, its text in ``text``.

        :param think: the target thinks first, and its thoughts are in ``thoughts``.
        :param choices: the answer is one of these, to the letter; the record has it in ``value``.
        :param schema: a JSON schema; the answer is JSON that it allows, parsed in ``value``.
        :raises LvspecError: the video cannot be read, the question is too long, the target cannot think, or
            the answer cannot be constrained so.
        """
        from lvspec_cli.video.decode import read_clip

        model = self._constrained(choices, schema, think)
        request = model._request(video, (question,), sampling, system, think)
        check_prompts(self.plan, request, {question: "the question"})
        (record,) = self._answered(request, read_clip(request.video))
        return record

    def ask_all(
        self,
        video: str | Path,
        questions: Sequence[str],
        *,
        sampling: Sampling = Sampling(),
        system: str | None = None,
        think: bool = False,
        choices: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> list[Record]:
        """The records of several answers about one video, which is decoded and encoded once.

        :raises LvspecError: as ``ask``.
        """
        from lvspec_cli.video.decode import read_clip

        model = self._constrained(choices, schema, think)
        request = model._request(video, tuple(questions), sampling, system, think)
        check_prompts(
            self.plan, request, {text: f"question {n}" for n, text in enumerate(questions, start=1)}
        )
        return list(self._answered(request, read_clip(request.video)))

    def caption(
        self,
        videos: Iterable[str | Path],
        prompt: str = DEFAULT_PROMPT,
        *,
        sampling: Sampling = Sampling(),
        system: str | None = None,
        think: bool = False,
        choices: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[Record]:
        """A record for each video, in order. The next videos are decoded at the same time.

        A video that cannot be read gives a record with status ``error``, and the others continue. One with
        more frames than a model's context has room for is taken with fewer, and its record warns of that.
        Results do not depend on the clock: no answer falls back to the target alone.

        ``think``, ``choices`` and ``schema`` are as in ``ask``.

        :raises LvspecError: the prompt is too long, the target cannot think, or the answers cannot be
            constrained so.
        """
        from lvspec_cli.video.pool import DecodePool

        model = self._constrained(choices, schema, think)
        timeless = model.with_settings(replace(model.settings, fallback=False))
        requests = [
            replace(timeless._request(video, (prompt,), sampling, system, think), task="caption")
            for video in videos
        ]
        for request in requests[:1]:
            check_prompts(self.plan, request, {prompt: "the prompt"})
        with (
            DecodePool(1, _DECODED_AHEAD) as pool,
            closing(pool.clips(request.video for request in requests)) as clips,
        ):
            for request, decoded in zip(requests, clips, strict=False):
                if decoded.clip is not None:
                    yield from timeless._captioned(request, decoded.clip)
                else:
                    error = decoded.error or LvspecError(f"{request.video.path}: nothing was decoded")
                    yield failed_record(self.plan, request, identify_video(request), 1, error)

    def _constrained(
        self, choices: Sequence[str], schema: Mapping[str, Any] | None, think: bool
    ) -> VideoModel:
        if not choices and schema is None:
            return self
        constraint = constraint_for(choices, schema, think=think)
        return self.with_settings(replace(self.settings, constraint=constraint))

    def _request(
        self,
        video: str | Path,
        questions: tuple[str, ...],
        sampling: Sampling,
        system: str | None,
        think: bool,
    ) -> AskRequest:
        request = _video_request(Path(video), sampling, self.plan.choice.pair.defaults)
        return AskRequest(request, questions, self.settings, system, think)

    def _captioned(self, request: AskRequest, clip: Clip) -> Iterator[Record]:
        from lvspec_cli.video.decode import read_clip

        expected = clip.frames_expected
        while True:
            try:
                yield from self._answered(request, clip)
                return
            except ContextError as error:
                too_long = error
            try:
                if too_long.frames is None:
                    raise too_long
                fewer = replace(request.video, max_frames=too_long.frames)
                clip = shortened(read_clip(fewer), expected, too_long)
            except (ContextError, VideoError) as error:
                yield failed_record(self.plan, request, identify_video(request), 1, error)
                return

    def _answered(self, request: AskRequest, clip: Clip) -> Iterator[Record]:
        with memory_errors(self.plan, clip_workload(request, clip)):
            yield from answers(self.pair, self.plan, request, identify_video(request), clip)


def load(
    pair: str = "auto",
    *,
    mode: Mode | str = Mode.LVSPEC,
    models: Path | None = None,
    draft: Literal["pair", "mtp"] = "pair",
    device: str = "auto",
    dtype: str = "auto",
    quant_target: Quantisation | str = Quantisation.AUTO,
    quant_draft: Quantisation | str = Quantisation.AUTO,
    draft_device: str | None = None,
    threads: int | None = None,
) -> VideoModel:
    """Loads a pair of ``lvspec models``. ``auto`` is the best one on this machine that fits.

    :param mode: ``lvspec``, ``exact`` or ``ar``, which loads no draft.
    :param models: a models.yaml of your own.
    :param draft: ``mtp``: the prediction layer in the target's files, in place of the pair's second model.
    :param threads: CPU threads of torch, for the whole process; None does not change them.
    :raises PairError: the pair is not on this machine, cannot be read, or does not fit.
    """
    from lvspec_cli.memory.choose import choose_pair

    registry = load_registry(models)
    choice = replace(
        choose_pair(registry.with_mtp() if draft == MTP else registry, pair, device),
        dtype=dtype,
        quant_target=Quantisation(quant_target),
        quant_draft=Quantisation(quant_draft),
        draft_device=draft_device,
        threads=threads,
    )
    settings = replace(settings_of_pair(choice.pair), mode=Mode(mode))
    request = AskRequest(_video_request(Path(), Sampling(), choice.pair.defaults), (), settings)
    plan, request = prepared(choice, request)
    return VideoModel(load_models(plan, workload_of(request)), plan, request.settings)


def constraint_for(
    choices: Sequence[str], schema: Mapping[str, Any] | None, *, think: bool = False
) -> Constraint:
    """The only answers that are allowed: one of two or more choices, or JSON of a schema.

    :raises UsageError: both are given, one of them cannot be used, or the target is to think.
    """
    from lvspec_cli.models.constraint import check_constraint

    if choices and schema is not None:
        raise UsageError("choices and schema exclude each other", "leave out one of them")
    if think:
        raise UsageError("the target thinks before free answers only", "leave out think")
    named = tuple(choices)
    if schema is None and (isinstance(choices, str) or len(set(named)) < max(2, len(named)) or "" in named):
        raise UsageError(f"{choices!r} are no two different answers", 'name several: ["yes", "no"]')
    constraint = Constraint(named, None if schema is None else json.dumps(schema, ensure_ascii=False))
    check_constraint(constraint)
    return constraint


def _video_request(video: Path, sampling: Sampling, defaults: Defaults) -> VideoRequest:
    is_sampled = sampling.frames is not None or sampling.fps is not None
    return VideoRequest(
        video,
        start=sampling.start,
        end=sampling.end,
        max_frames=sampling.frames if is_sampled else defaults.frames,
        fps=sampling.fps if is_sampled else defaults.fps,
        max_pixels=sampling.max_pixels or defaults.max_pixels,
    )


def ask(
    video: str | Path,
    question: str,
    *,
    pair: str | VideoModel = "auto",
    sampling: Sampling = Sampling(),
    system: str | None = None,
    think: bool = False,
    choices: Sequence[str] = (),
    schema: Mapping[str, Any] | None = None,
) -> Record:
    """One answer, as ``lvspec ask`` gives it. For more than one, ``load`` the pair and ask it.

    :raises LvspecError: as ``load`` and ``VideoModel.ask``.
    """
    model = load(pair) if isinstance(pair, str) else pair
    return model.ask(
        video, question, sampling=sampling, system=system, think=think, choices=choices, schema=schema
    )


def caption(
    videos: Iterable[str | Path],
    prompt: str = DEFAULT_PROMPT,
    *,
    pair: str | VideoModel = "auto",
    sampling: Sampling = Sampling(),
    system: str | None = None,
    think: bool = False,
    choices: Sequence[str] = (),
    schema: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """A record for each video, as ``lvspec caption`` writes them: see ``VideoModel.caption``.

    :raises LvspecError: as ``load`` and ``VideoModel.caption``.
    """
    model = load(pair) if isinstance(pair, str) else pair
    yield from model.caption(
        videos, prompt, sampling=sampling, system=system, think=think, choices=choices, schema=schema
    )
