"""Results of the training stages, and their form in ``projection.json`` and ``variant.json``.

The functions that read a result raise ModelError if the stage was not run to its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from del_core._json import write_json_atomic
from del_core.audit.attacks.map import MAP
from del_core.audit.intervals import Rate
from del_core.audit.records import FLAT, OMITTED, fields_from_json, fields_to_json, from_json, to_json
from del_core.bundle import Guarantees
from del_core.lm.model import BaseLM, ModelError
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import EncoderConfig, ProjectionConfig, SoftPromptConfig

_PROJECTION, VARIANT_FILE = "projection.json", "variant.json"


@dataclass(frozen=True)
class CalibratedRate:
    """Success of the attack that a mechanism was calibrated to, and the target."""

    attack: str
    target: float
    rate: Rate = field(metadata=FLAT)
    ratio_numerator: int | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class ProjectionResult:
    """A projection that was trained without noise; test perplexities."""

    config: ProjectionConfig = field(metadata=FLAT)
    dim: int
    model_sha256: str
    text_sha256: str
    ppl_clean: float
    ppl_pca: float  # before training
    ppl_projected: float


@dataclass(frozen=True)
class EncoderResult:
    """An encoder that was trained with noise; validation perplexities at equal success."""

    config: EncoderConfig = field(metadata=FLAT)
    dim: int
    norm_limit: float
    model_sha256: str
    text_sha256: str
    calibration: CalibratedRate
    ppl_start: float
    ppl_trained: float
    map_asr: float  # reached; less than a target where the table gives away less even without noise

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str = "") -> EncoderResult:
        """Read a result. Its member ``map_asr`` is the success that was reached, not the target."""
        calibration = from_json(CalibratedRate, data.get("calibration"), f"{name}.calibration".lstrip("."))
        target = calibration.target
        rest = {key: value for key, value in data.items() if key != "attack_success"}
        found = fields_from_json(cls, {**rest, "map_asr": target}, name)
        if calibration.attack != MAP:
            found = replace(found, config=replace(found.config, map_asr=None, attack_success=target))
        return replace(found, map_asr=from_json(float, data.get("map_asr"), f"{name}.map_asr".lstrip(".")))


@dataclass(frozen=True)
class SoftPromptResult:
    """A decoder and soft prompt that were trained for one mechanism; test perplexities."""

    name: str
    config: SoftPromptConfig = field(metadata=FLAT)
    bits: int
    dim: int
    ratio_numerator: int
    mu: float
    norm_limit: float
    held_out_loss: float
    model_sha256: str
    text_sha256: str
    ppl_clean: float
    ppl_projected: float  # of the projection without noise
    ppl_noisy: float  # of the linear decoder
    ppl_decoder: float  # of the trained decoder without the soft prompt
    ppl_soft_prompt: float
    chat_sha256: str | None = field(default=None, metadata=OMITTED)  # of the conversations, if they were learned
    projection_sha256: str | None = field(default=None, metadata=OMITTED)  # None: trained before it was noted

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism for which stage 2 was trained."""
        return Mechanism(self.bits, self.dim, self.ratio_numerator / 2.0**31, max_level=MAX_LEVEL)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str = "") -> SoftPromptResult:
        """Read the result, or a variant's, whose guarantees hold mu."""
        return fields_from_json(cls, {"mu": data.get("guarantees", {}).get("mu"), **data}, name)


@dataclass(frozen=True)
class VariantResult:
    """A finished variant."""

    trained: SoftPromptResult = field(metadata=FLAT)
    task: str
    guarantees: Guarantees
    recovery: Mapping[str, Rate]  # success of each per-token attack on the test part
    date: str  # of the attacks, ISO
    calibration: CalibratedRate | None = field(default=None, metadata=OMITTED)  # of the noise, if an attack chose it
    candidates: Mapping[str, float] | None = field(default=None, metadata=OMITTED)  # validation loss by decoder kind

    @property
    def audit(self) -> dict[str, Any]:
        """The variant's audit, as the manifest holds it."""
        rates = {name: rate.to_json() for name, rate in self.recovery.items()}
        return {**rates, "text_sha256": self.trained.text_sha256, "date": self.date}

    def to_json(self) -> dict[str, Any]:
        """Return one object with the members of ``trained``, except mu, and the audit."""
        found = fields_to_json(self)
        for name in ("mu", "recovery", "date"):
            del found[name]
        return {**found, "audit": self.audit}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str = "") -> VariantResult:
        """Read what ``to_json`` wrote."""
        audit = data["audit"]
        recovery = {attack: rate for attack, rate in audit.items() if isinstance(rate, dict)}
        return fields_from_json(cls, {**data, "recovery": recovery, "date": audit["date"]}, name)


def perplexities(result: object) -> dict[str, float]:
    """Return the perplexities of a result by name; a variant's are those of what was trained."""
    result = result.trained if isinstance(result, VariantResult) else result
    return {name: value for name, value in vars(result).items() if name.startswith("ppl_")}


def write_result(directory: Path, result: object) -> None:
    """Write a stage's result, its last file: a directory that holds it is complete."""
    projection = isinstance(result, ProjectionResult | EncoderResult)
    write_json_atomic(directory / (_PROJECTION if projection else VARIANT_FILE), to_json(result))


def read_projection_result(directory: Path) -> ProjectionResult | EncoderResult:
    """Read the result of stage 1 with or without noise."""
    data = read_json(directory / _PROJECTION, "projection")
    return from_json(EncoderResult, data) if "norm_limit" in data else from_json(ProjectionResult, data)


def read_soft_prompt_result(directory: Path) -> SoftPromptResult:
    """Read the result of stage 2, of a candidate or of a finished variant."""
    return SoftPromptResult.from_json(read_json(directory / VARIANT_FILE, "soft-prompt"))


def read_variant_result(directory: Path) -> VariantResult:
    """Read the result of a finished variant, whose attacks were measured."""
    data = read_json(directory / VARIANT_FILE, "soft-prompt")
    if "guarantees" not in data:
        raise ModelError(
            f"{directory / VARIANT_FILE} must hold the measured attacks: "
            "run `delctl train soft-prompt` to its end first"
        )
    return VariantResult.from_json(data)


def check_model(directory: Path, found: str, lm: BaseLM) -> None:
    """Raise ModelError unless what ``directory`` holds was trained for ``lm``."""
    if found != lm.checksum:
        raise ModelError(f"model_sha256 in {directory} must be that of the given model, {lm.checksum}, got {found}")


def read_json(path: Path, command: str) -> dict[str, Any]:
    """Read the result that ``delctl train COMMAND`` writes last; ModelError if it is not there."""
    if not path.is_file():
        raise ModelError(f"{path} must exist: run `delctl train {command}` to its end first")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
