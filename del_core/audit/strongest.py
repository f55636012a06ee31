"""Calibration of the noise to the success of the strongest attack.

An attack that trains a model takes minutes at one level of noise, so it cannot be bisected. The
success of the MAP attack can, and it never exceeds that of the strongest by more than chance: the
noise at which MAP reaches the target is where the search begins. There the distance of both
successes in log odds is measured. It changes slowly with the noise, so the next point is where MAP
is that much below the target; further points interpolate the strongest attack's own log odds over
log r. All points use the same text, of which no part is reported on elsewhere.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from del_core.audit.attacks.base import ATTACKS, AttackSurface, Ids, Target
from del_core.audit.attacks.map import MAP
from del_core.audit.calibration import calibrate
from del_core.audit.intervals import Rate
from del_core.audit.settings import AuditConfig
from del_core.lm.model import BaseLM
from del_core.lm.progress import UNOBSERVED, Observer
from del_core.lm.text import TextError
from del_core.mechanism import Mechanism

STRONGEST = "strongest"
"""Name that stands for the attack that recovers most."""

_LEAST_WINDOWS = 32
_TOLERANCE = 0.01  # of the target, relative to it or absolute: a point this near ends the search


@dataclass(frozen=True)
class StrongestPoint:
    """What was measured at one level of noise: the strongest attack, and MAP beside it."""

    ratio: float
    ratio_numerator: int
    attack: str
    rate: Rate
    map: Rate
    seconds: float = 0.0


@dataclass(frozen=True)
class StrongestCalibration:
    """The mechanism that was found, and all points that were measured, the chosen one last."""

    mechanism: Mechanism
    target: float
    points: tuple[StrongestPoint, ...]

    @property
    def attack(self) -> str:
        """Name of the strongest attack at the mechanism."""
        return self.points[-1].attack

    @property
    def rate(self) -> Rate:
        """Its success there."""
        return self.points[-1].rate


@dataclass(frozen=True, eq=False)
class CalibrationText:
    """Disjoint parts of a text: the attacker's, the one that tunes attacks, and the measured one.

    Attributes:
        train: token ids (tokens,).
        validation, prompts: windows (windows, length).
    """

    train: Ids
    validation: Ids
    prompts: Ids

    @classmethod
    def divide(cls, train: Ids, held_out: Ids, config: AuditConfig) -> CalibrationText:
        """Cut ``held_out`` (tokens,) into windows, 2 of 5 to tune attacks, the others to measure.

        Raises TextError if there are too few.
        """
        windows = len(held_out) // config.length
        if windows < _LEAST_WINDOWS:
            needed = _LEAST_WINDOWS * config.length
            raise TextError(f"text: its validation part has {len(held_out)} tokens; {needed} are needed")
        cut = held_out[: windows * config.length].reshape(windows, config.length)
        # Contiguous parts: near passages of a text are alike, and must not be on both sides.
        edge = 2 * windows // 5
        measured = cut[edge:]
        picks = np.linspace(0, len(measured) - 1, min(config.prompts, len(measured))).astype(np.int64)
        return cls(train, cut[:edge], measured[picks])


@dataclass(eq=False)
class StrongestSearch:
    """The search for one target success; ``observer`` hears of every attack.

    Args:
        bits: bits n of a count.
        tokens: tokens (count,) on which the MAP attack is bisected.
    """

    surface: AttackSurface
    lm: BaseLM
    text: CalibrationText
    config: AuditConfig
    bits: int
    max_level: int
    tokens: Ids
    observer: Observer = UNOBSERVED
    carried: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def run(self, target: float, points: int = 4) -> StrongestCalibration:
        """Return the mechanism at which the strongest attack recovers ``target``.

        Args:
            points: levels of noise at which all attacks are run, at least 2.

        Raises:
            ValueError: the target is out of reach, as :func:`~del_core.audit.calibration.calibrate`
                says, or ``points`` is below 2.
        """
        if points < 2:
            raise ValueError(f"points must be at least 2, got {points}")
        found = [self.measure(self._at_map(target))]
        while len(found) < points and abs(found[-1].rate.success - target) > _TOLERANCE * max(target, 0.2):
            found.append(self.measure(self._next(found, target)))
        best = min(found, key=lambda point: abs(point.rate.success - target))
        ordered = (*(point for point in found if point is not best), best)
        return StrongestCalibration(self._mechanism(best.ratio), target, ordered)

    def measure(self, mechanism: Mechanism) -> StrongestPoint:
        """Run all attacks at one level of noise."""
        prompts, seed = self.text.prompts, 1000 * self.config.seed
        target = Target(
            mechanism=mechanism,
            surface=self.surface,
            counts=self.surface.release(mechanism, prompts, seed),
            lm=self.lm,
            bos_token_id=self.lm.bos_token_id,
            train=self.text.train,
            validation=self.text.validation,
            config=self.config,
            progress=self.observer.progress,
            carried=self.carried,
        )
        rates: dict[str, Rate] = {}
        began = time.perf_counter()
        for name, attack in ATTACKS.items():
            if attack.applies(mechanism):
                self.observer.report(f"r = {mechanism.ratio:.6f}: {name}")
                rates[name] = Rate.from_hits(attack.run(target).token_ids == prompts)
        strongest = max(rates, key=lambda name: rates[name].success)
        return StrongestPoint(
            ratio=mechanism.ratio,
            ratio_numerator=mechanism.ratio_numerator,
            attack=strongest,
            rate=rates[strongest],
            map=rates[MAP],
            seconds=round(time.perf_counter() - began, 1),
        )

    def _mechanism(self, ratio: float) -> Mechanism:
        dim = self.surface.table.shape[1]
        return Mechanism(self.bits, dim, Mechanism.nearest_ratio(ratio), max_level=self.max_level)

    def _at_map(self, success: float) -> Mechanism:
        """Return the mechanism at which the MAP attack recovers ``success``."""
        found = calibrate(
            MAP, success, self.bits, self.surface, self.tokens, max_level=self.max_level, seed=self.config.seed
        )
        return found.mechanism

    def _next(self, found: list[StrongestPoint], target: float) -> Mechanism:
        """Return the mechanism at which the strongest attack is expected to recover ``target``."""
        last = found[-1]
        if len(found) == 1:
            gap = log_odds(last.rate.success) - log_odds(last.map.success)
            lowest = float(np.mean(self.tokens == int(np.argmax(self.surface.log_prior))))
            wanted = 1.0 / (1.0 + math.exp(gap - log_odds(target)))
            # Near blind guessing MAP no longer tells levels apart.
            return self._at_map(max(wanted, 1.15 * lowest)) if wanted < target else self._mechanism(0.8 * last.ratio)
        below = max((one for one in found if one.rate.success <= target), key=lambda one: one.ratio, default=None)
        above = min((one for one in found if one.rate.success > target), key=lambda one: one.ratio, default=None)
        if below is None or above is None:
            one, other = sorted(found, key=lambda point: abs(point.rate.success - target))[:2]
        else:
            one, other = below, above
        rise = log_odds(other.rate.success) - log_odds(one.rate.success)
        slope = (math.log(other.ratio) - math.log(one.ratio)) / rise if abs(rise) > 1e-6 else 0.0
        step = slope * (log_odds(target) - log_odds(one.rate.success))
        ratio = math.exp(math.log(one.ratio) + max(-0.7, min(0.7, step)))
        return self._mechanism(min(ratio, 1.0 - 2.0**-20))


def log_odds(share: float) -> float:
    """Return log(p / (1 - p)), of 1e-6 and 1 - 1e-6 at most."""
    bounded = min(1.0 - 1e-6, max(1e-6, share))
    return math.log(bounded / (1.0 - bounded))
