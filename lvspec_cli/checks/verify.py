"""Checks a pair: files, tokenizers, chat templates, configs, and that exact mode equals ar."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from lvspec_cli.errors import LvspecError
from lvspec_cli.memory.sizes import size_of
from lvspec_cli.models.families import family_of
from lvspec_cli.models.generation import first_difference
from lvspec_cli.models.mtp import PredictionLayer, check_weights
from lvspec_cli.models.read import chat_text, read_config, read_processor
from lvspec_cli.pairs.files import count_parameters
from lvspec_cli.pairs.registry import Source
from lvspec_cli.types import DEFAULT_PROMPT

State = Literal["ok", "failed", "not checked"]
Progress = Callable[[str, int, int], None]  # a file's name, bytes read, bytes in total
_BLOCK = 2**22
_IDS = ("video_token_id", "image_token_id")


@dataclass(frozen=True)
class Check:
    """One check and its result."""

    what: str
    state: State
    detail: str


@dataclass(frozen=True)
class LocalModel:
    """One model of a pair on this machine."""

    role: str
    source: Source
    folder: Path


def check_files(model: LocalModel, known: Mapping[str, str], progress: Progress) -> Check:
    """Compares the hashes of a snapshot's files with the hub's.

    :param known: the hub's current hashes by file name. For a file without one, the name of its blob in the
        cache is used, which is the hub's hash at the time of the download.
    """
    what = f"{model.role}: files"
    if model.source.repo is None:
        return Check(what, "not checked", "a local folder has no hashes to compare with")
    unknown, checked = [], 0
    for file in sorted(path for path in model.folder.iterdir() if path.is_file()):
        expected = known.get(file.name) or blob_name(file)
        if expected is None:
            unknown.append(file.name)
        elif git_or_sha256(file, len(expected), progress) != expected:
            return Check(
                what, "failed", f"{file} is not the file that the hub has: delete it, and pull again"
            )
        else:
            checked += 1
    source = "the hub's hashes" if known else "the hashes in the cache's names"
    if unknown:
        return Check(what, "not checked", f"no hash is known of {', '.join(unknown)}; {checked} files match")
    return Check(what, "ok", f"{checked} files match {source}")


def blob_name(file: Path) -> str | None:
    """The hash that names a file's blob in the cache: sha256 for large files, git's for others; or None."""
    if not file.is_symlink():
        return None
    name = file.readlink().name
    is_hash = len(name) in (40, 64) and set(name) <= set("0123456789abcdef")
    return name if is_hash else None


def git_or_sha256(file: Path, length: int, progress: Progress) -> str:
    """A file's sha256 if the hash has 64 digits, else git's hash of a blob."""
    size = file.stat().st_size
    digest = (
        hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    )
    done = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(file.name, done, size)
    return digest.hexdigest()


def check_texts(target: LocalModel, draft: LocalModel) -> Iterator[Check]:
    """Checks that the two tokenizers agree on all shared ids, and compares the chat templates.

    What they write about a video is compared: files may hold other templates beside the one that is used.
    """
    target_processor, draft_processor = read_processor(target.folder), read_processor(draft.folder)
    target_words, draft_words = target_processor.tokenizer.get_vocab(), draft_processor.tokenizer.get_vocab()
    difference = first_difference(target_words, draft_words)
    if difference is None:
        shared = len(set(target_words.values()) & set(draft_words.values()))
        yield Check("tokenizers", "ok", f"agree on all {shared} shared ids")
    else:
        index, token, draft_token = difference
        detail = f"{index} is {token!r} in the target and {draft_token!r} in the draft"
        yield Check("tokenizers", "failed", detail)
    written, draft_written = (
        chat_text(processor, DEFAULT_PROMPT, None, model.source.name)
        for processor, model in ((target_processor, target), (draft_processor, draft))
    )
    if written == draft_written:
        yield Check("chat templates", "ok", "write the same about a video")
    else:
        yield Check("chat templates", "ok", "differ: both models read what the target's writes")


def check_configs(target: LocalModel, draft: LocalModel) -> Iterator[Check]:
    """Checks that both models are of one family, have the same special ids, and the size in their config."""
    target_config, draft_config = _config(target), _config(draft)
    names = _IDS if _are_siblings(target_config, draft_config) else ("model_type", *_IDS)
    values = [(name, getattr(target_config, name, None), getattr(draft_config, name, None)) for name in names]
    values.append(("eos_token_id", _ends(target), _ends(draft)))
    different = [
        f"{name} ({value} and {draft_value})" for name, value, draft_value in values if value != draft_value
    ]
    if different:
        yield Check("configs", "failed", f"differ in {', '.join(different)}")
    else:
        kinds = dict.fromkeys((target_config.model_type, draft_config.model_type))
        yield Check("configs", "ok", " and ".join(kinds) if len(kinds) > 1 else f"both {kinds.popitem()[0]}")
    yield from map(_check_weights, (target, draft))


def _are_siblings(target_config: Any, draft_config: Any) -> bool:
    """Whether the families are one, or one of them is a variant of the other, such as with experts."""
    target, draft = (family_of(config.model_type, "the pair") for config in (target_config, draft_config))
    return isinstance(target, type(draft)) or isinstance(draft, type(target))


def check_mtp(target: LocalModel) -> Iterator[Check]:
    """Checks that the target's files have a prediction layer, whole and not packed, and all other weights."""
    config = _config(target)
    with torch.device("meta"):
        layer = PredictionLayer(family_of(config.model_type, target.source.name), config)
    check_weights(layer, target.folder)
    count = sum(weight.numel() for weight in layer.parameters())
    yield Check("prediction layer", "ok", f"{count} parameters, in the target's files")
    yield _check_weights(target)


def _check_weights(model: LocalModel) -> Check:
    stored = sum(count_parameters(file) for file in model.folder.glob("*.safetensors"))
    what = f"{model.role}: weights"
    config = _config(model)
    if getattr(config, "quantization_config", None):
        return Check(what, "not checked", "are quantised")
    expected = size_of(model.folder / "config.json").parameters
    if stored == expected:
        return Check(what, "ok", f"{stored} parameters, as the config says")
    text = config.get_text_config()
    if stored == expected + text.vocab_size * text.hidden_size:
        return Check(what, "ok", f"{expected} parameters, the shared embeddings twice")
    return Check(what, "failed", f"{stored} parameters in the files, {expected} by the config")


@torch.inference_mode()
def check_answers(pair: Any, prompts: Any, settings: Any) -> Check:
    """Checks that exact mode gives the target's own tokens, except after a tie in lower precision."""
    from lvspec_cli.models.decoder import Decoder
    from lvspec_cli.speculation.engine import Session
    from lvspec_cli.types import Mode

    session = Session.of(pair)
    ar, exact = (_tokens(session, prompts, replace(settings, mode=mode)) for mode in (Mode.AR, Mode.EXACT))
    promised = session.is_to_the_letter(replace(settings, mode=Mode.EXACT))
    if ar == exact:
        return Check("self-test", "ok", f"exact mode gives the target's {len(ar)} tokens")
    shorter = min(len(ar), len(exact))
    index = next((index for index in range(shorter) if ar[index] != exact[index]), shorter)
    decoder = Decoder(pair.target)
    decoder.encode(prompts.target)
    passed = decoder.begin(prompts.target, len(ar) + 1)
    if index:
        passed = decoder.forward(torch.tensor(ar[:index], device=pair.target.device))
    best = decoder.logits(passed, 1)[0].topk(2).values
    gap = float(best[0] - best[1])
    tied = not promised and gap <= TIE
    detail = (
        f"exact mode differs from token {index + 1} on, where the target's best two are {gap:.3f} nats apart"
    )
    return Check("self-test", "ok" if tied else "failed", detail)


TIE = 0.25  # nats: two steps of bfloat16 at logits of 16 to 32


def _tokens(session: Any, prompts: Any, settings: Any) -> tuple[int, ...]:
    return session.answer(prompts, settings).run().tokens


def _config(model: LocalModel) -> Any:
    return read_config(model.folder)


def _ends(model: LocalModel) -> list[int]:
    """Ids that end an answer; empty if there is no generation_config."""
    try:
        ends = GenerationConfig.from_pretrained(model.folder, local_files_only=True).eos_token_id
    except OSError:
        return []
    return [] if ends is None else [ends] if isinstance(ends, int) else sorted(ends)


def guarded(what: str, checks: Callable[[], Iterator[Check]]) -> list[Check]:
    """The results of the checks, or a single failed one if they cannot run."""
    try:
        return list(checks())
    except LvspecError as error:
        return [Check(what, "failed", f"{error.cause}: {error.remedy}" if error.remedy else error.cause)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [Check(what, "failed", " ".join(str(error).split())[:200] or type(error).__name__)]
