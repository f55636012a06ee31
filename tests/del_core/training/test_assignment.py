"""Learned codes: the attacker with the LM is held, and no code is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.mechanism import CategoricalMechanism
from del_core.training.assignment import Prefixes, attacker_success, hide, sample_prefixes
from del_core.training.codes import form_codes, load_codes, quantize
from del_core.training.config import CodesConfig
from delctl.main import cli
from tests.support.texts import ALICE
from tests.support.tiny import make_tiny

TOKENS, WIDTH = 60, 6


def _language(seed: int, count: int = 200) -> tuple[torch.Tensor, torch.Tensor, Prefixes]:
    """Embeddings, frequencies of a Zipf law, and predictions that vary around them."""
    random = np.random.default_rng(seed)
    frequencies = 1.0 / np.arange(1, TOKENS + 1)
    chances = frequencies * random.exponential(size=(count, TOKENS)) ** 2
    chances /= chances.sum(axis=1, keepdims=True)
    order = np.argsort(-chances, axis=1, kind="stable")
    prefixes = Prefixes(order, np.take_along_axis(chances, order, axis=1).astype(np.float32))
    embeddings = torch.from_numpy(random.normal(size=(TOKENS, WIDTH))).float()
    return embeddings, torch.from_numpy(frequencies / frequencies.sum()), prefixes


def _clusters(embeddings: torch.Tensor, weights: torch.Tensor, bits: int) -> torch.Tensor:
    return quantize(embeddings, weights, CodesConfig(epsilon=1.0, bits=bits, rows=0))[0]


def _enumerated(prefixes: Prefixes, codes: np.ndarray, mechanism: CategoricalMechanism) -> float:
    """The success by its definition: every prefix, every released code, every token."""
    other = mechanism.noise_numerators[0] / 2.0**32 / mechanism.codes
    own = 1.0 - (mechanism.codes - 1) * other
    total = 0.0
    for tokens, chances in zip(prefixes.tokens, prefixes.chances, strict=True):
        for released in range(mechanism.codes):
            total += max(
                float(chance) * (own if codes[token] == released else other)
                for token, chance in zip(tokens, chances, strict=True)
            )
    return total / len(prefixes.tokens)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 4), st.floats(0.5, 9.0))
def test_success_is_that_of_the_best_guess_of_every_prefix_and_code(seed, bits, epsilon):
    _, _, prefixes = _language(seed, count=5)
    mechanism = CategoricalMechanism.from_epsilon(epsilon, bits=bits)
    codes = np.random.default_rng(seed).integers(0, mechanism.codes, TOKENS)
    found = attacker_success(prefixes, codes, mechanism)
    assert found == pytest.approx(_enumerated(prefixes, codes, mechanism), rel=1e-5)
    assert found >= prefixes.blind - 1e-6


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 4), st.floats(0.6, 0.95))
def test_learned_codes_hold_the_attacker_and_lose_no_code(seed, bits, share):
    embeddings, weights, prefixes = _language(seed)
    mechanism = CategoricalMechanism.from_epsilon(8.0, bits=bits)
    first = _clusters(embeddings, weights, bits)
    before = attacker_success(prefixes, first[:, 0].numpy(), mechanism)
    target = prefixes.blind + share * (before - prefixes.blind)
    codes, success = hide(first, embeddings, weights, prefixes, mechanism, target)
    assert codes.shape == (TOKENS, 1)
    assert success <= target
    assert success == attacker_success(prefixes, codes[:, 0].numpy(), mechanism)
    assert len(codes.unique()) == len(first.unique()), "a code has lost all its tokens"


def test_learned_codes_say_more_than_one_code_for_all():
    """The least success that is reached still leaves codes that tell tokens apart: no collapse."""
    embeddings, weights, prefixes = _language(3)
    mechanism = CategoricalMechanism.from_epsilon(8.0, bits=3)
    first = _clusters(embeddings, weights, 3)
    target = prefixes.blind + 0.5 * (attacker_success(prefixes, first[:, 0].numpy(), mechanism) - prefixes.blind)
    codes, _ = hide(first, embeddings, weights, prefixes, mechanism, target)
    shares = np.bincount(codes[:, 0].numpy(), weights.numpy(), mechanism.codes)
    assert -sum(share * math.log2(share) for share in shares) > 0.5


def test_codes_that_already_hold_the_attacker_stay():
    embeddings, weights, prefixes = _language(1)
    mechanism = CategoricalMechanism.from_epsilon(8.0, bits=2)
    first = _clusters(embeddings, weights, 2)
    codes, _ = hide(first, embeddings, weights, prefixes, mechanism, 0.999)
    assert torch.equal(codes, first)


def test_a_success_that_no_codes_reach_is_refused_with_what_is_reached():
    embeddings, weights, prefixes = _language(2)
    mechanism = CategoricalMechanism.from_epsilon(8.0, bits=3)
    first = _clusters(embeddings, weights, 3)
    with pytest.raises(ValueError, match="what the LM alone guesses"):
        hide(first, embeddings, weights, prefixes, mechanism, prefixes.blind / 2)
    with pytest.raises(ValueError, match="which is the least that 8 codes"):
        hide(first, embeddings, weights, prefixes, mechanism, prefixes.blind + 1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack_success": 1.0}, r"attack_success must be a number in \(0, 1\), got 1.0"),
        ({"attack_success": 0.4, "columns": 2}, "attack_success goes with one column, got columns 2"),
        ({"frequency_power": 1.5}, r"frequency_power must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_settings_that_are_not_allowed_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        CodesConfig(epsilon=5.0, rows=0, **changes)


def test_the_command_holds_the_attacker_of_the_models_text(tmp_path):
    tiny = make_tiny(tmp_path)
    lm = load_frozen_lm(tiny.model, read_texts([ALICE]))
    mechanism = CategoricalMechanism.from_epsilon(6.0, bits=3)
    config = CodesConfig(epsilon=6.0, bits=3, frequency_power=0.75)
    prefixes = sample_prefixes(lm)
    before = attacker_success(prefixes, form_codes(lm, config, mechanism).codes[:, 0].numpy(), mechanism)
    target = round(prefixes.blind + 0.7 * (before - prefixes.blind), 6)
    sizes = ("--prompt-tokens", 16, "--continuation-tokens", 4, "--batch", 2, "--steps", 1, "--test-windows", 2)
    arguments = ("--model", tiny.model, "--text", ALICE, "--name", "held", "--epsilon", 6, "--bits", 3, *sizes)
    learned = ("--frequency-power", 0.75, "--attack-success", target, "--out", tmp_path / "held")
    result = CliRunner().invoke(cli, ["train", "codes", *map(str, (*arguments, *learned))])
    assert result.exit_code == 0, result.output
    assert "an attacker who knows all tokens before" in result.output
    variant, arrays = load_codes(tmp_path / "held", lm)
    assert variant.lm_prior is not None
    assert variant.lm_prior <= target < before
    assert attacker_success(prefixes, arrays["levels"][:, 0].astype(np.int64), mechanism) == variant.lm_prior
