"""The plug-in for lmms-eval: its tasks about videos and pictures, answered by a pair of lvspec.

    python -m lmms_eval --model lvspec --model_args pair=qwen3.5-9b-0.8b,mode=lvspec --tasks mvbench

lmms-eval finds it by an entry point, and is imported by it alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmms_eval.api.model import lmms

from lvspec_cli.errors import LvspecError, UsageError
from lvspec_cli.library import Sampling, VideoModel, load
from lvspec_cli.types import DecodeSettings, Mode

# Arguments of --model_args that ``load`` and ``Sampling`` take.
LOADING = ("models", "draft", "dtype", "quant_target", "quant_draft", "draft_device", "threads")
SAMPLING = ("frames", "fps", "max_pixels")
# lmms-eval passes these whether or not they were given.
_PASSED = ("batch_size", "max_batch_size", "device")


def manifest() -> Any:
    """What lmms-eval's registry wants to know."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="lvspec", simple_class_path=f"{__name__}.Lvspec")


class Lvspec(lmms):
    """A pair of lvspec as lmms-eval's model. It answers requests of the kind ``generate_until``."""

    is_simple = True

    def __init__(self, pair: str = "auto", mode: str = "lvspec", **arguments: Any) -> None:
        """
        :param arguments: of ``--model_args``: those of ``LOADING``, ``SAMPLING``, ``max_new_tokens`` and
            ``device``. Left out, the pair's defaults hold.
        :raises LvspecError: an argument is unknown, or the pair cannot be loaded.
        """
        super().__init__()
        known = (*LOADING, *SAMPLING, *_PASSED, "max_new_tokens")
        if unknown := sorted(arguments.keys() - set(known)):
            raise UsageError(
                f"lvspec knows no model_args {', '.join(unknown)}",
                f"use pair, mode, device, max_new_tokens, {', '.join((*LOADING, *SAMPLING))}",
            )
        loading = {name: arguments[name] for name in LOADING if name in arguments}
        if "models" in loading:
            loading["models"] = Path(loading["models"])
        self._longest = arguments.get("max_new_tokens")
        self._sampling = Sampling(**{name: arguments[name] for name in SAMPLING if name in arguments})
        self._model = load(pair, mode=mode, device=arguments.get("device") or "auto", **loading)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, in order.

        Requests in a row about the same visual encode it once. One that cannot be read has the empty answer,
        with a warning.
        """
        answers: list[str] = []
        with TemporaryDirectory() as folder:
            found = enumerate(self._asked(requests, Path(folder)))
            for (video, settings), same in groupby(found, key=lambda entry: entry[1][:2]):
                asked = [request for _, request in same]
                texts = self._texts(video, settings, [question for _, _, question, _ in asked])
                answers += [cut(text, stops) for text, (*_, stops) in zip(texts, asked, strict=True)]
        return answers

    def _asked(
        self, requests: Iterable[Any], folder: Path
    ) -> Iterator[tuple[Path, DecodeSettings, str, tuple[str, ...]]]:
        """Video, settings, question and stop strings of each request."""
        for number, request in enumerate(requests):
            question, wanted, visual_of, index, task, split = request.args
            visuals = visual_of(self.task_dict[task][split][index])
            video = as_file(visuals, folder / f"{number}.png")
            yield video, self._settings(wanted), question, stops_of(wanted)

    def _settings(self, wanted: dict[str, Any]) -> DecodeSettings:
        """The pair's settings, with the task's length. Sampling is for modes that can; others are greedy."""
        settings = self._model.settings
        temperature = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample") else 0.0
        longest = self._longest or wanted.get("max_new_tokens") or settings.max_new_tokens
        return replace(
            settings,
            max_new_tokens=int(longest),
            temperature=0.0 if settings.mode is Mode.LVSPEC else temperature,
        )

    def _texts(self, video: Path, settings: DecodeSettings, questions: list[str]) -> list[str]:
        model: VideoModel = self._model.with_settings(settings)
        try:
            return [record.text or "" for record in model.ask_all(video, questions, sampling=self._sampling)]
        except LvspecError as error:
            warnings.warn(f"no answer: {error.cause}", stacklevel=2)
            return [""] * len(questions)

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """:raises NotImplementedError: lvspec generates answers only."""
        raise NotImplementedError("lvspec generates answers: choose tasks of the type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """:raises NotImplementedError: each question is asked by itself."""
        raise NotImplementedError("lvspec asks each question by itself: choose tasks of one round")


def as_file(visuals: Any, picture: Path) -> Path:
    """The file of a request's only visual: a video's path, or a picture, which is written to ``picture``.

    :raises UsageError: there is none, or there are several.
    """
    visuals = list(visuals or ())
    if len(visuals) != 1:
        raise UsageError(
            f"the task asks about {len(visuals)} visuals at once",
            "choose tasks about one video or one picture each",
        )
    if isinstance(visuals[0], str | Path):
        return Path(visuals[0])
    visuals[0].convert("RGB").save(picture)
    return picture


def stops_of(wanted: dict[str, Any]) -> tuple[str, ...]:
    """The strings at which the task ends an answer."""
    until = wanted.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def cut(text: str, stops: Iterable[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text
