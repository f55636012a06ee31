"""Random requests, and frames from parts, for the tests of the wire format."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from del_core.errors import ERROR_STATUS
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
)

FINGERPRINT = "0123456789abcdef" * 4
EXAMPLES = settings(max_examples=200, deadline=None)
SHAPES: dict[str, Shape | None] = {f"bits-{bits}": Shape(bits, 11) for bits in range(1, 9)}
SHAPES |= {"open": Shape(4, 3), "clear": None}


def frame_of(header: bytes, payload: bytes = b"") -> bytes:
    return b"DELF\x01" + struct.pack("<I", len(header)) + header + payload


def header_of(**more: object) -> dict[str, Any]:
    return {"fingerprint": FINGERPRINT, "variant": "open", "segments": [{"public": [1]}], **more}


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


def refused_or_valid(data: bytes, secrets: tuple[str, ...] = ()) -> FrameError | None:
    """Decode a frame; fail unless it is a request or gives a FrameError of the contract."""
    try:
        request = decode_frame(data, SHAPES, Limits(vocabulary_size=1 << 31))
    except FrameError as caught:
        error = caught
    else:
        # A request that was accepted has the same meaning when it is sent again.
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
