"""Sampling in exact mode: the same distribution as drawing from the target itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvspec_cli.errors import UsageError
from lvspec_cli.models.load import LoadedPair
from lvspec_cli.speculation.engine import Session
from lvspec_cli.speculation.sampling import accept, distribution
from lvspec_cli.types import DecodeSettings, Mode
from tests.speculation.conftest import decode, generate, prompts_for, scratch, with_generation

TEMPERATURE = 0.9


Cells = dict[tuple[int, int, int], float]


def chi_square(counts: Counter[tuple[int, ...]], chances: Cells, total: int) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells that expect under 5 are put together."""
    rare = [key for key, chance in chances.items() if chance * total < 5]
    cells = [(counts[key], chance * total) for key, chance in chances.items() if key not in set(rare)]
    cells.append((sum(counts[key] for key in rare), sum(chances[key] for key in rare) * total))
    cells = [(seen, expected) for seen, expected in cells if expected > 0]
    return sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1


def limit_of(freedom: int) -> float:
    """The value that chi-square passes with a chance of about 1 in 10,000 (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.72 * part**0.5) ** 3


def chains(seed: int, size: int, steps: int) -> torch.Tensor:
    """Random conditional distributions of a next token: (steps, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(1.5 * torch.randn(steps, size, size, generator=generator), dim=-1)


@pytest.mark.parametrize("draft_size", [4, 3])
def test_proposals_keep_the_targets_joint_distribution(draft_size: int) -> None:
    """Two drafted tokens, judged by chains that differ: the first three tokens are the target's."""
    size, total = 4, 4000
    target, draft = chains(1, size, 3), chains(2, draft_size, 2)
    generator = torch.Generator().manual_seed(3)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(total):
        one = int(torch.multinomial(draft[0, 0], 1, generator=generator))
        two = int(torch.multinomial(draft[1, one], 1, generator=generator))
        proposed = torch.stack((draft[0, 0], draft[1, one]))
        wanted = torch.stack((target[0, 0], target[1, one], target[2, two]))
        count, own = accept(torch.tensor([one, two]), proposed, wanted, generator).tolist()
        tokens = [*[one, two][:count], own]
        while len(tokens) < 3:
            row = target[len(tokens), tokens[-1]]
            tokens.append(int(torch.multinomial(row, 1, generator=generator)))
        counts[tuple(tokens)] += 1
    chances = {
        (a, b, c): float(target[0, 0, a] * target[1, a, b] * target[2, b, c])
        for a in range(size)
        for b in range(size)
        for c in range(size)
    }
    found, freedom = chi_square(counts, chances, total)
    assert freedom > 20
    assert found < limit_of(freedom)


@given(st.integers(0, 500), st.integers(1, 6), st.integers(2, 9))
def test_a_draft_that_is_the_target_is_always_accepted(seed: int, gamma: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.softmax(torch.randn(gamma + 1, size, generator=generator), -1)
    drafted = torch.multinomial(wanted[:gamma], 1, generator=generator).squeeze(1)
    count, own = accept(drafted, wanted[:gamma], wanted, generator).tolist()
    assert count == gamma
    assert 0 <= own < size


def test_what_the_target_excludes_never_comes() -> None:
    generator = torch.Generator().manual_seed(0)
    proposed, wanted = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.4, 0.6], [0.0, 1.0, 0.0]])
    results = [accept(torch.tensor([0]), proposed, wanted, generator).tolist() for _ in range(200)]
    # Rejected, and drawn from what is wanted beyond the proposal: token 2 only.
    assert results == [[0, 2]] * 200


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("mode", "gamma", "penalty"), [(Mode.EXACT, 2, 1.0), (Mode.EXACT, 3, 1.4), (Mode.AR, 1, 1.4)], ids=str
)
def test_engine_samples_as_the_target_would(
    pairs: dict[str, LoadedPair], mode: Mode, gamma: int, penalty: float
) -> None:
    """The whole engine on a vocabulary of four words, against the target's own joint distribution."""
    pair = pairs["qwen2_5_vl"]
    prompts = prompts_for(pair)
    allowed = sorted(set(generate(pair, prompts.target, max_new_tokens=8)))[:4]
    others = tuple(index for index in range(pair.target.vocabulary) if index not in allowed)
    pair = with_generation(pair, suppressed=others, repetition_penalty=penalty, end_ids=())
    seen = set(prompts.target.input_ids[0].tolist())
    # A draft's and a target's logits are far apart; warmth makes all words possible.
    temperature = 6.0

    def chances(before: list[int]) -> dict[int, float]:
        logits = scratch(pair.target, prompts.target, before, logits_to_keep=1).logits[0, 0].clone()
        for token in seen | set(before):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        kept = distribution(logits[allowed], temperature)
        return dict(zip(allowed, kept.tolist(), strict=True))

    joint = {
        (a, b, c): first * second * third
        for a, first in chances([]).items()
        for b, second in chances([a]).items()
        for c, third in chances([a, b]).items()
    }
    session, total, drafted = Session.of(pair), 240, 0
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(total):
        wanted = DecodeSettings(
            mode=mode,
            gamma=gamma,
            max_new_tokens=4,
            temperature=temperature,
            seed=seed,
            repetition_guard=False,
        )
        found, _ = decode(pair, prompts, wanted, session)
        counts[found.tokens[:3]] += 1
        drafted += found.stats.accepted_exact
    statistic, freedom = chi_square(counts, joint, total)
    assert freedom > 6
    assert statistic < limit_of(freedom)
    assert drafted > total / 4 or mode is Mode.AR


def test_a_seed_repeats_its_answer(pair: LoadedPair) -> None:
    prompts = prompts_for(pair)
    wanted = DecodeSettings(mode=Mode.EXACT, gamma=3, max_new_tokens=16, temperature=TEMPERATURE, seed=5)
    one, again, other = (
        decode(pair, prompts, each)[0].tokens for each in (wanted, wanted, replace(wanted, seed=6))
    )
    assert one == again != other


def test_temperature_has_no_rule_in_mode_lvspec(pair: LoadedPair) -> None:
    with pytest.raises(UsageError, match="temperature"):
        decode(pair, prompts_for(pair), DecodeSettings(mode=Mode.LVSPEC, temperature=0.5))
