"""``lvspec caption``: a folder of videos to captions."""

from __future__ import annotations

import typer

from lvspec_cli.cli.caption_options import CaptionFlags
from lvspec_cli.cli.groups import with_groups
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.host import quieten_libraries


@with_groups
def caption(flags: CaptionFlags) -> None:
    """Caption many videos. It can be stopped at any time, and resumes where it left off.

    lvspec caption holiday --prompt "Describe this clip in one sentence."
    lvspec caption films --segment 10 --to srt
    """
    with reporting(flags.messages.debug) as stop:
        if not flags.messages.debug:
            quieten_libraries()
        from lvspec_cli.cli.caption_run import caption_all

        code = caption_all(flags, stop)
        if stop.asked():
            raise KeyboardInterrupt
        raise typer.Exit(code)
