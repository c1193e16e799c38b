"""``lvspec ask``: questions about one video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvspec_cli.cli import options
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.cli.requests import decode_settings, video_request
from lvspec_cli.cores import quieten_libraries
from lvspec_cli.errors import NoInputError, OutputError, UsageError
from lvspec_cli.types import KeepBy, Looseness, Mode, Quantisation

if TYPE_CHECKING:
    from lvspec_cli.pipeline import Trace


def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to ask; - reads it from stdin.")
    ] = None,
    more_questions: options.Questions = None,
    questions: options.QuestionFile = None,
    system: options.System = None,
    pair: options.PairName = None,
    models: options.ModelsPath = None,
    device: options.Device = "auto",
    dtype: options.DataType = "auto",
    draft_device: options.DraftDevice = None,
    cuda_graphs: options.CudaGraphs = True,
    quant_target: options.QuantTarget = Quantisation.AUTO,
    quant_draft: options.QuantDraft = Quantisation.AUTO,
    threads: options.Threads = None,
    mode: options.ModeName = Mode.LVSPEC,
    gamma: options.Gamma = None,
    fallback: options.Fallback = None,
    draft_keep: options.DraftKeep = 1.0,
    draft_keep_by: options.DraftKeepBy = KeepBy.ATTENTION,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    looseness: options.LoosenessName = Looseness.BALANCED,
    relevance: options.Relevance = None,
    anchor_threshold: options.AnchorThreshold = None,
    anchor_margin: options.AnchorMargin = None,
    filler_margin: options.FillerMargin = None,
    sentence_margin: options.SentenceMargin = None,
    shift_window: options.ShiftWindow = None,
    max_loose_run: options.MaxLooseRun = None,
    max_loose_in_window: options.MaxLooseInWindow = None,
    loose_window: options.LooseWindow = None,
    random_rate: options.RandomRate = None,
    layer: options.Layers = None,
    frames: options.FrameCap = None,
    fps: options.FrameRate = None,
    start: options.Start = None,
    end: options.End = None,
    max_pixels: options.MaxPixels = None,
    background: options.Background = "black",
    decoder: options.Decoder = "pyav",
    decode_timeout: options.DecodeTimeout = 120.0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    trace: options.TraceFile = None,
    debug: options.Debug = False,
) -> None:
    """Ask questions about a video. The answer goes to stdout, all else to stderr."""
    given = dict(locals())
    with reporting(debug) as stop:
        if not debug:
            quieten_libraries()
        from lvspec_cli import pipeline
        from lvspec_cli.cli.requests import checked_text, chosen_pair, collect_questions
        from lvspec_cli.cli.show import showing
        from lvspec_cli.request import AskRequest

        if not video:
            raise NoInputError("the video's name is empty", "name a video file")
        name, chosen, note = chosen_pair(given)
        request = AskRequest(
            video=video_request(given, chosen.defaults),
            questions=collect_questions(question, more_questions or (), questions),
            pair_name=name,
            pair=chosen,
            pair_note=note,
            settings=decode_settings(given, chosen),
            system=None if system is None else checked_text(system, "--system"),
            device=device,
            dtype=dtype,
            quant_target=quant_target,
            quant_draft=quant_draft,
            draft_device=draft_device,
            cuda_graphs=cuda_graphs,
            threads=threads,
        )
        with (
            _tracing(trace, Path(video)) as write_row,
            showing(request, as_json=as_json, quiet=quiet) as show,
        ):

            def listen(event: Any) -> None:
                stop.heed()
                stop.listen(event)
                show(event)

            pipeline.ask(request, listen, trace=write_row, interrupted=stop.asked)
        if stop.asked():
            raise KeyboardInterrupt


@contextmanager
def _tracing(file: Path | None, video: Path) -> Iterator[Trace | None]:
    """Opens the trace before anything slow begins, and never over the video, or what else is no trace."""
    if file is None:
        yield None
        return
    from lvspec_cli.output.files import check_ours
    from lvspec_cli.output.trace import MARK, trace_line

    def explained(error: OSError) -> OutputError:
        return OutputError(f"{file}: {error.strerror or error}", "name a file that can be written")

    if file.exists() and video.exists() and file.samefile(video):
        raise UsageError(f"{file}: --trace would overwrite the video", "name another file")
    check_ours(file, MARK, "name another file, or remove this one")
    try:
        stream = file.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise explained(error) from error

    def write(row: dict[str, Any]) -> None:
        try:
            stream.write(trace_line(row) + "\n")
        except OSError as error:
            raise explained(error) from error

    with stream:
        yield write
