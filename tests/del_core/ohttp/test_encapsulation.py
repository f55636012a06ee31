"""Encapsulated messages in pieces, altered, cut and sealed for others."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from del_core.ohttp import (
    BinaryRequest,
    ClientRequest,
    GatewayKey,
    GatewayRequest,
    KeyConfig,
    ObliviousError,
    ResponseDecoder,
    TruncatedError,
    decode_request,
    encode_content,
    encode_end,
    encode_request,
    encode_response_head,
)
from del_core.ohttp.keys import AES_128_GCM, CHACHA20_POLY1305, HKDF_SHA256

KEY = GatewayKey.generate()
NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,20}\Z")
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=60)
@given(
    headers=HEADERS,
    content=st.binary(max_size=40_000),
    pieces=st.lists(st.binary(max_size=20_000), max_size=5),
    places=st.lists(st.integers(0, 1 << 20), max_size=8),
    aead=st.sampled_from([AES_128_GCM, CHACHA20_POLY1305]),
    chunked=st.booleans(),
)
def test_messages_arrive_as_they_were_sent(
    headers: tuple[tuple[str, str], ...],
    content: bytes,
    pieces: list[bytes],
    places: list[int],
    aead: int,
    chunked: bool,
) -> None:
    config = KeyConfig(KEY.config.key_id, KEY.config.public_key, ((HKDF_SHA256, aead),))
    request = BinaryRequest("POST", "https", "example.com:8000", "/v1/x?y=z", headers, content)
    client = ClientRequest(config, chunked=chunked)
    gateway = GatewayRequest(client.seal(encode_request(request)), KEY, chunked=chunked)
    assert decode_request(gateway.message) == request
    plain = [encode_response_head(201, headers), *map(encode_content, pieces)]
    sealer = gateway.response()
    if chunked:
        sent = sealer.begin() + b"".join(map(sealer.chunk, plain)) + sealer.final(encode_end())
    else:
        sent = sealer.whole(b"".join(plain) + encode_end())
    opener, decoder, found = client.response(), ResponseDecoder(), b""
    for part in cut(sent, places):
        found += decoder.feed(opener.feed(part))
    found += decoder.feed(opener.feed(b"", ended=True), ended=True)
    assert (decoder.status, decoder.headers, found) == (201, headers, b"".join(pieces))


def exchange() -> tuple[ClientRequest, bytes]:
    client = ClientRequest(KEY.config)
    sealer = GatewayRequest(client.seal(b"x"), KEY, chunked=True).response()
    return client, sealer.begin() + sealer.chunk(b"one") + sealer.chunk(b"two") + sealer.final(b"three")


def test_an_altered_response_is_refused() -> None:
    client, sent = exchange()
    for place in range(len(sent)):
        altered = bytearray(sent)
        altered[place] ^= 1
        with pytest.raises(ObliviousError):
            client.response().feed(bytes(altered), ended=True)


def test_a_cut_response_is_not_taken_for_a_whole_one() -> None:
    client, sent = exchange()
    for length in range(len(sent)):
        # In the last chunk, the tag is wrong; before it, the message has no end.
        is_in_last = length >= len(sent) - len(b"three") - 16
        with pytest.raises(ObliviousError if is_in_last else TruncatedError):
            client.response().feed(sent[:length], ended=True)


def test_chunks_that_change_places_are_refused() -> None:
    client = ClientRequest(KEY.config)
    sealer = GatewayRequest(client.seal(b"x"), KEY, chunked=True).response()
    begin, one, two = sealer.begin(), sealer.chunk(b"one"), sealer.chunk(b"two")
    opener = client.response()
    with pytest.raises(ObliviousError, match="must be that of the gateway"):
        opener.feed(begin + two + one)


def test_a_chunk_beyond_the_limit_is_refused_before_it_is_kept() -> None:
    client, sent = exchange()
    opener = client.response()
    with pytest.raises(ObliviousError, match="at most 16384 bytes"):
        opener.feed(sent[:16] + b"\xbf\xff\xff\xff" + bytes(100))
    opener = client.response()
    with pytest.raises(ObliviousError, match="at most 16384 bytes"):
        opener.feed(sent[:16] + b"\x00" + bytes(20_000))


@pytest.mark.parametrize("chunked", [True, False])
def test_a_request_for_another_key_or_altered_is_refused(chunked: bool) -> None:
    sealed = ClientRequest(KEY.config, chunked=chunked).seal(b"message")
    with pytest.raises(ObliviousError):
        GatewayRequest(sealed, GatewayKey.generate(), chunked=chunked)
    with pytest.raises(ObliviousError):
        GatewayRequest(sealed, KEY, chunked=not chunked)
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        with pytest.raises(ObliviousError):
            GatewayRequest(bytes(altered), KEY, chunked=chunked)
        with pytest.raises(ObliviousError):
            GatewayRequest(sealed[:place], KEY, chunked=chunked)


@settings(max_examples=300)
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused_in_one_way(data: bytes) -> None:
    for read in (decode_request, KeyConfig.parse, lambda data: ResponseDecoder().feed(data, ended=True)):
        with contextlib.suppress(ObliviousError):
            read(data)
    for chunked in (True, False):
        with pytest.raises(ObliviousError):
            GatewayRequest(data, KEY, chunked=chunked)


@pytest.mark.parametrize(
    "headers", [(("a", "b\r\nc: d"),), (("a", "b\x00"),), (("A", "b"),), (("", "b"),), (("a b", "c"),)]
)
def test_fields_that_could_split_a_head_are_refused(headers: tuple[tuple[str, str], ...]) -> None:
    request = BinaryRequest("GET", "https", "example.com", "/", headers)
    with pytest.raises(ObliviousError):
        decode_request(encode_request(request))


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    KEY.save(path)
    assert GatewayKey.load(path) == KEY
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert KEY.private_key.hex() not in repr(KEY)
    with pytest.raises(FileExistsError):
        KEY.save(path)
    for text in (
        "",
        "{}",
        "[]",
        '{"key_id": 1, "private_key": "00"}',
        '{"key_id": 900, "private_key": "' + "00" * 32 + '"}',
    ):
        path.write_text(text)
        with pytest.raises(ObliviousError, match=r"gateway\.json"):
            GatewayKey.load(path)
