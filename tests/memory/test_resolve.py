"""What is decided before a pair is loaded, and what records know of it."""

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
from lvspec_cli.cli.caption_job import devices_of, worker_plans
from lvspec_cli.cli.caption_options import Workers
from lvspec_cli.errors import NoRoomError, PairError, UsageError
from lvspec_cli.events import Event, Noted
from lvspec_cli.memory.plan import Decision, Device, Machine, PlanRequest, Sizes, Workload, decide
from lvspec_cli.memory.resolve import (
    device_kind,
    device_problem,
    fit_pair,
    has_room,
    no_room_for,
    place,
    plan_request_of,
    resolve,
    workload_of,
    workload_of_pair,
)
from lvspec_cli.models.load import ModelRequest
from lvspec_cli.output.records import FileIdentity, record_key
from lvspec_cli.pairs.registry import Defaults, Source, load_registry
from lvspec_cli.pipeline import ask, load, narrowed, prepared
from lvspec_cli.request import ALONE, AskRequest, LoadPlan, PairChoice
from lvspec_cli.types import DecodeSettings, Loading, Mode, Placement, Quantisation, Share, VideoRequest
from lvspec_cli.ui.pairs import context_note
from lvspec_cli.video.sample import DEFAULT_MAX_PIXELS, most_frames
from tests.conftest import demo_plan
from tests.tiny_families import TINY, TinyShape

CLIP = Path("lvspec_cli/demo/clips/clip_0001.mp4").resolve()
NONE, NF4 = Quantisation.NONE, Quantisation.NF4
PLAIN = Loading(NONE, NONE, "float32", "cpu")
FOLDER = Path("lvspec_cli/demo/pair").resolve()
TARGET = FOLDER / "target"
LOAD = Workload(frames=8, max_pixels=110_592, new_tokens=256)


@pytest.fixture
def choice() -> PairChoice:
    return demo_plan().choice


@pytest.fixture
def plan() -> LoadPlan:
    return demo_plan()


@pytest.fixture
def request_() -> AskRequest:
    video = VideoRequest(Path("clip.mp4"), max_frames=8, max_pixels=110_592)
    return AskRequest(video, ("What happens?",), DecodeSettings())


def resolved(choice: PairChoice, mode: Mode = Mode.LVSPEC) -> LoadPlan:
    return resolve(choice, DecodeSettings(mode=mode), LOAD)


def with_target(choice: PairChoice, folder: Path, config: str) -> PairChoice:
    """The choice with a target of another config."""
    (folder / "model.safetensors").symlink_to(TARGET / "model.safetensors")
    (folder / "config.json").write_text(config)
    return replace(choice, pair=choice.pair.model_copy(update={"target": Source(folder=folder)}))


def test_a_small_pair_on_a_cpu_is_kept_as_it_is(choice: PairChoice, plan: LoadPlan) -> None:
    assert resolved(choice) == plan
    alone = resolved(choice, Mode.AR)
    assert (alone.target, alone.draft, alone.loading) == (TARGET, None, replace(PLAIN, draft=None))


@pytest.mark.parametrize("text", ["", '{"model_type":', "[]"])
def test_a_broken_config_is_named(choice: PairChoice, tmp_path: Path, text: str) -> None:
    broken = with_target(choice, tmp_path, text)
    for asked in (broken, replace(broken, quant_draft=NF4)):
        with pytest.raises(PairError, match=rf"^{tmp_path}/config\.json is broken or cut short"):
            resolved(asked)


def test_that_needs_no_torch() -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from lvspec_cli.pipeline import prepared\n"
        "from lvspec_cli.request import ALONE, AskRequest, PairChoice\n"
        "from lvspec_cli.pairs.registry import load_registry\n"
        "from lvspec_cli.types import DecodeSettings, VideoRequest\n"
        "choice = PairChoice(*load_registry(environment={}).pair('demo'), device='cpu')\n"
        "prepared(choice, AskRequest(VideoRequest(Path('x')), ('?',), DecodeSettings()))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_was_asked_for_by_name(choice: PairChoice) -> None:
    named = replace(choice, quant_target=NF4, quant_draft=Quantisation.BF16)
    assert resolved(named).loading == Loading(NF4, Quantisation.BF16, "float32", "cpu")
    with pytest.raises(PairError, match="not quantised by awq"):
        resolved(replace(choice, quant_target=Quantisation.AWQ))


def test_files_in_fp8_are_planned_unpacked_on_a_cpu(choice: PairChoice, tmp_path: Path) -> None:
    config = json.loads((TARGET / "config.json").read_text())
    packed = {**config, "quantization_config": {"quant_method": "fp8"}}
    assert resolved(with_target(choice, tmp_path, json.dumps(packed))).loading == PLAIN


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose memory is nearly full."""
    machine = Machine(Device("cpu", 920_000_000, 8_000_000_000))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine)
    monkeypatch.setattr("lvspec_cli.memory.resolve._fit_amply", lambda *_: False)
    return machine


def test_where_little_is_free_the_choice_is_explained(choice: PairChoice, crowded: Machine) -> None:
    found = resolved(choice)
    assert (found.loading.target, found.loading.draft) == (NF4, NF4)
    (note,) = found.notes
    assert note.startswith("target in nf4, draft in nf4: ")
    (note,) = resolved(replace(choice, quant_draft=NF4)).notes
    assert note.startswith("target in nf4: ")  # of what was asked for there is nothing to say


def test_what_does_not_fit_at_all(plan: LoadPlan, crowded: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned for a GPU of a few megabytes, as no machine has it."""
    small = Machine(crowded.cpu, (Device("cuda:0", 730_000_000, 8_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: small)
    here = replace(plan, loading=replace(PLAIN, device="cuda"))
    with pytest.raises(
        NoRoomError, match=r"needs about 0\.\d GB with 8 frames .* free: 0\.7 GB of 8\.0 GB"
    ) as caught:
        place(here, LOAD)
    assert caught.value.remedy == "choose a smaller pair with --pair"
    roomy = Machine(crowded.cpu, (Device("cuda:0", 8_000_000_000, 8_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: roomy)
    placement = place(here, LOAD).placement
    assert placement
    assert [share.device for share in placement.draft] == ["cuda:0"]


def test_on_a_cpu_what_does_not_fit_is_not_begun(
    plan: LoadPlan, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be caught there: the system would end the process in the middle."""
    enough = Machine(Device("cpu", 1_100_000_000, 8_000_000_000))
    with pytest.raises(
        NoRoomError, match=r"needs about \d+\.\d GB with 2048 frames .* free: 0\.9 GB"
    ) as caught:
        place(plan, replace(LOAD, frames=2048))
    assert caught.value.remedy.startswith("choose a smaller pair")
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: enough)
    assert place(plan, LOAD).placement == Placement()


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
    plan: LoadPlan,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    side_by_side: int,
    tokens: int,
    found: bool,
) -> None:
    """5 million bytes are those of the processor's copy; the demo pair takes few more for 8 frames."""
    monkeypatch.setattr("lvspec_cli.memory.machine.spare_memory", lambda: (free, 8_000_000_000))
    shared = replace(plan, choice=replace(plan.choice, side_by_side=side_by_side))
    assert has_room(shared, LOAD, 5_000_000, lambda: tokens) == found
    assert not has_room(shared, LOAD, 200_000_000, lambda: tokens)
    speck = replace(LOAD, frames=1, max_pixels=100)  # less than a patch
    assert has_room(shared, speck, 300, lambda: 1)
    on_gpu = replace(shared, loading=replace(PLAIN, device="cuda"))
    assert has_room(on_gpu, LOAD, 200_000_000, lambda: tokens)


def test_few_frames_need_no_plan(plan: LoadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvspec_cli.memory.machine.spare_memory", lambda: (4_000_000_000, 8_000_000_000))
    assert has_room(replace(plan, target=Path("nowhere"), draft=None), LOAD, 5_000_000, lambda: 1 // 0)


def beside(plan: LoadPlan, count: int) -> LoadPlan:
    """One of so many that share the device."""
    return replace(plan, choice=replace(plan.choice, side_by_side=count))


def test_each_worker_has_its_share(plan: LoadPlan, crowded: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before any of them is loaded: each sees as much as is free, and they take it together."""
    here = replace(plan, loading=replace(PLAIN, target=NF4, draft=NF4))
    enough = Machine(Device("cpu", 1_100_000_000, 8_000_000_000))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: enough)
    assert place(here, LOAD).placement == Placement()
    with pytest.raises(NoRoomError, match=r"free: 0\.6 GB of 8\.0 GB on cpu, for each of 2 side") as caught:
        place(beside(here, 2), LOAD)
    assert caught.value.remedy.startswith("take fewer --workers, or choose a smaller pair")
    card = Machine(Device("cpu", 0, 0), (Device("cuda:0", 1_900_000_000, 8_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: card)
    on_card = replace(here, loading=replace(PLAIN, device="cuda"))
    placement = place(beside(on_card, 2), LOAD).placement
    assert placement
    assert placement.target[0].device == "cuda:0"
    with pytest.raises(NoRoomError, match="for each of 3"):
        place(beside(on_card, 3), LOAD)


def test_what_is_kept_in_what_depends_on_the_share(
    choice: PairChoice, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone has room as it is, the two of them packed."""
    machine = Machine(Device("cpu", 2_000_000_000, 8_000_000_000))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: machine)
    assert resolved(choice).loading == PLAIN
    assert resolved(replace(choice, side_by_side=2)).loading != PLAIN


def test_workers_are_given_their_place_before_any_is_loaded(
    plan: LoadPlan, request_: AskRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = Placement((Share("cuda:0", 22),))

    def placed(plan: LoadPlan, load: Workload) -> LoadPlan:
        return replace(plan, placement=placement)

    monkeypatch.setattr("lvspec_cli.batch.remote.place", placed)
    given: list[WorkerPlan] = []
    monkeypatch.setattr("lvspec_cli.batch.remote.run_remote", lambda works, plans, **_: given.extend(plans))
    worker = WorkerPlan(plan, request_, 1, 1, "fail")
    run([], [worker, worker], write=lambda record: None)
    assert [each.load_plan.placement for each in given] == [placement, placement]
    monkeypatch.setattr("lvspec_cli.memory.resolve.place", None)  # is not asked again where it is known
    taken: list[ModelRequest] = []
    monkeypatch.setattr("lvspec_cli.models.load.load_models", lambda *models, **_: taken.extend(models))
    load(given[0].load_plan, LOAD)
    assert taken[0].shares == placement.target


@pytest.mark.parametrize(
    ("workers", "draft_device", "counts"),
    [
        (Workers(workers="3"), None, [3, 3, 3]),
        (Workers(devices="cuda:0, cuda:1,cuda:0"), None, [2, 1, 2]),
        (Workers(devices="cuda:0,cuda:1"), "cuda:2", [2, 2]),
        (Workers(), None, [1]),
    ],
)
def test_who_shares_a_device(
    workers: Workers,
    draft_device: str | None,
    counts: list[int],
    plan: LoadPlan,
    request_: AskRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lvspec_cli.memory.resolve._has_gpu_file", lambda: True)
    there = replace(plan, choice=replace(plan.choice, draft_device=draft_device))
    plans = worker_plans(there, request_, workers, devices_of(workers, "cpu"), "fail", ALONE)
    assert [each.load_plan.choice.side_by_side for each in plans] == counts


@pytest.mark.parametrize(
    ("dtype", "draft", "element", "draft_element"),
    [
        ("bfloat16", NONE, 2, 4),
        ("float32", NONE, 4, 4),
        ("bfloat16", Quantisation.BF16, 2, 2),
    ],
)
def test_a_draft_on_a_cpu_beside_a_gpu_is_planned_in_its_own_type(
    plan: LoadPlan, dtype: str, draft: Quantisation, element: int, draft_element: int
) -> None:
    """And as it is loaded: float32 where nothing else is asked for."""

    beside = replace(plan.choice, draft_device="cpu")

    def elements(choice: PairChoice, draft: Quantisation, dtype: str) -> tuple[int, int]:
        loading = Loading(NONE, draft, dtype, "cuda")
        return plan_request_of(replace(plan, choice=choice, loading=loading)).elements

    assert elements(beside, draft, dtype) == (element, draft_element)
    assert elements(plan.choice, NONE, "bfloat16") == (2, 2)
    assert elements(replace(beside, dtype="float16"), NONE, "float16") == (2, 2)


def test_a_draft_is_planned_in_its_own_type(
    choice: PairChoice, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target in bfloat16 on the CPU, a draft in float32 beside it, as they are loaded there."""
    seen: list[PlanRequest] = []

    def spy(machine: Machine, sizes: Sizes, load: Workload, wanted: PlanRequest, **how: Any) -> Decision:
        seen.append(wanted)
        return decide(machine, sizes, load, wanted, **how)

    monkeypatch.setattr("lvspec_cli.memory.resolve.decide", spy)
    resolved(replace(choice, quant_target=Quantisation.BF16))
    assert [wanted.elements for wanted in seen] == [(2, 4)]


def test_a_smaller_pair_is_named(plan: LoadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped ones, where no other change would help."""
    card = Machine(Device("cpu", 0, 0), (Device("cuda:0", 24_000_000_000, 24_000_000_000),))
    monkeypatch.setattr("lvspec_cli.memory.machine.this_machine", lambda *_: card)
    monkeypatch.setattr("lvspec_cli.memory.resolve.smallest_change", lambda *_: None)
    here = replace(plan, loading=replace(PLAIN, device="cuda"))
    assert no_room_for(here, LOAD).remedy == "--pair qwen3.8-27b-0.8b, which fits with its defaults"


def test_a_workload_is_what_is_asked_for_at_most(request_: AskRequest) -> None:
    assert workload_of(request_) == LOAD


def test_a_rate_without_a_cap_is_planned_for_the_file_s_length(request_: AskRequest) -> None:
    rated = replace(request_, video=replace(request_.video, max_frames=None, fps=5.0))
    assert workload_of(rated, 10.0).frames == 51
    assert workload_of(replace(rated, video=replace(rated.video, fps=None)), 10.0).frames == 21


def test_ask_looks_at_the_file_where_its_length_decides(
    choice: PairChoice, request_: AskRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PlannedError(Exception):
        pass

    def spy(choice: PairChoice, settings: DecodeSettings, load: Workload) -> None:
        raise PlannedError(load.frames)

    monkeypatch.setattr("lvspec_cli.memory.resolve.resolve", spy)
    for fps, frames, planned in ((5.0, None, 28), (5.0, 8, 8), (None, 8, 8)):
        video = replace(request_.video, path=CLIP, fps=fps, max_frames=frames)
        with pytest.raises(PlannedError) as caught:
            ask(choice, replace(request_, video=video, questions=("What?",)))
        assert caught.value.args == (planned,)


def test_a_pair_without_defaults_is_planned_as_frames_are_taken(
    choice: PairChoice, request_: AskRequest
) -> None:
    bare = choice.pair.model_copy(update={"defaults": Defaults()})
    video = VideoRequest(Path("v.mp4"))
    asked = workload_of(replace(request_, video=video))
    fitted = workload_of_pair(bare)
    assert (asked.frames, asked.max_pixels) == (fitted.frames, fitted.max_pixels)
    assert (fitted.frames, fitted.max_pixels) == (most_frames(video), DEFAULT_MAX_PIXELS)


def test_keys_tell_how_weights_are_kept(plan: LoadPlan, request_: AskRequest) -> None:
    file = FileIdentity(b"clip.mp4", 1, "s")
    ways = [
        PLAIN,
        replace(PLAIN, target=NF4),
        replace(PLAIN, draft=NF4),
        replace(PLAIN, dtype="bfloat16"),
        replace(PLAIN, device="cuda"),
    ]
    keys = {record_key(replace(plan, loading=way), request_, file, 1) for way in ways}
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
    choice: PairChoice, request_: AskRequest, crowded: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvspec_cli.models.quantise.width_limit_of", lambda device, captured: 5)
    limits = [
        resolved(replace(choice, quant_target=target, quant_draft=draft)).width_limit
        for target, draft in ((NF4, NONE), (NONE, NF4), (Quantisation.AUTO, Quantisation.AUTO))
    ]
    assert limits == [5, None, 5]  # auto: nf4, where little is free
    automatic = replace(request_, settings=DecodeSettings(gamma="auto"))
    _, packed = prepared(replace(choice, quant_target=NF4), automatic)
    assert packed.settings.greatest_gamma == 4


def test_kinds_of_devices() -> None:
    assert [device_kind(name) for name in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]


def quantised(folder: Path, method: str | None) -> Source:
    """The demo target's files, said to be quantised."""
    config = json.loads((TARGET / "config.json").read_text())
    values = {"quantization_config": {"quant_method": method, "bits": 4}} if method else {}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | values))
    (folder / "model.safetensors").symlink_to(TARGET / "model.safetensors")
    return Source(folder=folder)


@pytest.mark.parametrize(
    ("methods", "kinds"),
    [
        (
            (None, None),
            {(kind, kind) for kind in ("none", "int8", "nf4", "int4", "fp8", "torchao-int4")},
        ),
        (("awq", None), {("awq", kind) for kind in ("none", "int8", "nf4", "int4", "fp8", "torchao-int4")}),
        (("awq", "gptq"), {("awq", "gptq")}),
    ],
)
def test_files_that_are_quantised_stay_so_and_what_is_impossible_has_no_row(
    choice: PairChoice, tmp_path: Path, methods: tuple[str | None, str | None], kinds: set[tuple[str, str]]
) -> None:
    """Their headers count packed numbers: sizes are the config's."""
    sources = {
        role: quantised(tmp_path / role, method)
        for role, method in zip(("target", "draft"), methods, strict=True)
    }
    machine = Machine(Device("cpu", 8_000_000_000, 8_000_000_000))
    fit = fit_pair("mine", choice.pair.model_copy(update=sources), machine, LOAD)
    assert {(row.target, row.draft) for row in fit.rows} == kinds
    assert all(row.plan.target_need.weights > 0 for row in fit.rows)
    if methods[0]:
        assert fit.decision.target == methods[0]
        plain = fit_pair("plain", choice.pair, machine, LOAD).rows[0].plan.target_need.weights
        assert fit.rows[0].plan.target_need.weights < plain


def test_what_a_draft_is_shown_is_what_its_memory_is_planned_for() -> None:
    machine = Machine(Device("cpu", 8_000_000_000, 8_000_000_000))
    name, pair = load_registry(environment={}).pair("qwen2.5-vl-32b-3b")
    defaults = pair.defaults.model_copy(update={"draft_frames": 16, "draft_pixels": 50_176})
    loads = [workload_of_pair(each) for each in (pair, pair.model_copy(update={"defaults": defaults}))]
    assert [(load.of_draft.frames, load.of_draft.max_pixels) for load in loads] == [
        (64, 200_704),
        (16, 50_176),
    ]
    plans = [fit_pair(name, pair, machine, load).rows[0].plan for load in loads]
    drafts = [plan.draft_need for plan in plans]
    assert plans[0].target_need == plans[1].target_need
    assert drafts[0] is not None
    assert drafts[1] is not None
    assert drafts[1].cache < drafts[0].cache / 4
    assert drafts[1].activations < drafts[0].activations / 4


def test_smaller_frames_save_nothing_for_a_draft_whose_frames_have_one_size(
    choice: PairChoice, tmp_path: Path
) -> None:
    pixels = DecodeSettings(draft_pixels=4000)
    assert resolve(choice, pixels, LOAD).draft is not None
    TINY["smolvlm"].config(TINY["smolvlm"].tokenizer(), TinyShape()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(FOLDER / "draft" / "model.safetensors")
    smol = choice.pair.model_copy(update={"draft": Source(folder=tmp_path)})
    with pytest.raises(UsageError, match="scales frames of any size to one"):
        resolve(replace(choice, pair=smol), pixels, LOAD)
    assert resolve(replace(choice, pair=smol), replace(pixels, mode=Mode.AR), LOAD).draft is None


def test_frames_that_a_context_has_no_room_for_are_not_promised() -> None:
    """SmolVLM2 takes 8,192 positions: 81 tokens a frame, and a line with its time."""
    machine = Machine(Device("cpu", 8_000_000_000, 8_000_000_000))
    name, pair = load_registry(environment={}).pair("smolvlm2-2.2b-256m")
    fit = fit_pair(name, pair, machine, workload_of_pair(pair))
    assert fit.frames_in_context == fit.load.frames
    assert context_note(fit) == ""
    many = fit_pair(name, pair, machine, workload_of_pair(pair, frames=200))
    assert many.frames_in_context is not None
    assert 70 <= many.frames_in_context <= 101
    said = f"{name}: the context has room for about {many.frames_in_context} of the 200 frames"
    assert context_note(many) == said
    none = fit_pair(name, pair, machine, replace(workload_of_pair(pair), new_tokens=8000))
    assert context_note(none) == f"{name}: the context has room for none of the {none.load.frames} frames"


@pytest.mark.parametrize(
    ("name", "platform", "has_gpu", "said"),
    [
        ("auto", "linux", False, None),
        ("cpu", "darwin", False, None),
        ("cuda:1", "linux", True, None),
        ("cuda", "win32", False, None),  # no device file says so: torch will
        ("mps", "darwin", False, None),
        ("xpu:0", "linux", False, None),
        ("cuda", "linux", False, "leave out --device, or use cpu"),
        ("cuda:0", "darwin", False, "leave out --device, or use cpu"),
        ("mps", "linux", True, "leave out --device, or use cpu"),
        ("GPU", "linux", True, "did you mean cuda?"),
        ("cuda:first", "linux", True, "did you mean cuda?"),
        ("cup", "linux", True, "use auto, cpu, cuda, cuda:1 or mps"),
    ],
)
def test_a_device_that_a_machine_certainly_lacks_is_refused_without_torch(
    name: str, platform: str, has_gpu: bool, said: str | None
):
    problem = device_problem(name, "--device", platform, has_gpu=has_gpu)
    assert (problem and problem.remedy) == said
