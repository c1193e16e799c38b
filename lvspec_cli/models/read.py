"""Checks a model's config, processor, tokenizer and chat template, and reads them with transformers.

A model's folder is not trusted. It must not name code, or sizes that no real model has. Its chat template is
rendered in a child process with limits on time, memory and output.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin

from lvspec_cli.errors import LvspecError, PairError, UsageError, check_machine
from lvspec_cli.models.processing import quiet
from lvspec_cli.pairs.files import broken_file, read_object
from lvspec_cli.types import Thinking, Turn

LOCAL: Final[Mapping[str, Any]] = {"local_files_only": True, "trust_remote_code": False}
LAYERS, WIDTH, WORDS, SIDE, AREA = 1000, 2**20, 2**21, 2**14, 2**31  # upper bounds for any model
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_AT_LEAST_ONE = frozenset(
    {"patch_size", "merge_size", "spatial_merge_size", "temporal_patch_size", "hidden_size", "vocab_size"}
)


def read_config(path: Path) -> Any:
    """A model's config.

    :param path: the model's folder, or the file itself.
    :raises PairError: the config is broken, or has sizes that no real model has.
    """
    file = path if path.is_file() else path / "config.json"
    check_sizes(read_object(file), file)
    with _as_pair_error(path):
        config = AutoConfig.from_pretrained(path, **LOCAL)
        ignore_named_kernels(config)
        return config


def read_processor(folder: Path) -> Any:
    """A model's processor, with its tokenizer and its chat template.

    :raises PairError: one of its files is broken or missing, or has values that no real model has.
    """
    for file in (folder / name for name in _PROCESSORS):
        if file.is_file():
            check_sizes(read_object(file), file)
    with _as_pair_error(folder):
        processor = AutoProcessor.from_pretrained(folder, **LOCAL)
        check_template(processor, str(folder))
        return processor


def read_tokenizer(folder: Path) -> Any:
    """A model's tokenizer alone; raises as ``read_processor`` does."""
    with _as_pair_error(folder):
        return AutoTokenizer.from_pretrained(folder, **LOCAL)


def ignore_named_kernels(config: Any) -> None:
    """Removes names of kernels from a config, because they may be repositories of native code."""
    for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
        if hasattr(config, name):
            setattr(config, name, None)
    for inner in list(vars(config).values()):
        if isinstance(inner, PreTrainedConfig):
            ignore_named_kernels(inner)


def check_sizes(values: Mapping[str, Any], file: Path) -> None:
    """
    :param values: of a config or a processor; they may contain mappings.
    :raises PairError: a number is 0 where it divides, or so large that building a model would not end.
    """
    areas = "merge_size" in values  # such processors limit the area of a frame, others its edge
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
def _as_pair_error(path: Path) -> Iterator[None]:
    """Turns what the libraries raise while they read ``path`` into a PairError."""
    try:
        yield
    except (LvspecError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(str(path), path, error) from error


def unreadable(name: str, folder: Path, error: Exception) -> PairError:
    """The PairError for an exception that a library raised while it read a folder."""
    broken = broken_file(folder)
    if broken is not None:
        return PairError(f"{broken} is broken or cut short", "download it again")
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    return PairError(f"{name} cannot be loaded: {cause}", "check or download the folder again")


_REMEDY = "copy or download the folder again"


def chat_text(
    processor: Any,
    question: str,
    system: str | None,
    name: str = "the model",
    *,
    think: bool = False,
    history: Sequence[Turn] = (),
) -> str:
    """The conversation as text, with one placeholder for the video, up to the start of the assistant's turn.

    :param name: the model's name in messages.
    :param history: the turns before the question.
    :param think: the position of the template's switch, if it has one.
    :raises PairError: its template fails, takes too long or makes too much text.
    """
    turns = turns_of(question, system, history)
    if type(processor).apply_chat_template is not ProcessorMixin.apply_chat_template:
        with quiet():  # SmolVLM2's processor has a template of the library
            return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    values = {**processor.tokenizer.special_tokens_map, "add_generation_prompt": True, "messages": turns}
    values["enable_thinking"] = think  # the switch of templates of models that may think first
    try:
        return rendered(_template_of(processor, name), json.dumps(values, default=str))
    except _NoEndError:
        raise PairError(
            f"the chat template of {name} does not end, or makes too much text", _REMEDY
        ) from None
    except ValueError as error:
        raise PairError(f"the chat template of {name} fails: {error}", _REMEDY) from None


def thinking_of(processor: Any, name: str) -> Thinking:
    """How thoughts stand before an answer.

    :param name: the model's name in messages.
    :raises UsageError: its chat template has no switch for thinking.
    """
    off, on = (chat_text(processor, "What?", None, name, think=think) for think in (False, True))
    if off == on:
        raise UsageError(
            f"the chat template of {name} has no switch for thinking",
            "leave out --think, or take a pair whose target has one, such as Qwen3.5",
        )
    return thinking_between(off, on)


def thinking_between(off: str, on: str) -> Thinking:
    """
    :param off: a conversation with the switch off. Usual templates write empty thoughts in it.
    :param on: the same with the switch on.
    """
    ends = [tag for tag in re.findall(r"</[^<>\s]+>", off) if off.count(tag) > on.count(tag)]
    thinking = Thinking(ends[-1] if ends else "</think>", opened=False)
    return replace(thinking, opened=on.rstrip().endswith(thinking.start))


def turns_of(question: str, system: str | None, history: Sequence[Turn] = ()) -> list[dict[str, Any]]:
    """The conversation in the form that chat templates expect. The video stands in its first question."""

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    turns = [turn("system", system)] if system else []
    first = len(turns)
    for earlier in history:
        turns += [turn("user", earlier.question), turn("assistant", earlier.answer)]
    turns.append(turn("user", question))
    turns[first]["content"].insert(0, {"type": "video"})
    return turns


def check_template(processor: Any, name: str) -> None:
    """
    :param name: the model's name in messages.
    :raises PairError: there is no template, it has no placeholder for a video, or ``chat_text`` fails.
    """
    if chat_text(processor, "What?", None, name).count(processor.video_token) != 1:
        raise PairError(f"the chat template of {name} has no place for a video", "choose another pair")


def _template_of(processor: Any, name: str) -> str:
    template = getattr(processor, "chat_template", None) or getattr(
        processor.tokenizer, "chat_template", None
    )
    template = template.get("default") if isinstance(template, Mapping) else template
    if not template:
        raise PairError(f"{name} holds no chat template", _REMEDY)
    return str(template)


class _NoEndError(Exception):
    """A template exceeded a limit on time, memory or text."""


@functools.lru_cache(maxsize=16)
def rendered(template: str, values: str) -> str:
    """The text of a template with ``values``, which are JSON. The template runs in the child process.

    :raises ValueError: the template fails.
    :raises _NoEndError: the template exceeded a limit.
    """
    answer = _CHILD.render(f"[{json.dumps(template)}, {values}]\n".encode())
    if answer is None:
        raise _NoEndError
    if "error" in answer:
        raise ValueError(answer["error"])
    return str(answer["text"])


class _Child:
    """The process that renders templates. It starts at first use, and again after a template has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, line: bytes) -> dict[str, str] | None:
        """The process's answer to a line, or None if it ended."""
        with self._lock:
            process = self._process = self._process or _start_process()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:  # the process has ended
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


def _start_process() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(Path(__file__).with_name("template_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C goes to its parent only
        )
    except OSError as error:
        check_machine(error, "no process can be started for the chat template")
        raise


_CHILD = _Child()
end_child = _CHILD.end


atexit.register(end_child)
