"""The frame: packing, random requests that round-trip, what encoding refuses, errors as values."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from del_core.errors import error_type
from del_core.wire import (
    FrameError,
    Limits,
    PrivateSegment,
    PublicSegment,
    Request,
    Sampling,
    Shape,
    decode_frame,
    encode_frame,
    pack_codes,
    row_bytes,
    unpack_codes,
)
from tests.support.wire_frames import (
    EXAMPLES,
    FINGERPRINT,
    SHAPES,
    encode,
    requests,
)

ROOT = Path(__file__).parents[3]


@given(st.data())
@EXAMPLES
def test_packing_follows_the_definition_and_inverts(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 8))
    dim = data.draw(st.integers(1, 40))
    tokens = data.draw(st.integers(0, 5))
    flat = data.draw(st.binary(min_size=tokens * dim, max_size=tokens * dim))
    codes = (np.frombuffer(flat, dtype=np.uint8) & ((1 << bits) - 1)).reshape(tokens, dim)
    payload = pack_codes(codes, bits)
    rows = [sum(int(code) << (place * bits) for place, code in enumerate(row)) for row in codes]
    assert payload == b"".join(row.to_bytes(row_bytes(dim, bits), "little") for row in rows)
    unpacked = unpack_codes(payload, tokens, dim, bits)
    assert unpacked.dtype == np.uint8
    assert unpacked.flags.c_contiguous
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_takes_arrays_that_are_not_contiguous(bits: int) -> None:
    codes = np.arange(60, dtype=np.uint8).reshape(6, 10) & ((1 << bits) - 1)
    for view in (codes[::2], codes[:, ::3], codes.T):
        np.testing.assert_array_equal(unpack_codes(pack_codes(view, bits), *view.shape, bits), view)


@pytest.mark.parametrize(
    ("codes", "bits", "allowed"),
    [
        (np.zeros((2, 3), dtype=np.int64), 4, "uint8"),
        (np.zeros(3, dtype=np.uint8), 4, "2 axes|tokens, dim"),
        (np.zeros((2, 0), dtype=np.uint8), 4, "at least 1"),
        (np.zeros((2, 3), dtype=np.uint8), 0, "1 to 8"),
        (np.zeros((2, 3), dtype=np.uint8), 9, "1 to 8"),
        (np.array([[0, 0], [0, 16]], dtype=np.uint8), 4, r"codes\[1\].* 15"),
    ],
)
def test_packing_refuses(codes: np.ndarray, bits: int, allowed: str) -> None:
    with pytest.raises(FrameError, match=allowed):
        pack_codes(codes, bits)


@pytest.mark.parametrize(("tokens", "size"), [(2, 3), (2, 5), (-1, 0), (0, 1), (2**40, 4)])
def test_unpacking_refuses_another_length(tokens: int, size: int) -> None:
    with pytest.raises(FrameError, match=f"payload must have .*, got {size}$") as caught:
        unpack_codes(bytes(size), tokens, 3, 4)
    assert caught.value.code == "payload_length_mismatch"


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
def test_every_padding_bit_is_checked(bits: int) -> None:
    dim = 11 if bits != 4 else 3
    used = dim * bits % 8
    for bit in range(8):
        payload = bytearray(3 * row_bytes(dim, bits))
        payload[2 * row_bytes(dim, bits) - 1] = 1 << bit
        if bit < used:
            assert unpack_codes(payload, 3, dim, bits)[1].any()
        else:
            with pytest.raises(FrameError, match="row 1"):
                unpack_codes(payload, 3, dim, bits)


@given(requests())
@EXAMPLES
def test_requests_round_trip(request: Request) -> None:
    data = encode(request)
    for form in (data, bytearray(data), memoryview(data)):
        decoded = decode_frame(form, SHAPES, fingerprint=request.fingerprint)
        assert decoded == request
        assert hash(decoded) == hash(request)
    assert decoded.prompt_tokens == request.prompt_tokens == sum(part.tokens for part in request.segments)
    assert decoded.remaining_tokens == request.sampling.max_tokens - len(request.resume) > 0
    assert encode(decoded) == data


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fingerprint": "abc"}, "header.fingerprint"),
        ({"variant": "Öffentlich"}, "header.variant"),
        ({"segments": ()}, "header.segments"),
        ({"segments": (PublicSegment(()),)}, "header.segments[0].public"),
        ({"segments": (PublicSegment((1, -1)),)}, "header.segments[0].public[1]"),
        ({"segments": (PublicSegment((True,)),)}, "header.segments[0].public[0]"),
        ({"segments": (PrivateSegment(np.zeros((0, 3), np.uint8)),)}, "header.segments[0].private"),
        ({"segments": (PrivateSegment(np.zeros((1, 3), np.int8)),)}, "segments[0].codes"),
        (
            {"segments": tuple(PrivateSegment(np.zeros((1, dim), np.uint8)) for dim in (3, 4))},
            "segments[1].codes",
        ),
        ({"sampling": Sampling(max_tokens=0)}, "header.max_tokens"),
        ({"sampling": Sampling(max_tokens=10**5000)}, "header.max_tokens"),
        ({"sampling": Sampling(temperature=float("nan"))}, "header.temperature"),
        ({"sampling": Sampling(temperature=10**5000)}, "header.temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "header.top_p"),
        ({"sampling": Sampling(seed=2**63)}, "header.seed"),
        ({"sampling": Sampling(stop=("",))}, "header.stop[0]"),
        ({"sampling": Sampling(stop=("a",) * 5)}, "header.stop"),
        ({"sampling": Sampling(stop=("a\ud800",))}, "header.stop[0]"),
        ({"sampling": Sampling(stream=1)}, "header.stream"),  # type: ignore[arg-type]
        ({"resume": (1,) * 16}, "header.resume"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_encoding_refuses_what_decoding_would(change: dict[str, Any], field: str) -> None:
    values = {"fingerprint": FINGERPRINT, "variant": "open", "segments": (PublicSegment((1,)),), **change}
    with pytest.raises(FrameError) as caught:
        encode_frame(Request(**values), bits=4)
    assert caught.value.field == field


def test_encoding_keeps_to_the_limits() -> None:
    request = Request(FINGERPRINT, "open", (PrivateSegment(np.zeros((10, 3), np.uint8)),))
    size = len(encode_frame(request, bits=4))
    assert encode_frame(request, bits=4, limits=Limits(max_frame_bytes=size))
    with pytest.raises(FrameError, match="at most") as caught:
        encode_frame(request, bits=4, limits=Limits(max_frame_bytes=size - 1))
    assert caught.value.code == "frame_too_large"
    with pytest.raises(FrameError, match="at most") as caught:
        encode_frame(request, bits=4, limits=Limits(max_header_bytes=50))
    assert caught.value.code == "header_too_large"


def test_numpy_integers_are_token_ids() -> None:
    ids = np.array([3, 4], dtype=np.int64)
    request = Request(FINGERPRINT, "open", (PublicSegment(tuple(ids)),))
    assert decode_frame(encode_frame(request, bits=4), SHAPES) == request


def test_fingerprint_is_judged_before_the_shapes() -> None:
    """A client with another bundle receives the code of an outdated bundle only."""
    segment = PrivateSegment(np.zeros((2, 7), np.uint8))
    for variant in ("open", "gone", "clear"):
        data = encode_frame(Request("ab" * 32, variant, (segment,)), bits=5)
        with pytest.raises(FrameError, match="fetch the bundle again") as caught:
            decode_frame(data, SHAPES, fingerprint=FINGERPRINT)
        assert (caught.value.code, caught.value.status) == ("bundle_outdated", 409)


def test_errors_survive_pickling() -> None:
    error = FrameError("unknown_variant", "header.variant", "is 'x'; this server has y")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.field, copy.message, copy.status) == (error.code, error.field, error.message, 404)
    assert str(copy) == str(error)


def test_error_types() -> None:
    assert error_type("invalid_magic") == "invalid_request_error"
    assert error_type("overloaded") == "server_error"
    assert error_type("from the future") == "server_error"


@pytest.mark.parametrize(("bits", "dim"), [(0, 1), (9, 1), (1, 0)])
def test_shapes_are_checked(bits: int, dim: int) -> None:
    with pytest.raises(ValueError, match="must be an integer"):
        Shape(bits, dim)


def test_import_needs_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys, del_core.wire\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'scipy', 'safetensors', 'tokenizers'}\n"
        "sys.exit(' '.join(heavy & {name.partition('.')[0] for name in sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
