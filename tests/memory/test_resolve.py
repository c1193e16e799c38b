"""What is settled before a pair is loaded, and what records know of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvspec_cli.batch.remote import run
from lvspec_cli.batch.serve import WorkerPlan
from lvspec_cli.cli.caption_job import worker_plans
from lvspec_cli.cli.caption_options import Workers
from lvspec_cli.cli.options import Loading as LoadingFlags
from lvspec_cli.errors import NoRoomError, PairError
from lvspec_cli.events import Event, Noted
from lvspec_cli.memory.plan import Decision, Device, Machine, Sizes, Wanted, Workload, decide
from lvspec_cli.memory.resolve import (
    Settled,
    device_kind,
    has_room,
    no_room_for,
    placed,
    settle,
    wanted_of,
    workload_of,
    workload_of_pair,
)
from lvspec_cli.models.load import ModelRequest
from lvspec_cli.output.records import FileIdentity, record_key
from lvspec_cli.pairs.registry import Defaults, load_registry
from lvspec_cli.pipeline import ask, load, narrowed, pinned_request
from lvspec_cli.request import AskRequest
from lvspec_cli.types import DecodeSettings, Loading, Mode, Placement, Quantisation, Share, VideoRequest
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, most_frames

CLIP = Path("lvspec_cli/demo/clips/clip_0001.mp4").resolve()
NONE, NF4 = Quantisation.NONE, Quantisation.NF4
PLAIN = Loading(NONE, NONE, "float32", "cpu")
FOLDER = Path("lvspec_cli/demo/pair").resolve()
TARGET, DRAFT = FOLDER / "target", FOLDER / "draft"


@pytest.fixture
def request_() -> AskRequest:
    name, pair = load_registry(environment={}).pair("demo")
    video = VideoRequest(Path("clip.mp4"), max_frames=8, max_pixels=110_592)
    return AskRequest(video, ("What happens?",), name, pair, DecodeSettings(), device="cpu")


def test_a_small_pair_on_a_cpu_is_kept_as_it_is(request_: AskRequest) -> None:
    assert settle(request_, TARGET, DRAFT) == Settled(PLAIN)
    alone = replace(request_, settings=DecodeSettings(mode=Mode.AR))
    assert settle(alone, TARGET, None).loading == replace(PLAIN, draft=None)


@pytest.mark.parametrize("text", ["", '{"model_type":', "[]"])
def test_a_broken_config_is_named(request_: AskRequest, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for asked in (request_, replace(request_, quant_draft=NF4)):
        with pytest.raises(PairError, match=rf"^{tmp_path}/config\.json is broken or cut short"):
            settle(asked, TARGET, tmp_path)


def test_that_needs_no_torch() -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from lvspec_cli.pipeline import pinned_request\n"
        "from lvspec_cli.request import AskRequest\n"
        "from lvspec_cli.pairs.registry import load_registry\n"
        "from lvspec_cli.types import DecodeSettings, VideoRequest\n"
        "name, pair = load_registry(environment={}).pair('demo')\n"
        "request = AskRequest(VideoRequest(Path('x')), ('?',), name, pair, DecodeSettings(), device='cpu')\n"
        "pinned_request(request)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_was_asked_for_by_name(request_: AskRequest) -> None:
    named = replace(request_, quant_target=NF4, quant_draft=Quantisation.BF16)
    assert settle(named, TARGET, DRAFT).loading == Loading(NF4, Quantisation.BF16, "float32", "cpu")
    with pytest.raises(PairError, match="not quantised by awq"):
        settle(replace(request_, quant_target=Quantisation.AWQ), TARGET, DRAFT)


def test_files_in_fp8_are_planned_unpacked_on_a_cpu(request_: AskRequest, tmp_path: Path) -> None:
    config = json.loads((TARGET / "config.json").read_text())
    packed = {**config, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(packed))
    assert settle(request_, tmp_path, DRAFT).loading == PLAIN


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose memory is nearly full."""
    machine = Machine(Device("cpu", 920_000_000, 8_000_000_000))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine)
    monkeypatch.setattr("lvspec_cli.memory.resolve._plainly_fit", lambda *_: False)
    return machine


def test_where_little_is_free_the_choice_is_explained(request_: AskRequest, crowded: Machine) -> None:
    found = settle(request_, TARGET, DRAFT)
    assert (found.loading.target, found.loading.draft) == (NF4, NF4)
    (note,) = found.notes
    assert note.startswith("target in nf4, draft in nf4: ")
    (note,) = settle(replace(request_, quant_draft=NF4), TARGET, DRAFT).notes
    assert note.startswith("target in nf4: ")  # of what was asked for there is nothing to say


def test_what_does_not_fit_at_all(
    request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned for a GPU of a few megabytes, as no machine has it."""
    small = Machine(crowded.cpu, (Device("cuda:0", 730_000_000, 8_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: small)
    here = replace(request_, loading=replace(PLAIN, device="cuda"))
    with pytest.raises(
        NoRoomError, match=r"needs about 0\.\d GB with 8 frames .* free: 0\.7 GB of 8\.0 GB"
    ) as caught:
        placed(here, TARGET, DRAFT)
    assert caught.value.remedy == "choose a smaller pair with --pair"
    roomy = Machine(crowded.cpu, (Device("cuda:0", 8_000_000_000, 8_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: roomy)
    assert [share.device for share in placed(here, TARGET, DRAFT).draft] == ["cuda:0"]


def test_on_a_cpu_what_does_not_fit_is_not_begun(
    request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be caught there: the system would end the process in the middle."""
    here, enough = replace(request_, loading=PLAIN), Machine(Device("cpu", 1_100_000_000, 8_000_000_000))
    video = replace(request_.video, max_frames=2048)
    with pytest.raises(
        NoRoomError, match=r"needs about \d+\.\d GB with 2048 frames .* free: 0\.9 GB"
    ) as caught:
        placed(replace(here, video=video), TARGET, DRAFT)
    assert caught.value.remedy.startswith("choose a smaller pair")
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: enough)
    assert placed(here, TARGET, DRAFT) == Placement()


@pytest.mark.parametrize(
    ("free", "side_by_side", "tokens", "found"),
    [
        (60_000_000, 1, 24, True),
        (20_000_000, 1, 24, False),
        (60_000_000, 1, 2400, False),  # of a processor that makes the frames larger
        (120_000_000, 2, 24, True),
        (40_000_000, 2, 24, False),
    ],
)
def test_on_a_cpu_a_clip_that_does_not_fit_is_not_begun(
    request_: AskRequest,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    side_by_side: int,
    tokens: int,
    found: bool,
) -> None:
    """5 million bytes are those of the processor's copy; the demo pair takes few more for 8 frames."""
    monkeypatch.setattr("lvspec_cli.memory.machine.spare_memory", lambda: (free, 8_000_000_000))
    request = replace(request_, loading=PLAIN, side_by_side=side_by_side)
    assert has_room(request, TARGET, DRAFT, 5_000_000, lambda: tokens) == found
    assert not has_room(request, TARGET, DRAFT, 200_000_000, lambda: tokens)
    speck = replace(request, video=replace(request.video, max_frames=1, max_pixels=100))  # less than a patch
    assert has_room(speck, TARGET, DRAFT, 300, lambda: 1)
    on_gpu = replace(request, loading=replace(PLAIN, device="cuda"))
    assert has_room(on_gpu, TARGET, DRAFT, 200_000_000, lambda: tokens)


def test_few_frames_need_no_plan(request_: AskRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvspec_cli.memory.machine.spare_memory", lambda: (4_000_000_000, 8_000_000_000))
    nowhere = Path("nowhere")
    assert has_room(replace(request_, loading=PLAIN), nowhere, None, 5_000_000, lambda: 1 // 0)


def test_each_worker_has_its_share(
    request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before any of them is loaded: each sees as much as is free, and they take it together."""
    here = replace(request_, loading=replace(PLAIN, target=NF4, draft=NF4))
    enough = Machine(Device("cpu", 1_100_000_000, 8_000_000_000))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: enough)
    assert placed(here, TARGET, DRAFT) == Placement()
    with pytest.raises(NoRoomError, match=r"free: 0\.6 GB of 8\.0 GB on cpu, for each of 2 side") as caught:
        placed(replace(here, side_by_side=2), TARGET, DRAFT)
    assert caught.value.remedy.startswith("take fewer --workers, or choose a smaller pair")
    card = Machine(Device("cpu", 0, 0), (Device("cuda:0", 1_900_000_000, 8_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: card)
    on_card = replace(here, loading=replace(PLAIN, device="cuda"), side_by_side=2)
    assert placed(on_card, TARGET, DRAFT).target[0].device == "cuda:0"
    with pytest.raises(NoRoomError, match="for each of 3"):
        placed(replace(on_card, side_by_side=3), TARGET, DRAFT)


def test_what_is_kept_in_what_depends_on_the_share(
    request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone has room as it is, the two of them packed."""
    machine = Machine(Device("cpu", 2_000_000_000, 8_000_000_000))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine)
    assert settle(request_, TARGET, DRAFT).loading == PLAIN
    assert settle(replace(request_, side_by_side=2), TARGET, DRAFT).loading != PLAIN


def test_workers_are_given_their_place_before_any_is_loaded(
    request_: AskRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Placement((Share("cuda:0", 22),))
    monkeypatch.setattr("lvspec_cli.memory.resolve.placed", lambda *_: place)
    given: list[WorkerPlan] = []
    monkeypatch.setattr("lvspec_cli.batch.remote.run_remote", lambda works, plans, **_: given.extend(plans))
    plan = WorkerPlan(replace(request_, loading=PLAIN), 1, 1, "fail")
    run([], [plan, plan], write=lambda record: None)
    assert [each.base.placement for each in given] == [place, place]
    monkeypatch.setattr("lvspec_cli.memory.resolve.placed", None)  # is not asked again where it is known
    taken: list[ModelRequest] = []
    monkeypatch.setattr("lvspec_cli.models.load.load_models", lambda *models, **_: taken.extend(models))
    load(given[0].base)
    assert taken[0].shares == place.target


@pytest.mark.parametrize(
    ("workers", "draft_device", "counts"),
    [
        (Workers(workers=3), None, [3, 3, 3]),
        (Workers(devices="cuda:0, cuda:1,cuda:0"), None, [2, 1, 2]),
        (Workers(devices="cuda:0,cuda:1"), "cuda:2", [2, 2]),
        (Workers(), None, [1]),
    ],
)
def test_who_shares_a_device(
    workers: Workers, draft_device: str | None, counts: list[int], request_: AskRequest
) -> None:
    loading = LoadingFlags(device="cpu", draft_device=draft_device)
    plans = worker_plans(request_, loading, workers, "fail")
    assert [plan.base.side_by_side for plan in plans] == counts


@pytest.mark.parametrize(
    ("dtype", "draft", "element", "draft_element"),
    [
        ("bfloat16", NONE, 2, 4),
        ("float32", NONE, 4, 4),
        ("bfloat16", Quantisation.BF16, 2, 2),
    ],
)
def test_a_draft_on_a_cpu_beside_a_gpu_is_planned_in_its_own_type(
    request_: AskRequest, dtype: str, draft: Quantisation, element: int, draft_element: int
) -> None:
    """And as it is loaded: float32 where nothing else is asked for."""
    beside = replace(request_, draft_device="cpu")
    wanted = wanted_of(beside, Loading(NONE, draft, dtype, "cuda"))
    assert wanted.elements == (element, draft_element)
    assert wanted_of(
        replace(beside, draft_device=None), Loading(NONE, NONE, "bfloat16", "cuda")
    ).elements == (
        2,
        2,
    )
    named = wanted_of(replace(beside, dtype="float16"), Loading(NONE, NONE, "float16", "cuda"))
    assert named.elements == (2, 2)


def test_settling_plans_a_draft_in_its_own_type(
    request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target in bfloat16 on the CPU, a draft in float32 beside it, as they are loaded there."""
    seen: list[Wanted] = []

    def spy(machine: Machine, sizes: Sizes, load: Workload, wanted: Wanted, **how: Any) -> Decision:
        seen.append(wanted)
        return decide(machine, sizes, load, wanted, **how)

    monkeypatch.setattr("lvspec_cli.memory.resolve.decide", spy)
    settle(replace(request_, quant_target=Quantisation.BF16), TARGET, DRAFT)
    assert [wanted.elements for wanted in seen] == [(2, 4)]


def test_a_smaller_pair_is_named(request_: AskRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped ones, where no other change would help."""
    card = Machine(Device("cpu", 0, 0), (Device("cuda:0", 24_000_000_000, 24_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: card)
    monkeypatch.setattr("lvspec_cli.memory.resolve.smallest_change", lambda *_: None)
    here = replace(request_, loading=replace(PLAIN, device="cuda"))
    assert no_room_for(here, TARGET, DRAFT).remedy == "--pair qwen2.5-vl-7b-3b, a smaller one"


def test_a_pinned_request_knows_how_it_is_loaded(request_: AskRequest) -> None:
    assert pinned_request(request_).loading == PLAIN
    load = workload_of(request_)
    assert (load.frames, load.max_pixels, load.new_tokens) == (8, 110_592, 256)


def test_a_rate_without_a_cap_is_planned_for_the_file_s_length(request_: AskRequest) -> None:
    rated = replace(request_, video=replace(request_.video, max_frames=None, fps=5.0))
    assert workload_of(rated, 10.0).frames == 51
    assert workload_of(replace(rated, video=replace(rated.video, fps=None)), 10.0).frames == 21


def test_ask_looks_at_the_file_where_its_length_decides(
    request_: AskRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SettledError(Exception):
        pass

    def spy(request: AskRequest, target: Path, draft: Path, duration: float | None) -> None:
        raise SettledError(duration)

    monkeypatch.setattr("lvspec_cli.memory.resolve.settle", spy)
    for fps, frames, known in ((5.0, None, 5.5), (5.0, 8, None), (None, 8, None)):
        video = replace(request_.video, path=CLIP, fps=fps, max_frames=frames)
        with pytest.raises(SettledError) as caught:
            ask(replace(request_, video=video, questions=("What?",)))
        assert caught.value.args == (known,)


def test_a_pair_without_defaults_is_planned_as_frames_are_taken(request_: AskRequest) -> None:
    bare = request_.pair.model_copy(update={"defaults": Defaults()})
    video = VideoRequest(Path("v.mp4"))
    asked = workload_of(replace(request_, pair=bare, video=video))
    fitted = workload_of_pair(bare)
    assert (asked.frames, asked.max_pixels) == (fitted.frames, fitted.max_pixels)
    assert (fitted.frames, fitted.max_pixels) == (most_frames(video), DEFAULT_MAX_PIXELS)


def test_keys_tell_how_weights_are_kept(request_: AskRequest) -> None:
    file = FileIdentity(b"clip.mp4", 1, "s")
    ways = [
        PLAIN,
        replace(PLAIN, target=NF4),
        replace(PLAIN, draft=NF4),
        replace(PLAIN, dtype="bfloat16"),
        replace(PLAIN, device="cuda"),
    ]
    keys = {record_key(replace(request_, loading=way), file, 1) for way in ways}
    assert len(keys) == len(ways)


@pytest.mark.parametrize(
    ("settings", "limit", "gamma", "said"),
    [
        (DecodeSettings(gamma="auto"), None, 16, ""),
        (DecodeSettings(gamma="auto"), 0, 16, ""),
        (DecodeSettings(gamma="auto"), 5, 4, "gamma is 4 at most: the target's kernels take 5 rows at once"),
        (DecodeSettings(gamma=3), 5, 3, ""),
        (DecodeSettings(gamma=8), 5, 8, "gamma 8 is wider than is fast"),
        (DecodeSettings(gamma="auto", mode=Mode.AR), 5, 16, ""),
    ],
)
def test_gamma_respects_the_kernels(
    settings: DecodeSettings, limit: int | None, gamma: int, said: str
) -> None:
    events: list[Event] = []
    found = narrowed(settings, limit, events.append)
    assert found.greatest_gamma == gamma
    texts = [event.text for event in events if isinstance(event, Noted)]
    assert (texts[0].startswith(said) if said else not texts) and len(events) < 2


def test_how_wide_is_fast_is_the_packed_targets_affair(
    request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvspec_cli.models.quantise.width_limit_of", lambda device, captured: 5)
    limits = [
        settle(replace(request_, quant_target=target, quant_draft=draft), TARGET, DRAFT).width_limit
        for target, draft in ((NF4, NONE), (NONE, NF4), (Quantisation.AUTO, Quantisation.AUTO))
    ]
    assert limits == [5, None, 5]  # auto: nf4, where little is free
    packed = replace(request_, quant_target=NF4, settings=DecodeSettings(gamma="auto"))
    assert pinned_request(packed).settings.greatest_gamma == 4


def test_kinds_of_devices() -> None:
    assert [device_kind(name) for name in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]
