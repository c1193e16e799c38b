"""What is decided and where parts go, on literal machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.memory.machine import cpu_memory, gpus_for, group_folders, within_group
from lvspec_cli.memory.plan import (
    CANDIDATES,
    Choice,
    Device,
    Machine,
    ModelSize,
    PlanRequest,
    Sizes,
    Workload,
    bytes_a_round,
    decide,
    device_named,
    expected_tokens,
    gamma_within,
    need,
    plan_on,
    shortage,
    smallest_change,
)
from lvspec_cli.models.load import device_map
from lvspec_cli.types import Quantisation, Share, VisionSize

GB = 10**9
VISION = VisionSize(1280, 3420, 14, 2, 2)


def model(name: str, width: int, mlp: int, layers: int, keys: int, rest: int) -> ModelSize:
    """A language model of Qwen's shape; ``rest``: parameters beside its layers."""
    matrices = 2 * width * width + 2 * width * keys + 3 * width * mlp
    layer = matrices + 4 * width
    return ModelSize(
        name=name,
        parameters=layers * layer + rest,
        layer=layer,
        layer_matrices=matrices,
        largest_matrix=width * mlp,
        layers=layers,
        width=width,
        mlp=mlp,
        key_width=keys,
        vision=VISION,
    )


# Widths, layers and key widths as the public configs of Qwen2.5-VL have them.
LARGE = model("32B", 5120, 27648, 64, 1024, 2_200_000_000)
MIDDLE = model("7B", 3584, 18944, 28, 512, 1_760_000_000)
SMALL = model("3B", 2048, 11008, 36, 256, 980_000_000)
LOAD = Workload(frames=64, max_pixels=200_704, new_tokens=512)
NONE, NF4, INT8 = Quantisation.NONE, Quantisation.NF4, Quantisation.INT8


def gpus(*sizes: int) -> Machine:
    cpu = Device("cpu", 120 * GB, 128 * GB)
    return Machine(
        cpu, tuple(Device(f"cuda:{number}", size * GB, size * GB) for number, size in enumerate(sizes))
    )


def cpu(free: int) -> Machine:
    return Machine(Device("cpu", free * GB, 64 * GB))


@pytest.mark.parametrize(
    ("machine", "sizes", "limit", "target", "draft", "shares"),
    [
        (gpus(24), Sizes(MIDDLE, SMALL), 5, NONE, NF4, 1),
        (gpus(84), Sizes(LARGE, MIDDLE), 5, NONE, NF4, 1),
        (gpus(48), Sizes(LARGE, MIDDLE), 5, NF4, NF4, 1),
        (gpus(24, 24), Sizes(LARGE, MIDDLE), 5, NF4, NF4, 2),
        (gpus(24, 24, 24, 24), Sizes(LARGE, MIDDLE), 5, NONE, NF4, 4),
        # Before bitsandbytes 0.50 a verification writes packed weights out: 8 bits are less work.
        (gpus(60), Sizes(LARGE, MIDDLE), 5, NF4, NF4, 1),
        (gpus(60), Sizes(LARGE, MIDDLE), 1, INT8, NF4, 1),
        (gpus(84), Sizes(LARGE, None), 5, NONE, None, 1),
        # On a CPU packed weights are written out at every pass, so only what does not fit is packed.
        (cpu(60), Sizes(MIDDLE, SMALL), 0, NONE, NONE, 1),
        (cpu(28), Sizes(MIDDLE, SMALL), 0, INT8, INT8, 1),
    ],
    ids=lambda value: None if isinstance(value, Machine | Sizes) else str(value),
)
def test_auto(
    machine: Machine,
    sizes: Sizes,
    limit: int,
    target: Quantisation,
    draft: Quantisation | None,
    shares: int,
) -> None:
    wanted = PlanRequest(element=2 if machine.gpus else 4)
    found = decide(machine, sizes, LOAD, wanted, gamma=8, width_limit=limit)
    assert found.plan.fits
    assert (found.target, found.draft, len(found.plan.target)) == (target, draft, shares)


def test_why() -> None:
    slow = decide(cpu(28), Sizes(MIDDLE, SMALL), LOAD, PlanRequest(element=4), gamma=8, width_limit=0)
    assert slow.why.endswith(" in all, packed weights are slow on a CPU, the draft reads least as int8")
    wide = decide(gpus(84), Sizes(LARGE, MIDDLE), LOAD, PlanRequest(), gamma=8, width_limit=5)
    assert wide.why == "the target fits as it is, the draft reads least as nf4"
    packed = decide(gpus(48), Sizes(LARGE, MIDDLE), LOAD, PlanRequest(), gamma=8, width_limit=5)
    assert packed.why.startswith("the target as it is would need ")
    assert packed.why.endswith(
        "nf4 takes 5 rows at once here, so gamma is 4 at most, the draft reads least as nf4"
    )
    asked = decide(gpus(84), Sizes(LARGE, MIDDLE), LOAD, PlanRequest(NF4, NF4), gamma=8, width_limit=5)
    assert (asked.target, asked.draft, asked.why) == (NF4, NF4, "as asked for")
    half = decide(cpu(200), Sizes(MIDDLE, SMALL), LOAD, PlanRequest(NF4, element=4), gamma=8, width_limit=0)
    assert (half.target, half.draft, half.why) == (NF4, Quantisation.NONE, "the draft fits as it is")


@given(
    sizes=st.lists(st.integers(6, 100), max_size=4),
    pair=st.sampled_from([Sizes(LARGE, MIDDLE), Sizes(MIDDLE, SMALL), Sizes(LARGE, None)]),
    target=st.sampled_from([Quantisation.AUTO, *CANDIDATES]),
    draft=st.sampled_from([Quantisation.AUTO, *CANDIDATES]),
    frames=st.integers(2, 256),
    limit=st.sampled_from([None, 0, 1, 5, 16]),
)
def test_laws_of_auto(
    sizes: list[int],
    pair: Sizes,
    target: Quantisation,
    draft: Quantisation,
    frames: int,
    limit: int | None,
) -> None:
    machine, load = gpus(*sizes), replace(LOAD, frames=frames)

    def found(target: Quantisation, draft: Quantisation) -> tuple[bool, Quantisation, Quantisation | None]:
        chosen = decide(machine, pair, load, PlanRequest(target, draft), gamma=8, width_limit=limit)
        return chosen.plan.fits, chosen.target, chosen.draft

    fits, one, other = found(target, draft)
    assert target in (Quantisation.AUTO, one)
    assert other is None if pair.draft is None else draft in (Quantisation.AUTO, other)
    # What is decided is one of the choices, so naming it gives the same; auto fits where any choice does.
    assert found(one, other or NONE) == (fits, one, other)
    named = [found(each, draft)[0] for each in CANDIDATES] if target is Quantisation.AUTO else [fits]
    assert fits == any(named)
    if target is Quantisation.AUTO and fits:
        assert (one is NONE) == found(NONE, draft)[0]


def test_a_draft_takes_what_its_own_type_takes() -> None:
    """In float32 on a CPU beside a target in bfloat16 on a GPU."""
    wanted = PlanRequest(NONE, NONE, 2, "cpu", draft_element=4)
    found = decide(gpus(24), Sizes(MIDDLE, SMALL), LOAD, wanted, gamma=8, width_limit=5).plan
    assert found.target_need == need(MIDDLE, LOAD, Choice(element=2))
    assert found.draft_need == need(SMALL, LOAD, Choice(element=4))
    # What fits in two bytes a value need not in four.
    tight = replace(gpus(24), cpu=Device("cpu", 14 * GB, 16 * GB))
    fits = [
        decide(tight, Sizes(MIDDLE, SMALL), LOAD, each, gamma=8, width_limit=5).plan.fits
        for each in (replace(wanted, draft_element=None), wanted)
    ]
    assert fits == [True, False]


def test_what_a_pass_reads() -> None:
    matrices = LARGE.layers * LARGE.layer_matrices
    plain, packed = (bytes_a_round(LARGE, kind, 2, 5, 5) for kind in (NONE, NF4))
    assert plain == 2 * LARGE.layers * LARGE.layer
    assert packed / plain == pytest.approx(0.258, abs=0.002)  # 4 bits and the scales of 16
    assert bytes_a_round(LARGE, NF4, 2, 6, 5) == packed + 4 * matrices  # written out, and read again
    assert bytes_a_round(LARGE, NF4, 2, 60, None) == packed
    assert bytes_a_round(LARGE, INT8, 2, 60, 5) == plain


def test_gamma_within_a_limit() -> None:
    assert [gamma_within(8, limit) for limit in (None, 0, 1, 2, 5, 9, 16)] == [8, 8, 8, 1, 4, 8, 8]


def test_expected_tokens() -> None:
    assert expected_tokens(1, 0.5) == pytest.approx(1.5)
    assert expected_tokens(2, 0.5) == pytest.approx(1.75)


def test_a_draft_on_a_device_that_was_named() -> None:
    target, draft = need(LARGE, LOAD, Choice()), need(MIDDLE, LOAD, Choice())
    apart = plan_on(gpus(84, 24), target, draft, "cuda:1")
    assert [share.device for share in (*apart.target, *apart.draft)] == ["cuda:0", "cuda:1"]
    beside = plan_on(gpus(84, 84), target, draft, "cuda:0")  # the target goes where there is room
    assert [share.device for share in (*beside.target, *beside.draft)] == ["cuda:1", "cuda:0"]
    assert plan_on(gpus(84), target, draft, "cpu").draft == (Share("cpu", 28),)
    assert not plan_on(gpus(84, 12), target, draft, "cuda:1").fits
    assert plan_on(gpus(84, 12), target, draft, "cuda:1").missing > 0
    with pytest.raises(KeyError):
        device_named(gpus(84), "cuda:3")
    assert device_named(gpus(84), "cuda").name == "cuda:0"
    assert device_named(cpu(16), "mps").name == "cpu"


@pytest.mark.parametrize(
    ("count", "device", "draft_device", "ours", "drafts"),
    [
        (2, "auto", None, [0, 1], []),
        (2, "cuda", "cuda:1", [0, 1], []),
        (2, "cuda:0", "cuda:1", [0], [1]),
        (2, "cuda:1", "cuda", [1], [0]),
        (2, "cuda:1", "cpu", [1], []),
        (1, "cpu", "cuda", [], [0]),
        (11, "cuda:1", None, [1], []),
        (0, "auto", None, [], []),
    ],
)
def test_which_gpus_there_are(
    count: int, device: str, draft_device: str | None, ours: list[int], drafts: list[int]
) -> None:
    assert gpus_for(count, device, draft_device) == (ours, drafts)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    def write(most: str) -> None:
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text("3000\n")
        (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 600\nactive_file 400\n")

    assert within_group(tmp_path, 7000, 9000) == (7000, 9000)
    write("max")
    assert within_group(tmp_path, 7000, 9000) == (7000, 9000)
    write("4000")
    assert within_group(tmp_path, 7000, 9000) == (2000, 4000)
    assert within_group(tmp_path, 500, 9000) == (500, 4000)
    write("1500")
    assert within_group(tmp_path, 7000, 9000) == (0, 1500)


def test_a_limit_of_the_first_version_of_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.usage_in_bytes").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 600\ntotal_active_file 400\n")
    (tmp_path / "memory.limit_in_bytes").write_text("4000\n")
    assert within_group(tmp_path, 7000, 9000) == (2000, 4000)
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    assert within_group(tmp_path, 7000, 9000) == (7000, 9000)


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ("", []),
        ("0::/\n", ["."]),
        ("0::/slurm/job_7/step_0\n", ["slurm/job_7/step_0", "slurm/job_7", "slurm", "."]),
        ("3:cpu,cpuacct:/x\n4:memory:/job:7\n0::/\n", ["memory/job:7", "memory", "."]),
    ],
)
def test_where_limits_stand(groups: str, found: list[str]) -> None:
    root = Path("/sys/fs/cgroup")
    assert list(group_folders(groups, root)) == [root / each for each in found]


def test_the_tightest_of_the_limits_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, most in (("job", 4 * GB), ("job/step", 1 << 60)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory.max").write_text(str(most))
        (tmp_path / folder / "memory.current").write_text(str(4 * GB))
        (tmp_path / folder / "memory.stat").write_text("anon 1\n")
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    monkeypatch.setattr("lvspec_cli.memory.machine._GROUPS", tmp_path)
    monkeypatch.setattr("lvspec_cli.memory.machine._OWN_GROUPS", tmp_path / "cgroup")
    found = cpu_memory()
    assert found.total == 4 * GB
    assert found.free < 4 * GB


def test_memory_is_known_without_a_folder_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    found = cpu_memory()
    assert 0 < found.free <= found.total


def test_a_draft_on_a_gpu_of_its_own() -> None:
    """``--device cuda:0 --draft-device cuda:1``: the target is not split over what is the draft's."""
    first, second = gpus(84, 24).gpus
    machine, load = replace(gpus(84), drafts=(second,)), replace(LOAD, frames=32)
    found = decide(
        machine, Sizes(LARGE, MIDDLE), load, PlanRequest(draft_device="cuda:1"), gamma=8, width_limit=5
    )
    assert (found.target, found.plan.target) == (NONE, (Share("cuda:0", 64),))
    assert found.plan.draft == (Share("cuda:1", 28),)
    small = replace(machine, gpus=(replace(first, free=30 * GB),))
    assert not plan_on(small, need(LARGE, load, Choice()), need(MIDDLE, load, Choice()), "cuda:1").fits
    line = shortage(plan_on(small, need(LARGE, load, Choice()), None, None), small, load)
    assert line.endswith("free: 30.0 GB of 84.0 GB on cuda:0, 24.0 GB of 24.0 GB on cuda:1")
    beside_a_cpu = replace(cpu(60), drafts=(second,))
    found = decide(
        beside_a_cpu, Sizes(MIDDLE, SMALL), load, PlanRequest(NONE, NONE, 4, "cuda"), gamma=8, width_limit=0
    )
    assert (found.plan.target, found.plan.draft) == ((Share("cpu", 28),), (Share("cuda:1", 36),))


def test_the_smallest_change() -> None:
    pair = Sizes(MIDDLE, SMALL)
    as_it_is = PlanRequest(NONE, NONE)
    assert (
        smallest_change(gpus(48), pair, replace(LOAD, frames=256, max_pixels=602_112), as_it_is)
        == "--frames 128"
    )
    assert smallest_change(gpus(24), pair, LOAD, as_it_is) == "--quant-draft nf4"
    assert smallest_change(gpus(14), pair, LOAD, as_it_is) == "--quant-target nf4 --quant-draft nf4"
    assert smallest_change(gpus(6), pair, LOAD, as_it_is) is None


def test_a_prediction_layer_stays_with_its_target() -> None:
    """Also where another GPU would have more room, and where the target is split."""
    layer = replace(LARGE, name="mtp", parameters=500_000_000, layers=1, in_target=True)
    as_it_is = PlanRequest(NONE, NONE)
    for machine, split in ((gpus(80, 80), False), (gpus(48, 48), True), (gpus(24, 24, 48), True)):
        found = decide(machine, Sizes(LARGE, layer), LOAD, as_it_is, gamma=4, width_limit=None).plan
        assert found.fits
        assert (len(found.target) > 1) is split
        assert found.draft == (Share(found.target[0].device, 1),)
    beside = decide(gpus(70, 24), Sizes(LARGE, layer), LOAD, as_it_is, gamma=4, width_limit=None).plan
    assert beside.draft == (Share("cuda:0", 1),)
    pair = Sizes(LARGE, layer)
    assert smallest_change(gpus(40), pair, LOAD, as_it_is) == "--quant-target nf4"


def test_what_is_said_of_too_little_memory() -> None:
    machine = gpus(24)
    plan = decide(machine, Sizes(MIDDLE, SMALL), LOAD, PlanRequest(NONE, NONE), gamma=8, width_limit=5).plan
    line = shortage(plan, machine, LOAD)
    assert line.endswith("GB with 64 frames of 200704 pixels; free: 24.0 GB of 24.0 GB on cuda:0")
    needed = (plan.needed + 0.7 * GB) / 0.97
    assert line.startswith(f"too little memory: the pair needs about {needed / GB:.1f} GB")


def test_a_long_text_is_what_is_blamed_and_not_the_frames() -> None:
    machine, wanted = gpus(24), PlanRequest(NONE, NONE)
    load = replace(LOAD, frames=2, text_tokens=120_000)
    plan = decide(machine, Sizes(MIDDLE, SMALL), load, wanted, gamma=8, width_limit=5).plan
    assert "2 frames of 200704 pixels and about 120000 tokens of text" in shortage(plan, machine, load)
    assert smallest_change(machine, Sizes(SMALL, None), load, wanted) == "a shorter prompt"


def test_every_part_has_a_device() -> None:
    shares = (Share("cuda:0", 2), Share("cuda:1", 3))
    found = device_map(["model.visual", "lm_head"], "model.language_model.layers", shares)
    assert found["model.visual"] == found["lm_head"] == "cuda:0"
    layers = [found[f"model.language_model.layers.{number}"] for number in range(5)]
    assert layers == ["cuda:0"] * 2 + ["cuda:1"] * 3
    assert len(found) == 7
