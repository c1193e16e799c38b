"""How far rounding of float32 moves logits: ``python -m tools.near_ties``.

The bundled pair's target captions clips of its world, and reads each caption again: token by token, in passes
of five, and token by token beside other captions. For each position the distance between the two likeliest
tokens is compared with what it was token by token, in units of the greater logit. ``verify.ROUNDING`` has to
cover it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lvspec_cli.models.load import LoadedPair, load_pair
from lvspec_cli.models.prompt import build_prompts
from lvspec_cli.models.together import Step, run_together
from lvspec_cli.speculation.engine import Session, SharedMemory
from lvspec_cli.speculation.verify import ROUNDING
from lvspec_cli.types import DecodeSettings, Mode, VideoRequest
from lvspec_cli.video.decode import read_clip
from tools.demo_report.drawing import draw_clips
from tools.train_demo.evaluate import PAIR_FOLDER

QUESTION = "Describe this video in detail."
TOGETHER = 8
ROWS = 5  # of a verification of four drafted tokens
ALONE, VERIFIED, BESIDE = "token by token", f"in passes of {ROWS}", f"beside {TOGETHER - 1} others"


@dataclass(frozen=True)
class Moved:
    """How far distances were moved, in units of the greater logit."""

    positions: int
    mean: float
    one_in_1000: float  # more than this
    most: float

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> Moved:
        """
        :param before: the two greatest logits at each position, (positions, 2).
        :param after: those of the same tokens.
        """
        units = before[:, 0].abs().clamp(min=1.0)
        moved = ((after[:, 0] - after[:, 1]) - (before[:, 0] - before[:, 1])).abs() / units
        quantile = moved.sort().values[int(0.999 * (len(moved) - 1))]
        return cls(len(moved), float(moved.mean()), float(quantile), float(moved.max()))


def near_share(greatest: Tensor) -> float:
    """The share of positions at which rounding could decide, by their two greatest logits, (positions, 2)."""
    lead, rounding = greatest[:, 0] - greatest[:, 1], ROUNDING * greatest[:, 0].abs().clamp(min=1.0)
    return float((lead < rounding).float().mean())


@torch.inference_mode()
def greatest_of(pair: LoadedPair, clips: Sequence[Path]) -> Mapping[str, Tensor]:
    """The logits of each position's two likeliest tokens, (positions of all captions, 2), by the way in which
    it was read."""
    shared, wanted = SharedMemory(len(clips)), DecodeSettings(mode=Mode.AR, max_new_tokens=256)
    sessions = [Session.of(pair, shared) for _ in clips]
    captions = []
    for session, path in zip(sessions, clips, strict=True):
        clip = read_clip(VideoRequest(path))
        tokens = session.answer(build_prompts(pair, clip, QUESTION), wanted, is_last=True).run().tokens
        captions.append(torch.tensor(tokens))
    alone = [_read(session, tokens, 1) for session, tokens in zip(sessions, captions, strict=True)]
    verified = [_read(session, tokens, ROWS) for session, tokens in zip(sessions, captions, strict=True)]
    beside = _read_together(sessions, captions)
    likeliest = [logits.topk(2, dim=-1).indices for logits in alone]
    return {
        way: torch.cat([logits.gather(1, two) for logits, two in zip(found, likeliest, strict=True)])
        for way, found in ((ALONE, alone), (VERIFIED, verified), (BESIDE, beside))
    }


def _read(session: Session, tokens: Tensor, rows: int) -> Tensor:
    """Logits behind each token of a caption, in passes of so many of them."""
    session.target.restart()
    pieces = tokens.split(rows)
    return torch.cat([session.target.logits(session.target.forward(piece), len(piece)) for piece in pieces])


def _read_together(sessions: Sequence[Session], captions: Sequence[Tensor]) -> list[Tensor]:
    """Logits behind each token of several captions, of which each step reads one token."""
    found: list[list[Tensor]] = [[] for _ in captions]
    for session in sessions:
        session.target.restart()
    for at in range(max(map(len, captions))):
        going = [index for index, tokens in enumerate(captions) if at < len(tokens)]
        steps = [Step(sessions[index].target, captions[index][at : at + 1]) for index in going]
        for index, passed in zip(going, run_together(steps), strict=True):
            found[index].append(sessions[index].target.logits(passed, 1))
    return [torch.cat(rows) for rows in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    pair = load_pair(PAIR_FOLDER / "target", None, device=given.device, dtype="float32")
    found: dict[str, list[Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = draw_clips(Path(folder), range(1, given.clips + 1), processes=2)
        for first in range(0, len(clips), TOGETHER):
            for way, greatest in greatest_of(pair, clips[first : first + TOGETHER]).items():
                found.setdefault(way, []).append(greatest)
    before = torch.cat(found.pop(ALONE))
    print(f"{len(before)} positions, {near_share(before):.3%} of them near ties ({ROUNDING:g})")
    for way, parts in found.items():
        moved = Moved.of(before, torch.cat(parts))
        print(
            f"{way}: {moved.mean:.1e} on average, 1 in 1,000 over {moved.one_in_1000:.1e}, {moved.most:.1e}"
        )


if __name__ == "__main__":
    main()
