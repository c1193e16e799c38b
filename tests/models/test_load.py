"""Loading: what is ready afterwards, and one clear line for everything that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.models.generation import read_generation
from lvspec_cli.models.load import choose_device, choose_dtype, load_model, load_pair
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
    shares: list[float] = []
    pair = load_pair(str(target), draft, device="cpu", progress=shares.append)
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
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 20


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
        (spoil_bytes, "cannot be loaded"),
        (spoil_part, "lm_head.weight"),
        (spoil_pickle, "model.safetensors"),
        (spoil_family, "clip"),
        (spoil_windows, "windowed"),
        (spoil_tokenizer, "cannot be loaded"),
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
    assert choose_dtype("auto", torch.device("cuda")) is torch.bfloat16
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
