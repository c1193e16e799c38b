"""Checks whether a prompt and its answer fit into a model's positions, before anything slow starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lvspec_cli.errors import ContextError

CHARACTERS = 16  # upper bound for a token: a text with more characters a position cannot fit
Role = Literal["target", "draft"]
LEAST_FRAMES = 2  # of a video that is shortened: with fewer it is a picture
_BYTES = 4  # upper bound for a character; a token has at least one byte
TEMPLATE = 256  # upper bound for the tokens that a chat template adds to a text
_ALWAYS_FITS = 2048  # tokens for which every model has room in addition to a video


@dataclass(frozen=True)
class Limit:
    """The positions of a model, and how many of them the answer may use."""

    positions: int
    new_tokens: int = 0
    role: Role = "target"

    @property
    def room(self) -> int:
        """The most tokens of a prompt."""
        return self.positions - self.new_tokens

    def check_text(self, text: str, where: str) -> None:
        """Checks a text by its number of characters, without a tokenizer.

        :param where: the origin of the text for messages: a flag, or a file and a line.
        :raises ContextError: the text cannot fit.
        """
        if len(text) > CHARACTERS * self.positions:
            raise self._too_long(f"{where}: {len(text)} characters")

    def check_tokens(self, count: int, where: str) -> None:
        """
        :raises ContextError: a prompt of ``count`` tokens and the answer together do not fit.
        """
        if count > self.room:
            raise self._too_long(f"{where}: {count} tokens")

    def check_prompt(
        self, count: int, visual: int, frames_that_fit: Callable[[], int | None] = lambda: None
    ) -> None:
        """As ``check_tokens``, for a whole prompt with ``visual`` tokens for the video.

        :param frames_that_fit: called if it is too long: the most frames with which it would not be.
        """
        if count > self.room:
            what = f"the prompt: {count} tokens, {visual} of them of the video"
            frames = frames_that_fit()
            if frames is not None:
                raise self._too_long(what, f"take --frames {frames}", frames)
            raise self._too_long(what, "take a smaller --max-pixels" if visual > count / 2 else "shorten it")

    def may_fit(self, text: str) -> bool:
        """Whether the text certainly fits, whatever its tokens are."""
        return _BYTES * len(text) + self.new_tokens <= self.positions

    def _too_long(self, what: str, remedy: str = "shorten it", frames: int | None = None) -> ContextError:
        answer = f", {self.new_tokens} of them for the answer" if self.new_tokens else ""
        remedies = [remedy]
        remedies += ["lower --max-new-tokens"] if self.new_tokens else []
        remedies += ["take --mode ar, which needs no draft"] if self.role == "draft" else []
        return ContextError(
            f"{what}, and the {self.role} has {self.positions} positions{answer}",
            ", or ".join(remedies),
            frames,
        )


def frames_within(tokens: Callable[[int], int], frames: int, room: int) -> int | None:
    """The most frames with which a prompt has ``room`` tokens at most; None if LEAST_FRAMES are too many.

    Tokens are counted for a few numbers of frames only: each next one is where a straight line, from the
    fewest frames to a number that is too large, reaches ``room``.

    :param tokens: the tokens of a prompt with so many frames: from 1 to ``frames``, never falling.
    """
    count = tokens(frames)
    least = min(LEAST_FRAMES, frames)
    if count <= room:
        return frames
    fewest = tokens(least)
    if fewest > room:
        return None
    while count > room:
        too_many = frames
        frames = least + (frames - least) * (room - fewest) // (count - fewest)
        count = tokens(frames)
    while frames + 1 < too_many and tokens(frames + 1) <= room:  # times as text have different lengths
        frames += 1
    return frames


def positions_of(text_config: Any) -> int:
    """The positions of a language model, including an extension of them (YaRN, for example)."""
    positions = int(text_config.max_position_embeddings)
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    factor = rope.get("factor") or 1.0
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * factor))


def check_texts(
    folders: Mapping[Role, Path], texts: Mapping[str, str], system: str | None, new_tokens: int
) -> None:
    """Checks texts before a model is loaded or a video is decoded.

    :param folders: folders of the models that will read the texts.
    :param texts: each text and its origin, the ``where`` of ``Limit.check_text``.
    :raises ContextError: one of the texts does not fit together with the answer.
    """
    system = system or ""
    longest = max((len((system + text).encode()) for text in texts), default=0)
    if longest + new_tokens + TEMPLATE <= _ALWAYS_FITS:
        return  # before the slow imports
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
