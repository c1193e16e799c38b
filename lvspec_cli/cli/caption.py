"""``lvspec caption``: a folder of videos to captions."""

from __future__ import annotations

import typer

from lvspec_cli.cli import caption_options, options
from lvspec_cli.cli.reporting import reporting
from lvspec_cli.types import KeepBy, Looseness, Mode, Quantisation


def caption(
    paths: caption_options.Sources = None,
    out: caption_options.Out = "captions.jsonl",
    from_list: caption_options.FromList = None,
    null: caption_options.Null = False,
    recursive: caption_options.Recursive = True,
    glob: caption_options.Glob = None,
    shard: caption_options.Shard = None,
    prompt: caption_options.Prompts = None,
    prompt_file: caption_options.PromptFile = None,
    system: options.System = None,
    segment: caption_options.SegmentSeconds = None,
    overlap: caption_options.Overlap = 0.0,
    scenes: caption_options.Scenes = False,
    dry_run: caption_options.DryRun = False,
    retry_errors: caption_options.RetryErrors = False,
    redo: caption_options.Redo = False,
    fail_on: caption_options.FailOn = None,
    audit: caption_options.Audit = None,
    on_oom: caption_options.OnOutOfMemory = "shrink",
    to: caption_options.To = None,
    out_dir: caption_options.OutDir = None,
    prefix: caption_options.Prefix = "",
    suffix: caption_options.Suffix = "",
    force: caption_options.Force = False,
    pair: options.PairName = None,
    models: options.ModelsPath = None,
    device: options.Device = "auto",
    devices: caption_options.Devices = None,
    workers: caption_options.Workers = 1,
    dtype: options.DataType = "auto",
    draft_device: options.DraftDevice = None,
    cuda_graphs: options.CudaGraphs = True,
    quant_target: options.QuantTarget = Quantisation.AUTO,
    quant_draft: options.QuantDraft = Quantisation.AUTO,
    threads: options.Threads = None,
    decode_workers: caption_options.DecodeWorkers = None,
    decode_memory: caption_options.DecodeMemory = 512,
    mode: options.ModeName = Mode.LVSPEC,
    gamma: options.Gamma = None,
    fallback: caption_options.Fallback = False,
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
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Caption videos, a record a line. It can be stopped at any time, and goes on where it was."""
    given = dict(locals())
    with reporting(debug) as stop:
        if not debug:
            from lvspec_cli.cores import quieten_libraries

            quieten_libraries()
        from lvspec_cli.cli.caption_run import caption_all

        code = caption_all(given, stop)
        if stop.asked():
            raise KeyboardInterrupt
        raise typer.Exit(code)
