"""The comparison's decoders in training: with an encoder, after it, and chosen among all kinds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.posterior_decoders import COMPARED
from del_core.bundle import load_bundle
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import EncoderConfig, SoftPromptConfig
from del_core.training.encoder import train_encoder
from del_core.training.soft_prompt import SoftPromptRun, load_variant, train_soft_prompt
from del_core.training.start import load_stage1
from delctl.commands.bundle import bundle as bundle_command
from delctl.commands.train import train
from tests.support.encoders import CONFIG, TARGET, make_encoder, make_lm
from tests.support.texts import ALICE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Directory of the language model."""
    return tmp_path_factory.mktemp("lm")


@pytest.fixture(scope="module")
def lm(model):
    return make_lm(model)


@pytest.fixture(scope="module")
def network(lm, tmp_path_factory):
    """Directory and result of an encoder that was trained with a network."""
    out = tmp_path_factory.mktemp("encoder")
    return out, make_encoder(lm, out, "trained")


def test_training_lowers_the_loss_at_the_success_that_was_asked_for(network):
    assert network[1].ppl_trained < network[1].ppl_start
    assert network[1].map_asr == pytest.approx(TARGET, abs=0.03)


def test_a_decoder_of_another_kind_than_the_encoders_starts_anew(lm, network, tmp_path):
    make_encoder(lm, tmp_path / "linear", "linear", steps=2)
    stage1, beside = load_stage1(tmp_path / "linear", lm), load_stage1(network[0], lm)
    kinds = ("linear", "posterior", "trained", "contextual")
    assert [stage1.start_for(kind) is not None for kind in kinds] == [True, False, False, False]
    assert [beside.start_for(kind) is not None for kind in kinds] == [False, False, True, True]
    config = SoftPromptConfig(
        decoder="trained", min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8, batch=8, steps=1,
        learning_rate=1e-9, evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    mechanism = Mechanism(4, 16, 0.25, max_level=MAX_LEVEL)
    figures = train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path / "v", progress=False)
    assert figures.ppl_decoder < 1.02 * figures.ppl_noisy  # a blend that has the linear decoder among it
    np.testing.assert_allclose(load_variant(lm, stage1, tmp_path / "v").soft_prompt, lm.frequent_rows(32), atol=1e-6)


@pytest.mark.parametrize(("kind", "elsewhere"), [("trained", False), ("trained", True), ("contextual", False)])
def test_stage_2_starts_where_the_encoder_left_its_decoder(lm, network, tmp_path, kind, elsewhere, monkeypatch):
    out, _ = network
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
    assert figures.ppl_decoder < 1.25 * network[1].ppl_trained
    assert figures.ppl_decoder < figures.ppl_noisy
    variant = load_variant(lm, stage1, tmp_path)
    assert (variant.decoder.kind.name, tuple(variant.soft_prompt.shape)) == (kind, (32, 64))
    assert torch.allclose(variant.decoder.values, stage1.start.tensors["values"], rtol=1e-3, atol=2e-3)  # fp16
    assert variant.noisy.mechanism == mechanism
    y = variant.noisy.sample(lm.test[None, :20], torch.Generator().manual_seed(0))
    assert np.isfinite(variant.decoder(y).numpy()).all()


def test_an_encoder_goes_on_for_another_success_from_what_it_has_learned(lm, network, tmp_path):
    out, figures = network
    start, config = load_stage1(out, lm), replace(CONFIG, map_asr=0.25, steps=1, decoder="trained")
    there = train_encoder(lm, start, tmp_path, config, progress=False)
    assert there.map_asr == pytest.approx(0.25, abs=0.01)
    # A lower success costs perplexity, but most of what the first encoder has learned is kept.
    assert there.ppl_start < 0.75 * figures.ppl_start + 0.25 * figures.ppl_trained
    assert there.ppl_trained <= there.ppl_start  # it keeps the start where a step makes it worse


def test_a_decoder_is_trained_without_a_soft_prompt(lm, network, tmp_path):
    stage1 = load_stage1(network[0], lm)
    config = SoftPromptConfig(
        rows=0, decoder="trained", min_prompt_tokens=8, prompt_tokens=24, continuation_tokens=8,
        batch=8, steps=1, learning_rate=1e-9, evaluation_windows=128, test_windows=128,
    )  # fmt: skip
    mechanism = Mechanism(4, 16, 0.25, max_level=MAX_LEVEL)
    figures = train_soft_prompt(lm, stage1, SoftPromptRun("v", mechanism, config), tmp_path, progress=False)
    assert load_variant(lm, stage1, tmp_path).soft_prompt.shape == (0, 64)
    assert figures.ppl_soft_prompt == figures.ppl_decoder


def test_a_kind_that_is_not_trained_along_is_refused():
    with pytest.raises(ValueError, match=r"decoder must be one of linear, .*trained.*, got posterior"):
        EncoderConfig(0.5, decoder="posterior")


def _run(command, *arguments: object) -> None:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("rows", [32, 0])
def test_the_best_decoder_is_chosen_on_validation_text_and_bundled(lm, model, network, tmp_path, rows):
    common = ("--model", model, "--projection", network[0])
    _run(
        train, "soft-prompt", *common, "--text", ALICE, "--out", tmp_path / "v", "--name", "fine", "--bits", 2,
        "--mu", 8, "--decoder", "best", "--rows", rows, "--steps", 10,
        "--prompt-tokens", 24, "--continuation-tokens", 8, "--batch", 8, "--quiet",
    )  # fmt: skip
    summary = json.loads((tmp_path / "v/variant.json").read_text())
    kinds = {"linear", *COMPARED} if rows else {"trained", "contextual"}
    assert set(summary["candidates"]) == kinds
    assert summary["candidates"][summary["decoder"]] == min(summary["candidates"].values())
    for kind, loss in summary["candidates"].items():
        candidate = tmp_path / "v/candidates" / kind
        assert json.loads((candidate / "variant.json").read_text())["held_out_loss"] == loss
        # Every kind survives the way into a bundle and serves.
        (candidate / "variant.json").write_text(
            json.dumps(summary | json.loads((candidate / "variant.json").read_text()) | {"name": kind})
        )
    variants = [("--variant", tmp_path / "v/candidates" / kind) for kind in summary["candidates"]]
    _run(bundle_command, *common, *(part for pair in variants for part in pair), "--out", tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    for kind, variant in bundle.variants.items():
        codes = bundle.mechanism(kind).sample(np.asarray(bundle.client.table[:40]))
        assert (variant.decoder, variant.soft_prompt_length) == (kind, rows)
        assert np.isfinite(bundle.build_decoder(kind).decode(codes)).all()
