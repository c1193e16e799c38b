"""Loading: what is ready afterwards, and one clear line for everything that is not."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvspec_cli.errors import NoRoomError, PairError, UsageError
from lvspec_cli.models.generation import read_generation
from lvspec_cli.models.load import (
    ModelRequest,
    _Setup,
    choose_device,
    choose_dtype,
    load_model,
    load_models,
    load_pair,
    tower_attention,
)
from lvspec_cli.pairs.files import folder_of, require, tensor_sizes
from lvspec_cli.pairs.registry import Source
from lvspec_cli.types import Quantisation
from tests.tiny_models import save_model, set_generation
from tests.tiny_tokenizers import build_tokenizer


@pytest.fixture
def folder(pair_folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A copy of a target to spoil."""
    return Path(shutil.copytree(pair_folders["qwen2_5_vl"][0], tmp_path / "model"))


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_loaded_pair(pair_folders: dict[str, tuple[Path, Path]]) -> None:
    target, draft = pair_folders["qwen2_5_vl"]
    reports: list[tuple[int, int]] = []
    pair = load_pair(str(target), draft, device="cpu", progress=lambda *report: reports.append(report))
    assert pair.draft is not None
    assert (pair.target.name, pair.draft.name) == (str(target), str(draft))
    assert pair.target.family.model_type == "qwen2_5_vl"
    assert (pair.target.device, pair.target.dtype) == (torch.device("cpu"), torch.float32)
    assert next(pair.target.model.parameters()).dtype == torch.float32
    assert not pair.target.model.training
    assert len(pair.target.generation.end_ids) == 2
    assert pair.words.ends == set(pair.target.generation.end_ids)
    assert pair.draft.vocabulary == pair.target.vocabulary + 16
    assert pair.shared_vocabulary == len(pair.target.tokenizer) < pair.target.vocabulary
    total = sum(sum(tensor_sizes(folder, "x").values()) for folder in (target, draft))
    assert {of for _, of in reports} == {total}
    read = [done for done, _ in reports]
    assert (read[0], read[-1]) == (0, total)
    assert read == sorted(read)
    assert len(set(read)) > 100  # weight by weight


def test_a_target_alone_in_another_precision(pair_folders: dict[str, tuple[Path, Path]]) -> None:
    pair = load_pair(pair_folders["llava_onevision"][0], None, device="cpu", dtype="bfloat16")
    assert pair.draft is None
    assert next(pair.target.model.parameters()).dtype == torch.bfloat16


def spoil_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def spoil_part(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_pickle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def spoil_index(folder: Path) -> None:
    """An index of safetensors that names a pickle, which the library would open."""
    weights = load_file(folder / "model.safetensors")
    spoil_pickle(folder)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_code(folder: Path) -> None:
    """A config that asks for code of its own: it is not run."""
    (folder / "own.py").write_text("raise SystemExit('code of the model was run')")
    names = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "auto_map": names}))


def spoil_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))


def spoil_windows(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["text_config"]
    text = {**config, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    text.pop("layer_types", None)
    change(folder, "config.json", text_config=text)


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def spoil_generation(folder: Path) -> None:
    set_generation(folder, no_repeat_ngram_size=3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_config, "config.json"),
        (spoil_weights, "model.safetensors"),
        (spoil_bytes, "model.safetensors is broken or cut short"),
        (spoil_part, "lm_head.weight"),
        (spoil_pickle, "model.safetensors"),
        (spoil_index, "holds no safetensors in place of pytorch_model.bin"),
        (spoil_family, "clip"),
        (spoil_windows, "windowed"),
        (spoil_tokenizer, "tokenizer.json is broken or cut short"),
        (spoil_code, "clip"),
        (spoil_generation, "no_repeat_ngram_size = 3"),
    ],
)
def test_spoilt_folders(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder)
    with pytest.raises(PairError) as caught:
        load_model(folder, device="cpu")
    assert words in caught.value.cause
    assert str(folder) in caught.value.cause
    assert caught.value.remedy
    assert "\n" not in caught.value.cause + caught.value.remedy


@pytest.mark.parametrize("source", ["nowhere/at/all", "./gone", Path("gone")], ids=str)
def test_folders_that_are_not_there(source: str | Path) -> None:
    with pytest.raises(PairError, match="not a folder"):
        load_model(source)


def test_a_model_that_is_not_in_the_local_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(PairError, match="not in the local cache") as caught:
        load_model("nobody/no-such-model", device="cpu")
    assert caught.value.remedy == "download it with: hf download nobody/no-such-model"


@pytest.fixture
def cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The same model as the hub's cache lays it out, and its hub id."""
    commit, home = "c" * 40, tmp_path / "hub"
    repo = home / "models--someone--some-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = Path(shutil.move(file, repo / "blobs" / f"{number:064x}"))
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    return snapshot, "someone/some-model"


def no_network(*arguments: Any, **_: Any) -> Any:
    raise AssertionError(f"the network was asked: {arguments}")


def test_a_warm_cache_asks_no_network(cached: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, name = cached
    for function in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(f"socket.socket.{function}", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_model(name, device="cpu")
    assert folder_of(name) == folder_of(name, "c" * 40) == snapshot
    assert loaded.name == name
    with pytest.raises(PairError, match="not in the local cache"):
        load_model("someone/another-model", device="cpu")


def test_a_cache_without_all_of_its_files(cached: tuple[Path, str]) -> None:
    snapshot, name = cached
    blob = (snapshot / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[: len(content) // 2])  # as an interrupted copy leaves it
    with pytest.raises(PairError, match=r"model\.safetensors is broken or cut short") as caught:
        load_model(name, device="cpu")
    assert caught.value.remedy == f"download it with: hf download {name}"
    blob.unlink()
    with pytest.raises(PairError, match=r"holds no model\.safetensors"):
        load_model(name, device="cpu")
    with pytest.raises(PairError, match=r"not wholly in the local cache: no model\.safetensors"):
        require(Source(repo=name))


def test_a_broken_draft_is_found_before_the_target_is_loaded(
    pair_folders: dict[str, tuple[Path, Path]], folder: Path
) -> None:
    spoil_bytes(folder)
    reports: list[int] = []
    target = pair_folders["qwen2_5_vl"][0]
    with pytest.raises(PairError, match="cut short"):
        load_models(
            ModelRequest(target, device="cpu"),
            ModelRequest(folder, device="cpu"),
            progress=lambda done, total: reports.append(done),
        )
    assert not reports


class Weights:
    """Something large, half loaded."""


def test_too_little_memory_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Weights]] = []

    def full(*_: Any, **__: Any) -> None:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr("lvspec_cli.models.load._read_weights", full)
    with pytest.raises(NoRoomError, match="does not fit"):
        load_model(folder, device="cpu")
    assert [reference() for reference in held] == [None]


def test_the_towers_attention() -> None:
    assert tower_attention(["cuda:0", "cuda:1"], flash=True) == "flash_attention_2"
    assert tower_attention(["cuda:0"], flash=False) == "sdpa"
    assert tower_attention(["cpu"], flash=True) == "sdpa"


def test_tokenizers_that_disagree(pair_folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    other = save_model(
        tmp_path / "other", "qwen2_5_vl", tokenizer=build_tokenizer("some other words entirely")
    )
    with pytest.raises(PairError, match=r"token \d+ is '.+' in the target and '.+' in the draft"):
        load_pair(pair_folders["qwen2_5_vl"][0], other, device="cpu")


def test_a_draft_of_another_family_shares_the_tokenizer(pair_folders: dict[str, tuple[Path, Path]]) -> None:
    pair = load_pair(pair_folders["qwen2_5_vl"][0], pair_folders["llava_onevision"][1], device="cpu")
    assert pair.draft is not None
    assert pair.draft.family.model_type == "llava_onevision"


def test_devices_and_types() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) is torch.float32
    assert choose_dtype("float16", cpu) is torch.float16
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("tpu-of-mine", "cuda:99"):
        with pytest.raises(UsageError):
            choose_device(wrong)
    with pytest.raises(UsageError, match="float8"):
        choose_dtype("float8", cpu)


class Config:
    """As much of a GenerationConfig as is read."""

    def __init__(self, **values: Any) -> None:
        self.eos_token_id: Any = 7
        self.__dict__.update(values)


def test_generation_settings() -> None:
    rules = read_generation(Config(eos_token_id=[3, 4], repetition_penalty=1.05, suppress_tokens=[1]), "x")
    assert (rules.end_ids, rules.repetition_penalty, rules.suppressed) == ((3, 4), 1.05, (1,))
    assert read_generation(Config(eos_token_id=None), "x").end_ids == ()
    assert read_generation(Config(num_beams=1, temperature=0.1, top_k=5), "x").end_ids == (7,)
    for wrong in ({"num_beams": 4}, {"bad_words_ids": [[1]]}, {"repetition_penalty": -1.0}):
        with pytest.raises(PairError):
            read_generation(Config(**wrong), "x")


@pytest.mark.parametrize(
    ("files", "in_memory", "at_load", "by_hub_kernels"),
    [
        (None, Quantisation.NONE, Quantisation.NONE, False),
        (None, Quantisation.NF4, Quantisation.NF4, False),
        (None, Quantisation.FP8, Quantisation.FP8, False),  # packed by lvspec
        (Quantisation.FP8, Quantisation.FP8, Quantisation.NONE, True),
        (Quantisation.FP8, Quantisation.NONE, Quantisation.NONE, False),  # unpacked
        (Quantisation.AWQ, Quantisation.AWQ, Quantisation.NONE, False),
    ],
)
def test_what_is_in_the_files_is_not_made_again(
    files: Quantisation | None, in_memory: Quantisation, at_load: Quantisation, by_hub_kernels: bool
) -> None:
    setup = _Setup((torch.device("cuda"),), files, in_memory, torch.bfloat16)
    assert (setup.at_load, setup.by_hub_kernels) == (at_load, by_hub_kernels)
