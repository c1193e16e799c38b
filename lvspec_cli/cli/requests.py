"""Turns flags, files and stdin into requests: pair, video, questions and decoding settings."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lvspec_cli.cli.options import Decoding, FullSampling, Loading, Rule, Sampling
from lvspec_cli.errors import LvspecError, NoInputError, PairError, UsageError
from lvspec_cli.escape import shell_words
from lvspec_cli.host import install_command
from lvspec_cli.text_file import PROMPTS, read_file, read_stream, text_of
from lvspec_cli.types import (
    Constraint,
    DecoderName,
    DecodeSettings,
    KeepBy,
    Looseness,
    Mode,
    Quantisation,
    RelevanceName,
    RuleSettings,
    VideoRequest,
    read_gamma,
)
from lvspec_cli.video.source import is_url, web_address

if TYPE_CHECKING:
    from lvspec_cli.batch.names import Input
    from lvspec_cli.pairs.registry import Pair
    from lvspec_cli.request import PairChoice

BLACK = (0, 0, 0)
TEXT_SUFFIXES = (".txt", ".lst", ".list", ".md", ".srt", ".vtt", ".json", ".yaml")
LEAST_TEMPERATURE = 1e-3  # with a lower one, logits would overflow half precision


def chosen_pair(loading: Loading, choose: Callable[..., PairChoice] | None = None) -> PairChoice:
    """The pair of the flags, with the options for loading it.

    :param choose: decides for ``auto`` in the place of ``choose_pair``, which goes by this machine.
    """
    from lvspec_cli.memory.choose import choose_pair
    from lvspec_cli.memory.resolve import check_device
    from lvspec_cli.pairs.registry import AUTO, MTP, load_registry

    check_device(loading.device)
    if loading.draft_device is not None:
        check_device(loading.draft_device, "--draft-device")
    registry = load_registry(loading.models)
    try:
        registry.pair(loading.pair)
    except PairError as error:
        if loading.pair != os.environ.get("LVSPEC_PAIR"):
            raise
        raise PairError(f"LVSPEC_PAIR: {error.cause}", error.remedy) from None
    is_open = (loading.pair or registry.default) == AUTO
    choose = choose if choose is not None and is_open else choose_pair
    return replace(
        choose(registry.with_mtp() if loading.draft == MTP else registry, loading.pair, loading.device),
        dtype=loading.dtype,
        quant_target=loading.quant_target,
        quant_draft=loading.quant_draft,
        draft_device=loading.draft_device,
        cuda_graphs=loading.cuda_graphs,
        threads=loading.threads,
    )


def video_request(sampling: Sampling, pair: Pair, path: Path = Path()) -> VideoRequest:
    """The video request of the flags, with the pair's defaults. A batch leaves the path empty.

    :raises UsageError: a value is out of range, flags do not go together, or the decoder is not here.
    """
    from lvspec_cli.video.sample import parse_time

    _check_decoder(sampling.decoder)
    start, end = (None if text is None else parse_time(text) for text in (sampling.start, sampling.end))
    if end is not None and end <= (start or 0.0):
        raise UsageError("--end is not after --start", "choose a later end")
    _check("--fps", sampling.fps, above=0.0)
    _check("--decode-timeout", sampling.decode_timeout, above=0.0, most=1e6)
    is_given = sampling.frames is not None or sampling.fps is not None
    return VideoRequest(
        path=path,
        start=start,
        end=end,
        max_frames=sampling.frames if is_given else pair.defaults.frames,
        fps=sampling.fps if is_given else pair.defaults.fps,
        max_pixels=sampling.max_pixels or pair.defaults.max_pixels,
        decoder=sampling.decoder,
        background=_colour(sampling.background) if isinstance(sampling, FullSampling) else BLACK,
        timeout=sampling.decode_timeout,
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


def decode_settings(decoding: Decoding, rule: Rule, pair: Pair) -> DecodeSettings:
    """The decoding settings of the flags, with the pair's defaults.

    :raises UsageError: a value is out of range, or flags do not go together.
    """
    from lvspec_cli.pairs.registry import settings_of_pair

    temperature = decoding.temperature
    _check("--temperature", temperature, least=0.0, most=100.0)
    if 0 < temperature < LEAST_TEMPERATURE:
        raise UsageError(
            f"--temperature {temperature:g} is out of range", "give 0 for greedy, or 0.001 and more"
        )
    _check("--draft-keep", decoding.draft_keep, above=0.0, most=1.0)
    if temperature > 0 and decoding.mode is Mode.LVSPEC:
        raise UsageError("--temperature has no rule in mode lvspec yet", "add --mode exact or --mode ar")
    defaults = settings_of_pair(pair, rule.looseness)
    return replace(
        defaults,
        mode=decoding.mode,
        gamma=defaults.gamma if decoding.gamma is None else read_gamma(decoding.gamma),
        fallback=defaults.fallback if decoding.fallback is None else decoding.fallback,
        rule=_rule_settings(rule, pair),
        max_new_tokens=decoding.max_new_tokens or defaults.max_new_tokens,
        temperature=temperature,
        seed=decoding.seed,
        draft_keep=decoding.draft_keep,
        draft_keep_by=decoding.draft_keep_by,
        draft_frames=decoding.draft_frames or defaults.draft_frames,
        draft_pixels=decoding.draft_pixels or defaults.draft_pixels,
    )


def constraint_of(choices: str | None, schema: Path | None, *, think: bool = False) -> Constraint | None:
    """The constraint of the flags, if any.

    :raises UsageError: they exclude each other, or one of them cannot be used.
    :raises NoInputError: the schema cannot be read.
    """
    if choices is None and schema is None:
        return None
    if choices is not None and schema is not None:
        raise UsageError("--choices and --schema exclude each other", "leave out one of them")
    if think:
        raise UsageError(
            "--think goes with free answers only", "leave out --think, or --choices and --schema"
        )
    constraint = Constraint(_choices(choices)) if choices is not None else Constraint(schema=_schema(schema))
    from lvspec_cli.models.constraint import check_constraint

    check_constraint(constraint)
    return constraint


def _choices(text: str) -> tuple[str, ...]:
    choices = tuple(choice.strip() for choice in text.split(","))
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise UsageError(
            f"--choices {text!r} names no two different answers", "write them between commas: yes,no,unsure"
        )
    return tuple(checked_text(choice, "a choice") for choice in choices)


def _schema(file: Path | None) -> str:
    """The schema as one line of JSON."""
    assert file is not None
    try:
        schema = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(
            f"{file}{place}: not JSON ({getattr(error, 'msg', error)})", "write a JSON schema"
        ) from None
    if not isinstance(schema, dict):
        raise UsageError(f"{file}: not a JSON schema", 'write an object, such as {"type": "object", ...}')
    return json.dumps(schema, ensure_ascii=False)


def _check_decoder(decoder: DecoderName) -> None:
    """:raises UsageError: the decoder's package is missing."""
    if decoder == "decord" and find_spec("decord") is None:
        remedy = f"leave it out, or install it: {install_command('decord')}"
        raise UsageError("--decoder decord needs the package decord", remedy)


def check_effects(loading: Loading, decoding: Decoding, rule: Rule, settings: DecodeSettings) -> None:
    """:raises UsageError: see ``effectless``."""
    found = effectless(loading, decoding, rule, settings)
    if found is not None:
        flag, cause = found
        raise UsageError(f"{flag} has no effect {cause}", f"leave out {flag}")


_LAYERED = (
    RelevanceName.ATTENTION, RelevanceName.RANK_ATTENTION, RelevanceName.SIMILARITY, RelevanceName.PAPER,
    RelevanceName.LENS,
)  # fmt: skip


def effectless(
    loading: Loading, decoding: Decoding, rule: Rule, settings: DecodeSettings
) -> tuple[str, str] | None:
    """A flag that was given and changes nothing, and why.

    :param settings: what the flags and the pair's defaults give together.
    """
    mode, relevance = settings.mode, settings.rule.relevance
    given = {name: value for name, value in asdict(rule).items() if value is not None}
    looseness = given.pop("looseness")
    rules = list(given)
    if looseness is not Looseness.BALANCED and not (mode is Mode.EXACT and looseness is Looseness.STRICT):
        rules.append("looseness")
    drafting = {
        "gamma": decoding.gamma is not None,
        "fallback": decoding.fallback is True,
        "draft_keep": decoding.draft_keep != 1,
        "draft_frames": decoding.draft_frames is not None,
        "draft_pixels": decoding.draft_pixels is not None,
        "draft_device": loading.draft_device is not None,
        "quant_draft": loading.quant_draft is not Quantisation.AUTO,
    }
    names: list[str] = []
    cause = f"with --relevance {relevance.value}"
    if mode is Mode.AR:
        names, cause = [*rules, *(name for name, has in drafting.items() if has)], "with --mode ar"
    elif mode is Mode.EXACT:
        names, cause = rules, "with --mode exact"
    elif relevance is RelevanceName.PLAUSIBLE:
        names = [name for name in ("anchor_threshold", "random_rate", "layers") if name in given]
        if not names and "anchor_margin" in given and not settings.rule.defer:  # ties need no window
            names = ["anchor_margin"]
    elif relevance is not RelevanceName.RANDOM and "random_rate" in given:
        names = ["random_rate"]
    elif relevance not in _LAYERED and "layers" in given:
        names = ["layers"]
    if not names and decoding.draft_keep == 1 and decoding.draft_keep_by is not KeepBy.ATTENTION:
        names, cause = ["draft_keep_by"], "without --draft-keep"
    is_random = mode is Mode.LVSPEC and relevance is RelevanceName.RANDOM
    if not names and decoding.seed and settings.temperature == 0 and not is_random:
        names, cause = ["seed"], "without --temperature or --relevance random"
    if not names and settings.mode is Mode.LVSPEC and "defer_sure" in given and not settings.rule.defer:
        names, cause = ["defer_sure"], "without --defer"
    return ("--" + {"layers": "layer"}.get(names[0], names[0]).replace("_", "-"), cause) if names else None


def _rule_settings(rule: Rule, pair: Pair) -> RuleSettings:
    from pydantic import TypeAdapter, ValidationError

    from lvspec_cli.pairs.registry import rule_of

    settings = asdict(rule_of(pair, rule.looseness))
    settings |= {
        name: value for name, value in asdict(rule).items() if name in settings and value is not None
    }
    try:
        return TypeAdapter(RuleSettings).validate_python(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{flag}: {first['msg']}, not {first['input']}", "see --help") from None


def _check(
    flag: str,
    value: float | None,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Checks that a number is in its range; NaN and infinity never are."""
    if value is not None and not (math.isfinite(value) and value > above and least <= value <= most):
        bound = f"above {above:g}" if above > -math.inf else f"{least:g} or more"
        end = f", {most:g} at most" if most < math.inf else ""
        raise UsageError(f"{flag} {value:g} is out of range", f"give a number {bound}{end}")


def videos_and_question(given: Sequence[Argument]) -> tuple[tuple[str, ...], str | None]:
    """The arguments of ``ask`` without a mistake, ``VIDEO... [QUESTION]``, told apart: the last one is the
    question, unless it is a video or a folder."""
    *videos, last = (argument.text for argument in given)
    is_video = not videos or given[-1].kind in _SOURCES
    return ((*videos, last), None) if is_video else (tuple(videos), last)


def videos_of(arguments: Sequence[str]) -> tuple[Input, ...]:
    """The videos that the arguments name: files, and those of folders; each once, in order.

    :raises NoInputError: one of them is not there, or there is none.
    :raises UsageError: one is a list of jobs.
    """
    from lvspec_cli.batch.inputs import collect
    from lvspec_cli.batch.lists import is_jobs_file
    from lvspec_cli.batch.names import Input

    for argument in arguments:
        if is_jobs_file(Path(argument)):
            raise UsageError(f"{argument} is a list, and ask takes videos", "lvspec caption takes lists")
    collected = collect([Path(argument) for argument in arguments])
    for problem in collected.problems:
        if isinstance(problem.error, NoInputError):
            raise problem.error
    unread = tuple(Input(problem.path, problem.name) for problem in collected.problems)
    return (*collected.inputs, *unread)  # decoding will say again what is wrong with them


def collect_questions(
    first: str | None, more: Sequence[str], file: Path | None, videos: Sequence[str]
) -> tuple[str, ...]:
    """All questions in order: the argument, each ``--question``, then the lines of ``--questions``.

    A question ``-`` is the whole of stdin; a file ``-`` gives the lines of stdin.

    :param videos: what is asked about, for the remedy.
    :raises UsageError: there is no question, one is empty, or a text is not UTF-8.
    :raises NoInputError: the file cannot be read.
    """
    texts = [first, *more] if first is not None else list(more)
    if texts.count("-") + (file == Path("-")) > 1:
        raise UsageError("stdin can be read only once", "use - for one question or for --questions")
    questions = [
        checked_text(_stdin(), "the question on stdin") if text == "-" else checked_text(text, "a question")
        for text in texts
    ]
    if file is not None:
        lines = _stdin() if file == Path("-") else read_text(file)
        questions += [line.strip() for line in lines.splitlines() if line.strip()]
        if not lines.strip():
            raise UsageError(f"{file}: no question in it", "write one a line")
    if not questions:
        raise UsageError("there is no question", f"write one: {_ask_command(videos, 'What happens?')}")
    return tuple(questions)


_ADDRESS = re.compile(r"(www\.|youtu\.be/|(m\.)?youtube\.com/)\S+", re.IGNORECASE)  # as it is often copied


class ArgumentKind(StrEnum):
    """What an argument seems to be, by its form and by what is on the disk."""

    VIDEO = "video"  # a file that exists, or a name with the suffix of a video
    TEXT_FILE = "text file"  # exists; may be a list of videos, or of questions
    FOLDER = "folder"
    PATTERN = "pattern"  # of file names, which the shell has not replaced
    URL = "url"
    STDIN = "stdin"
    WORDS = "words"  # anything else


@dataclass(frozen=True)
class Argument:
    text: str
    kind: ArgumentKind


def argument_of(text: str) -> Argument:
    """The argument with its kind. A question that ends with a file's name is still words."""
    from lvspec_cli.batch.lists import is_jobs_file
    from lvspec_cli.batch.names import VIDEO_SUFFIXES

    path, has_space = Path(text), _has_space(text)
    suffix = path.suffix.lower()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        is_folder = is_file = False
    if text == "-":
        kind = ArgumentKind.STDIN
    elif is_url(text) or (_ADDRESS.fullmatch(text) and not (is_folder or is_file)):
        kind = ArgumentKind.URL
    elif text and is_folder:
        kind = ArgumentKind.FOLDER
    elif is_file and (suffix in TEXT_SUFFIXES or is_jobs_file(path)):
        kind = ArgumentKind.TEXT_FILE
    elif is_file or (suffix and suffix in VIDEO_SUFFIXES.split() and not has_space and "*" not in text):
        kind = ArgumentKind.VIDEO
    elif "*" in text and not has_space:
        kind = ArgumentKind.PATTERN
    else:
        kind = ArgumentKind.WORDS
    return Argument(text, kind)


def ask_mistake(given: Sequence[Argument]) -> LvspecError | None:
    """What is wrong with the arguments of ``lvspec ask``, if anything: they are videos and a question.

    :param given: at least one argument. Whether a video exists is not checked.
    """
    first, *rest = given
    words = [argument.text for argument in given if argument.kind is ArgumentKind.WORDS]
    sources = [argument.text for argument in given if argument.kind in _SOURCES]
    question = " ".join(words) or "What happens?"
    for argument in given:
        if argument.kind is ArgumentKind.URL and (argument is first or not _has_space(argument.text)):
            return web_address(argument.text)
        if argument.kind is ArgumentKind.PATTERN and (argument is first or _names_files(argument.text)):
            path = Path(argument.text)
            folder = [str(path.parent), "--glob", path.name]
            return NoInputError(f"no such file: {argument.text}", _caption_command(folder, question))
    match first.kind:
        case ArgumentKind.STDIN:
            return UsageError("a video cannot be read from stdin", "save it to a file first")
        case ArgumentKind.TEXT_FILE:
            return _list_for_video(first.text)
        case ArgumentKind.WORDS if sources:
            return UsageError("the question stands before the video", _ask_command(sources, question))
        case ArgumentKind.WORDS if not rest and any(map(str.isspace, first.text.strip())):
            return NoInputError(f"no such video: {first.text}", _ask_command(["VIDEO"], first.text))
    if rest and rest[-1].kind is ArgumentKind.TEXT_FILE:
        remedy = _ask_command([*sources, "--questions"], rest[-1].text)
        return UsageError(f"{rest[-1].text} is a file, not a question", f"did you mean {remedy}")
    others = [argument for argument in rest if argument.kind not in (*_SOURCES, ArgumentKind.TEXT_FILE)]
    if len(others) > 1 or (others and given[-1].kind in _SOURCES):
        whole = _ask_command(sources or [first.text], " ".join(argument.text for argument in others))
        cause = f"a question of {len(others)} arguments" if len(others) > 1 else "a video after the question"
        return UsageError(cause, f"quote the question: {whole}" if len(others) > 1 else whole)
    return None


def chat_mistake(given: Sequence[Argument]) -> LvspecError | None:
    """What is wrong with the arguments of ``lvspec chat``, if anything: one video.

    :param given: at least one argument. Whether a video exists is not checked.
    """
    mistake = ask_mistake(given)
    if mistake is None and len(given) > 1:
        videos, question = videos_and_question(given)
        remedy = f"type it in the chat, or: {_ask_command(videos, question or 'What happens?')}"
        return UsageError("chat takes one video and no question", remedy)
    return mistake


def _has_space(text: str) -> bool:
    return any(map(str.isspace, text))


def _is_question(words: str) -> bool:
    return _has_space(words.strip()) or words.endswith("?")


def _names_files(pattern: str) -> bool:
    """Whether it is of files, and not a question without spaces, as some scripts have none."""
    from lvspec_cli.batch.names import VIDEO_SUFFIXES

    return "/" in pattern or Path(pattern).suffix.lower() in VIDEO_SUFFIXES.split()


def _ask_command(sources: Sequence[str], question: str) -> str:
    return shell_words(["lvspec", "ask", *sources, question])


def caption_mistake(given: Sequence[Argument]) -> LvspecError | None:
    """What is wrong with the arguments of ``lvspec caption``, if anything: files, folders and lists of jobs.

    A file that does not exist is no mistake here: it is reported with the others.
    """
    from lvspec_cli.batch.lists import is_jobs_file

    for argument in given:
        path = Path(argument.text)
        match argument.kind:
            case ArgumentKind.URL:
                return web_address(argument.text)
            case ArgumentKind.PATTERN:
                remedy = shell_words(["lvspec", "caption", str(path.parent), "--glob", path.name])
                return NoInputError(f"no such file: {argument.text}", f"did you mean {remedy}")
            case ArgumentKind.TEXT_FILE if not is_jobs_file(path):
                return _list_for_video(argument.text)
            case ArgumentKind.WORDS if _is_question(argument.text) and not path.suffix:
                remedy = shell_words(["lvspec", "caption", "VIDEOS", "--prompt", argument.text])
                return NoInputError(f"no such file: {argument.text}", f"did you mean {remedy}")
    return None


def bench_mistake(given: Sequence[Argument]) -> LvspecError | None:
    """What is wrong with the clips of a command that measures, if anything: files and folders."""
    for argument in given:
        if argument.kind is ArgumentKind.TEXT_FILE:
            remedy = "name videos or folders, or a JSONL file with --questions"
            return UsageError(f"{argument.text} is text, not a video", remedy)
        if argument.kind is ArgumentKind.PATTERN:
            return NoInputError(
                f"no such file: {argument.text}", f"name the folder: {Path(argument.text).parent}"
            )
    return caption_mistake([argument for argument in given if argument.kind is ArgumentKind.URL])


def check_local(*files: Path) -> None:
    """:raises NoInputError: one of them is a URL, which a path shows with a slash less."""
    for file in files:
        if is_url(str(file)):
            raise web_address(str(file))


_SOURCES = (ArgumentKind.VIDEO, ArgumentKind.FOLDER)


def _caption_command(sources: Sequence[str], question: str) -> str:
    return shell_words(["lvspec", "caption", *sources, "--prompt", question])


def _list_for_video(name: str) -> UsageError:
    from lvspec_cli.batch.lists import is_jobs_file

    flag = [] if is_jobs_file(Path(name)) else ["--from-list"]
    remedy = shell_words(["lvspec", "caption", *flag, name])
    return UsageError(f"{name} is text, not a video", f"did you mean {remedy}")


def checked_system(text: str | None) -> str | None:
    """The system prompt, if any, without surrounding space.

    :raises UsageError: it is empty, or not UTF-8.
    """
    return None if text is None else checked_text(text, "--system")


def checked_text(text: str, name: str) -> str:
    """The text without surrounding space.

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
    :raises UsageError: it is not text, or too large.
    """
    try:
        return text_of(read_file(file, PROMPTS), str(file))
    except OSError as error:
        raise NoInputError(f"{file}: {error.strerror}", "name a text file that can be read") from error
