"""Measurements made by hand, for tests of what is computed from them."""

from __future__ import annotations

from typing import Any, TypeVar

from lvspec_cli.bench.results import BenchSettings, Environment, Results
from lvspec_cli.figures.answers import BenchMode, Block, Item, Measurement, ModeResult, Profile

T = TypeVar("T")


def known(value: T | None) -> T:
    assert value is not None
    return value


def item(clip: str, number: int = 1, **fields: Any) -> Item:
    return Item(**{"id": f"{clip}#{number}", "file_name": clip, "prompt": "What?", **fields})


def plain(seconds: float, tokens: int = 11, mode: BenchMode = BenchMode.AR, **fields: Any) -> Measurement:
    """An answer token by token: ``seconds`` of decoding, the first token came of the prefill."""
    return Measurement(
        **{
            "mode": mode,
            "text": "a",
            "output_tokens": tokens,
            "decode_s": seconds,
            "prefill_s": 1.0,
            **fields,
        }
    )


def drafted(
    seconds: float,
    lengths: tuple[int, ...],
    mode: BenchMode = BenchMode.EXACT,
    gamma: int | None = 4,
    **fields: Any,
) -> Measurement:
    """An answer in rounds of these accepted lengths, each with a token of the target's own."""
    return Measurement(
        **{
            "mode": mode,
            "gamma": gamma,
            "text": "a",
            "output_tokens": 1 + sum(lengths),
            "rounds": len(lengths),
            "drafted": (gamma or 4) * len(lengths),
            "accepted_exact": sum(lengths) - len(lengths),
            "accepted_lengths": lengths,
            "decode_s": seconds,
            "prefill_s": 1.5,
            **fields,
        }
    )


def block(of: Item, *measurements: Measurement, repeat: int = 0, profiles: tuple[Profile, ...] = ()) -> Block:
    return Block(item=of.id, repeat=repeat, measurements=measurements, profiles=profiles)


ENVIRONMENT = Environment(
    device="cpu",
    device_name="A processor",
    cores=2,
    threads=2,
    target_dtype="float32",
    draft_dtype="float32",
    platform="Linux x86_64",
    versions={"lvspec": "1", "torch": "2"},
)
SETTINGS = BenchSettings(
    pair="tiny",
    target="target",
    draft="draft",
    modes=("ar", "exact"),
    gammas=(4,),
    repeat=1,
    max_new_tokens=40,
    draft_keep=0.1,
    rule={},
    sampling={},
)


def results(modes: tuple[ModeResult, ...], **fields: Any) -> Results:
    return Results(
        **{
            "environment": ENVIRONMENT,
            "settings": SETTINGS,
            "reference": BenchMode.AR,
            "modes": modes,
            "items": (item("one.mp4"),),
            "blocks": (),
            **fields,
        }
    )
