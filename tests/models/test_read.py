"""Folders of models that cannot be trusted: no code, no network, no work without end, one line of error."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.memory.sizes import size_of
from lvspec_cli.models.load import load_model
from lvspec_cli.models.read import (
    chat_text,
    check_sizes,
    ignore_named_kernels,
    read_config,
    read_processor,
    rendered,
    thinking_between,
    thinking_of,
    turns_of,
)
from lvspec_cli.pairs.files import INDEX, missing_files
from lvspec_cli.types import Thinking
from tests.conftest import Shell
from tests.tiny_models import FAMILIES

DEEP = "[" * 100_000 + "]" * 100_000
Spoil = Callable[[Path], object]


@pytest.fixture
def folder(pair_folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A copy of a target to spoil."""
    return Path(shutil.copytree(pair_folders["qwen2_5_vl"][0], tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        pytest.fail("a connection was asked for")

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def change(folder: Path, file: str, *keys: str, **values: Any) -> None:
    """Sets values in a JSON file, in the mapping under ``keys``."""
    path = folder / file
    whole = json.loads(path.read_text())
    part = whole
    for key in keys:
        part = part[key]
    part.update(values)
    path.write_text(json.dumps(whole))


def template(text: str) -> Spoil:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def index(weights: Any) -> Spoil:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def written(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def changed(file: str, *keys: str, **values: Any) -> Spoil:
    return lambda folder: change(folder, file, *keys, **values)


@pytest.mark.sampled
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("part", [(), ("text_config",), ("vision_config",)], ids=str)
@pytest.mark.parametrize(
    "key",
    ["_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation"],
)
def test_kernels_that_a_folder_names_are_left_alone(folder: Path, key: str, part: tuple[str, ...]) -> None:
    change(folder, "config.json", *part, **{key: "owner/kernels:attention"})
    size_of(folder / "config.json")
    config = load_model(folder, device="cpu", dtype="float32").model.config
    for each in (config, config.text_config, config.vision_config):
        assert "owner" not in f"{each._attn_implementation} {each._experts_implementation}"


def test_a_config_inside_a_config_is_cleared_too(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.vision_config._attn_implementation = "owner/kernels"
    ignore_named_kernels(config)
    assert config.vision_config._attn_implementation is None


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (index(None), INDEX),
        (index(["a.safetensors"]), INDEX),
        (index({"a": 3}), INDEX),
        (index({"a": ["model.safetensors"]}), INDEX),
        (index({"a": None}), INDEX),
        (written(INDEX, DEEP), INDEX),
        (written(INDEX, "[]"), INDEX),
        (index({"a": "../outside.safetensors"}), "in place of ../outside.safetensors"),
        (index({"a": "/etc/outside.safetensors"}), "in place of /etc/outside.safetensors"),
        (index({"a": "in/side.safetensors"}), "in place of in/side.safetensors"),
        (written("config.json", DEEP), "config.json"),
        (written("config.json", "3"), "config.json"),
        (written("tokenizer.json", DEEP), "tokenizer.json"),
        (written("tokenizer_config.json", DEEP), "tokenizer_config.json"),
        (written("processor_config.json", DEEP), "processor_config.json"),
        (written("generation_config.json", DEEP), "generation_config.json"),
        (changed("config.json", "text_config", num_hidden_layers=10**7), "num_hidden_layers is 1e+07"),
        (changed("config.json", "vision_config", depth=10**7), "depth is 1e+07"),
        (changed("config.json", "text_config", hidden_size=10**12), "hidden_size is 1e+12"),
        (changed("config.json", "text_config", vocab_size=10**9), "vocab_size is 1e+09"),
        (changed("config.json", "vision_config", patch_size=0), "patch_size is 0"),
        (changed("processor_config.json", "video_processor", patch_size=0), "patch_size is 0"),
        (changed("processor_config.json", "video_processor", "size", shortest_edge=10**12), "shortest_edge"),
        (changed("processor_config.json", "video_processor", "size", height=10**12), "height is 1e+12"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "holds no chat template"),
        (template("{{ messages[0]['content'] }}"), "no place for a video"),
        (template("{{ ''.__class__.__mro__ }}"), "the chat template of"),
        (template("{% if %}"), "the chat template of"),
        (template("{{ raise_exception('no video') }}"), "no video"),
        (template("{% for i in range(10**9) %}x{% endfor %}"), "does not end"),
        (
            template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
            "does not end",
        ),
        (template("{{ 'x' * 20000000000 }}"), "does not end, or makes too much text"),
        (template("{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t + n.t %}"
                  "{% endfor %}{{ n.t }}"), "does not end, or makes too much text"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_line(folder: Path, spoil: Spoil, words: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    spoil(folder)
    began = time.monotonic()
    with pytest.raises(PairError) as caught:
        load_model(folder, device="cpu")
    assert time.monotonic() - began < 60
    assert words in caught.value.cause
    assert str(folder) in caught.value.cause
    assert caught.value.remedy
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_a_tokenizer_with_more_words_than_the_model_has_rows(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    extra = {"id": 3_000_000, "content": "<far>", "special": False, "normalized": False}
    tokenizer["added_tokens"].append({**extra, "single_word": False, "lstrip": False, "rstrip": False})
    tokenizer["model"]["vocab"]["<far>"] = 3_000_000
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(PairError, match="has a token 3000000, and the model has"):
        load_model(folder, device="cpu")


def test_a_template_that_only_the_tokenizers_config_holds_is_used(folder: Path) -> None:
    text = chat_text(read_processor(folder), "Why?", None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (folder / "chat_template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink()
    assert chat_text(read_processor(folder), "Why?", None) == text


def test_a_template_of_a_real_shape_is_rendered() -> None:
    values = json.dumps({"messages": [{"role": "user", "content": []}], "add_generation_prompt": True})
    text = (
        "{% for m in messages %}\n{%- generation %}{{ m.role }}{% endgeneration %}\n {{ m | tojson }}"
        "{% continue %}{% endfor %}{{ strftime_now('%Y') }}"
    )
    year = datetime.now(UTC).year
    assert rendered(text, values) in {
        f'user {{"role": "user", "content": []}}{year + by}' for by in (-1, 0, 1)
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_text_is_that_of_the_library(
    pair_folders: dict[str, tuple[Path, Path]], family: str, system: str | None
) -> None:
    for folder in (pair_folders[family][0], Path("lvspec_cli/demo/pair/target")):
        processor = read_processor(folder)
        turns = turns_of("What moves, \U0001f3ac?", system)
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert chat_text(processor, "What moves, \U0001f3ac?", system) == text


GOOD = (
    "{% for m in messages %}{% for c in m.content %}{{ c.text or '<|video_pad|>' }}{% endfor %}{% endfor %}"
)
LATER = "{% if messages[0].content[1].text != 'What?' %}"
BURSTS = {
    "an endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "text without end": "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "one huge text": "{{ 'x' * 20000000000 }}",
}


@pytest.mark.parametrize(
    "burst",
    [
        pytest.param(burst, id=name, marks=[] if name == "one huge text" else pytest.mark.thorough)
        for name, burst in BURSTS.items()
    ],
)
def test_a_template_that_bursts_at_the_real_question_is_one_error(
    tiny_models: Path, video_file: Path, tmp_path: Path, burst: str
) -> None:
    """It is harmless when the model is loaded. The next question of another pair is answered all the same."""
    models = shutil.copytree(tiny_models.parent, tmp_path / "models") / tiny_models.name
    file = models.parent / "target" / "chat_template.jinja"
    whole = file.read_text()
    file.write_text(LATER + burst + "{% endif %}" + whole)
    read_processor(file.parent)
    if burst == BURSTS["one huge text"]:  # of each the message is the same
        shell = Shell(tmp_path, {"LVSPEC_MODELS": str(models)})
        limit = f"resource.setrlimit(resource.RLIMIT_DATA, ({6 * 2**30},) * 2)"
        done = shell.run("ask", video_file, "Why?", "--quiet", first=limit)
        assert done.returncode == 3, done.stderr
        said = f"error: the chat template of {file.parent} does not end, or makes too much text"
        assert done.stderr.splitlines()[0] == said
        assert len(done.stderr.splitlines()) == 2
    processor = read_processor(file.parent)
    with pytest.raises(PairError, match="does not end"):
        chat_text(processor, "Why?", None)
    file.write_text(whole)
    assert "Why?" in chat_text(read_processor(file.parent), "Why?", None)


def test_a_template_that_refuses_the_real_question_is_one_error(folder: Path) -> None:
    template(LATER + "{{ raise_exception('no such question') }}{% endif %}" + GOOD)(folder)
    with pytest.raises(PairError, match=r"the chat template of the target fails: no such question"):
        chat_text(read_processor(folder), "Why?", None, "the target")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_as_it_is_saved_is_taken(pair_folders: dict[str, tuple[Path, Path]], family: str) -> None:
    for folder in pair_folders[family]:
        assert read_config(folder).model_type == family
        assert read_processor(folder).tokenizer


@pytest.mark.parametrize(
    "file", sorted(Path("lvspec_cli/pairs/configs").glob("*.json")), ids=lambda file: file.stem
)
def test_the_sizes_of_real_models_are_sane(file: Path) -> None:
    check_sizes(json.loads(file.read_text()), file)


def test_an_edge_is_a_length_or_an_area() -> None:
    areas = {"merge_size": 2, "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}}
    check_sizes(areas, Path("p.json"))
    check_sizes({"size": {"longest_edge": 2048}}, Path("p.json"))
    with pytest.raises(PairError, match=r"p\.json: longest_edge is 602112"):
        check_sizes({"size": {"longest_edge": 602_112}}, Path("p.json"))


def test_links_of_the_hubs_cache_are_files_of_the_folder(folder: Path) -> None:
    blob = folder.parent / "blobs" / "a"
    blob.parent.mkdir()
    (folder / "model.safetensors").rename(blob)
    (folder / "1.safetensors").symlink_to(Path("../blobs/a"))
    index({"a": "1.safetensors"})(folder)
    assert missing_files(folder) == []


@pytest.mark.parametrize(
    ("off", "on", "end", "opened"),
    [
        # Qwen3.5: the larger ones think unless they are told not to, the smaller ones the other way round.
        ("assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n", "</think>", True),
        # Qwen3: the model opens its thoughts itself.
        ("assistant\n<think>\n\n</think>\n\n", "assistant\n", "</think>", False),
        # GLM-4.6V: a word in the user's turn, too.
        ("What?/nothink<|assistant|><think></think>\n", "What?<|assistant|>\n", "</think>", False),
        ("</s>assistant</seed:think>", "</s>assistant<seed:think>", "</seed:think>", True),
        ("Do not think. assistant", "assistant", "</think>", False),
    ],
)
def test_how_a_template_frames_thoughts(off: str, on: str, end: str, opened: bool) -> None:
    assert thinking_between(off, on) == Thinking(end, opened)


def test_the_switch_for_thinking(folder: Path) -> None:
    with pytest.raises(UsageError, match="the chat template of a target has no switch") as caught:
        thinking_of(read_processor(folder), "a target")
    assert "leave out --think" in caught.value.remedy
    file = folder / "chat_template.jinja"
    plain = chat_text(read_processor(folder), "Why?", None)
    file.write_text(file.read_text() + "<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}")
    processor = read_processor(folder)
    assert thinking_of(processor, "a target") == Thinking("</think>", opened=True)
    assert chat_text(processor, "Why?", None) == plain + "<think>\n</think>\n\n"
    assert chat_text(processor, "Why?", None, think=True) == plain + "<think>\n"
