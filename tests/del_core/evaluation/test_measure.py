"""Likelihood, greedy writing and scores of passages, on the demo's model and text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.privacy_utility.baselines import Finish, GaussianNoise
from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.measure import coherence, continuations, decode_texts, passage_nll, written_texts
from del_core.evaluation.view import ClearPrompt, NoPrompt
from del_core.lm.perplexity import evaluate_perplexity
from tests.support.demo_passages import CONTINUATION, PROMPT, lm, tokenizer, windows

__all__ = ["lm", "tokenizer", "windows"]  # fixtures


def test_likelihood_is_the_models_own(lm, windows):
    nll = passage_nll(lm, ClearPrompt(lm.embeddings), windows, PROMPT, seed=0)
    with torch.no_grad():
        log_probabilities = lm.model(windows).logits.log_softmax(-1)[:, PROMPT - 1 : -1]
    expected = -log_probabilities.gather(2, windows[:, PROMPT:, None])[..., 0].mean(1)
    np.testing.assert_allclose(nll, expected.numpy(), atol=2e-5)
    assert np.exp(nll.mean()) == pytest.approx(
        evaluate_perplexity(lm.model, windows, PROMPT, lambda tokens: lm.embeddings[tokens]), rel=1e-5
    )


def test_prompts_help_and_noise_hurts(lm, windows):
    def mean(view) -> float:
        return float(passage_nll(lm, view, windows, PROMPT, seed=0).mean())

    typical = float(lm.embeddings.norm(dim=1).median())
    noisy = [
        GaussianNoise(lm.embeddings, strength / typical * 16, Finish(2 * typical)) for strength in (4.0, 1.0, 0.25)
    ]
    losses = [mean(ClearPrompt(lm.embeddings)), *map(mean, noisy)]
    assert losses == sorted(losses)
    assert losses[0] < mean(NoPrompt(lm.embeddings, 0))


def test_noise_is_of_the_seed(lm, windows):
    view = GaussianNoise(lm.embeddings, 20.0, Finish())
    first, again, other = (passage_nll(lm, view, windows, PROMPT, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_greedy_writing_is_that_of_transformers(lm, windows):
    embedded = lm.embeddings[windows[:6, :PROMPT]]
    written = continuations(lm.model, embedded, 12)
    expected = lm.model.generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )
    assert torch.equal(written, expected)


def test_texts_are_the_decoded_greedy_continuations(tokenizer, lm, windows):
    ids = torch.tensor([[40, 41, 0, 42], [40, 41, 42, 43]])
    assert decode_texts(tokenizer, ids) == [tokenizer.decode(row) for row in ids.tolist()]
    texts = written_texts(lm, ClearPrompt(lm.embeddings), tokenizer, windows[:3, :PROMPT], 12, seed=0)
    assert texts == decode_texts(tokenizer, continuations(lm.model, lm.embeddings[windows[:3, :PROMPT]], 12))


def test_scores_rank_the_clear_prompt_over_none(lm, tokenizer, windows):
    prompts = windows[:, :PROMPT]
    true = decode_texts(tokenizer, windows[:, PROMPT:])
    clear = written_texts(lm, ClearPrompt(lm.embeddings), tokenizer, prompts, CONTINUATION, seed=0)
    blind = written_texts(lm, NoPrompt(lm.embeddings, 0), tokenizer, prompts, CONTINUATION, seed=0)
    similarity = SentenceSimilarity.installed()
    assert similarity is not None, "the extra `audit` is part of the test environment"
    of_clear, of_blind, of_true = (coherence(similarity, texts, true) for texts in (clear, blind, true))
    assert of_clear.coh.shape == of_clear.lift.shape == (40,)
    assert of_blind.coh.mean() < of_clear.coh.mean() < of_true.coh.mean() == pytest.approx(1.0)
    # Without a prompt every passage gets the same text: whatever its coherence, none of it is of
    # the prompt.
    assert of_blind.lift.mean() == pytest.approx(0.0, abs=1e-6)
    assert 0 < of_clear.lift.mean() < of_true.lift.mean()


def test_lift_is_what_the_pairing_of_texts_is_worth():
    """Against texts of another passage nothing is left."""
    similarity = SentenceSimilarity.installed()
    assert similarity is not None
    true = ["A man is eating food.", "The ship sailed north in the storm.", "Parliament votes on the budget."]
    near = ["Someone has lunch.", "A boat at sea.", "The government spends money."]
    single = coherence(similarity, near, true)
    np.testing.assert_allclose(single.coh, similarity.cosines(near, true), atol=1e-6)
    turned = [coherence(similarity, near[k:] + near[:k], true).coh.mean() for k in (1, 2)]
    assert single.lift.mean() == pytest.approx(single.coh.mean() - np.mean(turned), abs=1e-6)
    for written, truth in ((near, true[:2]), (near[:1], true[:1])):
        with pytest.raises(ValueError, match="written must hold one text for each"):
            coherence(similarity, written, truth)
