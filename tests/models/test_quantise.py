"""Quantised pairs: what is packed, that exact mode holds, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.host import install_command
from lvspec_cli.memory.plan import Choice, Workload, need
from lvspec_cli.memory.sizes import size_of
from lvspec_cli.models.families import FAMILIES
from lvspec_cli.models.kernels.cpu_linear import CpuLinear
from lvspec_cli.models.kernels.fp8 import Packed8
from lvspec_cli.models.load import LoadedPair, ModelRequest, load_model, load_models
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.quantise import (
    check_usable,
    compute_dtype,
    config_of_files,
    effective_quantisation,
    in_memory_quantisation,
    is_row_by_row,
    keep_inputs,
    packed_kind,
    quantisation_of_files,
    unconverted_modules,
    verification_width_limit,
)
from lvspec_cli.models.steps import workspace_for
from lvspec_cli.types import (
    DecodeSettings,
    Mode,
    PairPrompts,
    Quantisation,
    RelevanceName,
    RuleSettings,
    VideoRequest,
)
from lvspec_cli.video.decode import read_clip
from tests.conftest import Shell
from tests.speculation.conftest import decode, generate
from tests.tiny_models import make_clip, save_model

PAIR_FOLDER = Path("lvspec_cli/demo/pair").resolve()
CLIP = PAIR_FOLDER.parent / "clips" / "clip_0001.mp4"
CPU = torch.device("cpu")
H100, BNB = "NVIDIA H100 80GB HBM3", "0.50.2"


@pytest.fixture(scope="module")
def packed() -> LoadedPair:
    """The bundled pair, both halves in 4 bits."""
    how: dict[str, Any] = {"device": "cpu", "dtype": "float32", "quantisation": Quantisation.NF4}
    return load_models(
        ModelRequest(PAIR_FOLDER / "target", **how), ModelRequest(PAIR_FOLDER / "draft", **how)
    )


def test_what_is_packed(packed: LoadedPair) -> None:
    for loaded in (packed.target, packed.draft):
        assert loaded is not None
        packed_names = {
            name
            for name, part in loaded.model.named_modules()
            if isinstance(part, bitsandbytes.nn.Linear4bit)
        }
        layers = loaded.family.layers(loaded.model)
        assert len(packed_names) == 7 * len(layers)
        assert all(".layers." in name and "visual" not in name for name in packed_names)
        head = loaded.model.get_output_embeddings()
        assert type(head) in (torch.nn.Linear, CpuLinear)
        assert head.weight is loaded.model.get_input_embeddings().weight  # tied, and still so
        assert loaded.full_precision
        assert layers[0].self_attn.q_proj.weight.quant_type == "nf4"


def test_the_plan_knows_the_packed_size(packed: LoadedPair) -> None:
    """What is planned with is what is in memory."""
    size = size_of(PAIR_FOLDER / "target" / "config.json")
    planned = need(size, Workload(1, 784, 1), Choice(Quantisation.NF4, element=4)).weights
    parts = list(packed.target.model.modules())
    held = sum(part.numel() * part.element_size() for part in packed.target.model.parameters())
    states = [part.weight.quant_state for part in parts if isinstance(part, bitsandbytes.nn.Linear4bit)]
    held += sum(state.absmax.numel() + 4 * state.state2.absmax.numel() for state in states)
    assert held == pytest.approx(planned, rel=0.01)


@pytest.fixture(scope="module")
def prompts(packed: LoadedPair) -> PairPrompts:
    clip = read_clip(VideoRequest(CLIP, max_frames=4, max_pixels=12544))
    return build_prompts(packed, clip, "Describe the video.")


EXACT = DecodeSettings(mode=Mode.EXACT, max_new_tokens=14, repetition_guard=False)


def check_exact(pair: LoadedPair, prompts: PairPrompts, *gammas: int) -> None:
    """Exact mode and ar give the tokens of ``generate`` with the same packed target."""
    expected = generate(pair, prompts.target, model=pair.target.model, max_new_tokens=14)
    assert list(decode(pair, prompts, replace(EXACT, mode=Mode.AR))[0].tokens) == expected
    for gamma in gammas:
        exact, rounds = decode(pair, prompts, replace(EXACT, gamma=gamma))
        assert list(exact.tokens) == expected
        assert max(len(done.tokens) for done in rounds) > 1  # the packed draft does agree now and then


def test_exact_is_ar_and_generate_in_nf4(packed: LoadedPair, prompts: PairPrompts) -> None:
    check_exact(packed, prompts, 1, 6)


@pytest.mark.parametrize("name", [RelevanceName.ATTENTION, RelevanceName.SIMILARITY, RelevanceName.LENS])
def test_relevance_reads_packed_models(packed: LoadedPair, prompts: PairPrompts, name: RelevanceName) -> None:
    settings = DecodeSettings(gamma=4, max_new_tokens=12, rule=RuleSettings(relevance=name))
    _, rounds = decode(packed, prompts, settings)
    scores = [score for done in rounds for score in done.relevance]
    assert scores
    assert all(0 <= score < 1.0001 for score in scores)


@pytest.fixture(scope="module")
def in_bytes() -> LoadedPair:
    """The bundled target and draft in 8 bits."""
    requests = (
        ModelRequest(PAIR_FOLDER / half, device="cpu", quantisation=Quantisation.INT8)
        for half in ("target", "draft")
    )
    return load_models(*requests)


def test_int8_on_a_cpu(in_bytes: LoadedPair) -> None:
    loaded, whole = in_bytes.target, load_model(PAIR_FOLDER / "target", device="cpu")
    parts = [part for part in loaded.model.modules() if isinstance(part, bitsandbytes.nn.Linear8bitLt)]
    assert len(parts) == 7 * len(loaded.family.layers(loaded.model))
    assert {part.weight.dtype for part in parts} == {torch.int8}
    assert loaded.full_precision
    pairs = [LoadedPair(each, None, frozenset()) for each in (loaded, whole)]  # type: ignore[arg-type]
    clip = make_clip(4, size=84)
    prompts = [build_prompts(each, clip, "Describe the video.") for each in pairs]
    from lvspec_cli.models.decoder import Decoder

    logits = []
    with torch.inference_mode():
        for each, prompt in zip(pairs, prompts, strict=True):
            decoder = Decoder(each.target)
            decoder.encode(prompt.target)
            logits.append(decoder.logits(decoder.begin(prompt.target, 1), 1)[0])
    assert torch.nn.functional.cosine_similarity(logits[0], logits[1], dim=0) > 0.999
    assert not torch.equal(logits[0], logits[1])


def test_exact_is_ar_and_generate_in_int8(in_bytes: LoadedPair, prompts: PairPrompts) -> None:
    check_exact(in_bytes, prompts, 5)


def test_rows_of_int8_on_a_cpu_stand_alone() -> None:
    """Of LLM.int8() they do not: a large input decides how its column is multiplied in every row."""
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=6.0)
    layer = layer.to("cpu").eval()
    rows = torch.randn(3, 64)
    rows[1, 7] = 20

    def changes() -> bool:
        with torch.inference_mode():
            return not torch.allclose(layer(rows)[0], layer(rows[:1])[0], atol=1e-5)

    assert changes()
    keep_inputs(torch.nn.Sequential(layer), torch.float32)
    assert not changes()


def test_float32_stays_float32_where_the_processor_has_bfloat16() -> None:
    layer = bitsandbytes.nn.Linear4bit(64, 64)
    layer.support_avx512bf16_for_cpu = True
    for dtype, through_bfloat16 in ((torch.bfloat16, True), (torch.float32, False)):
        keep_inputs(torch.nn.Sequential(layer, torch.nn.Linear(64, 64)), dtype)
        assert layer.support_avx512bf16_for_cpu == through_bfloat16


@pytest.mark.parametrize(
    ("quantisation", "device", "found"),
    [("none", "cuda", True), ("nf4", "cuda", True), ("int8", "cuda", False), ("int8", "cpu", True),
     ("nf4", "cpu", True), ("fp8", "cuda", True), ("fp8", "cpu", True), ("awq", "cuda", False),
     ("awq", "cpu", True), ("torchao-int4", "cuda", False), ("torchao-int4", "cpu", True),
     ("int4", "cuda", True)],
)  # fmt: skip
def test_where_a_row_stands_alone(quantisation: str, device: str, found: bool) -> None:
    assert is_row_by_row(Quantisation(quantisation), device) == found


def test_what_lies_beside_the_layers_is_kept(pairs: dict[str, LoadedPair]) -> None:
    for family, pair in pairs.items():
        model = pair.target.model
        kept = unconverted_modules(model, FAMILIES[family].layers(model))
        linear = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        beside = {
            name for name in linear if any(name == each or name.startswith(f"{each}.") for each in kept)
        }
        assert "lm_head" in beside
        assert all(".layers." in name for name in linear - beside)
        assert len(linear - beside) == 7 * len(FAMILIES[family].layers(model))


@pytest.mark.parametrize(
    ("quantisation", "device", "version", "rows"),
    [
        ("nf4", H100, BNB, 5),
        ("nf4", "NVIDIA H200", BNB, 5),
        ("nf4", "NVIDIA A100-SXM4-80GB", "0.51.0.dev0", 5),
        ("nf4", "NVIDIA GeForce RTX 4090", BNB, 8),
        ("nf4", "NVIDIA GeForce RTX 3090 Ti", BNB, 16),
        ("nf4", "NVIDIA A10G", BNB, 16),
        ("nf4", "Tesla T4", BNB, 7),
        ("nf4", "NVIDIA B200", BNB, 4),
        ("nf4", "something new", BNB, 4),
        ("nf4", H100, "0.49.2", 1),
        ("nf4", H100, "1.0.0", 5),
        ("int8", H100, BNB, None),
        ("none", H100, BNB, None),
    ],
)
def test_how_wide_a_verification_is_fast(
    quantisation: str, device: str, version: str, rows: int | None
) -> None:
    assert verification_width_limit(Quantisation(quantisation), device, version) == rows


@pytest.mark.parametrize(
    ("wanted", "files", "found"),
    [
        ("auto", None, "none"),
        ("nf4", None, "nf4"),
        ("auto", "awq", "awq"),
        ("none", "gptq", "gptq"),
        ("awq", "awq", "awq"),
        ("nf4", "awq", None),
        ("awq", None, None),
        ("gptq", None, None),
    ],
)
def test_what_is_asked_for_meets_the_files(wanted: str, files: str | None, found: str | None) -> None:
    kept = None if files is None else Quantisation(files)
    if found is None:
        with pytest.raises(PairError, match="a-model"):
            effective_quantisation(Quantisation(wanted), kept, "a-model")
    else:
        assert effective_quantisation(Quantisation(wanted), kept, "a-model") is Quantisation(found)


@pytest.mark.parametrize(
    ("wanted", "files", "device", "found"),
    [
        ("fp8", "fp8", "cpu", "none"),
        ("fp8", "fp8", "mps", "none"),
        ("fp8", "fp8", "cuda", "fp8"),
        ("fp8", None, "cpu", "fp8"),  # packed as it is loaded
        ("gptq", "gptq", "cpu", "gptq"),
    ],
)
def test_fp8_is_unpacked_where_it_has_no_kernels(
    wanted: str, files: str | None, device: str, found: str
) -> None:
    kept = None if files is None else Quantisation(files)
    assert in_memory_quantisation(Quantisation(wanted), kept, device) is Quantisation(found)


@pytest.mark.parametrize(
    ("files", "device", "found"),
    [
        ("gptq", "cpu", {"backend": "gptq_torch_aten"}),
        ("awq", "cpu", {"backend": "awq_torch_aten"}),
        ("fp8", "cpu", {"dequantize": True}),
        ("gptq", "cuda", None),
        ("awq", "cuda", None),
        ("fp8", "cuda", None),
        ("nf4", "cpu", None),
    ],
)
def test_how_packed_files_are_read(files: str, device: str, found: dict[str, Any] | None) -> None:
    values = {"bits": 4, "group_size": 64, "quant_method": files, "modules_to_not_convert": ["visual"]}
    read, here = config_of_files(Quantisation(files), values, device, "model.layers", ["lm_head", "tower"])
    kept = ["visual", "lm_head", "tower"] if files in ("awq", "fp8") else ["visual"]
    assert read["modules_to_not_convert"] == kept
    assert read.get("block_name_to_quantize") == ("model.layers" if files == "gptq" else None)
    assert values["modules_to_not_convert"] == ["visual"]  # theirs stay as they are
    assert (here is None) == (found is None)
    for name, value in (found or {}).items():
        assert getattr(here, name) == value


def test_gptqmodel_chooses_where_the_kernel_for_cpus_does_not_go() -> None:
    for bits, device in ((8, "cpu"), (4, "mps")):
        values = {"bits": bits, "quant_method": "gptq"}
        _, here = config_of_files(Quantisation.GPTQ, values, device, "model.layers", [])
        assert "aten" not in str(here.backend)


@pytest.mark.thorough
def test_gptqmodel_is_imported_without_a_word_and_leaves_the_environment_alone(shell: Shell) -> None:
    """Else processes started later would look for a pair in another cache."""
    code = (
        "import os, sys; from lvspec_cli.models.quantise import *; before = dict(os.environ);"
        "import_kernels(Quantisation.GPTQ); assert 'gptqmodel' in sys.modules;"
        "assert before == dict(os.environ)"
    )
    command, environment = [sys.executable, "-c", code], shell.environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (None, None),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "torchao"}, "torchao-int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    ],
)
def test_what_files_are_quantised_in(values: Any, found: str | None) -> None:
    assert quantisation_of_files(values, "a-model") == found


def test_an_unknown_method_of_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PAIR_FOLDER / "draft", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "hqq"}})
    )
    with pytest.raises(PairError, match="quantised by hqq"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "quantisation", "device", "has_bfloat16", "found"),
    [
        ("auto", "none", "cpu", True, torch.float32),
        ("auto", "nf4", "cpu", True, torch.float32),
        ("auto", "bf16", "cpu", True, torch.bfloat16),
        ("auto", "none", "cuda", True, torch.bfloat16),
        ("auto", "nf4", "cuda", False, torch.float32),
        ("float16", "none", "cuda", False, torch.float16),
        ("auto", "awq", "cuda", True, torch.float16),
        ("auto", "gptq", "cpu", True, torch.float32),
        ("auto", "fp8", "cpu", True, torch.float32),
        ("auto", "fp8", "cuda", True, torch.bfloat16),
        ("float32", "int8", "cuda", True, torch.float32),
        ("bfloat16", "bf16", "cpu", True, torch.bfloat16),
        ("float32", "bf16", "cpu", True, None),
        ("bfloat16", "awq", "cuda", True, None),
        ("float32", "fp8", "cuda", True, None),
    ],
)
def test_what_is_computed_in(
    name: str, quantisation: str, device: str, has_bfloat16: bool, found: torch.dtype | None
) -> None:
    if found is None:
        with pytest.raises(UsageError, match="computes in"):
            compute_dtype(name, Quantisation(quantisation), device, has_bfloat16=has_bfloat16)
    else:
        assert compute_dtype(name, Quantisation(quantisation), device, has_bfloat16=has_bfloat16) is found


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("qwen2_5_vl", torch.float32),
        ("qwen3_vl", torch.float32),
        ("internvl", torch.float32),
        ("llava_onevision", torch.float16),
    ],
)
def test_float16_is_taken_only_where_the_family_does_not_overflow_in_it(
    family: str, found: torch.dtype
) -> None:
    safe = FAMILIES[family].float16_is_safe
    for has_bfloat16, wanted in ((False, found), (True, torch.bfloat16)):
        chosen = compute_dtype(
            "auto", Quantisation.NONE, "cuda", has_bfloat16=has_bfloat16, float16_is_safe=safe
        )
        assert chosen is wanted


@pytest.mark.parametrize(
    ("quantisation", "device", "package", "remedy"),
    [
        ("fp8", "cuda", "kernels", "lvspec[fp8]"),
        ("gptq", "cuda", "gptqmodel", "lvspec[gptq]"),
        ("awq", "cpu", "gptqmodel", "lvspec[gptq]"),
        ("torchao-int4", "cpu", "torchao", "lvspec[torchao]"),
        ("nf4", "cpu", "bitsandbytes", "bitsandbytes"),
    ],
)
def test_a_missing_package_is_named(
    quantisation: str, device: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvspec_cli.models.quantise.find_spec", lambda name: None)
    files = Quantisation.FP8 if quantisation == "fp8" else None  # ordinary files are packed without it
    with pytest.raises(PairError, match=f"needs the package {package}") as caught:
        check_usable(Quantisation(quantisation), torch.device(device), files)
    assert caught.value.remedy == f"install it with: {install_command(remedy)}"


@pytest.mark.parametrize("quantisation", [Quantisation.GPTQ, Quantisation.AWQ])
def test_a_package_that_computes_in_16_bits_on_a_cpu_is_refused_there(
    quantisation: Quantisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"gptqmodel": "7.6.0", "optimum": "1.24.0"}
    monkeypatch.setattr("lvspec_cli.models.quantise.version", found.__getitem__)
    cause = f"{quantisation} on a CPU needs gptqmodel 7.7 or later, and this is 7.6.0"
    with pytest.raises(PairError, match=f"^{cause}$") as caught:
        check_usable(quantisation, CPU)
    assert caught.value.remedy == f"install it with: {install_command('gptqmodel>=7.7')}"
    check_usable(quantisation, torch.device("cuda:0"))
    found["gptqmodel"] = "7.10"
    check_usable(quantisation, CPU)


def test_fp8_needs_no_package_and_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvspec_cli.models.quantise.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    card = torch.device("cuda:0")
    for capability in ((8, 9), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        check_usable(Quantisation.FP8, card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(PairError, match=r"fp8 needs a GPU of compute capability 8\.9, which NVIDIA A100 is"):
        check_usable(Quantisation.FP8, card)
    check_usable(Quantisation.FP8, CPU)
    assert workspace_for([card], Quantisation.FP8) is not None  # its passes are captured
    assert packed_kind(Quantisation.FP8) is Packed8
    assert packed_kind(Quantisation.FP8, Quantisation.FP8) is None  # files stay as they are


def test_bf16_is_loaded_as_such(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", "qwen2_5_vl")
    loaded = load_model(ModelRequest(plain, device="cpu", quantisation=Quantisation.BF16))
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert (loaded.quantisation, loaded.dtype) == (Quantisation.BF16, torch.bfloat16)
    assert not loaded.full_precision
