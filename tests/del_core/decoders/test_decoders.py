"""The four decoders: serving and training compute the same; shapes and costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from del_core.audit.attacks.base import reproducible_bytes
from del_core.bundle import BaseModel, BundleError, Guarantees, Variant, VariantContent, load_bundle, write_bundle
from del_core.decoders import DECODERS, DecoderInputs, DecoderOptions, ModelSizes
from del_core.decoders.network import WINDOW
from del_core.lm.noise import NoisyTable
from del_core.mechanism import Mechanism
from del_core.training.decoders import TrainableDecoder, TrainableInputs, new_decoder
from tests.support.toys import ToyMechanism

_VOCABULARY, _HIDDEN, _DIM, _MAX = 300, 48, 12, 1000
KINDS = ("linear", "posterior", "trained", "contextual")
_MECHANISM = Mechanism(3, _DIM, 0.25, max_level=_MAX)


def _module(kind: str, norm_limit: float = 4.0) -> TrainableDecoder:
    """Return a decoder in which every trained tensor is random, so that each has an effect."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    table = torch.randint(-_MAX, _MAX + 1, (_VOCABULARY, _DIM), generator=generator, dtype=torch.int16)
    embeddings = torch.randn(_VOCABULARY, _HIDDEN, generator=generator)
    unigram = torch.rand(_VOCABULARY, generator=generator, dtype=torch.float64) + 0.1
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((_HIDDEN, _DIM), (_HIDDEN,)))
    unigram /= unigram.sum()
    inputs = TrainableInputs(weight, bias, NoisyTable(table, _MECHANISM), norm_limit, embeddings, unigram)
    module = new_decoder(kind, inputs, DecoderOptions(width=64))
    module.set_blend(0.3)
    module.levels, module.shipped_prior = table.numpy(), unigram.log().float().numpy()
    with torch.no_grad():
        for _, parameter in module.trained():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def _bundle(path, kind: str, **changed):
    module = _module(kind)
    variant = Variant("noisy", "general", 3, _MECHANISM.ratio_numerator, 0, Guarantees(1e-6, 1.0, None, 1.0), kind)
    content = VariantContent(
        variant,
        weight=module.weight.numpy(),
        bias=module.bias.numpy(),
        norm_limit=module.norm_limit,
        # As float32, so that rounding to the fp16 of real bundles does not blur the comparison.
        tensors={
            **{name: module.get_parameter(name).detach().numpy() for name, _ in module.named_parameters()},
            **({"values": module.values.numpy()} if kind != "linear" else {}),
            **changed,
        },
    )
    write_bundle(
        path,
        base_model=BaseModel("tiny", "ab" * 32, _HIDDEN, _VOCABULARY),
        table=module.levels,
        max_level=_MAX,
        clip=1.0,
        tokenizer_json=b'{"version": "1.0"}',
        variants=[content],
        log_prior=module.shipped_prior,
    )
    return module, load_bundle(path)


def _codes(tokens: int, seed: int = 0) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(-_MAX, _MAX + 1, (tokens, _DIM))
    return _MECHANISM.sample(levels, reproducible_bytes(seed))


@pytest.mark.parametrize("kind", ["posterior", "trained", "contextual"])
def test_a_decoder_trained_elsewhere_brings_its_coordinates(kind, monkeypatch):
    """Eigenvectors have no sign: another LAPACK or cuSOLVER may return others."""
    eigh = torch.linalg.eigh

    def other_signs(matrix):
        found = eigh(matrix)
        signs = torch.where(torch.arange(len(matrix)) % 3 == 0, -1.0, 1.0).to(matrix)
        return type(found)((found.eigenvalues, found.eigenvectors * signs))

    here = _module(kind)
    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    there = _module(kind)
    assert not torch.allclose(there.values, here.values)
    there.start_from({**dict(here.named_parameters()), "values": here.values})
    y = torch.randn(5, 7, _DIM, generator=torch.Generator().manual_seed(6))
    assert torch.equal(there(y), here(y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2 * WINDOW + 37])
def test_serving_computes_what_was_trained(tmp_path, kind, tokens):
    module, bundle = _bundle(tmp_path / "b", kind)
    codes = _codes(tokens)
    served = bundle.build_decoder("noisy").decode(codes)
    with torch.no_grad():
        trained = module(torch.from_numpy(_MECHANISM.dequantize(codes))).numpy()
    assert served.dtype == np.float32
    np.testing.assert_allclose(served, trained, rtol=1e-3, atol=2e-4 * np.abs(trained).max())


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_depends_on_a_later_one(tmp_path, kind):
    _, bundle = _bundle(tmp_path / "b", kind)
    decoder, codes = bundle.build_decoder("noisy"), _codes(2 * WINDOW)
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
    _, bundle = _bundle(tmp_path / "b", "posterior")
    decoder, codes = bundle.build_decoder("noisy"), _codes(5)
    q = _MECHANISM.numerators(np.asarray(bundle.client.table)).astype(np.float64) / 2**32
    for row, found in zip(codes.astype(np.float64), decoder.posterior_mean(codes), strict=True):
        probability = np.exp(bundle.log_prior.astype(np.float64)) * np.prod(q**row * (1 - q) ** (7 - row), axis=1)
        expected = probability / probability.sum() @ bundle.decoder("noisy")["values"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("posterior", {"values": np.zeros((_VOCABULARY - 1, _HIDDEN), np.float32)}, "values.shape must be 300x48"),
        ("posterior", {"surprise": np.zeros(3, np.float32)}, "surprise"),
        ("trained", {"in_bias": np.zeros(63, np.float32)}, "in_bias.shape must be 64, got 63"),
        ("trained", {"out_weight": np.full((_HIDDEN, 64), np.nan, np.float32)}, "out_weight must be finite"),
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
        _bundle(tmp_path / "b", kind, **changed)
    assert caught.value.file == "server/decoder-noisy.safetensors"
    assert not (tmp_path / "b").exists()


def test_a_missing_tensor_is_named():
    claimed = {"weight": (_HIDDEN, _DIM), "bias": (_HIDDEN,)}
    with pytest.raises(ValueError, match="tensor values must be in the file, got weight, bias"):
        DECODERS["posterior"].shapes(claimed, ModelSizes(_HIDDEN, _DIM, _VOCABULARY))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (DecoderOptions(width=65), "must have a multiple of 32 rows, got 65"),
        (DecoderOptions(width=64, layers=0), r"layers must be in 1\.\.16, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        DECODERS["contextual"].new_shapes(ModelSizes(_HIDDEN, _DIM, _VOCABULARY), options)


def test_a_decoder_costs_little_beside_a_7b_model():
    """Llama-2-7B multiplies once per weight of its layers, 6.48e9 times a token."""
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    model = ModelSizes(4096, 128, 32000)
    for name in KINDS:
        kind = DECODERS[name]
        assert kind.multiplications(kind.new_shapes(model, DecoderOptions()), model) < 0.02 * layers
    contextual = DECODERS["contextual"].new_shapes(model, DecoderOptions())
    assert contextual["values"] == (32000, 512)
    assert contextual["in_weight"] == (1024, 640)
    assert contextual["attention_in"] == (2, 3072, 1024)


@pytest.mark.parametrize("kind", KINDS)
def test_multiplications_are_the_sizes_of_the_tensors(tmp_path, kind):
    """Every weight is multiplied once a token."""
    _, bundle = _bundle(tmp_path / "b", kind)
    tensors = bundle.decoder("noisy")
    used = {"linear": ["weight"]}.get(kind, [n for n in tensors if n not in ("weight", "bias", "norms")])
    weights = sum(tensors[name].size for name in used if tensors[name].ndim > 1)
    table = 0 if kind == "linear" else bundle.client.table.size
    attention = 2 * 2 * WINDOW * 64 if kind == "contextual" else 0
    assert bundle.decoder_multiplications("noisy") == weights + table + attention


@pytest.mark.parametrize("kind", KINDS)
def test_counts_that_are_no_coordinates_are_refused(tmp_path, kind):
    _, bundle = _bundle(tmp_path / "b", kind)
    toy = ToyMechanism(3, 1, 1000, _DIM, max_level=_MAX)
    inputs = DecoderInputs(toy, bundle.client.table, bundle.log_prior, 4.0, bundle.decoder("noisy"))
    with pytest.raises(ValueError, match="mechanism must be of a kind that can be dequantized, got toy"):
        DECODERS[kind].build(inputs)
