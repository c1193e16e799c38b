"""Whether a prompt and its answer fit into a model's positions: found out before anything slow begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lvspec_cli.errors import UsageError

CHARACTERS = 16  # of a token, at most: a text of more for each position cannot fit, and is not even cut up
Role = Literal["target", "draft"]
_BYTES = 4  # of a character, at most; no token is shorter than a byte
_TEMPLATE = 256  # tokens that a chat template puts around a text, at most
_SURELY = 2048  # tokens that every model takes beside a video


@dataclass(frozen=True)
class Limit:
    """How many tokens a model was made for, and how many of them the answer may take."""

    positions: int
    new_tokens: int = 0
    role: Role = "target"

    def check_text(self, text: str, where: str) -> None:
        """By its characters alone.

        :param where: what messages call the text: a flag, or a file and its line.
        :raises UsageError: the text cannot fit.
        """
        if len(text) > CHARACTERS * self.positions:
            raise self._too_long(f"{where}: {len(text)} characters")

    def check_tokens(self, count: int, where: str) -> None:
        """
        :raises UsageError: a prompt of ``count`` tokens and the answer are too many together.
        """
        if count + self.new_tokens > self.positions:
            raise self._too_long(f"{where}: {count} tokens")

    def check_prompt(self, count: int, visual: int) -> None:
        """As ``check_tokens`` of a whole prompt, ``visual`` of whose tokens are the video's."""
        if count + self.new_tokens > self.positions:
            raise self._too_long(
                f"the prompt: {count} tokens, {visual} of them of the video", visual > count / 2
            )

    def may_fit(self, text: str) -> bool:
        """Whether the text fits however it is cut into tokens."""
        return _BYTES * len(text) + self.new_tokens <= self.positions

    def _too_long(self, what: str, by_video: bool = False) -> UsageError:
        answer = f", {self.new_tokens} of them for the answer" if self.new_tokens else ""
        remedies = ["take fewer --frames or --max-pixels" if by_video else "shorten it"]
        remedies += ["lower --max-new-tokens"] if self.new_tokens else []
        remedies += ["take --mode ar, which needs no draft"] if self.role == "draft" else []
        return UsageError(
            f"{what}, and the {self.role} has {self.positions} positions{answer}",
            ", or ".join(remedies),
        )


def positions_of(text_config: Any) -> int:
    """The positions that a language model was made for, with what stretches them (YaRN and the like)."""
    positions = int(text_config.max_position_embeddings)
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    factor = rope.get("factor") or 1.0
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * factor))


def check_texts(
    folders: Mapping[Role, Path], texts: Mapping[str, str], system: str | None, new_tokens: int
) -> None:
    """Texts that are known at the start, before a model is loaded or a video is decoded.

    :param folders: of the models that are to read them.
    :param texts: each text and where it comes from, as ``Limit.check_text`` calls it.
    :raises UsageError: one of them cannot fit, with the answer.
    """
    system = system or ""
    longest = max((len((system + text).encode()) for text in texts), default=0)
    if longest + new_tokens + _TEMPLATE <= _SURELY:
        return  # without what the rest imports
    from lvspec_cli.models.read import read_config, read_tokenizer

    for role, folder in folders.items():
        limit = Limit(positions_of(read_config(folder).get_text_config()), new_tokens, role)
        tokenizer = None
        for text, origin in texts.items():
            where = "--system" if len(system) > len(text) else origin
            limit.check_text(system + text, where)
            if not limit.may_fit(system + text):
                tokenizer = tokenizer or read_tokenizer(folder)
                limit.check_tokens(len(tokenizer(system + text)["input_ids"]), where)
