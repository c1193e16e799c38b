"""A model's config, processor, tokenizer and chat template: read by transformers after they were checked.

A model's folder is not trusted: it may not name code, nor sizes that no model has, and its chat template is
rendered in a child process with limits on time, memory and output.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin

from lvspec_cli.errors import LvspecError, PairError, check_machine
from lvspec_cli.models.processing import quiet
from lvspec_cli.pairs.files import broken_file, read_object

LOCAL: Final[Mapping[str, Any]] = {"local_files_only": True, "trust_remote_code": False}
LAYERS, WIDTH, WORDS, SIDE, AREA = 1000, 2**20, 2**21, 2**14, 2**31  # the most that any model has
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_AT_LEAST_ONE = frozenset(
    {"patch_size", "merge_size", "spatial_merge_size", "temporal_patch_size", "hidden_size", "vocab_size"}
)


def read_config(place: Path) -> Any:
    """A model's config.

    :param place: the model's folder, or the file itself.
    :raises PairError: it is broken, or describes no model that there could be.
    """
    file = place if place.is_file() else place / "config.json"
    check_sizes(read_object(file), file)
    with _named(place):
        config = AutoConfig.from_pretrained(place, **LOCAL)
        leave_kernels(config)
        return config


def read_processor(folder: Path) -> Any:
    """A model's processor, with its tokenizer and its chat template.

    :raises PairError: one of its files is broken or missing, or cannot be meant.
    """
    for file in (folder / name for name in _PROCESSORS):
        if file.is_file():
            check_sizes(read_object(file), file)
    with _named(folder):
        processor = AutoProcessor.from_pretrained(folder, **LOCAL)
        check_template(processor, str(folder))
        return processor


def read_tokenizer(folder: Path) -> Any:
    """A model's tokenizer alone; raises as ``read_processor`` does."""
    with _named(folder):
        return AutoTokenizer.from_pretrained(folder, **LOCAL)


def leave_kernels(config: Any) -> None:
    """A config, and those inside it, may ask for attention or experts by a repository of native code."""
    for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
        if hasattr(config, name):
            setattr(config, name, None)
    for inner in list(vars(config).values()):
        if isinstance(inner, PreTrainedConfig):
            leave_kernels(inner)


def check_sizes(values: Mapping[str, Any], file: Path) -> None:
    """
    :param values: a config's or a processor's, with mappings inside.
    :raises PairError: a number that would make building a model or a frame endless, or divide by 0.
    """
    areas = "merge_size" in values  # such processors count the pixels of a frame, others those of its edge
    for key, value in values.items():
        if isinstance(value, Mapping) and key != "quantization_config":
            check_sizes({"merge_size": 1, **value} if areas and key == "size" else value, file)
        elif isinstance(value, int | float) and not _is_sane(key, value, areas):
            raise PairError(
                f"{file}: {key} is {value:.6g}, which no model has", "copy or download the folder again"
            )


def _is_sane(key: str, value: float, areas: bool) -> bool:
    if key in _AT_LEAST_ONE and value < 1:
        return False
    if key.endswith("layers") or key == "depth":
        return value <= LAYERS
    if key == "vocab_size":
        return value <= WORDS
    if key.endswith("_edge"):
        return value <= (AREA if areas else SIDE)
    if key in ("height", "width", "image_size", "patch_size"):
        return value <= SIDE
    return (
        not key.endswith(("_size", "_dim", "_heads", "_seq_length", "_seq_len", "_tokens")) or value <= WIDTH
    )


@contextlib.contextmanager
def _named(place: Path) -> Iterator[None]:
    try:
        yield
    except (LvspecError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(str(place), place, error) from error


def unreadable(name: str, folder: Path, error: Exception) -> PairError:
    """What a library raised while it read a folder, as one line of cause and one of remedy."""
    broken = broken_file(folder)
    if broken is not None:
        return PairError(f"{broken} is broken or cut short", "download it again")
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    return PairError(f"{name} cannot be loaded: {cause}", "check or download the folder again")


_REMEDY = "copy or download the folder again"


def chat_text(processor: Any, question: str, system: str | None, name: str = "the model") -> str:
    """The conversation as text, with one placeholder for the video and the assistant's turn opened.

    :param name: what messages call the model.
    :raises PairError: its template does not end or makes too much text, or fails.
    """
    turns = turns_of(question, system)
    if type(processor).apply_chat_template is not ProcessorMixin.apply_chat_template:
        with quiet():  # SmolVLM2's has the library's own template
            return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    values = {**processor.tokenizer.special_tokens_map, "add_generation_prompt": True, "messages": turns}
    try:
        return rendered(_template_of(processor, name), json.dumps(values, default=str))
    except _NoEndError:
        raise PairError(
            f"the chat template of {name} does not end, or makes too much text", _REMEDY
        ) from None
    except ValueError as error:
        raise PairError(f"the chat template of {name} fails: {error}", _REMEDY) from None


def turns_of(question: str, system: str | None) -> list[dict[str, Any]]:
    """The conversation as templates take it."""
    turns: list[dict[str, Any]] = []
    if system:
        turns.append({"role": "system", "content": [{"type": "text", "text": system}]})
    turns.append({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]})
    return turns


def check_template(processor: Any, name: str) -> None:
    """
    :param name: what messages call the model.
    :raises PairError: there is no template, it does not end or makes too much text, fails, or has no place
        for a video.
    """
    if chat_text(processor, "What?", None, name).count(processor.video_token) != 1:
        raise PairError(f"the chat template of {name} has no place for a video", "choose another pair")


def _template_of(processor: Any, name: str) -> str:
    found = getattr(processor, "chat_template", None)
    template = found.get("default") if isinstance(found, Mapping) else found
    if not template:
        raise PairError(f"{name} holds no chat_template.jinja", _REMEDY)
    return str(template)


class _NoEndError(Exception):
    """A template took more time, memory or text than any needs."""


@functools.lru_cache(maxsize=16)
def rendered(template: str, values: str) -> str:
    """What a template makes of ``values``, which are JSON. It is rendered where it can be ended.

    :raises ValueError: it fails.
    :raises _NoEndError: it was ended.
    """
    answer = _CHILD.asked(f"[{json.dumps(template)}, {values}]\n".encode())
    if answer is None:
        raise _NoEndError
    if "error" in answer:
        raise ValueError(answer["error"])
    return str(answer["text"])


class _Child:
    """The process that renders: started when it is needed first, and again when a template has ended it."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def asked(self, line: bytes) -> dict[str, str] | None:
        """Its answer, or None where it ended."""
        with self._asking:
            process = self._process = self._process or _started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:  # it has ended
                answer = b""
            if answer.endswith(b"\n"):
                return json.loads(answer)
            self.end()
            return None

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _started() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(Path(__file__).with_name("template_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for its parent
        )
    except OSError as error:
        check_machine(error, "no process can be started for the chat template")
        raise


_CHILD = _Child()
end_child = _CHILD.end


atexit.register(end_child)
