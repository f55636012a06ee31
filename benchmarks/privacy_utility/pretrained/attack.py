"""The strongest attack at a small budget, and the noise at which it recovers a given share.

Of the audit's attacks, ``map`` and ``sequence`` read any noise of known density and train nothing;
both run here, and the stronger one counts. Attacks that train a model (``bidirectional``,
``inverter``, ``combined``) cost more than training the compared methods does and are left out: at
strong noise they may recover more, from every method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.privacy_utility.pretrained.channels import Channel, Released
from benchmarks.privacy_utility.pretrained.plan import AttackBudget
from del_core.audit.attacks.candidates import Candidates, candidates
from del_core.audit.attacks.map import MAP
from del_core.audit.attacks.sequence import SEQUENCE, SequenceConfig, SequenceSearch
from del_core.audit.corpus import Corpus
from del_core.audit.intervals import Rate
from del_core.audit.strongest import log_odds
from del_core.lm.model import BaseLM

__all__ = ["Attacked", "attack", "search"]

_NEAR = 0.015  # a measured success this near to the wanted one ends the search
_LARGEST_STEP = 1.0  # of log strength, between two points of a search


@dataclass(frozen=True)
class Attacked:
    """Both attacks at one strength of noise."""

    map: Rate
    sequence: Rate
    settings: dict[str, Any]
    seconds: float

    @property
    def strongest(self) -> tuple[str, Rate]:
        """Name and success of the stronger attack."""
        found = {MAP: self.map, SEQUENCE: self.sequence}
        name = max(found, key=lambda one: found[one].success)
        return name, found[name]

    def to_json(self) -> dict[str, Any]:
        """Return the rates with their intervals."""
        name, rate = self.strongest
        return {
            "attack": name,
            "strongest": rate.to_json(),
            "map": self.map.to_json(),
            "sequence": self.sequence.to_json(),
            "settings": self.settings,
            "seconds": self.seconds,
        }


def attack(
    lm: BaseLM, log_prior: npt.NDArray[np.float32], channel: Channel, text: Corpus, budget: AttackBudget
) -> Attacked:
    """Attack one release of the prompts of ``text``, with settings tuned on its validation part."""
    began = time.monotonic()
    prior = torch.from_numpy(log_prior)

    def scores(released: Released) -> torch.Tensor:
        return torch.from_numpy(channel.likelihood(released)) + prior

    def considered(released: Released) -> Candidates:
        return candidates(scores, released, budget.candidates, len(log_prior))

    picks = np.linspace(0, len(text.validation) - 1, min(budget.tuning, len(text.validation))).astype(np.int64)
    tuning = text.validation[picks]
    beam = SequenceSearch(lm.model, log_prior, lm.bos_token_id)
    tried, found = considered(channel.release(tuning, 1)), considered(channel.release(text.prompts, 0))
    grid = [SequenceConfig(context_weight=weight) for weight in budget.weights]
    settings = beam.fit(tried, tuning, budget.beams, grid=grid)
    return Attacked(
        Rate.from_hits(found.best() == text.prompts),
        Rate.from_hits(beam.tokens(found, settings) == text.prompts),
        {**asdict(settings), "candidates_hold": round(tried.covered(tuning), 4)},
        round(time.monotonic() - began, 1),
    )


def search(
    measure: Callable[[float], dict[str, Any]],
    known: list[dict[str, Any]],
    target: float,
    budget: AttackBudget,
    first: float,
) -> dict[str, Any]:
    """Return the measured point whose strongest attack is nearest to ``target``.

    Log odds of the success are interpolated, or extrapolated, over the log of the strength. Points
    of other targets, ``known``, serve too; new ones are added to it.

    Args:
        measure: attacks at one strength; a larger one is less noise.
        first: strength to begin with if nothing is known.
    """

    def miss(point: dict[str, Any]) -> float:
        return abs(float(point["strongest"]["success"]) - target)

    for _ in range(budget.points):
        if known and min(map(miss, known)) <= _NEAR:
            break
        known.append(measure(_next(known, target) if known else first))
    return min(known, key=miss)


def _next(known: list[dict[str, Any]], target: float) -> float:
    """Return the strength at which the strongest attack is expected to recover ``target``."""
    points = sorted((math.log(one["strength"]), log_odds(one["strongest"]["success"])) for one in known)
    wanted = log_odds(target)
    if len(points) == 1:
        (at, odds), slope = points[0], 1.0
    else:
        pair = sorted(sorted(points, key=lambda one: abs(one[1] - wanted))[:2])
        (at, odds), (other, higher) = pair
        slope = max(0.2, (higher - odds) / max(other - at, 1e-3))
    step = max(-_LARGEST_STEP, min(_LARGEST_STEP, (wanted - odds) / slope))
    return math.exp(at + step)
