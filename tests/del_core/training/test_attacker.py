"""The attacker with the LM, against whom an encoder is trained: his priors, success and level."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from del_core.audit.attacks.map import MAP
from del_core.audit.calibration import TargetError
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.attacker import LANGUAGE_MODEL, ContextAttack, expected_tokens
from del_core.training.config import EncoderConfig
from del_core.training.encoder import NoisyEncoder, train_encoder
from del_core.training.projection import Projection, attack_surface, load_projection
from del_core.training.results import read_projection_result
from delctl.main import cli
from tests.support.encoders import CONFIG, make_lm, untrained

TARGET = 0.45


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tmp_path_factory.mktemp("lm")


@pytest.fixture(scope="module")
def lm(model):
    return make_lm(model)


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    """Directory and result of an encoder for an attacker with the LM."""
    out = tmp_path_factory.mktemp("encoder")
    config = replace(CONFIG, map_asr=None, attack_success=TARGET, steps=60)
    return out, train_encoder(lm, untrained(lm), out, config, progress=False)


def test_the_attacker_expects_what_the_model_expects_after_the_true_tokens(lm):
    tokens = lm.windows(lm.validation, 12, 3)
    expected = expected_tokens(lm, tokens)
    assert expected.shape == (3, 12, len(lm.embeddings))
    torch.testing.assert_close(expected.exp().sum(-1), torch.ones(3, 12))
    alone = lm.model(input_ids=tokens[1:2, :7]).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(expected[1, 7], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(expected[0, 0], lm.unigram().log().float())  # no token is before the first


def test_the_success_in_the_loss_is_that_of_the_attack(lm):
    """E max_v P(v | prefix, K) is the attacker's rate where tokens are as the LM expects them."""
    projection = Projection.from_pca(lm.embeddings, lm.unigram(), 16)
    mechanism = Mechanism(4, 16, Mechanism.nearest_ratio(0.2), max_level=MAX_LEVEL)
    prefixes = lm.windows(lm.validation, 12, 400)
    drawn = torch.Generator().manual_seed(5)
    expected = expected_tokens(lm, prefixes)[:, 8:].flatten(0, 1)
    tokens = torch.multinomial(expected.exp(), 1, generator=drawn)[:, 0]
    encoder = NoisyEncoder(lm, projection, mechanism, None)
    with torch.no_grad():
        _, mean, success = encoder(tokens, torch.Generator().manual_seed(1), expected=expected)
    assert mean is None
    table = projection.table(lm.embeddings, MAX_LEVEL).numpy()
    rate = ContextAttack(tokens.numpy(), expected.numpy()).rate(table)(mechanism, 3)
    assert abs(rate.success - float(success)) < 4.891638 * (2 * 0.25 / len(tokens)) ** 0.5  # alpha = 1e-6


def test_knowing_the_text_before_a_token_never_hurts_the_attacker(lm):
    projection = Projection.from_pca(lm.embeddings, lm.unigram(), 16)
    attack = ContextAttack.prepare(lm, 24)
    table = projection.table(lm.embeddings, MAX_LEVEL).numpy()
    mechanism = Mechanism(4, 16, Mechanism.nearest_ratio(0.1), max_level=MAX_LEVEL)
    alone = attack_surface(lm, projection).hits(MAP, mechanism, attack.tokens, 3) / len(attack.tokens)
    assert attack.rate(table)(mechanism, 3).success > alone


def test_the_attacker_succeeds_as_often_as_was_asked_for(lm, trained):
    out, result = trained
    assert result.calibration.attack == LANGUAGE_MODEL
    assert result.calibration.rate.success == pytest.approx(TARGET, abs=0.03)
    assert result.map_asr < TARGET, "he has the language model beside the counts"
    table = load_projection(out, lm).table(lm.embeddings, MAX_LEVEL).numpy()
    mechanism = Mechanism(4, 16, result.calibration.ratio_numerator / 2**31, max_level=MAX_LEVEL)
    fresh = ContextAttack.prepare(lm, CONFIG.prompt_tokens).rate(table)(mechanism, 99)
    assert fresh.success == pytest.approx(TARGET, abs=0.05)
    assert result.ppl_trained < result.ppl_start


def test_a_result_says_which_attacker_it_is_for(trained):
    out, result = trained
    assert read_projection_result(out) == result
    written = json.loads((out / "projection.json").read_text("utf-8"))
    assert written["attack_success"] == TARGET
    assert written["map_asr"] == result.map_asr


@pytest.mark.parametrize("given", [{}, {"map_asr": 0.1, "attack_success": 0.2}])
def test_exactly_one_attacker_is_named(given):
    with pytest.raises(ValueError, match="either map_asr or attack_success must be given"):
        EncoderConfig(**given)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_success_is_a_share(value):
    with pytest.raises(ValueError, match="attack_success must be"):
        EncoderConfig(attack_success=value)


def test_the_command_takes_the_attackers_success(model, lm, tmp_path):
    (tmp_path / "text.txt").write_text("The old house stood by the sea. " * 400, encoding="utf-8")
    source = ("--model", model, "--text", tmp_path / "text.txt", "--prompt-tokens", 16, "--continuation-tokens", 4)
    short = (*source, "--batch", 2, "--evaluation-windows", 4, "--quiet")
    run = CliRunner().invoke
    arguments = ("train", "projection", *short, "--steps", 1, "--out", tmp_path / "one", "--dim", 8)
    first = run(cli, [str(one) for one in arguments])
    assert first.exit_code == 0, first.output
    behind = ("train", "encoder", *short, "--steps", 2, "--projection", tmp_path / "one", "--out", tmp_path / "two")
    neither = run(cli, [str(one) for one in behind])
    assert neither.exit_code == 2
    assert "either map_asr or attack_success" in neither.output
    beyond = run(cli, [str(one) for one in (*behind, "--attack-success", 0.999)])
    assert isinstance(beyond.exception, TargetError)  # which the program prints as one sentence
    done = run(cli, [str(one) for one in (*behind, "--attack-success", 0.6)])
    assert done.exit_code == 0, done.output
    assert read_projection_result(tmp_path / "two").config.attack_success == 0.6
