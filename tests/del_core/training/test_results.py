"""Results of the stages: JSON with the keys of finished work directories, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from del_core.audit.intervals import Rate
from del_core.bundle import Guarantees
from del_core.lm.model import ModelError
from del_core.training.config import EncoderConfig, ProjectionConfig, SoftPromptConfig
from del_core.training.results import (
    CalibratedRate,
    EncoderResult,
    ProjectionResult,
    SoftPromptResult,
    VariantResult,
    read_projection_result,
    read_soft_prompt_result,
    read_variant_result,
    write_result,
)

_STAGE = {
    "prompt_tokens", "continuation_tokens", "batch", "steps", "learning_rate", "evaluation_windows", "bf16", "seed",
    "model_sha256", "text_sha256", "dim",
}  # fmt: skip
_PROJECTION = ProjectionResult(ProjectionConfig(dim=8), 8, "m", "t", 10.0, 30.0, 20.0)
_CALIBRATION = CalibratedRate("map", 0.1, Rate(99, 1000))
_ENCODER = EncoderResult(
    EncoderConfig(0.1, decoder="linear"), 8, 2.5, "m", "t", replace(_CALIBRATION, ratio_numerator=1 << 20),
    30.0, 25.0, 0.099,
)  # fmt: skip
_TRAINED = SoftPromptResult(
    "v", SoftPromptConfig(decoder="linear"), 4, 8, 1 << 20, 9.5, 2.5, 3.25, "m", "t", 10.0, 20.0, 40.0, 35.0, 30.0
)
_VARIANT = VariantResult(
    _TRAINED, "general", Guarantees(1e-6, 12.5, None, 9.5), {"nearest": Rate(5, 100), "map": Rate(9, 100)},
    "2026-01-31", _CALIBRATION, {"linear": 3.25, "other": 3.5},
)  # fmt: skip


def _read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_stage_1_keeps_its_file(tmp_path: Path) -> None:
    write_result(tmp_path, _PROJECTION)
    assert read_projection_result(tmp_path) == _PROJECTION
    assert set(_read(tmp_path / "projection.json")) == {*_STAGE, "ppl_clean", "ppl_pca", "ppl_projected"}


def test_the_encoder_keeps_its_file(tmp_path: Path) -> None:
    write_result(tmp_path, _ENCODER)
    assert read_projection_result(tmp_path) == _ENCODER
    found = _read(tmp_path / "projection.json")
    assert set(found) == {
        *_STAGE, "map_asr", "bits", "width", "decoder", "rows", "min_prompt_tokens", "encoder_rate",
        "soft_prompt_rate", "multiplier", "multiplier_rate", "norm_limit", "calibration", "ppl_start", "ppl_trained",
    }  # fmt: skip
    assert found["map_asr"] == 0.099, "the success that was reached, not the target"
    assert set(found["calibration"]) == {"attack", "target", "success", "low", "high", "tokens", "ratio_numerator"}


@pytest.mark.parametrize("reached", [0.0, 1.0])
def test_the_success_that_was_reached_may_be_none_or_all(tmp_path: Path, reached: float) -> None:
    result = replace(_ENCODER, map_asr=reached)
    write_result(tmp_path, result)
    assert read_projection_result(tmp_path) == result


@pytest.mark.parametrize("member", ["map_asr", "calibration"])
def test_a_result_without_the_success_is_refused(tmp_path: Path, member: str) -> None:
    write_result(tmp_path, _ENCODER)
    path = tmp_path / "projection.json"
    path.write_text(json.dumps({key: value for key, value in _read(path).items() if key != member}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{member} must be"):
        read_projection_result(tmp_path)


@pytest.mark.parametrize("calibration", [_CALIBRATION, None])
def test_stage_2_keeps_its_file(tmp_path: Path, calibration: CalibratedRate | None) -> None:
    write_result(tmp_path, _TRAINED)
    assert read_soft_prompt_result(tmp_path) == _TRAINED
    with pytest.raises(ModelError, match="must hold the measured attacks"):
        read_variant_result(tmp_path)
    variant = VariantResult(**{**vars(_VARIANT), "calibration": calibration, "candidates": None})
    write_result(tmp_path, variant)
    assert read_variant_result(tmp_path) == variant
    assert read_soft_prompt_result(tmp_path) == _TRAINED, "mu is among the guarantees"
    found = _read(tmp_path / "variant.json")
    assert set(found) == {
        *_STAGE, "name", "task", "bits", "ratio_numerator", "norm_limit", "held_out_loss", "rows",
        "min_prompt_tokens", "decoder", "width", "layers", "decoder_learning_rate", "patience", "test_windows",
        "train_linear",
        "ppl_clean", "ppl_projected", "ppl_noisy", "ppl_decoder", "ppl_soft_prompt", "guarantees", "audit",
        *(["calibration"] if calibration else []),
    }  # fmt: skip
    assert set(found["audit"]) == {"nearest", "map", "text_sha256", "date"}


def test_losses_of_the_candidates_are_kept(tmp_path: Path) -> None:
    write_result(tmp_path, _VARIANT)
    assert read_variant_result(tmp_path) == _VARIANT
    assert _read(tmp_path / "variant.json")["candidates"] == {"linear": 3.25, "other": 3.5}


@pytest.mark.parametrize("read", [read_projection_result, read_soft_prompt_result, read_variant_result])
def test_an_unfinished_stage_is_named(tmp_path: Path, read) -> None:
    with pytest.raises(ModelError, match="must exist: run `delctl train"):
        read(tmp_path)
