"""Stage 1 with noise: it keeps its target, beats the clean encoder and starts stage 2."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from del_core.audit.attacks.map import MAP
from del_core.lm.model import ModelError, load_frozen_lm
from del_core.lm.noise import NoisyTable
from del_core.lm.text import read_texts
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.base import BaseConfig, train_base
from del_core.training.config import EncoderConfig, SoftPromptConfig
from del_core.training.encoder import NoisyEncoder, train_encoder
from del_core.training.loop import CheckpointError
from del_core.training.projection import Projection, attack_surface, load_projection
from del_core.training.soft_prompt import SoftPromptRun, load_variant, train_soft_prompt
from del_core.training.start import Stage1, load_stage1
from tests.support.texts import ALICE

_TARGET = 0.3
_CONFIG = EncoderConfig(
    _TARGET, width=32, prompt_tokens=24, continuation_tokens=8, min_prompt_tokens=8, batch=8, steps=300,
    evaluation_windows=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    texts, model = read_texts([ALICE]), tmp_path_factory.mktemp("lm")
    sizes = BaseConfig(
        vocabulary=400, hidden=64, layers=2, heads=2, feed_forward=128, context=64, batch=8, steps=300,
        learning_rate=4e-3,
    )  # fmt: skip
    train_base(texts, model, sizes, progress=False)
    return load_frozen_lm(model, texts, held_out=0.4)  # rates and perplexities of few tokens say little


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    """Directory and result of one trained encoder."""
    out = tmp_path_factory.mktemp("encoder")
    start = Stage1(Projection.from_pca(lm.embeddings, lm.unigram(), 16))
    return out, train_encoder(lm, start, out, _CONFIG, progress=False)


@pytest.fixture(scope="module")
def trained_linear(lm, tmp_path_factory):
    """The same with the paper's decoder trained along."""
    out = tmp_path_factory.mktemp("linear")
    start = Stage1(Projection.from_pca(lm.embeddings, lm.unigram(), 16))
    return out, train_encoder(lm, start, out, replace(_CONFIG, decoder="linear"), progress=False)


def test_training_lowers_the_loss_at_equal_attack_success(trained):
    assert trained[1].ppl_trained < trained[1].ppl_start


def test_the_attack_succeeds_as_often_as_was_asked_for(lm, trained):
    out, figures = trained
    summary = json.loads((out / "projection.json").read_text())
    assert figures.map_asr == pytest.approx(_TARGET, abs=0.03)
    # And so it does on text that calibration did not see, with the table that is shipped.
    surface = attack_surface(lm, load_projection(out, lm))
    mechanism = Mechanism(4, 16, summary["calibration"]["ratio_numerator"] / 2**31, max_level=MAX_LEVEL)
    tokens = lm.test.numpy()
    assert surface.hits(MAP, mechanism, tokens, seed=11) / len(tokens) == pytest.approx(_TARGET, abs=0.08)


def test_a_linear_decoder_trained_along_is_what_stage_2_serves(lm, trained_linear, tmp_path):
    """D and a' are the projection's, scaled with its table; stage 2 trains only the soft prompt."""
    out, figures = trained_linear
    assert figures.ppl_trained < figures.ppl_start
    assert figures.map_asr == pytest.approx(_TARGET, abs=0.03)
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


def test_a_decoder_of_another_kind_than_the_encoders_starts_anew(lm, trained, trained_linear, tmp_path):
    stage1, network = load_stage1(trained_linear[0], lm), load_stage1(trained[0], lm)
    kinds = ("linear", "posterior", "trained", "contextual")
    assert [stage1.start_for(kind) is not None for kind in kinds] == [True, False, False, False]
    assert [network.start_for(kind) is not None for kind in kinds] == [False, False, True, True]
    config = SoftPromptConfig(
        decoder="trained", min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8, batch=8, steps=1,
        learning_rate=1e-9, evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    mechanism = Mechanism(4, 16, 0.25, max_level=MAX_LEVEL)
    figures = train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path, progress=False)
    assert figures.ppl_decoder < 1.02 * figures.ppl_noisy  # a blend that has the linear decoder among it
    np.testing.assert_allclose(load_variant(lm, stage1, tmp_path).soft_prompt, lm.frequent_rows(32), atol=1e-6)


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


@pytest.mark.parametrize(("kind", "elsewhere"), [("trained", False), ("trained", True), ("contextual", False)])
def test_stage_2_starts_where_the_encoder_left_its_decoder(lm, trained, tmp_path, kind, elsewhere, monkeypatch):
    out, _ = trained
    stage1 = load_stage1(out, lm)
    summary = json.loads((out / "projection.json").read_text())
    mechanism = Mechanism(4, 16, summary["calibration"]["ratio_numerator"] / 2**31, max_level=MAX_LEVEL)
    if elsewhere:  # where eigenvectors come with other signs, as they do from another library
        eigh = torch.linalg.eigh
        monkeypatch.setattr(
            torch.linalg, "eigh", lambda matrix: type(eigh(matrix))((*eigh(matrix)[:1], -eigh(matrix)[1]))
        )
    config = SoftPromptConfig(
        decoder=kind, min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8, batch=8, steps=1,
        learning_rate=1e-9, evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    figures = train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path, progress=False)
    # Nothing was learned in one step of no length, so the decoder alone is as good as it was with
    # the encoder.
    assert figures.ppl_decoder < 1.25 * trained[1].ppl_trained
    assert figures.ppl_decoder < figures.ppl_noisy
    variant = load_variant(lm, stage1, tmp_path)
    assert (variant.decoder.kind.name, tuple(variant.soft_prompt.shape)) == (kind, (32, 64))
    assert torch.allclose(variant.decoder.values, stage1.start.tensors["values"], rtol=1e-3, atol=2e-3)  # fp16
    assert variant.noisy.mechanism == mechanism
    y = variant.noisy.sample(lm.test[None, :20], torch.Generator().manual_seed(0))
    assert np.isfinite(variant.decoder(y).numpy()).all()


def test_a_run_goes_on_only_as_the_same_run(lm, trained):
    start = Stage1(Projection.from_pca(lm.embeddings, lm.unigram(), 16))
    with pytest.raises(CheckpointError, match="must be of this run"):
        train_encoder(lm, start, trained[0], replace(_CONFIG, map_asr=0.2), progress=False)


def test_an_encoder_that_hides_more_than_is_asked_for_trains_on(lm, trained, tmp_path):
    """The table reveals less than the target even with the least noise."""
    out, _ = trained
    start = load_stage1(out, lm)
    with torch.no_grad():
        for parameter in start.projection.encoder_parameters().values():
            parameter.mul_(0.02)  # a table of which nothing can be told apart
    config = replace(_CONFIG, map_asr=0.9, steps=2)
    there = train_encoder(lm, start, tmp_path, config, progress=False)
    assert there.map_asr < 0.9
    assert there.ppl_trained <= there.ppl_start
    with pytest.raises(ValueError, match=r"target must be from .* got 0\.99"):
        train_encoder(
            lm, Stage1(Projection.from_pca(torch.zeros_like(lm.embeddings), lm.unigram(), 16)), tmp_path / "other",
            replace(config, map_asr=0.99), progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["trained", "linear"])
def test_an_encoder_goes_on_for_another_success_from_what_it_has_learned(lm, kind, request, tmp_path):
    out, figures = request.getfixturevalue({"trained": "trained", "linear": "trained_linear"}[kind])
    start, config = load_stage1(out, lm), replace(_CONFIG, map_asr=0.25, steps=1, decoder=kind)
    there = train_encoder(lm, start, tmp_path, config, progress=False)
    assert there.map_asr == pytest.approx(0.25, abs=0.01)
    # A lower success costs perplexity, but most of what the first encoder has learned is kept.
    assert there.ppl_start < 0.75 * figures.ppl_start + 0.25 * figures.ppl_trained
    assert there.ppl_trained <= there.ppl_start  # it keeps the start where a step makes it worse
    with pytest.raises(ModelError, match="width must be 32, as in the encoder to continue from, got 16"):
        train_encoder(lm, start, tmp_path, replace(config, width=16), progress=False)


def test_a_kind_of_decoder_that_is_not_trained_along_is_refused():
    with pytest.raises(ValueError, match="decoder must be one of linear, trained, got posterior"):
        EncoderConfig(0.5, decoder="posterior")


def test_targets_outside_of_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"map_asr must be between 0 and 1, got 1\.5"):
        EncoderConfig(1.5)


@pytest.mark.parametrize("rows", [32, 64, 0])
def test_stage_2_goes_on_from_the_soft_prompt_where_it_is_as_long(lm, trained, tmp_path, rows):
    out, _ = trained
    stage1 = load_stage1(out, lm)
    config = SoftPromptConfig(
        rows=rows, decoder="trained", min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8,
        batch=8, steps=1, learning_rate=1e-9, evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    mechanism = Mechanism(4, 16, 0.25, max_level=MAX_LEVEL)
    figures = train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path, progress=False)
    kept = load_variant(lm, stage1, tmp_path).soft_prompt
    expected = stage1.start.soft_prompt if rows == 32 else lm.frequent_rows(rows)
    np.testing.assert_allclose(kept, expected, atol=1e-6)
    if not rows:
        assert figures.ppl_soft_prompt == figures.ppl_decoder


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
