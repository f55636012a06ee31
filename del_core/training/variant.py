"""One variant from end to end: calibration of its noise, stage 2, per-token attacks."""

from __future__ import annotations

import datetime
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.attacks.base import AttackSurface, recovery
from del_core.audit.attacks.map import MAP
from del_core.audit.attacks.nearest import NEAREST
from del_core.audit.calibration import Calibration, calibrate, noise_for_epsilon
from del_core.bundle import Guarantees
from del_core.decoders import stage2_kinds
from del_core.lm.model import FrozenLM
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.mechanism.base import DEFAULT_DELTA
from del_core.training.adapter import ADAPTER_FILE
from del_core.training.config import BEST, SoftPromptConfig
from del_core.training.examples import Conversations
from del_core.training.parallel import current_shard
from del_core.training.projection import attack_surface, attacked_count, attacked_tokens, calibration_tokens
from del_core.training.results import CalibratedRate, SoftPromptResult, VariantResult, write_result
from del_core.training.soft_prompt import DECODER_FILE, SOFT_PROMPT_FILE, SoftPromptRun, train_soft_prompt
from del_core.training.start import Stage1


@dataclass(frozen=True)
class Noise:
    """The choice of a variant's noise by exactly one of five targets."""

    bits: int
    map_asr: float | None = None  # found by bisection on text that no result is reported on
    nearest_asr: float | None = None  # likewise
    mu: float | None = None  # by the published formula
    epsilon: float | None = None  # at delta, solved exactly
    ratio: float | None = None  # c / A itself
    delta: float = DEFAULT_DELTA

    def __post_init__(self) -> None:
        targets = {key: getattr(self, key) for key in ("map_asr", "nearest_asr", "mu", "epsilon", "ratio")}
        given = [key for key, target in targets.items() if target is not None]
        if len(given) != 1:
            raise ValueError(f"noise must have exactly one of {', '.join(targets)}, got {', '.join(given) or 'none'}")

    def mechanism(self, surface: AttackSurface, token_ids: np.ndarray) -> tuple[Mechanism, Calibration | None]:
        """Return the mechanism, and the calibration if an attack on ``token_ids`` chose it."""
        dim = surface.table.shape[1]
        if self.mu is not None:
            return Mechanism.from_mu(self.mu, bits=self.bits, dim=dim, max_level=MAX_LEVEL), None
        if self.epsilon is not None:
            return noise_for_epsilon(self.epsilon, self.delta, bits=self.bits, dim=dim), None
        if self.ratio is not None:
            return Mechanism(self.bits, dim, Mechanism.nearest_ratio(self.ratio), max_level=MAX_LEVEL), None
        attack, target = (MAP, self.map_asr) if self.map_asr is not None else (NEAREST, self.nearest_asr)
        assert target is not None
        found = calibrate(attack, target, self.bits, surface, token_ids, max_level=MAX_LEVEL)
        return found.mechanism, found


@dataclass(frozen=True)
class VariantPlan:
    """The name, the task, the noise and the training settings of a variant."""

    name: str
    noise: Noise
    task: str = "general"
    config: SoftPromptConfig = field(default_factory=SoftPromptConfig)


def train_variant(
    lm: FrozenLM,
    stage1: Stage1,
    plan: VariantPlan,
    output: Path,
    *,
    chat: Conversations | None = None,
    start: Path | None = None,
    progress: bool = True,
) -> VariantResult:
    """Train a variant into ``output``: noise from the validation part, attacks on the test part.

    With ``chat``, its answers are learned; calibration and attacks use the LM's text all the same.
    Training starts from the variant in ``start``, if it is given.
    """
    surface = attack_surface(lm, stage1.projection)
    mechanism, calibration = plan.noise.mechanism(surface, calibration_tokens(lm))
    run, losses = SoftPromptRun(plan.name, mechanism, plan.config), None
    if plan.config.decoder == BEST:
        trained, losses = _train_best(lm, stage1, run, output, chat=chat, progress=progress)
    else:
        trained = train_soft_prompt(lm, stage1, run, output, chat=chat, start=start, progress=progress)
    reached = None if calibration is None else CalibratedRate(calibration.attack, calibration.target, calibration.rate)
    result = VariantResult(
        trained=trained,
        task=plan.task,
        guarantees=Guarantees(
            delta=DEFAULT_DELTA,
            epsilon=exact_epsilon(mechanism, DEFAULT_DELTA),
            epsilon_vocabulary=None,
            mu=trained.mu,
        ),
        recovery=recovery(mechanism, surface, attacked_tokens(lm.test, attacked_count(lm))),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        calibration=reached,
        candidates=losses,
    )
    current_shard().once(lambda: write_result(output, result))
    return result


def _train_best(
    lm: FrozenLM, stage1: Stage1, run: SoftPromptRun, output: Path, *, chat: Conversations | None, progress: bool
) -> tuple[SoftPromptResult, dict[str, float]]:
    """Train all kinds, copy the one of least validation loss; return its result and all losses."""
    results: dict[str, SoftPromptResult] = {}
    for kind in stage2_kinds(run.config.rows):
        one = replace(run, config=replace(run.config, decoder=kind))
        place = output / "candidates" / kind
        results[kind] = train_soft_prompt(lm, stage1, one, place, chat=chat, progress=progress)
    losses = {kind: result.held_out_loss for kind, result in results.items()}
    best = min(losses, key=losses.__getitem__)

    def copy() -> None:
        files = (SOFT_PROMPT_FILE, DECODER_FILE, *((ADAPTER_FILE,) if run.config.adapter_rank else ()))
        for file in files:
            shutil.copyfile(output / "candidates" / best / file, output / file)

    current_shard().once(copy)
    return results[best], losses
