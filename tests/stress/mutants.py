"""Damaged files, the same ones for the same seed: what disks, networks and bad programs make of videos."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

_EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80")
Change = Callable[[bytearray, random.Random], None]


def mutants(sources: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` names and contents: the sources in turn, each with one to three changes."""
    dice = random.Random(seed)
    names = sorted(sources)
    for number in range(count):
        name = names[number % len(names)]
        data = bytearray(sources[name])
        changes = dice.sample(_CHANGES, dice.randint(1, 3))
        for change in changes:
            change(data, dice)
        what = "-".join(change.__name__.strip("_") for change in changes)
        yield f"{number:04}-{what}-{name}", bytes(data)


def _place(data: bytearray, dice: random.Random) -> int:
    """Half of them in the header, where a byte does most."""
    return dice.randrange(max(1, min(len(data), 2048) if dice.random() < 0.5 else len(data)))


def _bits(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 20)):
        if data:
            data[_place(data, dice)] ^= 1 << dice.randrange(8)


def _noise(data: bytearray, dice: random.Random) -> None:
    begin, length = _place(data, dice), dice.randint(1, 400)
    data[begin : begin + length] = dice.randbytes(min(length, len(data) - begin))


def _zeros(data: bytearray, dice: random.Random) -> None:
    begin, length = _place(data, dice), dice.randint(1, 4000)
    data[begin : begin + length] = bytes(min(length, len(data) - begin))


def _field(data: bytearray, dice: random.Random) -> None:
    """A number that is as large or as small as it can be."""
    begin, width = _place(data, dice), dice.choice((1, 2, 4, 8))
    data[begin : begin + width] = dice.choice(_EXTREMES) * min(width, len(data) - begin)


def _cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data) + 1) :]


def _lost(data: bytearray, dice: random.Random) -> None:
    begin = _place(data, dice)
    del data[begin : begin + dice.randint(1, 3000)]


def _twice(data: bytearray, dice: random.Random) -> None:
    begin, length = _place(data, dice), dice.randint(1, 3000)
    data[begin:begin] = data[begin : begin + length]


def _swapped(data: bytearray, dice: random.Random) -> None:
    length = dice.randint(1, 1000)
    one, other = _place(data, dice), _place(data, dice)
    piece = bytes(data[one : one + length])
    data[one : one + length] = data[other : other + length]
    data[other : other + length] = piece


_CHANGES: tuple[Change, ...] = (_bits, _noise, _zeros, _field, _cut, _lost, _twice, _swapped)
