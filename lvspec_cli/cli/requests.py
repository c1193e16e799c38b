"""From flags, files and stdin to what is asked: the pair, the video, the questions and the decoding."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvspec_cli.cli.reporting import say
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.text_file import PROMPTS, read_file, read_stream, text_of
from lvspec_cli.types import DecodeSettings, Mode, RuleSettings, VideoRequest

if TYPE_CHECKING:
    from lvspec_cli.pairs.registry import Defaults, Pair

LEAST_TEMPERATURE = 1e-3  # logits divided by less are beyond what half precision holds


def loading_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say of how the pair is loaded, as fields of an AskRequest."""
    return {name: given[name] for name in ("quant_target", "quant_draft", "draft_device", "cuda_graphs")}


def video_request(given: Mapping[str, Any], defaults: Defaults) -> VideoRequest:
    """What the flags ask of the video, the pair's defaults where they are silent.

    :raises UsageError: a value is out of range.
    """
    from lvspec_cli.video.sample import parse_time

    start, end = (parse_time(given[name]) if given[name] is not None else None for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise UsageError("--end is not after --start", "choose a later end")
    _check(given, "fps", above=0.0)
    _check(given, "decode_timeout", above=0.0, most=1e6)
    sampled = given["frames"] is not None or given["fps"] is not None
    return VideoRequest(
        path=Path(given["video"]),
        start=start,
        end=end,
        max_frames=given["frames"] if sampled else defaults.frames,
        fps=given["fps"] if sampled else defaults.fps,
        max_pixels=given["max_pixels"] or defaults.max_pixels,
        decoder=given["decoder"],
        background=_colour(given.get("background", "black")),
        timeout=given["decode_timeout"],
    )


def _colour(text: str) -> tuple[int, int, int]:
    """RGB of a colour's name or of its #rrggbb."""
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        alpha = [0]
    if alpha:
        raise UsageError(f"--background {text} is not an opaque colour", "give a name or #rrggbb")
    return red, green, blue


def decode_settings(given: Mapping[str, Any], pair: Pair) -> DecodeSettings:
    """How the flags want answers decoded, the pair's defaults where they are silent.

    :raises UsageError: a value is out of range, or flags do not go together.
    """
    from lvspec_cli.pairs.registry import settings_of_pair

    _check(given, "temperature", least=0.0, most=100.0)
    if 0 < given["temperature"] < LEAST_TEMPERATURE:
        raise UsageError(
            f"--temperature {given['temperature']:g} is out of range", "give 0 for greedy, or 0.001 and more"
        )
    _check(given, "draft_keep", above=0.0, most=1.0)
    if given["temperature"] > 0 and given["mode"] is Mode.LVSPEC:
        raise UsageError("--temperature has no rule in mode lvspec yet", "add --mode exact or --mode ar")
    defaults, fallback = settings_of_pair(pair), given.get("fallback")
    return replace(
        defaults,
        mode=given["mode"],
        gamma=given["gamma"] or defaults.gamma,
        fallback=defaults.fallback if fallback is None else fallback,
        rule=_rule(given, pair),
        max_new_tokens=given["max_new_tokens"] or defaults.max_new_tokens,
        temperature=given["temperature"],
        seed=given["seed"],
        draft_keep=given["draft_keep"],
        draft_keep_by=given.get("draft_keep_by", defaults.draft_keep_by),
    )


def _rule(given: Mapping[str, Any], pair: Pair) -> RuleSettings:
    from dataclasses import asdict, fields

    from pydantic import TypeAdapter, ValidationError

    from lvspec_cli.pairs.registry import rule_of

    flags = {field.name: given.get(field.name) for field in fields(RuleSettings)}
    flags["layers"] = given["layer"] or None
    changes = {name: value for name, value in flags.items() if value is not None}
    try:
        return TypeAdapter(RuleSettings).validate_python(
            {**asdict(rule_of(pair, given["looseness"])), **changes}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{flag}: {first['msg']}, not {first['input']}", "see --help") from None


def _check(
    given: Mapping[str, Any],
    name: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """A number that has a range: NaN and infinity are in none."""
    value = given[name]
    if value is not None and not (math.isfinite(value) and value > above and least <= value <= most):
        bound = f"above {above:g}" if above > -math.inf else f"{least:g} or more"
        end = f", {most:g} at most" if most < math.inf else ""
        raise UsageError(
            f"--{name.replace('_', '-')} {value:g} is out of range", f"give a number {bound}{end}"
        )


def collect_questions(first: str | None, more: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """All questions in order: the argument, each ``--question``, then the lines of ``--questions``.

    ``-`` as a question is all of stdin, as a file its lines.

    :raises UsageError: there is none, one is empty, or a text is not UTF-8.
    :raises NoInputError: the file cannot be read.
    """
    given = [first, *more] if first is not None else list(more)
    if given.count("-") + (file == Path("-")) > 1:
        raise UsageError("stdin can be read only once", "use - for one question or for --questions")
    questions = [
        checked_text(_stdin(), "the question on stdin")
        if question == "-"
        else checked_text(question, "a question")
        for question in given
    ]
    if file is not None:
        text = _stdin() if file == Path("-") else read_text(file)
        questions += [line.strip() for line in text.splitlines() if line.strip()]
        if not text.strip():
            raise UsageError(f"{file}: no question in it", "write one a line")
    if not questions:
        raise UsageError(
            "there is no question", 'write one after the video: lvspec ask VIDEO "What happens?"'
        )
    return tuple(questions)


def checked_text(text: str, name: str) -> str:
    """The text without space around it.

    :raises UsageError: it is empty, or not UTF-8; ``name`` says which text.
    """
    if not text.strip():
        raise UsageError(f"{name} is empty", "write what you mean")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not UTF-8 text", "write it in UTF-8") from None
    return text.strip()


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("stdin is closed", "give the question as an argument")
    return text_of(read_stream(sys.stdin.buffer, "stdin", PROMPTS), "stdin")


def read_text(file: Path) -> str:
    """The file's text.

    :raises NoInputError: it cannot be read.
    :raises UsageError: it is no text, or too much of it.
    """
    try:
        return text_of(read_file(file, PROMPTS), str(file))
    except OSError as error:
        raise NoInputError(f"{file}: {error.strerror}", "name a text file that can be read") from error


def chosen_pair(given: Mapping[str, Any]) -> tuple[str, Pair, str]:
    """The pair that the flags mean, by its name, and why it is that one where nobody named it."""
    from lvspec_cli.memory.choose import choose_pair
    from lvspec_cli.pairs.registry import load_registry

    chosen = choose_pair(load_registry(given["models"]), given["pair"], given["device"])
    return chosen.name, chosen.pair, chosen.note


def tell(note: str, given: Mapping[str, Any]) -> None:
    """Why the pair was taken. Last before the work: errors come first."""
    if note and not given["quiet"]:
        say(note)
