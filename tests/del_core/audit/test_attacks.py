"""Attacks beyond one position, on a simple language: each finds what its knowledge allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM

from del_core.audit.attacks.base import AttackSurface, reproducible_bytes
from del_core.audit.attacks.candidates import Candidates, candidates, posterior_scores
from del_core.audit.attacks.inverter import train_inverter
from del_core.audit.attacks.map import averaging_tokens
from del_core.audit.attacks.sequence import SequenceConfig, SequenceSearch
from del_core.audit.corpus import KINDS, MIN_PROMPTS, make_corpus, rouge_l
from del_core.audit.settings import InverterConfig
from del_core.lm.text import TextError
from del_core.mechanism import Mechanism
from del_core.mechanism.binomial import TokenLikelihood
from del_core.mechanism.likelihood import map_tokens
from tests.support.language import LENGTH, LOG_PRIOR, VOCABULARY, language, prompts, speaker

DIM, MAX_LEVEL = 6, 127


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return speaker()


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return np.random.default_rng(2).integers(-MAX_LEVEL, MAX_LEVEL + 1, size=(VOCABULARY, DIM), dtype=np.int16)


MECHANISM = Mechanism(2, DIM, Mechanism.nearest_ratio(0.45), max_level=MAX_LEVEL)


def _released(table: np.ndarray, ids: np.ndarray, seed: int) -> np.ndarray:
    return MECHANISM.sample(table[ids.reshape(-1)], reproducible_bytes(seed)).reshape(*ids.shape, DIM)


def _candidates(table: np.ndarray, counts: np.ndarray, most: int = VOCABULARY) -> Candidates:
    return candidates(posterior_scores(TokenLikelihood.of(MECHANISM, table), LOG_PRIOR), counts, most, VOCABULARY)


def test_likelihood_gives_the_map_guess(table: np.ndarray) -> None:
    random = np.random.default_rng(3)
    log_prior = np.log(random.dirichlet(np.ones(VOCABULARY))).astype(np.float32)
    codes = random.integers(0, 4, size=(200, DIM), dtype=np.uint8)
    scores = TokenLikelihood.of(MECHANISM, table)(codes) + log_prior
    guesses = map_tokens(MECHANISM, table, log_prior, codes)
    # Within what float32 rounds, the same maximum.
    assert (scores.max(axis=1) - scores[np.arange(200), guesses] < 1e-4).all()


def test_context_recovers_what_counts_alone_do_not(model: LlamaForCausalLM, table: np.ndarray) -> None:
    ids, tuning = prompts(32, 4), prompts(16, 5)
    codes, search = _released(table, ids, 0), SequenceSearch(model, LOG_PRIOR)
    config = search.fit(_candidates(table, _released(table, tuning, 1)), tuning, beams=8)
    assert config.context_weight > 0
    found = search.tokens(_candidates(table, codes), config)
    alone = map_tokens(MECHANISM, table, LOG_PRIOR, codes.reshape(-1, DIM)).reshape(ids.shape)
    gain = np.mean(found == ids) - np.mean(alone == ids)
    # 512 tokens: the standard error of a difference of proportions is below 0.031; 0.15 is five of
    # them.
    assert gain > 0.15


def test_without_context_the_sequence_attack_is_map(model: LlamaForCausalLM, table: np.ndarray) -> None:
    ids = prompts(8, 6)
    codes = _released(table, ids, 0)
    expected = map_tokens(MECHANISM, table, LOG_PRIOR, codes.reshape(-1, DIM)).reshape(ids.shape)
    for most in (1, 5, VOCABULARY):
        found = SequenceSearch(model, LOG_PRIOR).tokens(_candidates(table, codes, most), SequenceConfig())
        np.testing.assert_array_equal(found, expected)


def test_a_model_of_another_language_is_not_trusted(table: np.ndarray, model: LlamaForCausalLM) -> None:
    """If the model predicts the text badly, the fitted attack does not use it."""
    ids = language(64 * LENGTH, 7)[::-1].copy().reshape(64, LENGTH)
    found = _candidates(table, _released(table, ids, 0))
    config = SequenceSearch(model, LOG_PRIOR).fit(found[:32], ids[:32], beams=8)
    assert config.context_weight == 0.0


def test_the_beam_finds_the_best_sequence(model: LlamaForCausalLM, table: np.ndarray) -> None:
    """With a beam as wide as all sequences, voting equals brute force."""
    weight, first = 0.6, 5
    likelihood = TokenLikelihood.of(MECHANISM, table)
    codes = _released(table, np.array([[3, 4, 5]]), 8)
    config = SequenceConfig(context_weight=weight, voted=True, beams=VOCABULARY**2)
    with pytest.raises(ValueError, match="beams"):
        SequenceConfig(beams=0)
    for bos in (None, first):
        found = SequenceSearch(model, LOG_PRIOR, bos).tokens(_candidates(table, codes[:, :2]), config)
        np.testing.assert_array_equal(found[0], _brute_force(model, likelihood, codes[0, :2], weight, bos))


def _brute_force(model, likelihood, codes, weight, bos) -> np.ndarray:
    """Posterior marginals of two tokens by enumeration."""
    evidence = likelihood(codes).astype(np.float64)
    start = [] if bos is None else [bos]
    pairs = torch.tensor([[*start, v, w] for v in range(VOCABULARY) for w in range(VOCABULARY)])
    logits = model(input_ids=pairs).logits.double().softmax(-1)
    rows = torch.arange(len(pairs))

    def mixed(position: int) -> np.ndarray:
        if position == 0:
            return np.full(len(pairs), 1 / VOCABULARY)
        probability = logits[rows, position - 1, pairs[:, position]].numpy()
        return weight * probability + (1 - weight) / VOCABULARY

    offset = len(start)
    total = np.zeros(len(pairs))
    for index in range(2):
        total += np.log(mixed(offset + index)) + evidence[index][pairs[:, offset + index].numpy()]
    joint = np.exp(total - total.max()).reshape(VOCABULARY, VOCABULARY)
    return np.array([joint.sum(1).argmax(), joint.sum(0).argmax()])


def _windows(random: np.random.Generator, count: int, length: int) -> np.ndarray:
    starts = random.integers(0, 20_000 - length, size=count)
    return language(20_000, 12)[starts[:, None] + np.arange(length)]


def test_the_inverter_starts_as_map_and_learns_context(table: np.ndarray) -> None:
    embeddings = np.random.default_rng(9).standard_normal((VOCABULARY, 32)).astype(np.float32)
    mechanism = Mechanism(2, DIM, Mechanism.nearest_ratio(0.8), max_level=MAX_LEVEL)
    ids, validation = prompts(32, 10), prompts(16, 11)
    codes = mechanism.sample(table[ids.reshape(-1)], reproducible_bytes(0)).reshape(*ids.shape, DIM)
    alone = map_tokens(mechanism, table, LOG_PRIOR, codes.reshape(-1, DIM)).reshape(ids.shape)

    surface = AttackSurface(table, np.eye(32, DIM, dtype=np.float32), np.zeros(32, np.float32), embeddings, LOG_PRIOR)

    def trained(steps: int):
        config = InverterConfig(width=64, layers=1, steps=steps, learning_rate=3e-3, evaluate_every=100)
        return train_inverter(mechanism, surface, _windows, validation, config)

    untrained = trained(0)
    np.testing.assert_array_equal(untrained.tokens(codes), alone)
    assert untrained.cost.validation_loss == untrained.cost.untrained_loss
    learned = trained(300)
    assert learned.loss < learned.cost.untrained_loss - 0.2
    assert learned.cost.parameters == sum(parameter.numel() for parameter in learned.model.parameters())
    assert np.mean(learned.tokens(codes) == ids) > np.mean(alone == ids) + 0.1  # more than three standard errors


def test_resubmission_gives_the_prompt_away(table: np.ndarray) -> None:
    ids = language(600, 13)
    found = averaging_tokens(MECHANISM, table, LOG_PRIOR, ids, (1, 4, 64), reproducible_bytes(0))
    once = map_tokens(MECHANISM, table, LOG_PRIOR, MECHANISM.sample(table[ids], reproducible_bytes(0)))
    np.testing.assert_array_equal(found[1], once)
    success = [np.mean(found[number] == ids) for number in (1, 4, 64)]
    assert success[0] + 0.1 < success[1] < success[2]
    assert success[2] > 0.95
    with pytest.raises(ValueError, match="releases"):
        averaging_tokens(MECHANISM, table, LOG_PRIOR, ids, (0,), reproducible_bytes(0))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    names = ["[unk]", "the", "of", "Ahab", "whale", "zygote", "17", "Call", "."]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _corpus(text: str, tokenizer: Tokenizer, prompts: int = 40):
    return make_corpus(text, tokenizer, prompts=prompts, length=8, vocabulary_size=9)


def test_tokens_are_told_apart_by_the_word_they_belong_to(words: Tokenizer) -> None:
    corpus = _corpus("Call the whale of Ahab 17 whale .\n" * 300 + "the zygote of\n", words)
    kind_of = {words.id_to_token(int(i)): KINDS[k] for i, k in zip(corpus.prompts.flat, corpus.kinds.flat, strict=True)}
    expected = {"the": "stop words", "of": "stop words", "whale": "other words", "Ahab": "names and numbers"}
    expected |= {"17": "names and numbers", ".": "other text", "Call": "other words"}
    assert expected.items() <= kind_of.items()


def test_parts_are_disjoint_and_of_the_promised_shares(words: Tokenizer) -> None:
    corpus = _corpus("Call the whale of Ahab 17 whale .\n" * 1000, words, prompts=10_000)
    assert corpus.tokens == 8000
    assert len(corpus.train) / corpus.tokens == pytest.approx(0.7, abs=0.02)
    assert corpus.validation.size / corpus.tokens == pytest.approx(0.1, abs=0.02)
    assert corpus.prompts.size / corpus.tokens == pytest.approx(0.2, abs=0.02)
    assert len(corpus.train) + corpus.validation.size + corpus.prompts.size <= corpus.tokens


def test_too_little_text_is_refused_without_quoting_it(words: Tokenizer) -> None:
    with pytest.raises(TextError, match=r"^text: \d+ tokens are too few to measure on; about \d+ are needed") as error:
        _corpus("Call the whale of Ahab\n" * MIN_PROMPTS, words)
    assert "Ahab" not in str(error.value)
    with pytest.raises(TextError, match="beyond the bundle's vocabulary of 3 tokens"):
        make_corpus("Call the whale\n" * 900, words, prompts=10, length=8, vocabulary_size=3)


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [("a b c d", "A b x d", 0.75), ("a b", "c d", 0.0), ("a b c", "c b a", 1 / 3), ("", "a", 0.0), ("a a", "a", 2 / 3)],
)
def test_rouge_l(reference: str, candidate: str, expected: float) -> None:
    assert rouge_l(reference, candidate) == pytest.approx(expected)
