"""Files as publishers have put them on the hub load, verify, and answer as transformers' ``generate`` does.

They differ from what the library saves today: older names of tensors and of values in configs, shards with an
index, heads that are left out because they are tied, templates in one of three files, and a cache of links to
blobs. The weights are tiny and random. Tokenizers of Qwen have the first tokens of its own vocabulary, and
cut text as it does.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from torch import Tensor, zeros
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

import lvspec_cli as lvspec
from lvspec_cli.library import VideoModel
from lvspec_cli.output.text import TextStream
from lvspec_cli.pairs.files import CONFIGS, INDEX, read_object
from lvspec_cli.types import Mode, TokenKind
from tests.conformance.conftest import Subject
from tests.conformance.test_exact import WANTED
from tests.conftest import Printed
from tests.speculation.conftest import decode
from tests.tiny_families import TURNS, VICUNA_TURNS, TinyShape, smol_tokenizer
from tests.tiny_models import save_model
from tests.tiny_tokenizers import INTERN, QWEN, WORDS, Release, build_piece_tokenizer, qwen_vocabulary

Values = dict[str, Any]
COMMIT = "89644892e4d85e24eaac8bacfd4f463576704203"
FIRST = 2_000  # tokens of Qwen's vocabulary
# The added tokens of Qwen2.5 in their order: their ids are part of the configs.
QWEN2_5 = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
# A default system text, counters and thinking that is switched off: what Qwen's templates do.
QWEN_TURNS = (
    "{%- set videos = namespace(value=0) %}{%- for message in messages %}"
    "{%- if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{%- if message['content'] is string %}{{ '\n' + message['content'] }}"
    "{%- else %}{{ '\n' }}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'video' or 'video' in part %}{%- set videos.value = videos.value + 1 %}"
    "{%- if add_vision_id %}Video {{ videos.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in part %}{{ part['text'] }}{%- endif %}{%- endfor %}{%- endif %}<|im_end|>\n"
    "{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '\n<think>\n\n</think>\n\n' }}"
    "{%- else %}{{ '\n' }}{%- endif %}{%- endif %}"
)


def qwen_tokenizer(
    release: Release = "qwen", added: Iterable[str] = QWEN, **values: Any
) -> PreTrainedTokenizerFast:
    core = qwen_vocabulary(release, FIRST)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 131_072}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named, **values)


def smol_digits() -> PreTrainedTokenizerFast:
    """Each digit is a token, and so is the space before it."""
    made = smol_tokenizer()
    core: Tokenizer = made.backend_tokenizer
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), bytes_of_words]
    )
    return made


def older_rope(text: Values) -> None:
    """Where one mapping has the rotary values today, there were a number and a mapping."""
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope if "mrope_section" in rope else None


def older_config(config: Values) -> Values:
    config |= {"torch_dtype": config.pop("dtype"), "transformers_version": "4.49.0"}
    older_rope(config["text_config"])
    return config


def flat_config(config: Values) -> Values:
    """Qwen2.5-VL's: the text's values stand beside the vision's."""
    config = older_config(config)
    text = config.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": text["rope_scaling"]["mrope_section"]}
    return {**text, **config, "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 3}


def llava_config(config: Values) -> Values:
    """Ids of placeholders are called indices."""
    config = older_config(config)
    older = {"image_token_id": "image_token_index", "video_token_id": "video_token_index"}
    return {older.get(name, name): value for name, value in config.items()}


def intern_config(config: Values) -> Values:
    config = older_config(config)
    config["text_config"]["rope_scaling"] = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
    return config


# From the names that transformers saves, which are those of the first files, to later ones.
LATER_NAMES = {
    r"^visual\.": "model.visual.",
    r"^model\.(?=layers\.|embed_tokens\.|norm\.)": "model.language_model.",
    r"^language_model\.model\.": "model.language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?=vision_tower\.|multi_modal_projector\.|image_newline)": "model.",
}


@dataclass(frozen=True)
class Published:
    """How a family was published."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    tokenizer_class: str
    template: str | None
    template_file: str
    config: Callable[[Values], Values]
    embeddings: tuple[str, str]  # the tensor's first name, and its later one
    tied: bool = False  # the output head has no tensor
    own_video_file: bool = True  # the values of videos have a file, and are not those of images
    generation: Mapping[str, Any] = field(default_factory=dict)
    tower: str = ""  # what stands in older names of the video tower's tensors
    further: Mapping[str, Tensor] = field(default_factory=dict)  # tensors that are not loaded


_NOW = "model.language_model.embed_tokens.weight"
_LLAVA = "language_model.model.embed_tokens.weight"
FAMILIES = {
    "qwen2_5_vl": Published(
        partial(qwen_tokenizer, added=QWEN2_5),
        "Qwen2Tokenizer",
        QWEN_TURNS,
        "chat_template.json",
        flat_config,
        ("model.embed_tokens.weight", _NOW),
        own_video_file=False,
        generation={"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05},
    ),
    "qwen3_vl": Published(
        qwen_tokenizer,
        "Qwen2Tokenizer",
        QWEN_TURNS,
        "tokenizer_config.json",
        older_config,
        (_NOW, _NOW),
        tied=True,
        generation={"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7},
    ),
    "qwen3_5": Published(
        partial(qwen_tokenizer, "qwen3_6", added=(*QWEN2_5, "<think>", "</think>")),
        "Qwen2Tokenizer",
        QWEN_TURNS,
        "chat_template.jinja",
        lambda config: config,
        (_NOW, _NOW),
        tied=True,
        further={"mtp.norm.weight": zeros(64), "mtp.fc.weight": zeros(64, 128)},
    ),
    "llava_onevision": Published(
        qwen_tokenizer,
        "Qwen2Tokenizer",
        TURNS.replace("VIDEO", "<video>\n"),
        "chat_template.json",
        llava_config,
        (_LLAVA, _NOW),
        tied=True,
        tower="vision_model.",
    ),
    "llava_next_video": Published(
        partial(build_piece_tokenizer, " ".join(WORDS.split())),
        "LlamaTokenizer",
        VICUNA_TURNS,
        "tokenizer_config.json",
        llava_config,
        (_LLAVA, _NOW),
        tower="vision_model.",
    ),
    "smolvlm": Published(
        smol_digits,
        "GPT2Tokenizer",
        None,  # the library has one of its own
        "chat_template.json",
        older_config,
        ("model.text_model.embed_tokens.weight",) * 2,
    ),
    "internvl": Published(
        partial(
            qwen_tokenizer,
            added=INTERN,
            extra_special_tokens={
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
        ),
        "Qwen2Tokenizer",
        TURNS.replace("VIDEO", "<video>\n"),
        "chat_template.jinja",
        intern_config,
        (_LLAVA, _NOW),
    ),
}


def change(file: Path, changed: Callable[[Values], Values]) -> None:
    file.write_text(json.dumps(changed(json.loads(file.read_text()))))


def split_processor(folder: Path, family: Published) -> None:
    """One file has the processor today; there were three, and Qwen2.5-VL gave pixels by other names."""
    whole = json.loads((folder / "processor_config.json").read_text())
    images, videos = whole.pop("image_processor"), whole.pop("video_processor")
    if not family.own_video_file:
        size = images.pop("size")
        images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    else:
        (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    named = {"processor_class": whole["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(images | named))
    if whole == named:
        (folder / "processor_config.json").unlink()
    else:
        (folder / "processor_config.json").write_text(json.dumps(whole))


def place_template(folder: Path, family: Published) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    change(folder / "tokenizer_config.json", lambda config: config | {"chat_template": None})
    if family.template is None:
        return
    file = folder / family.template_file
    if file.suffix == ".jinja":
        file.write_text(family.template)
    else:
        values = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**values, "chat_template": family.template}))


def shard(folder: Path, family: Published, later: bool) -> None:
    """Three files of weights and their index, by the first names or by later ones."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = dict(family.further)
    for first_name, tensor in weights.items():
        name = first_name.replace("vision_tower.", f"vision_tower.{family.tower}")
        if later:
            name = first_name
            for pattern, by in LATER_NAMES.items():
                name = re.sub(pattern, by, name)
        tensors[name] = tensor
    assert family.embeddings[later] in tensors
    assert family.tied == (not any("lm_head" in name for name in tensors))
    files = {name: f"model-{1 + index % 3:05}-of-00003.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": files}))


def into_cache(folder: Path, cache: Path, repo: str) -> Path:
    """The hub's cache: blobs by their hash, and a commit's folder of links to them."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    (home / "blobs").mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False)
        name = (hashlib.sha256(content) if file.suffix == ".safetensors" else git).hexdigest()
        file.rename(home / "blobs" / name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / name)
    return snapshot


@dataclass(frozen=True)
class Hub:
    """A pair in the hub's cache."""

    family: str
    cache: Path
    snapshots: tuple[Path, Path]
    models: Path  # a models.yaml with the pair ``published``


def publish(home: Path, name: str) -> Hub:
    """The target's tensors have the first names, the draft's later ones."""
    family, tied = FAMILIES[name], TinyShape(tied=FAMILIES[name].tied)
    given = {"tokenizer": family.tokenizer(), "generation": dict(family.generation)}
    target = save_model(home / "target", name, shape=tied, **given)
    shape = replace(tied, extra_vocabulary=24)
    draft = save_model(home / "draft", name, shape=shape, noise=(target, 0.01), **given)
    for folder in (target, draft):
        change(folder / "config.json", family.config)
        change(folder / "tokenizer_config.json", lambda c: {**c, "tokenizer_class": family.tokenizer_class})
        split_processor(folder, family)
        place_template(folder, family)
        shard(folder, family, later=folder == draft)
    cache = home / "hub"
    snapshots = tuple(into_cache(folder, cache, f"{name}/{folder.name}") for folder in (target, draft))
    models = home / "models.yaml"
    models.write_text(
        f"pairs:\n  published:\n    target: {{repo: {name}/target, revision: {COMMIT}}}\n"
        f"    draft: {{repo: {name}/draft}}\n    defaults: {{frames: 4, gamma: 4, max_new_tokens: 24}}\n"
    )
    return Hub(name, cache, (snapshots[0], snapshots[1]), models)


@pytest.fixture(scope="module", params=FAMILIES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = publish(tmp_path_factory.mktemp(request.param), request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made.cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield made


@pytest.fixture(scope="module")
def model(hub: Hub) -> VideoModel:
    return lvspec.load("published", models=hub.models, device="cpu")


def test_families_of_all_shipped_pairs_are_here() -> None:
    configs = map(read_object, CONFIGS.glob("*.json"))
    assert {config["model_type"] for config in configs} <= FAMILIES.keys()


@pytest.mark.thorough
def test_verify_finds_nothing(hub: Hub, here: Callable[..., Printed], tmp_path: Path) -> None:
    for repo in hub.cache.iterdir():
        (tmp_path / repo.name).symlink_to(repo)  # the cache that ``here`` has
    done = here("models", "verify", "published", "--models", hub.models, "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    states = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert states == {"ok"}, done.stdout


@pytest.mark.sampled
def test_ar_and_exact_are_generate(hub: Hub, model: VideoModel) -> None:
    subject = Subject(hub.family, hub.snapshots, model.pair)
    stock = AutoModelForImageTextToText.from_pretrained(hub.snapshots[0])
    for clip in ("odd", "wide"):
        expected = subject.generate(clip, model=stock, max_new_tokens=24)
        for mode in (Mode.AR, Mode.EXACT):
            found, _ = decode(model.pair, subject.prompts(clip), replace(WANTED, mode=mode))
            assert list(found.tokens) == expected, mode


@pytest.mark.sampled
def test_answers(model: VideoModel, video_file: Path) -> None:
    texts = {}
    for mode in (Mode.AR, Mode.EXACT, Mode.LVSPEC):
        record = model.with_settings(replace(model.settings, mode=mode)).ask(video_file, "What moves?")
        texts[mode] = record.text
        assert record.status == "ok"
    assert texts[Mode.AR] == texts[Mode.EXACT]
    assert texts[Mode.AR]


def test_what_begins_a_number_is_protected(model: VideoModel) -> None:
    for start in ("There are ", "Say\n"):
        ids = [model.pair.target.tokenizer.encode(start + word) for word in ("12 balls", "several balls")]
        number = next(one for one, other in zip(*ids, strict=False) if one != other)
        assert model.pair.words.any_protected(number)


@pytest.mark.sampled
@given(data=st.data())
def test_the_stream_is_the_whole_decode(model: VideoModel, data: st.DataObject) -> None:
    """No ids raise an error, and no answer begins with the space that a template's end leaves."""
    tokenizer = model.pair.target.tokenizer
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    for start in ("", " ", " red"):
        ids = tokenizer.encode(start, add_special_tokens=False) + tokens
        text = TextStream(tokenizer.backend_tokenizer)
        pieces = [piece.text for token in ids for piece in text.feed([token], [TokenKind.EXACT])]
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) + text.tail == text.text == whole.lstrip(" ")


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("hub", ["qwen2_5_vl", "llava_next_video", "internvl"], indirect=True)
def test_a_model_without_a_template_is_one_error_before_weights_are_read(
    hub: Hub,
    here: Callable[..., Printed],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    video_file: Path,
    role: str,
) -> None:
    for name, snapshot in zip(("target", "draft"), hub.snapshots, strict=True):
        folder = Path(shutil.copytree(snapshot, tmp_path / name))
        if name == role:
            place_template(folder, replace(FAMILIES[hub.family], template=None))
    models = tmp_path / "models.yaml"
    models.write_text("pairs:\n  bare:\n    target: {folder: target}\n    draft: {folder: draft}\n")

    def read(*_: object, **__: object) -> None:
        pytest.fail("weights are read")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", read)
    asked = here("ask", video_file, "What?", "--pair", "bare", "--models", models, "--device", "cpu", "-q")
    assert asked.returncode == 3
    assert asked.stderr.splitlines() == [
        f"error: {tmp_path / role} holds no chat template",
        "try: copy or download the folder again",
    ]
