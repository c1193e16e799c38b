"""Is it an anchor? How well each scheme tells fact tokens from filler tokens in the target's own captions.

The demo world knows which words are facts. The scores are those of the rule itself
(``speculation.relevance``), read in one teacher-forced pass over the target's caption of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from lvspec_cli import __version__
from lvspec_cli.bench.own import now
from lvspec_cli.bench.results import Environment
from lvspec_cli.demo.scenes import FACT_WORDS
from lvspec_cli.errors import NoInputError, UsageError
from lvspec_cli.figures.answers import Estimate, Part
from lvspec_cli.figures.intervals import mean
from lvspec_cli.figures.separation import Point, auc, best_point, curve, point_at, roc
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.probe import video_attention, video_states
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.output.text import TextStream
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.relevance import VideoStates, relevance_for, video_layers
from lvspec_cli.text_file import LISTS, read_file
from lvspec_cli.types import (
    Clip,
    DecodeSettings,
    Generation,
    Mode,
    PairPrompts,
    RelevanceName,
    TokenKind,
)

SCHEMA: Final = "lvspec.relevance.1"
FILE_NAME: Final = "relevance.json"
LAYERED = (RelevanceName.ATTENTION, RelevanceName.SIMILARITY, RelevanceName.LENS)
SCHEMES = (*LAYERED, RelevanceName.LEXICON, RelevanceName.RANDOM)
_TIMES = 20  # a score is timed so often on a clip


@dataclass(frozen=True, order=True)
class Scheme:
    """One way to score tokens. ``head`` None: the scheme's own way, for attention the largest over heads."""

    relevance: RelevanceName
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        parts = [str(self.relevance)]
        parts += [] if self.layer is None else [f"layer {self.layer}"]
        return ", ".join(parts + ([] if self.head is None else [f"head {self.head}"]))


class SchemeResult(Part):
    """How well one scheme tells facts from fillers. Layers and heads count from 0."""

    relevance: RelevanceName
    layer: int | None = None
    head: int | None = None
    auc: float  # of all tokens of all captions together
    auc_by_clip: Estimate | None  # mean of the captions' own
    best: Point  # where F1 is highest
    at_threshold: Point  # at the pair's own threshold
    roc: tuple[tuple[float, float], ...] = ()  # fillers taken, facts taken; of single heads none
    score_us: float | None = None  # microseconds a round, median; of single heads none
    prepare_ms: float | None = None  # milliseconds a clip, median

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.relevance, self.layer, self.head)


class RelevanceResults(Part):
    """All of ``relevance.json``."""

    schema_: Literal["lvspec.relevance.1"] = Field(default=SCHEMA, alias="schema")
    version: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    command: str = ""
    environment: Environment
    pair: str
    target: str
    clips: int
    unread: dict[str, str] = Field(default_factory=dict)  # clips that could not be read, with the cause
    facts: int  # tokens
    fillers: int
    gamma: int  # rows of a round when it was timed: gamma + 1
    threshold: float  # the pair's own
    schemes: tuple[SchemeResult, ...]


def to_json(results: RelevanceResults) -> str:
    """The file's text."""
    return results.model_dump_json(by_alias=True, indent=1) + "\n"


def read_relevance(path: Path) -> RelevanceResults:
    """The results in a file.

    :raises NoInputError: there is no such file.
    :raises UsageError: it holds something else.
    """
    try:
        return RelevanceResults.model_validate_json(read_file(path, LISTS))
    except OSError as error:
        raise NoInputError(
            f"{path}: {error.strerror or error}", "run lvspec bench-relevance first"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{path}: {where}: {first['msg']}", "run lvspec bench-relevance again") from error


# --- which tokens are facts ----------------------------------------------------------------

# "The clip shows a star" states nothing by its verb; "a star shows up" does.
_PHRASES = {"shows": "up", "comes": "into", "goes": "out"}
_FACT = re.compile(
    r"\b(?:{})\b".format(
        "|".join(
            rf"{word}(?=\s+{_PHRASES[word]}\b)" if word in _PHRASES else re.escape(word)
            for word in sorted(FACT_WORDS)
        )
    ),
    re.IGNORECASE,
)


def fact_tokens(pieces: Sequence[str]) -> tuple[bool | None, ...]:
    """Which tokens are part of a word that carries a fact, from the text that each adds.

    None for tokens that add no letter: spaces, special tokens, parts of a character.
    """
    text, ends, place = "".join(pieces), [], 0
    for piece in pieces:
        place += len(piece)
        ends.append(place)
    facts = [match.span() for match in _FACT.finditer(text)]
    found: list[bool | None] = []
    for piece, end in zip(pieces, ends, strict=True):
        start = end - len(piece)
        inside = any(first < end and start < last for first, last in facts)
        found.append(inside if piece.strip() else None)
    return tuple(found)


# --- scores of one caption -----------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """One caption of the target: which of its tokens are facts, and what every scheme says of them.

    The caption's first token is left out: prefill gives it, and no rule judges it.
    """

    places: tuple[int, ...]  # in the caption, from 0: tokens without a letter are left out, too
    facts: tuple[bool, ...]  # one a place
    scores: Mapping[Scheme, tuple[float, ...]]  # one a place
    score_us: Mapping[Scheme, float]
    prepare_ms: Mapping[Scheme, float]


def score_caption(
    pair: LoadedPair,
    clip: Clip,
    question: str,
    settings: DecodeSettings,
    *,
    system: str | None = None,
    schemes: Sequence[RelevanceName] = SCHEMES,
) -> Scored | None:
    """Lets the target caption a clip greedily and scores the tokens; None where there are no two tokens."""
    alone = replace(pair, draft=None)
    prompts = build_prompts(alone, clip, question, system=system)
    greedy = replace(settings, mode=Mode.AR, temperature=0.0)
    generation = Session.of(alone).answer(prompts, greedy).run()
    facts = fact_tokens(_pieces(pair.target, generation))
    places = tuple(place for place, fact in enumerate(facts) if place and fact is not None)
    if not places:
        return None
    with torch.inference_mode():
        reading = _Reading(pair, prompts, generation, settings, schemes)
        scores, prepare_ms = reading.scores()
        score_us = reading.costs()
    return Scored(
        places=places,
        facts=tuple(bool(facts[place]) for place in places),
        scores={scheme: tuple(values[place - 1] for place in places) for scheme, values in scores.items()},
        score_us=score_us,
        prepare_ms=prepare_ms,
    )


def _pieces(target: LoadedModel, generation: Generation) -> list[str]:
    """The text that each token adds."""
    stream = TextStream(target.tokenizer.backend_tokenizer)
    found = []
    for token in generation.tokens:
        pieces = stream.feed((token,), (TokenKind.TARGET,))
        found.append("".join(piece.text for piece in pieces))
    return found


class _Reading:
    """A caption read once by the target, every layer watched."""

    def __init__(
        self,
        pair: LoadedPair,
        prompts: PairPrompts,
        generation: Generation,
        settings: DecodeSettings,
        schemes: Sequence[RelevanceName],
    ) -> None:
        self._pair, self._settings, self._schemes = pair, settings, schemes
        self._decoder = Decoder(pair.target)
        layers = range(self._decoder.layer_count)
        device = pair.target.device
        encoded = self._decoder.encode(prompts.target, self._watched(layers))
        self._video = {
            layer: video_states(self._decoder, encoded, layer) for layer in layers if self._needs_video()
        }
        self._tokens = torch.tensor(generation.tokens, dtype=torch.long, device=device)
        self._decoder.begin(prompts.target, len(generation.tokens))

    def scores(self) -> tuple[dict[Scheme, list[float]], dict[Scheme, float]]:
        """Every scheme's score of each token but the first; milliseconds that each took to be made ready."""
        drafted = self._tokens[1:]
        passed = self._decoder.forward(self._tokens[:-1], range(self._decoder.layer_count + 1))
        found: dict[Scheme, list[float]] = {}
        ready: dict[Scheme, float] = {}
        for scheme in self._all():
            began = now(self._pair.target.device)
            score = self._score_of(scheme)
            ready[scheme] = 1e3 * (now(self._pair.target.device) - began)
            found[scheme] = score(passed, drafted).tolist()
        if RelevanceName.ATTENTION in self._schemes:
            found |= self._heads(passed, drafted)
        return found, ready

    def costs(self) -> dict[Scheme, float]:
        """Microseconds that scoring one round takes, at the end of the caption."""
        device = self._pair.target.device
        rows = min(self._settings.greatest_gamma + 1, len(self._tokens) - 1)
        self._decoder.rollback(len(self._tokens) - 1 - rows)
        passed = self._decoder.forward(self._tokens[-1 - rows : -1], range(self._decoder.layer_count + 1))
        drafted = self._tokens[-rows:][: max(1, rows - 1)]
        found = {}
        for scheme in self._all():
            score = self._score_of(scheme)
            times = []
            for _ in range(_TIMES):
                began = now(device)
                score(passed, drafted)
                times.append(1e6 * (now(device) - began))
            found[scheme] = median(times)
        return found

    def _heads(self, passed: Pass, drafted: Tensor) -> dict[Scheme, list[float]]:
        return {
            Scheme(RelevanceName.ATTENTION, layer, head): share
            for layer in range(self._decoder.layer_count)
            for head, share in enumerate(
                video_attention(self._decoder, passed, layer, drafted.shape[0]).tolist()
            )
        }

    def _score_of(self, scheme: Scheme) -> Callable[[Pass, Tensor], Tensor]:
        rule = replace(self._settings.rule, relevance=scheme.relevance)
        if scheme.layer is not None:
            rule = replace(rule, layers=(scheme.layer,))
        video = VideoStates(
            {layer: self._video[layer] for layer in video_layers(rule, self._decoder.layer_count)}
        )
        made = relevance_for(rule, self._decoder, self._pair.words, video, self._settings.seed)

        def score(passed: Pass, drafted: Tensor) -> Tensor:
            scores = made.score(passed, drafted)
            assert scores is not None  # no scheme of ours is without scores
            return scores

        return score

    def _all(self) -> Iterator[Scheme]:
        for name in self._schemes:
            if name in LAYERED:
                yield from (Scheme(name, layer) for layer in range(self._decoder.layer_count))
            else:
                yield Scheme(name)

    def _needs_video(self) -> bool:
        return any(name in self._schemes for name in (RelevanceName.SIMILARITY, RelevanceName.LENS))

    def _watched(self, layers: Sequence[int]) -> list[int]:
        return [layer + 1 for layer in layers] if self._needs_video() else []


# --- all captions --------------------------------------------------------------------------


def separate(scored: Sequence[Scored], threshold: float) -> tuple[SchemeResult, ...]:
    """Every scheme's figures over all captions, the best first.

    :param threshold: of the pair's rule.
    :raises NoInputError: the captions hold no fact, or nothing else.
    """
    facts = [fact for each in scored for fact in each.facts]
    if all(facts) or not any(facts):
        raise NoInputError(
            "the captions hold no word of the demo world's facts"
            if not any(facts)
            else "they hold facts only",
            "use a pair that describes the demo world's clips",
        )
    found = []
    for scheme in scored[0].scores:
        values = [score for each in scored for score in each.scores[scheme]]
        whole = auc(values, facts)
        assert whole is not None
        own = [area for each in scored if (area := auc(each.scores[scheme], each.facts)) is not None]
        line = curve(values, facts)
        timed = scheme.head is None
        found.append(
            SchemeResult(
                **asdict(scheme),
                auc=whole,
                auc_by_clip=mean(own),
                best=best_point(line),
                at_threshold=point_at(line, threshold),
                roc=roc(line) if timed else (),
                score_us=median(each.score_us[scheme] for each in scored) if timed else None,
                prepare_ms=median(each.prepare_ms[scheme] for each in scored) if timed else None,
            )
        )
    return tuple(sorted(found, key=lambda each: -each.auc))


def best_of_each(results: RelevanceResults) -> tuple[SchemeResult, ...]:
    """Of every relevance its best layer, heads taken as the scheme takes them; the best first."""
    found: dict[RelevanceName, SchemeResult] = {}
    for each in results.schemes:
        if each.head is None:
            found.setdefault(each.relevance, each)
    return tuple(found.values())
