"""All captions of ``lvspec bench-relevance``, one by one, each kept as soon as it is scored.

``relevance.jsonl``: a first line that says how captions are made and scored, then a line a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import Lines, digest_of, lines_of
from lvspec_cli.bench.relevance import SCHEMES, Scheme, Scored, score_caption
from lvspec_cli.bench.results import Environment
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import Item, Part
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.records import identify
from lvspec_cli.types import DecodeSettings, RelevanceName
from lvspec_cli.video.pool import reading

SCHEMA: Final = "lvspec.relevance-captions.1"
FILE_NAME: Final = "relevance.jsonl"


class Header(Part):
    """What decides whether scores can be mixed."""

    schema_: Literal["lvspec.relevance-captions.1"] = Field(default=SCHEMA, alias="schema")
    settings: dict[str, Any]  # as JSON holds them
    environment: Environment


class SchemeScores(Part):
    """What one scheme says of a caption's tokens. Of single heads there are no times."""

    relevance: RelevanceName
    layer: int | None = None
    head: int | None = None
    scores: tuple[float, ...]  # one a place
    score_us: float | None = None
    prepare_ms: float | None = None


class Caption(Part):
    """One caption. Without places it had no two tokens, and there is nothing to score."""

    key: str  # of the clip's content, its stretch and the prompt
    places: tuple[int, ...] = ()
    facts: tuple[bool, ...] = ()  # one a place
    schemes: tuple[SchemeScores, ...] = ()


@dataclass(frozen=True)
class MeasuredCaptions:
    """``unread``: clips by name that could not be read, with the cause."""

    scored: tuple[Scored, ...]
    unread: dict[str, str]


@contextmanager
def captions_of(folder: Path, header: Header, *, redo: bool = False) -> Iterator[Lines[Caption]]:
    """The captions that are kept in the folder; raises as ``bench.journal.journal`` does."""
    with lines_of(folder / FILE_NAME, header, Caption, redo=redo) as lines:
        yield lines


def measure_relevance(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    kept: Lines[Caption],
    *,
    system: str | None = None,
    schemes: Sequence[RelevanceName] = SCHEMES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> MeasuredCaptions:
    """Captions and scores what is not kept yet of the clips that have their scene beside them.

    :raises NoInputError: there is none, or none can be read.
    """
    asked = [(clip, item) for clip in clips for item in clip.items if item.scene is not None]
    if not asked:
        raise NoInputError(
            "no clip has the facts of its scene beside it", "name clips that `lvspec demo` wrote, or none"
        )
    held = {caption.key: caption for caption in kept.held}
    found: list[Scored] = []
    unread: dict[str, str] = {}
    with reading() as read:
        for done, (clip, item) in enumerate(asked, 1):
            key = _key(clip, item)
            if key not in held:
                try:
                    frames = read(clip.video)
                except LvspecError as error:
                    unread[item.file_name] = error.cause
                    warn(f"{item.file_name}: {error.cause}")
                    continue
                scored = score_caption(pair, frames, item.prompt, settings, system=system, schemes=schemes)
                held[key] = _caption(key, scored)
                kept.add(held[key])
            found += _scored(held[key])
            progress(done, len(asked))
    if unread and not found:
        raise NoInputError(
            f"nothing could be measured: {next(iter(unread.values()))}", "name videos that can be read"
        )
    return MeasuredCaptions(tuple(found), unread)


def _key(clip: BenchClip, item: Item) -> str:
    sample = ""
    with suppress(OSError):  # reading it says what is wrong
        sample = identify(clip.video.path, b"").sample
    return digest_of([sample, clip.video.start, clip.video.end, item.model_dump(mode="json")])


def _caption(key: str, scored: Scored | None) -> Caption:
    if scored is None:
        return Caption(key=key)
    return Caption(
        key=key,
        places=scored.places,
        facts=scored.facts,
        schemes=tuple(
            SchemeScores(
                **asdict(scheme),
                scores=scores,
                score_us=scored.score_us.get(scheme),
                prepare_ms=scored.prepare_ms.get(scheme),
            )
            for scheme, scores in scored.scores.items()
        ),
    )


def _scored(caption: Caption) -> list[Scored]:
    if not caption.places:
        return []
    by_scheme = {Scheme(each.relevance, each.layer, each.head): each for each in caption.schemes}
    return [
        Scored(
            places=caption.places,
            facts=caption.facts,
            scores={scheme: each.scores for scheme, each in by_scheme.items()},
            score_us={s: each.score_us for s, each in by_scheme.items() if each.score_us is not None},
            prepare_ms={s: each.prepare_ms for s, each in by_scheme.items() if each.prepare_ms is not None},
        )
    ]
