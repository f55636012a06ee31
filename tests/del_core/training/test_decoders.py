"""The four decoders: serving and training compute the same, and what each promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from del_core.audit.attacks import reproducible_bytes
from del_core.bundle import BaseModel, BundleError, Guarantees, Variant, VariantContent, load_bundle, write_bundle
from del_core.decoders.decoding import build_decoder, products_per_token
from del_core.decoders.tensors import DECODER_KINDS, WINDOW, DecoderSizes
from del_core.lm.noise import NoisyTable
from del_core.mechanism import Mechanism
from del_core.training.decoder import NoisyDecoder, choose_sizes

_VOCABULARY, _HIDDEN, _DIM, _MAX = 300, 48, 12, 1000
_MECHANISM = Mechanism(3, _DIM, 0.25, max_level=_MAX)


def _module(kind: str, norm_limit: float = 4.0) -> NoisyDecoder:
    """A decoder with every tensor that training changes drawn at random, so that each of them shows."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    table = torch.randint(-_MAX, _MAX + 1, (_VOCABULARY, _DIM), generator=generator, dtype=torch.int16)
    embeddings = torch.randn(_VOCABULARY, _HIDDEN, generator=generator)
    unigram = torch.rand(_VOCABULARY, generator=generator, dtype=torch.float64) + 0.1
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((_HIDDEN, _DIM), (_HIDDEN,)))
    sizes = choose_sizes(kind, _HIDDEN, _DIM, width=64)
    module = NoisyDecoder(
        kind, sizes, weight, bias, NoisyTable(table, _MECHANISM), norm_limit, embeddings, unigram / unigram.sum(), 0.3
    )
    module.levels, module.shipped_prior = table.numpy(), (unigram / unigram.sum()).log().float().numpy()
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
    """Eigenvectors have no sign: LAPACK, cuSOLVER or another version of either may return others."""
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


@pytest.mark.parametrize("kind", DECODER_KINDS)
@pytest.mark.parametrize("tokens", [1, 2 * WINDOW + 37])
def test_serving_computes_what_was_trained(tmp_path, kind, tokens):
    module, bundle = _bundle(tmp_path / "b", kind)
    codes = _codes(tokens)
    served = build_decoder(bundle, "noisy").decode(codes)
    with torch.no_grad():
        trained = module(torch.from_numpy(_MECHANISM.dequantize(codes))).numpy()
    assert served.dtype == np.float32
    np.testing.assert_allclose(served, trained, rtol=1e-3, atol=2e-4 * np.abs(trained).max())


@pytest.mark.parametrize("kind", DECODER_KINDS)
def test_no_row_depends_on_a_later_one(tmp_path, kind):
    _, bundle = _bundle(tmp_path / "b", kind)
    decoder, codes = build_decoder(bundle, "noisy"), _codes(2 * WINDOW)
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
    decoder, codes = build_decoder(bundle, "noisy"), _codes(5)
    q = _MECHANISM.numerators(np.asarray(bundle.client.table)).astype(np.float64) / 2**32
    for row, found in zip(codes.astype(np.float64), decoder.posterior_mean(codes), strict=True):
        probability = np.exp(bundle.log_prior.astype(np.float64)) * np.prod(q**row * (1 - q) ** (7 - row), axis=1)
        expected = probability / probability.sum() @ bundle.decoder("noisy")["values"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("posterior", {"values": np.zeros((_VOCABULARY - 1, _HIDDEN), np.float32)}, "values.shape is 299x48; 300x48"),
        ("posterior", {"surprise": np.zeros(3, np.float32)}, "surprise"),
        ("trained", {"in_bias": np.zeros(63, np.float32)}, "in_bias.shape is 63; 64"),
        ("trained", {"out_weight": np.full((_HIDDEN, 64), np.nan, np.float32)}, "out_weight has NaN"),
        ("contextual", {"norms": np.ones((1, 2, 64), np.float32)}, "norms.shape is 1x2x64; 2x2x64"),
        ("contextual", {"attention_in": np.ones((64, 64), np.float32)}, "tensor attention_in has the shape"),
        ("contextual", {"in_weight": np.ones((65, 60), np.float32)}, "a multiple of 32 is allowed"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, kind, changed, reason):
    with pytest.raises(BundleError, match=reason) as caught:
        _bundle(tmp_path / "b", kind, **changed)
    assert caught.value.file == "server/decoder-noisy.safetensors"
    assert not (tmp_path / "b").exists()


def test_a_missing_tensor_is_named():
    claimed = {"weight": (_HIDDEN, _DIM), "bias": (_HIDDEN,)}
    with pytest.raises(ValueError, match="tensor values is missing; a decoder of the kind posterior has it"):
        DecoderSizes.of_shapes("posterior", claimed)


def test_a_decoder_costs_little_beside_a_7b_model():
    """docs/results/training.md: Llama-2-7B multiplies once per weight of its layers, 6.48e9 times a token (no
    embedding)."""
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    for kind in DECODER_KINDS:
        sizes = choose_sizes(kind, 4096, 128)
        assert sizes.products_per_token(4096, 128, 32000) < 0.02 * layers
    assert choose_sizes("contextual", 4096, 128) == DecoderSizes(rank=512, width=1024, layers=2)


@pytest.mark.parametrize("kind", DECODER_KINDS)
def test_products_are_the_sizes_of_the_tensors(tmp_path, kind):
    """What a bundle's decoder costs, against its own tensors: every weight is multiplied once a token."""
    _, bundle = _bundle(tmp_path / "b", kind)
    tensors = bundle.decoder("noisy")
    used = {"linear": ["weight"]}.get(kind, [n for n in tensors if n not in ("weight", "bias", "norms")])
    weights = sum(tensors[name].size for name in used if tensors[name].ndim > 1)
    table = 0 if kind == "linear" else bundle.client.table.size
    attention = 2 * 2 * WINDOW * 64 if kind == "contextual" else 0
    assert products_per_token(bundle, "noisy") == weights + table + attention
