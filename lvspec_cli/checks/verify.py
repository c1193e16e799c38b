"""Whether a pair is what it should be: files, tokenizers, configs, and that exact mode equals ar."""

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
from lvspec_cli.models.generation import first_difference
from lvspec_cli.models.read import read_config, read_processor
from lvspec_cli.pairs.files import count_parameters
from lvspec_cli.pairs.registry import Source

State = Literal["ok", "failed", "not checked"]
Told = Callable[[str, int, int], None]  # a file's name, bytes read, of how many
_BLOCK = 2**22
_IDS = ("video_token_id", "image_token_id")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what came of it."""

    what: str
    state: State
    detail: str


@dataclass(frozen=True)
class Half:
    """One model of a pair, on this machine."""

    role: str
    source: Source
    folder: Path


def check_files(half: Half, known: Mapping[str, str], told: Told) -> Check:
    """Hashes of a snapshot's files against the names of their blobs, which are the hub's own hashes, and
    against ``known``, the hub's hashes of now by file name, where it was asked."""
    what = f"{half.role}: files"
    if half.source.repo is None:
        return Check(what, "not checked", "a local folder has no hashes to compare with")
    unknown, checked = [], 0
    for file in sorted(path for path in half.folder.iterdir() if path.is_file()):
        expected = known.get(file.name) or blob_name(file)
        if expected is None:
            unknown.append(file.name)
        elif git_or_sha256(file, len(expected), told) != expected:
            return Check(
                what, "failed", f"{file} is not the file that the hub has: delete it, and pull again"
            )
        else:
            checked += 1
    whose = "the hub's hashes" if known else "the hashes in the cache's names"
    if unknown:
        return Check(what, "not checked", f"no hash is known of {', '.join(unknown)}; {checked} files match")
    return Check(what, "ok", f"{checked} files match {whose}")


def blob_name(file: Path) -> str | None:
    """The hash that the cache calls a file by: sha256 of large files, git's of others; None: none."""
    if not file.is_symlink():
        return None
    name = file.readlink().name
    is_hash = len(name) in (40, 64) and set(name) <= set("0123456789abcdef")
    return name if is_hash else None


def git_or_sha256(file: Path, length: int, told: Told) -> str:
    """A file's sha256 where 64 digits are asked for, else the hash that git gives a blob."""
    size = file.stat().st_size
    digest = (
        hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    )
    done = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            told(file.name, done, size)
    return digest.hexdigest()


def check_texts(target: Half, draft: Half) -> Iterator[Check]:
    """That the two tokenizers agree on every shared id, and write the same prompt of a conversation."""
    first, second = (read_processor(half.folder) for half in (target, draft))
    words, others = first.tokenizer.get_vocab(), second.tokenizer.get_vocab()
    found = first_difference(words, others)
    if found is None:
        shared = len(set(words.values()) & set(others.values()))
        yield Check("tokenizers", "ok", f"agree on all {shared} shared ids")
    else:
        index, ours, theirs = found
        yield Check("tokenizers", "failed", f"{index} is {ours!r} in the target and {theirs!r} in the draft")
    if _template(first) == _template(second):
        yield Check("chat templates", "ok", "equal")
    else:
        yield Check("chat templates", "failed", "target and draft write a conversation in different ways")


def check_configs(target: Half, draft: Half) -> Iterator[Check]:
    """That both are of one family, mean the same by marks and ends, and are as large as they say."""
    first, second = (_config(half) for half in (target, draft))
    different = [
        f"{name} ({one} and {other})"
        for name, one, other in (
            ("model_type", first.model_type, second.model_type),
            *((name, getattr(first, name, None), getattr(second, name, None)) for name in _IDS),
            ("eos_token_id", _ends(target), _ends(draft)),
        )
        if one != other
    ]
    state: State = "failed" if different else "ok"
    yield Check(
        "configs", state, f"differ in {', '.join(different)}" if different else f"both {first.model_type}"
    )
    for half in (target, draft):
        stored = sum(count_parameters(file) for file in half.folder.glob("*.safetensors"))
        yield _check_weights(half, stored)


def _check_weights(half: Half, stored: int) -> Check:
    what = f"{half.role}: weights"
    config = _config(half)
    if getattr(config, "quantization_config", None):
        return Check(what, "not checked", "are quantised")
    wanted = size_of(half.folder / "config.json").parameters
    if stored == wanted:
        return Check(what, "ok", f"{stored} parameters, as the config says")
    text = config.get_text_config()
    if stored == wanted + text.vocab_size * text.hidden_size:
        return Check(what, "ok", f"{wanted} parameters, the shared embeddings twice")
    return Check(what, "failed", f"{stored} parameters in the files, {wanted} by the config")


@torch.inference_mode()
def check_answers(pair: Any, prompts: Any, settings: Any) -> Check:
    """That exact mode gives the target's own tokens; ties of the target in lower precision aside."""
    from lvspec_cli.models.decoder import Decoder
    from lvspec_cli.speculation.engine import Session
    from lvspec_cli.types import Mode

    session = Session.of(pair)
    alone, exact = (_tokens(session, prompts, replace(settings, mode=mode)) for mode in (Mode.AR, Mode.EXACT))
    if alone == exact:
        return Check("self-test", "ok", f"exact mode gives the target's {len(alone)} tokens")
    place = next(
        (at for at, (one, other) in enumerate(zip(alone, exact, strict=False)) if one != other),
        min(len(alone), len(exact)),
    )
    decoder = Decoder(pair.target)
    decoder.encode(prompts.target)
    passed = decoder.begin(prompts.target, len(alone) + 1)
    if place:
        passed = decoder.forward(torch.tensor(alone[:place], device=pair.target.device))
    best = decoder.logits(passed, 1)[0].topk(2).values
    gap = float(best[0] - best[1])
    tied = not pair.target.full_precision and gap <= TIE
    detail = (
        f"exact mode differs from token {place + 1} on, where the target's best two are {gap:.3f} nats apart"
    )
    return Check("self-test", "ok" if tied else "failed", detail)


TIE = 0.25  # nats: two steps of bfloat16 at logits of 16 to 32


def _tokens(session: Any, prompts: Any, settings: Any) -> tuple[int, ...]:
    return session.answer(prompts, settings).run().tokens


def _config(half: Half) -> Any:
    return read_config(half.folder)


def _ends(half: Half) -> list[int]:
    """Ids that end an answer; none where no file says them."""
    try:
        ends = GenerationConfig.from_pretrained(half.folder, local_files_only=True).eos_token_id
    except OSError:
        return []
    return [] if ends is None else [ends] if isinstance(ends, int) else sorted(ends)


def _template(processor: Any) -> str | None:
    found = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    return found.strip() if isinstance(found, str) else found


def guarded(what: str, checks: Callable[[], Iterator[Check]]) -> list[Check]:
    """The checks, or one failed one where they cannot be made."""
    try:
        return list(checks())
    except LvspecError as error:
        return [Check(what, "failed", f"{error.cause}: {error.remedy}" if error.remedy else error.cause)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [Check(what, "failed", " ".join(str(error).split())[:200] or type(error).__name__)]
