"""Whether two tokenizers mean the same by an id."""

from __future__ import annotations

from collections.abc import Mapping


def first_difference(first: Mapping[str, int], second: Mapping[str, int]) -> tuple[int, str, str] | None:
    """The lowest shared id with another token, and the two tokens; None where they agree.

    Ids that only one of them has do not count: vocabularies of a family differ in length.
    """
    if first == second:
        return None
    ours = {index: token for token, index in first.items()}
    theirs = {index: token for token, index in second.items()}
    different = (index for index in sorted(ours.keys() & theirs.keys()) if ours[index] != theirs[index])
    index = next(different, None)
    return None if index is None else (index, ours[index], theirs[index])
