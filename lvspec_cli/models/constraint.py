"""Constrained answers: a grammar decides which tokens may come next, in every mode; llguidance reads it.

The target's and the draft's logits of all other tokens become minus infinity. So the target's own token is
the best one that is allowed, and nothing else is ever drafted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from lvspec_cli.errors import LvspecError, UsageError
from lvspec_cli.host import install_command
from lvspec_cli.types import Constraint

# As Python's json writes it. With spaces left open, some models never stop writing spaces.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
FREE = 0.5  # share of the vocabulary that is allowed where the text is free, as inside a string


def grammar_of(constraint: Constraint) -> str:
    """The grammar in llguidance's dialect of Lark. A space may come first, as after many chat templates."""
    if constraint.schema is None:
        choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in constraint.choices)
        return f'start: " "? ({choices})'
    schema = json.loads(constraint.schema)
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": _JSON_STYLE}
    return f'start: " "? json\njson: %json {json.dumps(schema, ensure_ascii=False)}'


def check_constraint(constraint: Constraint) -> None:
    """
    :raises UsageError: the library is missing, or the schema is none that it supports.
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise UsageError(
            "--choices and --schema need llguidance, which is not installed",
            install_command("lvspec[constrained]"),
        ) from None
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar_of(constraint))
    if failed:
        reason = str(messages[0]).partition("\n")[0].rpartition("JSON schema: ")[2]
        raise UsageError(f"the schema cannot be used: {reason}", "leave that out of the schema")


def tokens_for_grammars(tokenizer: Any, end_ids: Sequence[int]) -> Any:
    """llguidance's form of a tokenizer. It takes a second for 150,000 tokens."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, eos_token=list(end_ids))


class Guide:
    """Where one answer stands in its grammar: which tokens may come next, and after each drafted one.

    A round adds its drafted tokens one by one (``draft``), then the tokens that the answer got (``take``),
    which removes the drafted ones again.
    """

    def __init__(
        self,
        tokens: Any,
        constraint: Constraint,
        ends: Collection[int],
        *,
        vocabulary: int,
        logits: int,
        device: torch.device,
    ) -> None:
        """
        :param tokens: the target's ``grammar_tokens``.
        :param ends: ids that end an answer.
        :param vocabulary: only ids below it are allowed, which target and draft share.
        :param logits: length of a row of the target's logits.
        """
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokens, grammar_of(constraint), log_level=0)
        self._text_of, self._ends = tokens.decode_bytes, frozenset(ends)
        self._vocabulary, self._logits, self._device = vocabulary, logits, device
        self._has_free_text = constraint.schema is not None
        self._drafted = 0  # of the tokens in the matcher
        self._masks: list[Tensor] = []  # bool (logits,): of the next token, then after each drafted one
        self._free: list[bool] = []  # for each of these positions
        self._add_mask()

    def apply(self, logits: Tensor) -> Tensor:
        """Leave only what may come next: at the last rows of the positions, after what was drafted so far.

        :param logits: (n, vocabulary) of the target or the draft, at the last n positions.
        """
        masks = torch.stack(self._masks[-logits.shape[0] :])[:, : logits.shape[1]]
        return logits.masked_fill(~masks, -torch.inf)

    def draft(self, token: int) -> bool:
        """Add a drafted token. Gives whether another one can follow: not after the end."""
        if token not in self._ends and self._matcher.try_consume_tokens([token]):
            self._drafted += 1
            self._add_mask()
            return True
        # Nothing follows an end. And where the draft had no allowed token at all, the target replaces it.
        self._masks.append(torch.ones(self._logits, dtype=torch.bool, device=self._device))
        self._free.append(False)
        return False

    def bound(self, own: Sequence[int]) -> tuple[bool, ...]:
        """For each drafted token, whether only the target's own token may stand there.

        It may not where the text is free before and after the token, and the target's own token does not
        end the string: in JSON, the words inside a string of any text.

        :param own: the target's own token at each position.
        """
        positions = zip(self._free[:-1], self._free[1:], own, strict=False)
        return tuple(
            not (before and after) or b'"' in self._text_of([token]) for before, after, token in positions
        )

    def take(self, tokens: Sequence[int]) -> None:
        """Replace the drafted tokens by those that the answer got."""
        self._matcher.rollback(self._drafted)
        self._drafted = 0
        self._masks.clear()
        self._free.clear()
        self._matcher.consume_tokens([token for token in tokens if token not in self._ends])
        self._add_mask()

    def _add_mask(self) -> None:
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise LvspecError(f"the schema is too complex here ({reason})", "simplify it")
        share = int.from_bytes(bits, "little").bit_count() / self._vocabulary
        self._free.append(self._has_free_text and share >= FREE)
        # Unpacked on the device: the host sends a bit a token.
        packed = torch.frombuffer(bytearray(bits), dtype=torch.uint8).to(self._device)
        places = torch.arange(8, dtype=torch.uint8, device=self._device)
        allowed = (packed.unsqueeze(1) >> places & 1).flatten()[: self._vocabulary].bool()
        mask = torch.zeros(self._logits, dtype=torch.bool, device=self._device)
        mask[: len(allowed)] = allowed
        self._masks.append(mask)
