"""The captions of ``lvspec bench-relevance``: each is stored as soon as it is scored.

``relevance.jsonl`` starts with a header (how captions are made and scored); then each line is a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import LineFile, digest_of, open_lines
from lvspec_cli.bench.relevance import SCHEMES, Scheme, ScoredCaption, score_caption
from lvspec_cli.bench.results import Environment
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import FrozenModel, Item
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.output.records import identify
from lvspec_cli.types import DecodeSettings, RelevanceName
from lvspec_cli.video.pool import reading

SCHEMA: Final = "lvspec.relevance-captions.1"
FILE_NAME: Final = "relevance.jsonl"


class Header(FrozenModel):
    """Scores can be mixed only if this is equal."""

    schema_: Literal["lvspec.relevance-captions.1"] = Field(default=SCHEMA, alias="schema")
    settings: dict[str, Any]  # as JSON holds them
    environment: Environment


class SchemeScores(FrozenModel):
    """One scheme's scores of a caption's tokens. Single heads have no times."""

    relevance: RelevanceName
    layer: int | None = None
    head: int | None = None
    scores: tuple[float, ...]  # one per position
    score_us: float | None = None
    prepare_ms: float | None = None


class Caption(FrozenModel):
    """One caption. Without ``places``, it has no token to score."""

    key: str  # a digest of the clip's content, its stretch and the prompt
    places: tuple[int, ...] = ()  # positions of the scored tokens
    facts: tuple[bool, ...] = ()  # one per position
    schemes: tuple[SchemeScores, ...] = ()


@dataclass(frozen=True)
class MeasuredCaptions:
    """``unread``: unreadable clips by name, with the cause."""

    scored: tuple[ScoredCaption, ...]
    unread: dict[str, str]


@contextmanager
def open_captions(folder: Path, header: Header, *, redo: bool = False) -> Iterator[LineFile[Caption]]:
    """Opens the folder's file of captions; raises as ``bench.journal.open_journal`` does."""
    with open_lines(folder / FILE_NAME, header, Caption, redo=redo) as lines:
        yield lines


def measure_relevance(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    stored: LineFile[Caption],
    *,
    system: str | None = None,
    schemes: Sequence[RelevanceName] = SCHEMES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> MeasuredCaptions:
    """Captions and scores the clips with known scenes that are not stored yet.

    :raises NoInputError: there are none, or none can be read.
    """
    wanted = [(clip, item) for clip in clips for item in clip.items if item.scene is not None]
    if not wanted:
        raise NoInputError(
            "no clip has the facts of its scene beside it", "name clips that `lvspec demo` wrote, or none"
        )
    captions = {caption.key: caption for caption in stored.stored}
    results: list[ScoredCaption] = []
    unread: dict[str, str] = {}
    with reading() as read:
        for done, (clip, item) in enumerate(wanted, 1):
            key = _key(clip, item)
            if key not in captions:
                try:
                    frames = read(clip.video)
                except LvspecError as error:
                    unread[item.file_name] = error.cause
                    warn(f"{item.file_name}: {error.cause}")
                    continue
                scored = score_caption(pair, frames, item.prompt, settings, system=system, schemes=schemes)
                captions[key] = _caption(key, scored)
                stored.add(captions[key])
            results += _scored_captions(captions[key])
            progress(done, len(wanted))
    if unread and not results:
        raise NoInputError(
            f"nothing could be measured: {next(iter(unread.values()))}", "name videos that can be read"
        )
    return MeasuredCaptions(tuple(results), unread)


def _key(clip: BenchClip, item: Item) -> str:
    sample = ""
    with suppress(OSError):  # reported when the clip is read
        sample = identify(clip.video.path, b"").sample
    return digest_of([sample, clip.video.start, clip.video.end, item.model_dump(mode="json")])


def _caption(key: str, scored: ScoredCaption | None) -> Caption:
    if scored is None:
        return Caption(key=key)
    return Caption(
        key=key,
        places=scored.positions,
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


def _scored_captions(caption: Caption) -> list[ScoredCaption]:
    """The caption in the form of the figures; empty if it has no token to score."""
    if not caption.places:
        return []
    rows = {Scheme(row.relevance, row.layer, row.head): row for row in caption.schemes}
    return [
        ScoredCaption(
            positions=caption.places,
            facts=caption.facts,
            scores={scheme: row.scores for scheme, row in rows.items()},
            score_us={s: row.score_us for s, row in rows.items() if row.score_us is not None},
            prepare_ms={s: row.prepare_ms for s, row in rows.items() if row.prepare_ms is not None},
        )
    ]
