"""Sampled texts, their mean coherence, and arithmetic in bfloat16, on the demo's model and text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks.privacy_utility.command import corpus_of
from benchmarks.privacy_utility.writing import RoundedModel, mean_coherence, sampled, sampled_texts
from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.measure import coherence, passage_nll
from del_core.evaluation.view import ClearPrompt
from del_core.lm.text import TokenWindows
from tests.support.demo_passages import PROMPT, lm, tokenizer, windows

__all__ = ["lm", "tokenizer", "windows"]  # fixtures


def test_rough_arithmetic_is_close(lm, windows):
    exact, rough = (
        passage_nll(one, ClearPrompt(lm.embeddings), windows, PROMPT, seed=1)
        for one in (lm, replace(lm, model=RoundedModel(lm.model)))
    )
    assert not np.array_equal(exact, rough)
    assert rough.mean() == pytest.approx(exact.mean(), abs=0.05)


def test_samples_of_a_passage_are_averaged():
    similarity = SentenceSimilarity.installed()
    assert similarity is not None
    true = ["A man is eating food.", "The ship sailed north in the storm.", "Parliament votes on the budget."]
    near = ["Someone has lunch.", "A boat at sea.", "The government spends money."]
    found = mean_coherence(similarity, [text for pair in zip(near, true, strict=True) for text in pair], true)
    single, whole = coherence(similarity, near, true), coherence(similarity, true, true)
    np.testing.assert_allclose(found.coh, (single.coh + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(found.lift, (single.lift + whole.lift) / 2, atol=1e-6)


def test_samples_are_draws_of_the_model(lm, windows):
    """Frequencies of the first token pass a chi-square test against the model's distribution."""
    embedded, draws = lm.embeddings[windows[:1, :4]], 4000
    written = sampled(lm.model, embedded, 2, torch.Generator().manual_seed(3), draws)
    with torch.no_grad():
        expected = lm.model(inputs_embeds=embedded).logits[0, -1].double().softmax(-1) * draws
    seen = torch.bincount(written[:, 0], minlength=len(expected)).double()
    often = expected >= 5
    groups = (
        torch.cat([seen[often], seen[~often].sum()[None]]),
        torch.cat([expected[often], expected[~often].sum()[None]]),
    )
    found = scipy.stats.chisquare(*(group.numpy() for group in groups), sum_check=False)
    assert found.pvalue > 1e-6


def test_samples_of_a_passage_differ_and_are_of_the_seed(lm, tokenizer, windows):
    def drawn(seed: int) -> list[str]:
        view, prompts = ClearPrompt(lm.embeddings), windows[:3, :PROMPT]
        return sampled_texts(lm, view, tokenizer, prompts, 12, seed, 4)

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(drawn(1)) == 12
    assert len(set(drawn(1))) > 6


def test_what_is_between_the_first_windows_is_all_else():
    tokens = torch.arange(107)
    for count in (1, 4, 10, 99):
        corpus = corpus_of(tokens, count, length=10)
        assert corpus.windows.shape == (min(count, 10), 10)
        assert torch.equal(corpus.windows, TokenWindows(tokens, 10, seed=0).first(count))
        assert sorted(torch.cat([corpus.windows.flatten(), corpus.calibration]).tolist()) == list(range(100))
