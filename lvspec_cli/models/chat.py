"""A model's chat template: the text it makes of a conversation, and whether it makes one that can be used."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from lvspec_cli.errors import PairError, check_machine
from lvspec_cli.models.processing import quiet

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
            except BrokenPipeError:
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
