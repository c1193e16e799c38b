"""The rules of a model's generation_config that hold in every mode, and a comparison of vocabularies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvspec_cli.errors import PairError


@dataclass(frozen=True)
class GenerationRules:
    """The part of a generation_config that decides which tokens are generated.

    Temperature, top-k and top-p are not part of it: greedy decoding ignores them, and sampling uses only the
    user's temperature.
    """

    end_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()  # ids that are never generated
    suppressed_first: tuple[int, ...] = ()  # ids that are not generated as the first token
    min_new_tokens: int = 0  # no end token before so many tokens

    def __post_init__(self) -> None:
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")


# Settings that would change greedy answers and are not supported, each with its neutral values.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "min_length": (None, 0),
    "num_beams": (None, 1),
    "watermarking_config": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "stop_strings": (None,),
}


def read_generation(config: Any, source: str) -> GenerationRules:
    """Read a transformers GenerationConfig.

    :raises PairError: a setting is invalid, or would be ignored silently.
    """
    for name, harmless in _UNSUPPORTED.items():
        value = getattr(config, name, None)
        if value not in harmless:
            raise PairError(
                f"generation_config of {source} sets {name} = {value}, which is not supported",
                f"remove {name} from its generation_config.json or choose another pair",
            )
    try:
        return GenerationRules(
            end_ids=_ids(config.eos_token_id),
            repetition_penalty=float(getattr(config, "repetition_penalty", None) or 1.0),
            suppressed=_ids(getattr(config, "suppress_tokens", None)),
            suppressed_first=_ids(getattr(config, "begin_suppress_tokens", None)),
            min_new_tokens=int(getattr(config, "min_new_tokens", None) or 0),
        )
    except (TypeError, ValueError) as error:
        raise PairError(
            f"generation_config of {source}: {error}", "correct its generation_config.json"
        ) from error


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(int(item) for item in value)


def first_difference(first: Mapping[str, int], second: Mapping[str, int]) -> tuple[int, str, str] | None:
    """The lowest id with different tokens in two vocabularies, and these tokens; None if there is none.

    Ids that only one of them has do not count: vocabularies of a family differ in length.
    """
    if first == second:
        return None
    first_tokens = {index: token for token, index in first.items()}
    second_tokens = {index: token for token, index in second.items()}
    for index in sorted(first_tokens.keys() & second_tokens.keys()):
        if first_tokens[index] != second_tokens[index]:
            return index, first_tokens[index], second_tokens[index]
    return None
