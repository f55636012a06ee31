"""The decoders that ship: serving and training compute the same; shapes and costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from del_core.bundle import BundleError
from del_core.decoders import DECODERS, DecoderInputs, DecoderOptions, ModelSizes
from del_core.lm.decoding import batch_decoder
from del_core.mechanism import CategoricalMechanism
from tests.support.decoders import DIM, HIDDEN, MAX_LEVEL, MECHANISM, draw_codes, make_bundle
from tests.support.toys import ToyDecoderKind, ToyMechanism

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("linear", "lookup")


def test_the_kinds_that_ship_cost_nothing_in_the_size_of_the_vocabulary():
    """In a process of its own: other tests register kinds of their own in this one."""
    program = (
        "from del_core.decoders import DECODERS, DecoderOptions, ModelSizes, joint_kinds, stage2_kinds\n"
        "print(*DECODERS)\n"
        "print(joint_kinds(), stage2_kinds(32), stage2_kinds(0))\n"
        "for kind in DECODERS.values():\n"
        "    shapes = {'codes': (1, 256, 4096)}\n"
        "    sizes = [ModelSizes(4096, 128, vocabulary) for vocabulary in (1_000, 1_000_000)]\n"
        "    print(*(kind.multiplications(kind.shapes(shapes, size), size) for size in sizes))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    names, trained, *costs = done.stdout.splitlines()
    assert tuple(names.split()) == KINDS
    assert trained == "['linear'] ['linear'] []"
    assert costs == [f"{4096 * 128} {4096 * 128}", "0 0"]


@pytest.mark.parametrize("tokens", [1, 300])
def test_serving_computes_what_was_trained(tmp_path, tokens):
    module, bundle = make_bundle(tmp_path / "b", "linear")
    codes = draw_codes(tokens)
    served = bundle.build_decoder("noisy").decode(codes)
    with torch.no_grad():
        trained = module(torch.from_numpy(MECHANISM.dequantize(codes))).numpy()
    assert served.dtype == np.float32
    np.testing.assert_allclose(served, trained, rtol=1e-3, atol=2e-4 * np.abs(trained).max())


def test_many_segments_on_the_device_are_those_of_numpy(tmp_path):
    _, bundle = make_bundle(tmp_path / "b", "linear")
    lengths = (1, 40, 290)
    segments = [draw_codes(tokens, seed) for seed, tokens in enumerate(lengths)]
    expected = np.concatenate([bundle.build_decoder("noisy").decode(segment) for segment in segments])
    decoder = batch_decoder(DECODERS["linear"], bundle.decoder_inputs("noisy"), torch.device("cpu"))
    found = decoder.decode(torch.from_numpy(np.concatenate(segments)), lengths)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-5)
    assert decoder.context == 0
    part = decoder.decode(torch.from_numpy(segments[2][270:]), [20])
    np.testing.assert_allclose(part.numpy(), expected[-20:], rtol=2e-5, atol=2e-5)


def test_codes_on_the_device_are_looked_up():
    mechanism = CategoricalMechanism.from_epsilon(8.0, bits=3, dim=2)
    table = np.random.default_rng(0).standard_normal((2, 8, HIDDEN), dtype=np.float32)
    inputs = DecoderInputs(mechanism, np.zeros((4, 2), np.uint8), np.zeros(4, np.float32), 1.0, {"codes": table})
    codes = np.random.default_rng(1).integers(0, 8, (9, 2), dtype=np.uint8)
    kind = DECODERS["lookup"]
    found = batch_decoder(kind, inputs, torch.device("cpu")).decode(torch.from_numpy(codes), [4, 5])
    np.testing.assert_array_equal(found.numpy(), kind.build(inputs).decode(codes))


def test_a_kind_of_numpy_alone_is_decoded_segment_by_segment():
    """A kind that a plugin adds may read earlier rows of its segment, so it gets all of them."""

    class Summing(ToyDecoderKind):
        def build(self, inputs):
            return SimpleNamespace(decode=lambda codes: np.cumsum(codes, axis=0, dtype=np.float32))

    decoder = batch_decoder(Summing(), None, torch.device("cpu"))
    found = decoder.decode(torch.ones((5, 2), dtype=torch.uint8), [2, 3])
    assert found.tolist() == [[1, 1], [2, 2], [1, 1], [2, 2], [3, 3]]
    assert decoder.context > 10**6


def test_a_row_depends_on_its_own_counts_only(tmp_path):
    _, bundle = make_bundle(tmp_path / "b", "linear")
    decoder, codes = bundle.build_decoder("noisy"), draw_codes(60)
    whole = decoder.decode(codes)
    changed = codes.copy()
    changed[40] = 7 - changed[40]
    differs = np.abs(decoder.decode(changed) - whole).max(axis=1) > 1e-4
    assert np.flatnonzero(differs).tolist() == [40]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"surprise": np.zeros(3, np.float32)}, "surprise"),
        ({"bias": np.zeros(HIDDEN + 1, np.float32)}, "bias.shape must be 48, got 49"),
        ({"weight": np.full((HIDDEN, DIM), np.nan, np.float32)}, "weight must be finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, changed, reason):
    with pytest.raises(BundleError, match=reason) as caught:
        make_bundle(tmp_path / "b", "linear", **changed)
    assert caught.value.file == "server/decoder-noisy.safetensors"
    assert not (tmp_path / "b").exists()


def test_a_missing_tensor_is_named():
    with pytest.raises(ValueError, match="tensor codes must be in the file, got weight, bias"):
        DECODERS["lookup"].shapes({"weight": (HIDDEN, DIM), "bias": (HIDDEN,)}, ModelSizes(HIDDEN, DIM, 300))


def test_multiplications_are_the_sizes_of_the_tensors(tmp_path):
    """Every weight is multiplied once a token."""
    _, bundle = make_bundle(tmp_path / "b", "linear")
    assert bundle.decoder_multiplications("noisy") == bundle.decoder("noisy")["weight"].size
    model = ModelSizes(4096, 128, 32000)
    shapes = DECODERS["linear"].new_shapes(model, DecoderOptions())
    assert shapes == {"weight": (4096, 128), "bias": (4096,)}


def test_counts_that_are_no_coordinates_are_refused(tmp_path):
    _, bundle = make_bundle(tmp_path / "b", "linear")
    toy = ToyMechanism(3, 1, 1000, DIM, max_level=MAX_LEVEL)
    inputs = DecoderInputs(toy, bundle.client.table, bundle.log_prior, 4.0, bundle.decoder("noisy"))
    with pytest.raises(ValueError, match="mechanism must be of a kind that can be dequantized, got toy"):
        DECODERS["linear"].build(inputs)
