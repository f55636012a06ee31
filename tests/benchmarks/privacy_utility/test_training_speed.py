"""The speed of training is that of its steps, for every method."""

from __future__ import annotations

import pytest

from benchmarks import training_speed
from benchmarks.training_speed import Method, measure


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "method", [Method("soft prompt", "some", False), Method("text", "coded", False), Method("d", "coded", True)]
)
def test_steps_are_timed(tiny_pretrained, monkeypatch, method, bf16):
    config = {"prompt_tokens": 16, "min_prompt_tokens": 16, "continuation_tokens": 4, "batch": 2}
    monkeypatch.setattr(training_speed, "_CONFIG", training_speed.VariantConfig(**config, evaluation_windows=1))
    seconds = measure(tiny_pretrained.lm, tiny_pretrained.bundle, method, bf16=bf16, steps=3)
    assert len(seconds) == 3
    assert min(seconds) > 0
