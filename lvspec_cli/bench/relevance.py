"""How well each relevance scheme separates fact tokens from filler tokens in the target's own captions.

In the demo world the words that state facts are known. The scores are those of the rule
(``speculation.relevance``), from one teacher-forced pass over the target's caption of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from lvspec_cli import __version__
from lvspec_cli.bench.items import BenchClip
from lvspec_cli.bench.journal import LineFile, digest_of, open_lines
from lvspec_cli.bench.own import now
from lvspec_cli.bench.results import Environment, read_model
from lvspec_cli.demo.scenes import FACT_WORDS
from lvspec_cli.errors import LvspecError, NoInputError
from lvspec_cli.figures.answers import Estimate, FrozenModel
from lvspec_cli.figures.statistics import Point, auc, best_point, mean, point_at, roc, threshold_counts
from lvspec_cli.models.decoder import Decoder, Pass
from lvspec_cli.models.load import LoadedModel, LoadedPair
from lvspec_cli.models.probe import video_attention, video_states
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.output.text import TextStream
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.relevance import LAYERED, VideoStates, relevance_for, video_layers
from lvspec_cli.types import (
    Clip,
    DecodeSettings,
    Generation,
    Mode,
    PairPrompts,
    RelevanceName,
    TokenKind,
)
from lvspec_cli.video.pool import reading

FILE_NAME: Final = "relevance.json"
SCHEMES = (
    RelevanceName.ATTENTION, RelevanceName.SIMILARITY, RelevanceName.LENS,
    RelevanceName.RANK, RelevanceName.LEXICON, RelevanceName.RANDOM,
)  # fmt: skip
CAPTIONS_NAME: Final = "relevance.jsonl"
_TIMES = 20  # timings of a score on each clip


@dataclass(frozen=True, order=True)
class Scheme:
    """One way to score tokens. Without ``head`` the scheme's own; for attention, the mean over heads."""

    relevance: RelevanceName
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        parts = [str(self.relevance)]
        parts += [] if self.layer is None else [f"layer {self.layer}"]
        return ", ".join(parts + ([] if self.head is None else [f"head {self.head}"]))


class SchemeFields(FrozenModel):
    """The fields that identify a scheme, in a part of a file that belongs to one."""

    relevance: RelevanceName
    layer: int | None = None
    head: int | None = None

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.relevance, self.layer, self.head)


class SchemeResult(SchemeFields):
    """How well one scheme separates facts from fillers. Layers and heads count from 0."""

    auc: float  # over the tokens of all captions
    auc_by_clip: Estimate | None  # mean over captions of a caption's AUC
    best: Point  # with the highest F1
    at_threshold: Point  # at the pair's threshold
    roc: tuple[tuple[float, float], ...] = ()  # (false, true) positive rates; not for single heads
    score_us: float | None = None  # median microseconds a round; not for single heads
    prepare_ms: float | None = None  # median milliseconds a clip; not for single heads


class RelevanceResults(FrozenModel):
    """All of ``relevance.json``."""

    schema_: Literal["lvspec.relevance.1"] = Field(default="lvspec.relevance.1", alias="schema")
    version: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    command: str = ""
    environment: Environment
    pair: str
    target: str
    clips: int
    unread: dict[str, str] = Field(default_factory=dict)  # unreadable clips, with the cause
    facts: int  # tokens
    fillers: int
    gamma: int  # a timed round has gamma + 1 rows
    threshold: float  # the pair's
    schemes: tuple[SchemeResult, ...]


def to_json(results: RelevanceResults) -> str:
    """The file's text."""
    return results.model_dump_json(by_alias=True, indent=1) + "\n"


def read_relevance(path: Path) -> RelevanceResults:
    """The results in a file.

    :raises NoInputError: there is no such file.
    :raises UsageError: it has another content.
    """
    remedies = ("run lvspec bench-relevance first", "run lvspec bench-relevance again")
    return read_model(path, RelevanceResults, *remedies)


# --- which tokens are facts ----------------------------------------------------------------

# In "The clip shows a star" the verb states no fact; in "a star shows up" it does.
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
    """Whether each token is part of a word that states a fact.

    None for tokens without a visible character: spaces, special tokens, parts of a character.

    :param pieces: the text that each token adds.
    """
    facts = [match.span() for match in _FACT.finditer("".join(pieces))]
    result: list[bool | None] = []
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece)
        overlaps = any(first < end and start < last for first, last in facts)
        result.append(overlaps if piece.strip() else None)
    return tuple(result)


# --- scores of one caption -----------------------------------------------------------------


class SchemeScores(SchemeFields):
    """One scheme's scores of a caption's tokens. Single heads have no times."""

    scores: tuple[float, ...]  # one per place
    score_us: float | None = None
    prepare_ms: float | None = None


class ScoredCaption(FrozenModel):
    """One caption of the target: which of its tokens are facts, and their scores by every scheme.

    Without the caption's first token, which comes from the prefill and is not judged by a rule. Without
    ``places``, it has no token to score.
    """

    key: str = ""  # a digest of the clip's content, its stretch and the prompt
    places: tuple[int, ...] = ()  # positions in the caption, from 0, of the tokens with a visible character
    facts: tuple[bool, ...] = ()  # one per place
    schemes: tuple[SchemeScores, ...] = ()

    @property
    def by_scheme(self) -> dict[Scheme, SchemeScores]:
        return {row.scheme: row for row in self.schemes}


def score_caption(
    pair: LoadedPair,
    clip: Clip,
    question: str,
    settings: DecodeSettings,
    *,
    system: str | None = None,
    schemes: Sequence[RelevanceName] = SCHEMES,
) -> ScoredCaption:
    """Captions a clip greedily by the target alone and scores the tokens."""
    target_only = replace(pair, draft=None)
    prompts = build_prompts(target_only, clip, question, system=system)
    greedy = replace(settings, mode=Mode.AR, temperature=0.0)
    generation = Session.of(target_only).answer(prompts, greedy).run()
    facts = fact_tokens(_pieces(pair.target, generation))
    positions = tuple(position for position, fact in enumerate(facts) if position and fact is not None)
    if not positions:
        return ScoredCaption()
    with torch.inference_mode():
        caption = _CaptionPass(pair, prompts, generation, settings, schemes)
        scores, prepare_ms = caption.scores()
        score_us = caption.costs()
    return ScoredCaption(
        places=positions,
        facts=tuple(bool(facts[position]) for position in positions),
        schemes=tuple(
            SchemeScores(
                **asdict(scheme),
                scores=tuple(values[position - 1] for position in positions),
                score_us=score_us.get(scheme),
                prepare_ms=prepare_ms.get(scheme),
            )
            for scheme, values in scores.items()
        ),
    )


def _pieces(target: LoadedModel, generation: Generation) -> list[str]:
    """The text that each token adds."""
    stream = TextStream(target.tokenizer.backend_tokenizer)
    texts = []
    for token in generation.tokens:
        pieces = stream.feed((token,), (TokenKind.TARGET,))
        texts.append("".join(piece.text for piece in pieces))
    return texts


class _CaptionPass:
    """A caption read by the target in one pass that records every layer."""

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
        self._prompt = prompts.target
        self._decoder.begin(self._prompt, len(self._tokens))

    def scores(self) -> tuple[dict[Scheme, list[float]], dict[Scheme, float]]:
        """Every scheme's score of each token but the first, and the milliseconds of its preparation."""
        drafted = self._tokens[1:]
        passed = self._decoder.forward(self._tokens[:-1], range(self._decoder.layer_count + 1))
        logits = self._decoder.logits(passed, len(drafted))
        scores: dict[Scheme, list[float]] = {}
        prepare_ms: dict[Scheme, float] = {}
        for scheme in self._all_schemes():
            began = now(self._pair.target.device)
            score = self._score_of(scheme)
            prepare_ms[scheme] = 1e3 * (now(self._pair.target.device) - began)
            scores[scheme] = score(passed, drafted, logits).tolist()
        if RelevanceName.ATTENTION in self._schemes:
            scores |= self._heads(passed, drafted)
        return scores, prepare_ms

    def costs(self) -> dict[Scheme, float]:
        """Microseconds to score one round, at the end of the caption."""
        device = self._pair.target.device
        rows = min(self._settings.greatest_gamma + 1, len(self._tokens) - 1)
        # Run anew: what is rolled back is short where layers keep a state.
        self._decoder.begin(self._prompt, len(self._tokens))
        if len(self._tokens) > 1 + rows:
            self._decoder.forward(self._tokens[: -1 - rows])
        passed = self._decoder.forward(self._tokens[-1 - rows : -1], range(self._decoder.layer_count + 1))
        drafted = self._tokens[-rows:][: max(1, rows - 1)]
        logits = self._decoder.logits(passed, rows)[: len(drafted)]
        microseconds = {}
        for scheme in self._all_schemes():
            score = self._score_of(scheme)
            times = []
            for _ in range(_TIMES):
                began = now(device)
                score(passed, drafted, logits)
                times.append(1e6 * (now(device) - began))
            microseconds[scheme] = median(times)
        return microseconds

    def _heads(self, passed: Pass, drafted: Tensor) -> dict[Scheme, list[float]]:
        return {
            Scheme(RelevanceName.ATTENTION, layer, head): share
            for layer in self._decoder.attention_layers
            for head, share in enumerate(
                video_attention(self._decoder, passed, layer, drafted.shape[0]).tolist()
            )
        }

    def _score_of(self, scheme: Scheme) -> Callable[[Pass, Tensor, Tensor], Tensor]:
        rule = replace(self._settings.rule, relevance=scheme.relevance)
        if scheme.layer is not None:
            rule = replace(rule, layers=(scheme.layer,))
        video = VideoStates(
            {layer: self._video[layer] for layer in video_layers(rule, self._decoder.layer_count)}
        )
        relevance = relevance_for(rule, self._decoder, self._pair.words, video, self._settings.seed)

        def score(passed: Pass, drafted: Tensor, logits: Tensor) -> Tensor:
            scores = relevance.score(passed, drafted, logits)
            assert scores is not None  # all schemes here have scores
            return scores

        return score

    def _all_schemes(self) -> Iterator[Scheme]:
        for name in self._schemes:
            if name is RelevanceName.ATTENTION:
                yield from (Scheme(name, layer) for layer in self._decoder.attention_layers)
            elif name in LAYERED:
                yield from (Scheme(name, layer) for layer in range(self._decoder.layer_count))
            else:
                yield Scheme(name)

    def _needs_video(self) -> bool:
        return any(name in LAYERED for name in self._schemes if name is not RelevanceName.ATTENTION)

    def _watched(self, layers: Sequence[int]) -> list[int]:
        return [layer + 1 for layer in layers] if self._needs_video() else []


# --- all captions --------------------------------------------------------------------------


def evaluate_schemes(scored: Sequence[ScoredCaption], threshold: float) -> tuple[SchemeResult, ...]:
    """The figures of every scheme over all captions, the highest AUC first.

    :param threshold: of the pair's rule.
    :raises NoInputError: the captions contain no fact, or only facts.
    """
    facts = [fact for caption in scored for fact in caption.facts]
    if all(facts) or not any(facts):
        raise NoInputError(
            "the captions hold no word of the demo world's facts"
            if not any(facts)
            else "they hold facts only",
            "use a pair that describes the demo world's clips",
        )
    tables = [caption.by_scheme for caption in scored]
    results = []
    for scheme in tables[0]:
        rows = [table[scheme] for table in tables]
        values = [score for row in rows for score in row.scores]
        whole = auc(values, facts)
        assert whole is not None
        areas = (auc(row.scores, caption.facts) for row, caption in zip(rows, scored, strict=True))
        counts = threshold_counts(values, facts)
        timed = scheme.head is None
        results.append(
            SchemeResult(
                **asdict(scheme),
                auc=whole,
                auc_by_clip=mean([area for area in areas if area is not None]),
                best=best_point(counts),
                at_threshold=point_at(counts, threshold),
                roc=roc(counts) if timed else (),
                score_us=median(row.score_us or 0.0 for row in rows) if timed else None,
                prepare_ms=median(row.prepare_ms or 0.0 for row in rows) if timed else None,
            )
        )
    return tuple(sorted(results, key=lambda result: -result.auc))


def best_by_relevance(results: RelevanceResults) -> tuple[SchemeResult, ...]:
    """The best layer of every relevance, without single heads; the best first."""
    best: dict[RelevanceName, SchemeResult] = {}
    for result in results.schemes:
        if result.head is None:
            best.setdefault(result.relevance, result)
    return tuple(best.values())


# --- measuring: each caption is stored in relevance.jsonl as soon as it is scored ------------


class Header(FrozenModel):
    """Scores can be mixed only if this is equal."""

    schema_: Literal["lvspec.relevance-captions.1"] = Field(
        default="lvspec.relevance-captions.1", alias="schema"
    )
    settings: dict[str, Any]  # as JSON holds them
    environment: Environment


@dataclass(frozen=True)
class MeasuredCaptions:
    """``unread``: unreadable clips by name, with the cause."""

    scored: tuple[ScoredCaption, ...]
    unread: dict[str, str]


def open_captions(
    folder: Path, header: Header, *, redo: bool = False
) -> AbstractContextManager[LineFile[ScoredCaption]]:
    """Opens the folder's file of captions; raises as ``bench.journal.open_journal`` does."""
    return open_lines(folder / CAPTIONS_NAME, header, ScoredCaption, redo=redo)


def measure_relevance(
    pair: LoadedPair,
    clips: Sequence[BenchClip],
    settings: DecodeSettings,
    stored: LineFile[ScoredCaption],
    *,
    system: str | None = None,
    schemes: Sequence[RelevanceName] = SCHEMES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda message: None,
) -> MeasuredCaptions:
    """Captions and scores the clips with known scenes that are not stored yet.

    :raises NoInputError: there are none, or none can be read.
    """
    wanted = [(clip, item) for clip in clips for item in clip.items if item.scene is not None]
    if not wanted:
        raise NoInputError(
            "no clip has the facts of its scene beside it", "name clips that `lvspec demo` wrote, or none"
        )
    captions = {caption.key: caption for caption in stored.stored}
    results: list[ScoredCaption] = []
    unread: dict[str, str] = {}
    with reading() as read:
        for done, (clip, item) in enumerate(wanted, 1):
            key = digest_of([clip.sample, clip.video.start, clip.video.end, item.model_dump(mode="json")])
            if key not in captions:
                try:
                    frames = read(clip.video)
                except LvspecError as error:
                    unread[item.file_name] = error.cause
                    warn(f"{item.file_name}: {error.cause}")
                    continue
                scored = score_caption(pair, frames, item.prompt, settings, system=system, schemes=schemes)
                captions[key] = scored.model_copy(update={"key": key})
                stored.add(captions[key])
            results += [captions[key]] if captions[key].places else []
            progress(done, len(wanted))
    if unread and not results:
        raise NoInputError(
            f"nothing could be measured: {next(iter(unread.values()))}", "name videos that can be read"
        )
    return MeasuredCaptions(tuple(results), unread)
