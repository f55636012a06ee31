"""Stage 1 with noise: it keeps its target, beats the clean encoder and starts stage 2."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from del_core.audit.attacks.map import MAP
from del_core.lm.model import ModelError
from del_core.lm.noise import NoisyTable
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import EncoderConfig, SoftPromptConfig
from del_core.training.encoder import NoisyEncoder, train_encoder
from del_core.training.loop import CheckpointError
from del_core.training.projection import Projection, attack_surface, load_projection
from del_core.training.soft_prompt import SoftPromptRun, load_variant, train_soft_prompt
from del_core.training.start import Stage1, load_stage1
from tests.support.encoders import CONFIG, TARGET, make_encoder, make_lm, untrained


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return make_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    """Directory and result of one trained encoder."""
    out = tmp_path_factory.mktemp("encoder")
    return out, make_encoder(lm, out, "linear")


def test_training_lowers_the_loss_at_equal_attack_success(trained):
    assert trained[1].ppl_trained < trained[1].ppl_start


def test_the_attack_succeeds_as_often_as_was_asked_for(lm, trained):
    out, figures = trained
    summary = json.loads((out / "projection.json").read_text())
    assert figures.map_asr == pytest.approx(TARGET, abs=0.03)
    # And so it does on text that calibration did not see, with the table that is shipped.
    surface = attack_surface(lm, load_projection(out, lm))
    mechanism = Mechanism(4, 16, summary["calibration"]["ratio_numerator"] / 2**31, max_level=MAX_LEVEL)
    tokens = lm.test.numpy()
    assert surface.hits(MAP, mechanism, tokens, seed=11) / len(tokens) == pytest.approx(TARGET, abs=0.08)


def test_a_linear_decoder_trained_along_is_what_stage_2_serves(lm, trained, tmp_path):
    """D and a' are the projection's, scaled with its table; stage 2 trains only the soft prompt."""
    out, figures = trained
    assert figures.ppl_trained < figures.ppl_start
    assert figures.map_asr == pytest.approx(TARGET, abs=0.03)
    stage1 = load_stage1(out, lm)
    projection, start = stage1.projection, stage1.start
    assert torch.equal(start.tensors["weight"], projection.decoder.weight)
    summary = json.loads((out / "projection.json").read_text())
    mechanism = Mechanism(4, 16, summary["calibration"]["ratio_numerator"] / 2**31, max_level=MAX_LEVEL)
    config = SoftPromptConfig(
        min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8, batch=8, steps=1, learning_rate=1e-9,
        evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    figures_2 = train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path, progress=False)
    assert figures_2.ppl_soft_prompt < 1.25 * figures.ppl_trained
    assert figures_2.ppl_decoder == figures_2.ppl_noisy
    variant = load_variant(lm, stage1, tmp_path)
    np.testing.assert_allclose(variant.soft_prompt, start.soft_prompt, atol=1e-6)
    assert not list(variant.decoder.parameters())


def test_the_table_fills_the_clip(lm, trained):
    table = load_projection(trained[0], lm).table(lm.embeddings, MAX_LEVEL)
    assert table.abs().max() == MAX_LEVEL


def test_the_expected_success_in_the_loss_is_the_attacks_rate(lm):
    """E max_v P(v | K) over tokens of the prior is the MAP attack's success by definition."""
    projection = Projection.from_pca(lm.embeddings, lm.unigram(), 16)
    mechanism = Mechanism(4, 16, Mechanism.nearest_ratio(0.3))
    encoder = NoisyEncoder(lm, projection, mechanism, torch.zeros(len(lm.embeddings), 1))
    tokens = torch.multinomial(lm.unigram(), 6000, replacement=True, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y, _, expected = encoder(tokens, torch.Generator().manual_seed(1))
    # The same draws as those of the table that ships; its rounded levels may turn a draw in ten
    # thousand.
    table = NoisyTable(projection.table(lm.embeddings, MAX_LEVEL), mechanism)
    reference = table.sample(tokens, torch.Generator().manual_seed(1))
    assert ((y - reference).abs() > 1e-3).float().mean() < 0.01
    rate = attack_surface(lm, projection).hits(MAP, mechanism, tokens.numpy(), seed=2) / len(tokens)
    margin = 4.891638 * (2 * 0.25 / 6000) ** 0.5  # two-sided alpha = 1e-6, the variance of a share at its largest
    assert abs(float(expected) - rate) < margin


def test_gradients_reach_encoder_and_noise_scale(lm):
    projection = Projection(64, 16, width=8)
    projection.load_state_dict(Projection.from_pca(lm.embeddings, lm.unigram(), 16).state_dict(), strict=False)
    encoder = NoisyEncoder(lm, projection, Mechanism(4, 16, 0.25), torch.randn(len(lm.embeddings), 3))
    y, mean, success = encoder(lm.train[:50], torch.Generator().manual_seed(0))
    (y.square().mean() + mean.square().mean() + success).backward()
    for name in ("encoder.weight", "encoder.bias", "outer.weight"):
        assert projection.get_parameter(name).grad.abs().sum() > 0, name
    assert encoder.log_odds_of_ratio.grad.abs() > 0


def test_a_run_goes_on_only_as_the_same_run(lm, trained):
    with pytest.raises(CheckpointError, match="must be of this run"):
        train_encoder(lm, untrained(lm), trained[0], replace(CONFIG, map_asr=0.2), progress=False)


def test_an_encoder_that_hides_more_than_is_asked_for_trains_on(lm, trained, tmp_path):
    """The table reveals less than the target even with the least noise."""
    out, _ = trained
    start = load_stage1(out, lm)
    with torch.no_grad():
        for parameter in start.projection.encoder_parameters().values():
            parameter.mul_(0.02)  # a table of which nothing can be told apart
    config = replace(CONFIG, map_asr=0.9, steps=2)
    there = train_encoder(lm, start, tmp_path, config, progress=False)
    assert there.map_asr < 0.9
    assert there.ppl_trained <= there.ppl_start
    with pytest.raises(ValueError, match=r"target must be from .* got 0\.99"):
        train_encoder(
            lm, Stage1(Projection.from_pca(torch.zeros_like(lm.embeddings), lm.unigram(), 16)), tmp_path / "other",
            replace(config, map_asr=0.99), progress=False,
        )  # fmt: skip


def test_an_encoder_goes_on_for_another_success_from_what_it_has_learned(lm, trained, tmp_path):
    out, figures = trained
    start, config = load_stage1(out, lm), replace(CONFIG, map_asr=0.25, steps=1)
    there = train_encoder(lm, start, tmp_path, config, progress=False)
    assert there.map_asr == pytest.approx(0.25, abs=0.01)
    # A lower success costs perplexity, but most of what the first encoder has learned is kept.
    assert there.ppl_start < 0.75 * figures.ppl_start + 0.25 * figures.ppl_trained
    assert there.ppl_trained <= there.ppl_start  # it keeps the start where a step makes it worse
    with pytest.raises(ModelError, match="width must be 32, as in the encoder to continue from, got 16"):
        train_encoder(lm, start, tmp_path, replace(config, width=16), progress=False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lookup", r"decoder must be one of linear.*, got lookup"),
        ("absent", r"decoder must be one of linear, lookup.*, got 'absent'; an installed plugin can register others"),
    ],
)
def test_a_kind_of_decoder_that_is_not_trained_along_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(0.5, decoder=kind)


def test_nothing_to_train_is_refused(monkeypatch):
    """Without rows and where no registered kind has parameters of its own, as those that ship."""
    monkeypatch.setattr("del_core.training.config.stage2_kinds", lambda rows: ["linear"] if rows else [])
    with pytest.raises(ValueError, match="rows must be at least 32 with the best decoder, got 0: nothing to train"):
        SoftPromptConfig(decoder="best", rows=0)
    assert SoftPromptConfig(decoder="best").rows == 32


def test_targets_outside_of_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"map_asr must be a number in \(0, 1\), got 1\.5"):
        EncoderConfig(1.5)


@pytest.mark.parametrize("rows", [32, 64])
def test_stage_2_goes_on_from_the_soft_prompt_where_it_is_as_long(lm, trained, tmp_path, rows):
    out, _ = trained
    stage1 = load_stage1(out, lm)
    config = SoftPromptConfig(
        rows=rows, min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8,
        batch=8, steps=1, learning_rate=1e-9, evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    mechanism = Mechanism(4, 16, 0.25, max_level=MAX_LEVEL)
    train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path, progress=False)
    kept = load_variant(lm, stage1, tmp_path).soft_prompt
    expected = stage1.start.soft_prompt if rows == 32 else lm.frequent_rows(rows)
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def test_the_soft_prompt_is_trained_along(lm, trained):
    assert not torch.equal(load_stage1(trained[0], lm).start.soft_prompt, lm.frequent_rows(32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 33}, "rows must be a multiple of 32, got 33"),
        ({"rows": 0}, "rows must be at least 32 with the linear decoder, got 0"),
    ],
)
def test_rows_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SoftPromptConfig(**changes)


def test_rows_of_the_encoder_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rows must be a multiple of 32, got -32"):
        EncoderConfig(0.5, rows=-32)
