"""The decoders of the comparison: serving and training compute the same; shapes and costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.posterior_decoders import COMPARED
from benchmarks.posterior_decoders.network import WINDOW
from del_core.bundle import BundleError
from del_core.decoders import DECODERS, DecoderInputs, DecoderOptions, ModelSizes, joint_kinds, stage2_kinds
from del_core.lm.decoding import batch_decoder
from tests.support.decoders import (
    DIM,
    HIDDEN,
    MAX_LEVEL,
    MECHANISM,
    VOCABULARY,
    draw_codes,
    make_bundle,
    make_module,
)
from tests.support.toys import ToyMechanism


def test_the_kinds_are_registered_beside_those_that_ship():
    assert COMPARED == ("posterior", "trained", "contextual")
    assert tuple(DECODERS)[:2] == ("linear", "lookup")
    assert set(joint_kinds()) >= {"linear", "trained"}
    assert not {"posterior", "contextual"} & set(joint_kinds())
    assert set(stage2_kinds(32)) >= {"linear", *COMPARED}
    assert set(stage2_kinds(0)) >= {"trained", "contextual"}
    assert not {"linear", "posterior"} & set(stage2_kinds(0))


@pytest.mark.parametrize("kind", COMPARED)
def test_a_decoder_trained_elsewhere_brings_its_coordinates(kind, monkeypatch):
    """Eigenvectors have no sign: another LAPACK or cuSOLVER may return others."""
    eigh = torch.linalg.eigh

    def other_signs(matrix):
        found = eigh(matrix)
        signs = torch.where(torch.arange(len(matrix)) % 3 == 0, -1.0, 1.0).to(matrix)
        return type(found)((found.eigenvalues, found.eigenvectors * signs))

    here = make_module(kind)
    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    there = make_module(kind)
    assert not torch.allclose(there.values, here.values)
    there.start_from({**dict(here.named_parameters()), "values": here.values})
    y = torch.randn(5, 7, DIM, generator=torch.Generator().manual_seed(6))
    assert torch.equal(there(y), here(y))


@pytest.mark.parametrize("kind", COMPARED)
@pytest.mark.parametrize("tokens", [1, 2 * WINDOW + 37])
def test_serving_computes_what_was_trained(tmp_path, kind, tokens):
    module, bundle = make_bundle(tmp_path / "b", kind)
    codes = draw_codes(tokens)
    served = bundle.build_decoder("noisy").decode(codes)
    with torch.no_grad():
        trained = module(torch.from_numpy(MECHANISM.dequantize(codes))).numpy()
    assert served.dtype == np.float32
    np.testing.assert_allclose(served, trained, rtol=1e-3, atol=2e-4 * np.abs(trained).max())


@pytest.mark.parametrize("kind", COMPARED)
def test_many_segments_on_the_device_are_those_of_numpy(tmp_path, monkeypatch, kind):
    """In whole and from any row on, with the context of the rows before; in blocks of any size."""
    _, bundle = make_bundle(tmp_path / "b", kind)
    lengths = (1, 40, 2 * WINDOW + 30)
    segments = [draw_codes(tokens, seed) for seed, tokens in enumerate(lengths)]
    expected = [bundle.build_decoder("noisy").decode(segment) for segment in segments]
    inputs = bundle.decoder_inputs("noisy")
    for scores in (None, 7 * VOCABULARY):
        if scores is not None:
            monkeypatch.setattr("benchmarks.posterior_decoders.device.BLOCK_SCORES", scores)
        decoder = batch_decoder(DECODERS[kind], inputs, torch.device("cpu"))
        found = decoder.decode(torch.from_numpy(np.concatenate(segments)), lengths)
        np.testing.assert_allclose(found.numpy(), np.concatenate(expected), rtol=2e-5, atol=2e-5)
    assert decoder.context == (2 * (WINDOW - 1) if kind == "contextual" else 0)
    start = lengths[2] - 20
    before = min(start, decoder.context)
    part = decoder.decode(torch.from_numpy(segments[2][start - before :]), [before + 20])[before:]
    np.testing.assert_allclose(part.numpy(), expected[2][start:], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", COMPARED)
def test_no_row_depends_on_a_later_one(tmp_path, kind):
    _, bundle = make_bundle(tmp_path / "b", kind)
    decoder, codes = bundle.build_decoder("noisy"), draw_codes(2 * WINDOW)
    whole = decoder.decode(codes)
    for length in (1, 40, WINDOW + 5):
        np.testing.assert_allclose(decoder.decode(codes[:length]), whole[:length], rtol=1e-4, atol=1e-4)
    changed = codes.copy()
    changed[40] = 7 - changed[40]
    other = decoder.decode(changed)
    np.testing.assert_allclose(other[:40], whole[:40], rtol=1e-4, atol=1e-4)
    later = np.abs(other[41 : 40 + WINDOW] - whole[41 : 40 + WINDOW]).max()
    assert (later > 1e-3) == (kind == "contextual"), "exactly the contextual decoder reads earlier tokens"


def test_the_posterior_mean_is_bayes_theorem(tmp_path):
    """Against the definition, term by term in float64."""
    _, bundle = make_bundle(tmp_path / "b", "posterior")
    decoder, codes = bundle.build_decoder("noisy"), draw_codes(5)
    q = MECHANISM.numerators(np.asarray(bundle.client.table)).astype(np.float64) / 2**32
    for row, found in zip(codes.astype(np.float64), decoder.posterior_mean(codes), strict=True):
        probability = np.exp(bundle.log_prior.astype(np.float64)) * np.prod(q**row * (1 - q) ** (7 - row), axis=1)
        expected = probability / probability.sum() @ bundle.decoder("noisy")["values"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("posterior", {"values": np.zeros((VOCABULARY - 1, HIDDEN), np.float32)}, "values.shape must be 300x48"),
        ("posterior", {"surprise": np.zeros(3, np.float32)}, "surprise"),
        ("trained", {"in_bias": np.zeros(63, np.float32)}, "in_bias.shape must be 64, got 63"),
        ("trained", {"out_weight": np.full((HIDDEN, 64), np.nan, np.float32)}, "out_weight must be finite"),
        ("contextual", {"norms": np.ones((1, 2, 64), np.float32)}, "norms.shape must be 2x2x64, got 1x2x64"),
        ("contextual", {"attention_in": np.ones((64, 64), np.float32)}, "tensor attention_in must have 3 axes"),
        (
            "contextual",
            {"in_weight": np.ones((65, 60), np.float32)},
            "in_weight must have a multiple of 32 rows, got 65",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, kind, changed, reason):
    with pytest.raises(BundleError, match=reason) as caught:
        make_bundle(tmp_path / "b", kind, **changed)
    assert caught.value.file == "server/decoder-noisy.safetensors"
    assert not (tmp_path / "b").exists()


def test_a_missing_tensor_is_named():
    claimed = {"weight": (HIDDEN, DIM), "bias": (HIDDEN,)}
    with pytest.raises(ValueError, match="tensor values must be in the file, got weight, bias"):
        DECODERS["posterior"].shapes(claimed, ModelSizes(HIDDEN, DIM, VOCABULARY))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (DecoderOptions(width=65), "must have a multiple of 32 rows, got 65"),
        (DecoderOptions(width=64, layers=0), r"layers must be in 1\.\.16, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        DECODERS["contextual"].new_shapes(ModelSizes(HIDDEN, DIM, VOCABULARY), options)


def test_multiplications_beside_a_7b_model():
    """Llama-2-7B multiplies once per weight of its layers, 6.48e9 times a token."""
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    model = ModelSizes(4096, 128, 32000)
    shares = []
    for name in COMPARED:
        kind = DECODERS[name]
        shares.append(kind.multiplications(kind.new_shapes(model, DecoderOptions()), model) / layers)
    assert shares == pytest.approx([0.0036, 0.0043, 0.0070], abs=5e-5), "the shares in docs/results/training.md"
    contextual = DECODERS["contextual"].new_shapes(model, DecoderOptions())
    assert contextual["values"] == (32000, 512)
    assert contextual["in_weight"] == (1024, 640)
    assert contextual["attention_in"] == (2, 3072, 1024)


@pytest.mark.parametrize("kind", COMPARED)
def test_multiplications_are_the_sizes_of_the_tensors(tmp_path, kind):
    """Every weight is multiplied once a token, and so is the table of the vocabulary."""
    _, bundle = make_bundle(tmp_path / "b", kind)
    tensors = bundle.decoder("noisy")
    used = [name for name in tensors if name not in ("weight", "bias", "norms")]
    weights = sum(tensors[name].size for name in used if tensors[name].ndim > 1)
    attention = 2 * 2 * WINDOW * 64 if kind == "contextual" else 0
    assert bundle.decoder_multiplications("noisy") == weights + bundle.client.table.size + attention


@pytest.mark.parametrize("kind", COMPARED)
def test_counts_that_are_no_coordinates_are_refused(tmp_path, kind):
    _, bundle = make_bundle(tmp_path / "b", kind)
    toy = ToyMechanism(3, 1, 1000, DIM, max_level=MAX_LEVEL)
    inputs = DecoderInputs(toy, bundle.client.table, bundle.log_prior, 4.0, bundle.decoder("noisy"))
    with pytest.raises(ValueError, match="mechanism must be of a kind that can be dequantized, got toy"):
        DECODERS[kind].build(inputs)
