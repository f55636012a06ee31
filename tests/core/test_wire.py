"""The frame: vectors in both directions, round trips, and what mutation, size and hostile JSON can do to it."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from del_core.errors import ERROR_STATUS, error_type
from del_core.wire import (
    MEDIA_TYPE,
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

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
FINGERPRINT = "0123456789abcdef" * 4
EXAMPLES = settings(max_examples=200, deadline=None)


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text("utf-8"))


def shapes_of(vectors: dict[str, Any]) -> dict[str, Shape | None]:
    return {name: Shape(**shape) if shape else None for name, shape in vectors["shapes"].items()}


def request_of(decoded: dict[str, Any]) -> Request:
    segments = tuple(
        PrivateSegment(np.array(part["private"], dtype=np.uint8))
        if "private" in part
        else PublicSegment(tuple(part["public"]))
        for part in decoded["segments"]
    )
    sampling = {key: tuple(value) if isinstance(value, list) else value for key, value in decoded["sampling"].items()}
    return Request(decoded["fingerprint"], decoded["variant"], segments, Sampling(**sampling), tuple(decoded["resume"]))


def frame_of(header: bytes, payload: bytes = b"") -> bytes:
    return b"DELF\x01" + struct.pack("<I", len(header)) + header + payload


def header_of(**more: object) -> dict[str, Any]:
    return {"fingerprint": FINGERPRINT, "variant": "open", "segments": [{"public": [1]}], **more}


SHAPES: dict[str, Shape | None] = {f"bits-{bits}": Shape(bits, 11) for bits in range(1, 9)}
SHAPES |= {"open": Shape(4, 3), "clear": None}


# -------------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("case", load("packing.json")["cases"], ids=lambda case: f"{case['bits']}x{case['dim']}")
def test_packing_vectors_both_ways(case: dict[str, Any]) -> None:
    codes = np.array(case["codes"], dtype=np.uint8)
    payload = bytes.fromhex(case["payload"])
    assert pack_codes(codes, case["bits"]) == payload
    assert len(payload) == len(codes) * row_bytes(case["dim"], case["bits"])
    np.testing.assert_array_equal(unpack_codes(payload, len(codes), case["dim"], case["bits"]), codes)


@pytest.mark.parametrize("case", load("frames.json")["cases"], ids=lambda case: case["name"])
def test_frame_vectors_both_ways(case: dict[str, Any]) -> None:
    vectors = load("frames.json")
    shapes, limits = shapes_of(vectors), Limits(**vectors["limits"])
    data = bytes.fromhex(case["frame"])
    meaning = request_of(case["decoded"])
    assert decode_frame(data, shapes, limits, fingerprint=vectors["fingerprint"]) == meaning
    shape = shapes[meaning.variant]
    encoded = encode_frame(meaning, bits=shape.bits if shape else 1, limits=limits)
    assert (encoded == data) is case["encoded_by_us"]
    assert decode_frame(encoded, shapes, limits) == meaning


@pytest.mark.parametrize("case", load("malformed.json")["cases"], ids=lambda case: case["name"])
def test_malformed_vectors(case: dict[str, Any]) -> None:
    vectors = load("malformed.json")
    with pytest.raises(FrameError) as caught:
        decode_frame(
            bytes.fromhex(case["frame"]),
            shapes_of(vectors),
            Limits(**vectors["limits"]),
            fingerprint=vectors["fingerprint"],
        )
    error = caught.value
    assert (error.code, error.status, error.field) == (case["code"], case["status"], case["field"])
    assert str(error) == f"{error.field}: {error.message}"
    assert str(error).isprintable()
    assert str(error).isascii()


def test_malformed_vectors_reach_every_code_of_a_frame() -> None:
    http_only = {
        "unsupported_media_type", "not_found", "method_not_allowed", "overloaded", "engine_unavailable",
        "internal_error",
    }  # fmt: skip
    assert {case["code"] for case in load("malformed.json")["cases"]} == set(ERROR_STATUS) - http_only


def test_vectors_are_what_the_generator_writes() -> None:
    built = runpy.run_path(str(VECTORS / "generate.py"))["build"]()
    assert {path.name for path in VECTORS.glob("*.json")} == set(built)
    for name, text in built.items():
        assert (VECTORS / name).read_text("utf-8") == text, f"{name}: run python tests/vectors/generate.py"


def test_level_vectors_follow_the_definition() -> None:
    """q 2^32 = 2^31 + round(level ratio_numerator / max_level), halves away from zero, in exact integers."""
    for case in load("levels.json")["cases"]:
        for level, numerator in zip(case["levels"], case["numerators"], strict=True):
            doubled = 2 * abs(level) * case["ratio_numerator"] + case["max_level"]
            size = doubled // (2 * case["max_level"])
            assert numerator == 2**31 + (size if level >= 0 else -size)


# ----------------------------------------------------------------------------------------------------------------- docs


def test_documented_codes_are_the_codes() -> None:
    page = (ROOT / "docs" / "wire-format.md").read_text("utf-8")
    table = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", page, re.MULTILINE))
    assert {code: int(status) for code, status in table.items()} == dict(ERROR_STATUS)


def test_documented_example_is_the_vector() -> None:
    page = (ROOT / "docs" / "wire-format.md").read_text("utf-8")
    (case,) = (case for case in load("frames.json")["cases"] if case["name"] == "worked-example")
    data = bytes.fromhex(case["frame"])
    (size,) = struct.unpack_from("<I", data, 5)
    header = data[9 : 9 + size].decode()
    assert header.replace(FINGERPRINT, "0123...cdef") in page
    assert f"{data[5:9].hex(' ')}                     header length {size}" in page
    payload = data[9 + size :]
    assert f"    {payload[:2].hex(' ')} " in page
    assert f"    {payload[2:].hex(' ')} " in page


def test_media_type() -> None:
    assert MEDIA_TYPE == "application/vnd.del.frame"


# -------------------------------------------------------------------------------------------------------------- packing


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
    with pytest.raises(FrameError, match=f"payload: has {size} bytes") as caught:
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


# -------------------------------------------------------------------------------------------------- requests, at random

token_ids = st.integers(0, 2**31 - 1)
sampling = st.builds(
    Sampling,
    max_tokens=st.integers(9, 1000),
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=20), max_size=4).map(tuple),
    stream=st.booleans(),
    stop_token_ids=st.lists(token_ids, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    variant = draw(st.sampled_from(sorted(SHAPES)))
    shape = SHAPES[variant]
    segments: list[PrivateSegment | PublicSegment] = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.integers(1, 4))
        if shape is None or draw(st.booleans()):
            segments.append(PublicSegment(tuple(draw(st.lists(token_ids, min_size=tokens, max_size=tokens)))))
        else:
            size = tokens * shape.dim
            flat = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8)
            segments.append(PrivateSegment((flat & ((1 << shape.bits) - 1)).reshape(tokens, shape.dim)))
    fingerprint = draw(st.binary(min_size=32, max_size=32)).hex()
    resume = tuple(draw(st.lists(token_ids, max_size=8)))
    return Request(fingerprint, variant, tuple(segments), draw(sampling), resume)


def encode(request: Request) -> bytes:
    shape = SHAPES[request.variant]
    return encode_frame(request, bits=shape.bits if shape else 1)


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


def refused_or_valid(data: bytes, secrets: tuple[str, ...] = ()) -> FrameError | None:
    """Decodes; whatever but a request or a FrameError of the contract fails the test."""
    try:
        request = decode_frame(data, SHAPES, Limits(vocabulary_size=1 << 31))
    except FrameError as caught:
        error = caught
    else:
        # What was accepted can be sent again, and means the same.
        assert decode_frame(encode(request), SHAPES) == request
        return None
    assert error.status == ERROR_STATUS[error.code]
    assert 400 <= error.status < 500
    message = str(error)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1000
    assert not any(secret in message for secret in secrets)
    return error


@given(requests(), st.data())
@EXAMPLES
def test_bytes_flipped_cut_and_spliced(request: Request, data: st.DataObject) -> None:
    frame = bytearray(encode(request))
    positions = st.integers(0, len(frame) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(positions)] ^= data.draw(st.integers(1, 255))
    refused_or_valid(bytes(frame))
    whole = encode(request)
    for cut in data.draw(st.lists(positions, min_size=1, max_size=3)):
        assert refused_or_valid(whole[:cut]) is not None
    begin, end = sorted((data.draw(positions), data.draw(positions)))
    refused_or_valid(whole[:begin] + data.draw(st.binary(max_size=8)) + whole[end:])
    other = encode(data.draw(requests()))
    refused_or_valid(whole[:begin] + other[begin:])
    assert refused_or_valid(whole + b"\0") is not None


@given(st.binary(max_size=200))
@EXAMPLES
def test_noise_after_a_good_prefix(noise: bytes) -> None:
    refused_or_valid(noise)
    refused_or_valid(b"DELF\x01" + noise)
    refused_or_valid(frame_of(noise))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([2**63, -(2**63) - 1, 10**40, -0.0, "a" * 300, "\ud800", "open", FINGERPRINT]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        "fingerprint", "variant", "segments", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "resume",
        "stop_token_ids", "ignore_eos", "presence_penalty", "repetition_penalty", "logit_bias", "n", "echo", "suffix",
    ]
)  # fmt: skip


@given(requests(), st.dictionaries(names, json_values, min_size=1, max_size=3), st.data())
@EXAMPLES
def test_headers_with_members_exchanged(request: Request, members: dict[str, Any], data: st.DataObject) -> None:
    frame = encode(request)
    (size,) = struct.unpack_from("<I", frame, 5)
    header = {**json.loads(frame[9 : 9 + size]), **members}
    if data.draw(st.booleans()):
        header["segments"] = [*json.loads(frame[9 : 9 + size])["segments"], data.draw(json_values)]
    text = json.dumps(header, ensure_ascii=data.draw(st.booleans()))
    refused_or_valid(frame_of(text.encode("utf-8", "surrogatepass"), frame[9 + size :]))


@given(requests(), st.data())
@EXAMPLES
def test_header_text_mutated(request: Request, data: st.DataObject) -> None:
    frame = encode(request)
    (size,) = struct.unpack_from("<I", frame, 5)
    text = bytearray(frame[9 : 9 + size])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from(
                [
                    b"[",
                    b"]",
                    b"{",
                    b"}",
                    b'"',
                    b"\\",
                    b",",
                    b":",
                    b"-",
                    b"0",
                    b"1e999",
                    b"NaN",
                    b"\\ud800",
                    b"\xff",
                    b"null",
                ]
            )
        )
        text[at : at + data.draw(st.integers(0, 2))] = piece
    refused_or_valid(frame_of(bytes(text), frame[9 + size :]))


# ------------------------------------------------------------------------------------------------ hostile and oversized


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"segments":' + b"9" * 1_000_000 + b"}",
        b'"' + b"\\" * 1_000_001 + b'"',
        b'"' * 1_000_001,
        b"[" + b"[]," * 300_000 + b"[]]",
        b'{"stop":"' + b"\\u0041" * 150_000 + b'"}',
    ],
    ids=["open-arrays", "open-objects", "nested", "digits", "backslashes", "quotes", "many-arrays", "escapes"],
)
def test_headers_that_exhaust_parsers_are_refused(header: bytes) -> None:
    assert refused_or_valid(frame_of(header)) is not None


def peak_of(data: bytes, limits: Limits) -> int:
    """Most bytes allocated while a frame is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            decode_frame(data, {"open": Shape(8, 65536)}, limits)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_nothing_large_is_allocated_for_what_is_only_declared() -> None:
    large = Limits(max_prompt_tokens=2**31, max_header_bytes=2**32, max_frame_bytes=2**40)
    declared = header_of(segments=[{"private": 2**31 - 1}])
    assert peak_of(frame_of(json.dumps(declared).encode()), large) < 256_000
    assert peak_of(b"DELF\x01\xff\xff\xff\xff{}", large) < 256_000


def test_sizes_are_refused_before_the_content_is_read() -> None:
    limits = Limits(max_frame_bytes=10_000_000, max_header_bytes=1000)
    body = frame_of(b"[" * 5_000_000)
    assert peak_of(body, limits) < 256_000
    assert peak_of(body, Limits(max_frame_bytes=1000)) < 256_000


def test_public_and_resumed_tokens_count_against_their_limits() -> None:
    limits = Limits(max_prompt_tokens=4, max_output_tokens=8, vocabulary_size=10)
    for members, code in (
        ({"segments": [{"public": [1] * 5}]}, "context_length_exceeded"),
        ({"segments": [{"public": [1] * 4}, {"private": 1}]}, "context_length_exceeded"),
        ({"segments": [{"public": [10]}]}, "invalid_value"),
        ({"max_tokens": 9}, "invalid_value"),
        ({"resume": [1] * 8}, "invalid_value"),
        ({"max_tokens": 3, "resume": [1] * 3}, "invalid_value"),
    ):
        with pytest.raises(FrameError) as caught:
            decode_frame(frame_of(json.dumps(header_of(**members)).encode()), SHAPES, limits)
        assert caught.value.code == code
    fine = header_of(segments=[{"public": [9] * 4}], max_tokens=8, resume=[9] * 7)
    request = decode_frame(frame_of(json.dumps(fine).encode()), SHAPES, limits)
    assert request.remaining_tokens == 1
    # Without max_tokens a small server's limit takes the place of OpenAI's 16.
    assert decode_frame(frame_of(json.dumps(header_of()).encode()), SHAPES, limits).sampling.max_tokens == 8


# -------------------------------------------------------------------------------------------- encoding, errors, hygiene


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
    """A client whose bundle has other bits and variants is told that its bundle is another one, and nothing else."""
    segment = PrivateSegment(np.zeros((2, 7), np.uint8))
    for variant in ("open", "gone", "clear"):
        data = encode_frame(Request("ab" * 32, variant, (segment,)), bits=5)
        with pytest.raises(FrameError, match="fetch the bundle again") as caught:
            decode_frame(data, SHAPES, fingerprint=FINGERPRINT)
        assert (caught.value.code, caught.value.status) == ("fingerprint_mismatch", 409)


@pytest.mark.parametrize(
    "members",
    [
        {"segments": [{"private": "SECRET text"}]},
        {"segments": ["SECRET text"]},
        {"segments": "SECRET text"},
        {"segments": [{"SECRET text": 1}]},
        {"segments": [{"public": "SECRET text"}]},
        {"segments": [{"public": ["SECRET text"]}]},
        {"segments": [{"public": [987654321]}]},
        {"SECRET text": 1},
        {"stop": ["SECRET text" * 100]},
        {"stop": {"SECRET text": 1}},
        {"max_tokens": "SECRET text"},
        {"temperature": "SECRET text"},
        {"stream": "SECRET text"},
        {"resume": [987654321]},
        {"resume": "SECRET text"},
        {"stop_token_ids": [987654321]},
        {"suffix": "SECRET text"},
        {"logit_bias": {"987654321": 1}},
    ],
)
def test_no_error_shows_what_may_be_a_prompt(members: dict[str, Any]) -> None:
    data = frame_of(json.dumps(header_of(**members)).encode())
    with pytest.raises(FrameError) as caught:
        decode_frame(data, SHAPES, Limits(vocabulary_size=1000))
    for error in (caught.value, caught.value.__cause__):
        assert "SECRET" not in repr(error)
        assert "987654321" not in repr(error)


def test_no_error_carries_the_frame_along() -> None:
    """Python's own parse errors hold the whole document; a traceback must not lead to one."""
    for header in (b'{"stop":"SECRET"', b'{"stop":"SECRET\xff"}', b'{"stop":"SECRET\\ud800"}'):
        with pytest.raises(FrameError) as caught:
            decode_frame(frame_of(header), SHAPES)
        seen: list[BaseException | None] = [caught.value]
        while seen[-1] is not None:
            assert "SECRET" not in repr(vars(seen[-1])) + repr(seen[-1].args)
            seen.append(seen[-1].__cause__ or seen[-1].__context__)


def test_a_prompt_sent_instead_of_a_frame_is_not_repeated() -> None:
    error = refused_or_valid(b"Dear doctor, I have", ("Dear", "44 65 61 72", "44656172"))
    assert error is not None
    assert error.code == "invalid_magic"


def test_representation_hides_the_prompt() -> None:
    request = Request(
        FINGERPRINT,
        "open",
        (PublicSegment((987654321,)), PrivateSegment(np.full((1, 3), 7, np.uint8))),
        Sampling(stop=("SECRET",), stop_token_ids=(987654321,)),
        resume=(987654321,),
    )
    assert "987654321" not in repr(request)
    assert "SECRET" not in repr(request)
    assert "7, 7" not in repr(request)


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
    with pytest.raises(ValueError, match="allowed"):
        Shape(bits, dim)


def test_import_needs_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys, del_core.wire\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'scipy', 'safetensors', 'tokenizers'}\n"
        "sys.exit(' '.join(heavy & {name.partition('.')[0] for name in sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
