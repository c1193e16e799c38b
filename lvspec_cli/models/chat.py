"""A model's chat template: the text it makes of a conversation, and whether it makes one that can be used."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

from lvspec_cli.errors import PairError
from lvspec_cli.models.processing import quiet

_SECONDS, _MEMORY, _TEXT = 5, 2**30, 2**20  # that a template may take for a short question
_TOO_MUCH = 3
# A template is a program, and the library's sandbox ends none: it is tried where it can be ended.
_TRIAL = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY},) * 2)
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS},) * 2)
from jinja2.sandbox import ImmutableSandboxedEnvironment
template, values = json.load(sys.stdin)
template = re.sub(r"{{%-?\\s*(end)?generation\\s*-?%}}", "", template)
made = 0
try:
    world = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    world.globals["strftime_now"] = str
    for piece in world.from_string(template).generate(**values):
        made += len(piece)
        if made > {_TEXT}:
            sys.exit({_TOO_MUCH})
except (MemoryError, OverflowError):
    sys.exit({_TOO_MUCH})
except Exception:
    pass  # what else is wrong is found out, and said, where it is rendered in earnest
"""


def chat_text(processor: Any, question: str, system: str | None) -> str:
    """The conversation as text, with one placeholder for the video and the assistant's turn opened."""
    with quiet():
        return processor.apply_chat_template(
            turns_of(question, system), tokenize=False, add_generation_prompt=True
        )


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
    found, remedy = getattr(processor, "chat_template", None), "copy or download the folder again"
    templates = list(found.values()) if isinstance(found, dict) else [found] if found else []
    values = {**processor.tokenizer.special_tokens_map, "add_generation_prompt": True}
    given = json.dumps({**values, "messages": turns_of("What?", None)}, default=str)
    if not all(is_bounded(template, given) for template in templates):
        raise PairError(f"the chat template of {name} does not end, or makes too much text", remedy)
    try:
        text = chat_text(processor, "What?", None)
    except Exception as error:  # its own, or the sandbox's
        if not templates:  # SmolVLM2 has one of its own for that
            raise PairError(f"{name} holds no chat_template.jinja", remedy) from error
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise PairError(f"the chat template of {name} fails: {cause}", remedy) from error
    if text.count(processor.video_token) != 1:
        raise PairError(f"the chat template of {name} has no place for a video", "choose another pair")


@functools.lru_cache
def is_bounded(template: str, values: str) -> bool:
    """Whether a template comes to an end within some seconds and a moderate text.

    :param values: what it is given, as JSON.
    """
    try:
        tried = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-c", _TRIAL],
            input=json.dumps([template, json.loads(values)]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode >= 0 and tried.returncode != _TOO_MUCH
