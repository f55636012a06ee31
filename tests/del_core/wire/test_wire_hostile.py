"""Mutated, forged and mistaken frames raise FrameError without any of the prompt."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from del_core.wire import (
    FrameError,
    Limits,
    PrivateSegment,
    PublicSegment,
    Request,
    Sampling,
    Shape,
    decode_frame,
)
from tests.support.wire_frames import (
    EXAMPLES,
    FINGERPRINT,
    SHAPES,
    encode,
    frame_of,
    header_of,
    refused_or_valid,
    requests,
)


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
        "top_k", "min_p", "frequency_penalty", "logprobs", "structured_outputs",
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
        {"logit_bias": {"SECRET": 1}},
        {"logit_bias": {"1": "SECRET"}},
        {"structured_outputs": {"regex": ["SECRET"]}},
        {"structured_outputs": {"SECRET text": 1}},
        {"structured_outputs": {"choice": ["SECRET", 1]}},
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
