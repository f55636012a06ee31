"""The event-stream parser: split anywhere, any line ending, bounded, nothing but typed errors."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_lib.errors import ProtocolError
from client_lib.protocol.sse import EventParser

# Data lines: any text without the two line ends; surrogates cannot be encoded.
LINES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n"), max_size=20)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
NOISE = st.sampled_from([b": comment", b":", b"event: x", b"id: 1", b"retry: 5", b"datax: no", b"unknown"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """An event stream and the data of its events."""
    body, events = bytearray(draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))), []
    for lines in draw(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5)):
        for line in lines:
            for noise in draw(st.lists(NOISE, max_size=2)):
                body += noise + draw(ENDS)
            body += b"data:" + draw(st.sampled_from([b" ", b""]) if not line.startswith(" ") else st.just(b" "))
            body += line.encode() + draw(ENDS)
        # An empty line ends the event. After a lone CR an LF would belong to that CR, so close with
        # CRLF.
        body += b"\r\n\r\n" if body.endswith(b"\r") else draw(ENDS) + b"\n"
        events.append("\n".join(lines))
    return bytes(body), events


def feed(parser: EventParser, body: bytes, cuts: list[int]) -> list[str]:
    """Feed the body in the pieces that the cuts make."""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [event for start, end in pairwise(edges) for event in parser.feed(body[start:end])]


@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_split_gives_the_same_events(stream: tuple[bytes, list[str]], cuts: list[int]) -> None:
    body, events = stream
    assert feed(EventParser(), body, cuts) == events


@given(streams())
def test_byte_by_byte(stream: tuple[bytes, list[str]]) -> None:
    body, events = stream
    parser = EventParser()
    assert [event for byte in body for event in parser.feed(bytes([byte]))] == events


@given(streams(), st.integers(0, 1 << 16))
def test_a_cut_stream_gives_a_prefix_of_the_events(stream: tuple[bytes, list[str]], cut: int) -> None:
    """What the end of the connection cuts off is dropped, never delivered in part."""
    body, events = stream
    received = EventParser().feed(body[: cut % (len(body) + 1)])
    assert received == events[: len(received)]


@given(st.binary(max_size=300), st.lists(st.integers(0, 1 << 16), max_size=6))
def test_garbage_raises_nothing_else(body: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(ProtocolError):
        feed(EventParser(max_event_bytes=100), body, cuts)


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\r\n\r\n", ["a"]),
        (b"data: a\r\r", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data:  a\n\n", [" a"]),
        (b"data\n\n", [""]),
        (b"data: a\n", []),
        (b": ping\n\n\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        ("data: é日🙂\n\n".encode(), ["é日🙂"]),
    ],
)
def test_examples(body: bytes, events: list[str]) -> None:
    assert EventParser().feed(body) == events


def test_crlf_split_between_its_bytes_is_one_line_end() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\ndata: b\r") == []
    assert parser.feed(b"\n\r") == ["a\nb"]
    assert parser.feed(b"\ndata: c\n\n") == ["c"]


@pytest.mark.parametrize("piece", [b"x" * 101, b"data: " + b"x" * 101 + b"\n", (b"data: " + b"x" * 40 + b"\n") * 3])
def test_memory_is_bounded(piece: bytes) -> None:
    with pytest.raises(ProtocolError, match="at most 100 bytes"):
        EventParser(max_event_bytes=100).feed(piece)


def test_a_long_line_that_comes_in_drops_is_refused_early() -> None:
    parser = EventParser(max_event_bytes=1000)
    for _ in range(1000):
        parser.feed(b"x")
    with pytest.raises(ProtocolError):
        parser.feed(b"x")


def test_invalid_utf8_is_refused_without_its_bytes() -> None:
    with pytest.raises(ProtocolError, match="UTF-8") as caught:
        EventParser().feed(b"data: secret\xff\n\n")
    assert caught.value.__context__ is None  # a decoder's error would carry the bytes along
