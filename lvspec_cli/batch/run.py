"""Runs works: in this process with one worker, in a process each with several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from lvspec_cli.batch.serve import WorkerPlan, serving
from lvspec_cli.batch.work import Work
from lvspec_cli.events import Listener
from lvspec_cli.output.records import Record
from lvspec_cli.pipeline import placed_request


def run(
    works: Sequence[Work],
    plans: Sequence[WorkerPlan],
    *,
    write: Callable[[Record], None],
    listen: Listener = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Answers all works; ``write`` gets each record when it is finished.

    One plan runs here, and ``listen`` gets the pipeline's events. Several run in a process each, over one
    queue: then the events are those of the first.

    :param interrupted: asked once a round; when true answers under way are dropped and none begins.
    :raises PairError: the pair cannot be had or does not fit.
    """
    if len(plans) > 1:
        from lvspec_cli.batch.remote import run_remote

        plans = [replace(plan, base=placed_request(plan.base)) for plan in plans]
        run_remote(works, plans, write=write, listen=listen, interrupted=interrupted)
        return
    # Closed here: what a second Ctrl-C raises in a generator that is only dropped is lost.
    with serving(plans[0], listen, interrupted) as serve, closing(serve(works)) as done:
        for finished in done:
            for record in finished.records:
                write(record)
            if interrupted():
                return
