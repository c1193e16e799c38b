"""The state of the live views: pure folds over the pipeline's events and a batch's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from lvspec_cli.events import (
    Answered,
    ClipReady,
    Event,
    InSlot,
    InWorker,
    Noted,
    QuestionStarted,
    RoundDone,
    Stage,
    StageAdvanced,
    StageFinished,
    StageStarted,
)
from lvspec_cli.output.records import Record
from lvspec_cli.table import clock
from lvspec_cli.types import Gamma, Piece, TokenKind

ACCEPTED = (TokenKind.EXACT, TokenKind.FILLER, TokenKind.SHIFT)


@dataclass(frozen=True)
class StageView:
    """A stage: ``share`` (0 to 1) while it runs, if known; ``seconds`` when it has finished."""

    running: bool = False
    share: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class View:
    """All that the live view shows of one run."""

    pair: str
    mode: str
    gamma: Gamma | None  # None in mode ar
    stages: Mapping[Stage, StageView] = field(default_factory=lambda: MappingProxyType({}))
    clip: ClipReady | None = None
    question: QuestionStarted | None = None
    pieces: tuple[Piece, ...] = ()
    kinds: Mapping[TokenKind, int] = field(default_factory=lambda: MappingProxyType({}))
    lengths: tuple[int, ...] = ()  # accepted length of each round of this answer
    drafted: int = 0
    widest: int = 0  # most tokens drafted in a round
    fallback: bool = False  # it continues without the draft, because speculation was slower
    thinking: bool = False  # the answer has not begun, because the target thinks first
    seconds: float = 0.0  # since the answer's first token

    @property
    def tokens(self) -> int:
        return sum(self.kinds.values())

    @property
    def tokens_per_second(self) -> float | None:
        return (self.tokens - 1) / self.seconds if self.seconds > 0 and self.tokens > 1 else None

    @property
    def mean_accepted_length(self) -> float | None:
        return sum(self.lengths) / len(self.lengths) if self.lengths else None

    @property
    def acceptance_rate(self) -> float | None:
        return sum(self.kinds.get(kind, 0) for kind in ACCEPTED) / self.drafted if self.drafted else None


def fold(view: View, event: Event) -> View:
    """The view after an event."""
    match event:
        case Noted() | InWorker() | InSlot():
            return view
        case StageStarted(stage):
            return _stage(view, stage, StageView(running=True))
        case StageAdvanced(stage, done, total):
            return _stage(
                view, stage, StageView(running=True, share=min(done / total, 1.0) if total else None)
            )
        case StageFinished(stage, seconds):
            return _stage(view, stage, StageView(seconds=seconds))
        case ClipReady():
            return replace(view, clip=event)
        case QuestionStarted():
            before = _stages(view, Stage.DECODING, Stage.LOADING)
            fresh = View(view.pair, view.mode, view.gamma, before, view.clip, event)
            return replace(fresh, fallback=view.fallback)
        case RoundDone():
            return _round(view, event)
        case Answered(_, tail):
            return replace(view, pieces=(*view.pieces, Piece(tail, TokenKind.TARGET))) if tail else view


def _stages(view: View, *kept: Stage) -> Mapping[Stage, StageView]:
    return MappingProxyType({stage: state for stage, state in view.stages.items() if stage in kept})


def _stage(view: View, stage: Stage, state: StageView) -> View:
    return replace(view, stages=MappingProxyType({**view.stages, stage: state}))


def _round(view: View, event: RoundDone) -> View:
    round_ = event.round
    kinds = dict(view.kinds)
    for kind in round_.kinds:
        kinds[kind] = kinds.get(kind, 0) + 1
    return replace(
        view,
        pieces=view.pieces + event.pieces,
        kinds=MappingProxyType(kinds),
        lengths=view.lengths if round_.prefill else (*view.lengths, len(round_.tokens)),
        drafted=view.drafted + len(round_.drafted),
        widest=max(view.widest, len(round_.drafted)),
        fallback=view.fallback or round_.fallback,
        thinking=event.thinking,
        seconds=event.seconds,
    )


RECENT = 3  # finished rows shown


@dataclass(frozen=True)
class BatchView:
    """The state of a batch. Counts are of rows: one for each prompt and stretch of a video."""

    total: int  # rows to do in this run
    skipped: int  # rows that existed before
    places: tuple[View, ...]  # what is under way: a place for each worker, or for each of its slots
    slots: int = 1  # places of each worker
    ok: int = 0
    failed: int = 0
    tokens: int = 0
    rounds: int = 0
    tokens_in_rounds: int = 0
    recent: tuple[Record, ...] = ()  # the last successful ones

    @property
    def done(self) -> int:
        return self.ok + self.failed

    @property
    def mean_accepted_length(self) -> float | None:
        return self.tokens_in_rounds / self.rounds if self.rounds else None


def add_row(view: BatchView, record: Record) -> BatchView:
    """The view after a finished row."""
    failed = record.status == "error"
    view = replace(view, ok=view.ok + (not failed), failed=view.failed + failed)
    if not failed:
        view = replace(view, recent=(*view.recent, record)[-RECENT:])
    if record.stats is None:
        return view
    return replace(
        view,
        tokens=view.tokens + record.stats.output_tokens,
        rounds=view.rounds + record.stats.rounds,
        tokens_in_rounds=view.tokens_in_rounds
        + (record.stats.output_tokens - 1 if record.stats.rounds else 0),
    )


def add_event(view: BatchView, event: Event) -> BatchView:
    """The view after an event of one of the places.

    A worker's next clip begins as it waits for its frames; one of several, when it has them.
    """
    place, event = place_of(event, view.slots)
    current = view.places[place]
    match event:
        case StageStarted(Stage.DECODING) if view.slots == 1:
            current = View(current.pair, current.mode, current.gamma, _stages(current, Stage.LOADING))
        case ClipReady() if view.slots > 1:
            current = View(current.pair, current.mode, current.gamma)
        case StageStarted(Stage.DECODING) | StageFinished(Stage.DECODING) if view.slots > 1:
            return view  # it is for whichever place is free next
    after = fold(current, event)
    if isinstance(event, Answered) and view.slots > 1:
        after = View(current.pair, current.mode, current.gamma)
    return replace(view, places=(*view.places[:place], after, *view.places[place + 1 :]))


def place_of(event: Event, slots: int) -> tuple[int, Event]:
    """Where an event belongs, among the places of all workers, and the event itself.

    :param slots: places of each worker.
    """
    number, event = (event.number, event.event) if isinstance(event, InWorker) else (0, event)
    slot, event = (event.slot, event.event) if isinstance(event, InSlot) else (0, event)
    return number * slots + slot, event


def has_loaded(event: Event) -> bool:
    """Whether a worker has loaded the pair. From the first one on a batch's speed is measured."""
    _, event = place_of(event, 1)
    return isinstance(event, StageFinished) and event.stage is Stage.LOADING


def rates(view: BatchView, seconds: float) -> str:
    """The speed and the remaining time, as far as they are known."""
    parts = [speed] if (speed := speeds(view, seconds)) else []
    if view.done and view.done < view.total:
        parts.append(f"{clock(seconds / view.done * (view.total - view.done))} left")
    return ", ".join(parts)


def speeds(view: BatchView, seconds: float) -> str:
    """Rows and tokens a second, and the mean accepted length, if known."""
    parts = []
    if view.ok and seconds > 0:
        rate = view.ok / seconds
        parts.append(f"{rate:.{1 if rate >= 1 else 2}f} captions/s")
        if view.tokens:
            parts.append(f"{view.tokens / seconds:.0f} tokens/s")
    if view.mean_accepted_length is not None:
        parts.append(f"{view.mean_accepted_length:.1f} tokens a step of the large model")
    return ", ".join(parts)


def counts(view: BatchView) -> str:
    """The counts of the batch in words."""
    parts = [f"{view.done} of {view.total} done"]
    if view.failed:
        parts.append(f"{view.failed} failed")
    if view.skipped:
        parts.append(f"{view.skipped} skipped")
    return ", ".join(parts)
