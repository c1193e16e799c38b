"""What the view of a batch shows, as a fold over rows and the pipeline's events: no terminal, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lvspec_cli.events import ClipReady, Event
from lvspec_cli.output.records import Record
from lvspec_cli.ui.state import View, fold

RECENT = 3  # results that stay on show


@dataclass(frozen=True)
class BatchView:
    """Counts are of rows: one a prompt and stretch of a video."""

    total: int  # rows to do in this run
    skipped: int  # rows that were there before
    current: View
    ok: int = 0
    failed: int = 0
    tokens: int = 0
    rounds: int = 0
    tokens_in_rounds: int = 0
    recent: tuple[Record, ...] = ()  # the last that went well

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
    """The view after an event of the clip under way."""
    current = view.current
    if isinstance(event, ClipReady):
        current = View(current.pair, current.mode, current.gamma, current.stages)
    return replace(view, current=fold(current, event))


def rates(view: BatchView, seconds: float) -> str:
    """Rows and tokens a second, the mean accepted length and the time left, as far as they are known."""
    parts = []
    if view.done and seconds > 0:
        parts.append(f"{_per_second(view.done / seconds)} captions/s")
        if view.tokens:
            parts.append(f"{view.tokens / seconds:.0f} tokens/s")
    if view.mean_accepted_length is not None:
        parts.append(f"mean accepted length {view.mean_accepted_length:.2f}")
    if view.done and view.done < view.total:
        parts.append(f"{clock(seconds / view.done * (view.total - view.done))} left")
    return ", ".join(parts)


def counts(view: BatchView) -> str:
    """How far the batch is, in words."""
    parts = [f"{view.done} of {view.total} done"]
    if view.failed:
        parts.append(f"{view.failed} failed")
    if view.skipped:
        parts.append(f"{view.skipped} skipped")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as people read them: ``45 s``, ``3:05``, ``2:03:05``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _per_second(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
