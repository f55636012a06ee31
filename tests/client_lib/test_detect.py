"""Detectors: what they find, what they leave, and that nothing of a text is lost or changed."""

from __future__ import annotations

import secrets
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_lib.prompts.detect import KINDS, detected, find

FOUND = [
    ("email", "write to ann.o'neil+news@mail.example.org, please", "ann.o'neil+news@mail.example.org"),
    ("iban", "to DE89 3704 0044 0532 0130 00 by Friday", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432", "GB82WEST12345698765432"),
    ("card", "my card 4111 1111 1111 1111 was stolen", "4111 1111 1111 1111"),
    ("card", "amex 378282246310005.", "378282246310005"),
    ("phone", "call +49 30 901820 tonight", "+49 30 901820"),
    ("phone", "call (030) 901-8200", "(030) 901-8200"),
    ("phone", "or 555-867-5309!", "555-867-5309"),
    ("network", "from 192.168.10.25 at night", "192.168.10.25"),
    ("network", "host 2001:db8::8a2e:370:7334 is down", "2001:db8::8a2e:370:7334"),
    ("network", "device 00:1A:2b:3c:4d:5E", "00:1A:2b:3c:4d:5E"),
    ("date", "born on 24.12.1983 in", "24.12.1983"),
    ("date", "born 1983-12-24", "1983-12-24"),
    ("date", "she was born on 24 December 1983", "24 December 1983"),
    ("date", "born December 24th, 1983", "December 24th, 1983"),
    ("key", "use AKIAIOSFODNN7EXAMPLE now", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
    ("key", "sk-proj-abcdEFGH0123456789abcd", "sk-proj-abcdEFGH0123456789abcd"),
    ("key", "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"),
    ("key", "my password is hunter2, ok", "hunter2"),
    ("key", "API_KEY=s3cr3t", "s3cr3t"),
    ("key", "postgres://ann:pw@db.example/x", "postgres://ann:pw@db.example/x"),
    ("key", "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----",
     "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----"),
    ("number", "social security 078051120", "078051120"),
    ("number", "passport C01X00T478", "C01X00T478"),
    ("number", "patient 12345678 has", "12345678"),
]  # fmt: skip
LEFT = [
    "In 2019 we sold 1,250,000 units at 3.14159 each.",
    "Version 1.2.3.4.5 of the library; chapter 12, page 345.",
    "The card 4111 is not a number, and 25 of 30 people agree.",
    "internationalization and counterrevolutionaries are long words",
    "a well-known-and-often-repeated-phrase without digits",
    "Meet me at 10:30, or at 11:45:00.",
    "https://www.example.org/a/b?c=d",
]


@pytest.mark.parametrize(("kind", "text", "expected"), FOUND)
def test_what_is_found(kind: str, text: str, expected: str) -> None:
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [(kind, expected)]


def test_every_kind_is_tested() -> None:
    assert {kind for kind, _, _ in FOUND} == set(KINDS)


@pytest.mark.parametrize("text", LEFT)
def test_what_is_left(text: str) -> None:
    assert find(text) == []


def test_checksums_decide() -> None:
    """A changed digit makes a card number a number, and an IBAN none."""
    assert [one.kind for one in find("4111 1111 1111 1112")] == ["number"]
    assert "iban" not in [one.kind for one in find("DE89 3704 0044 0532 0130 01")]


@given(st.text() | st.lists(st.sampled_from([text for _, text, _ in FOUND])).map(" ".join))
def test_spans_are_the_text(text: str) -> None:
    spans = detected(text)
    assert "".join(span.text for span in spans) == text
    assert all(span.text for span in spans)
    private = [text[one.start : one.end] for one in find(text)]
    assert [span.text for span in spans if span.is_private] == private


@given(st.integers(1, 40), st.integers(0, 2**64))
def test_random_keys_are_found(size: int, seed: int) -> None:
    key = secrets.token_urlsafe(size + 24)
    assert any(one.kind in ("key", "number") for one in find(f"It is {key}x7Q")), key


@pytest.mark.parametrize(
    ("piece", "size"),
    [
        *((piece, 20_000) for piece in ("1 ", "a@", "0:", "1.", "A1-", "pin: ", "+1 (", "aA1")),
        ("-----BEGIN PRIVATE KEY-----", 20_000),
        ("-eyJaaaaaaaa", 150_000),  # each the beginning of a token, none with an end
        ("a@b.co ", 100_000),  # as many findings as possible
    ],
)
def test_long_texts_take_little_time(piece: str, size: int) -> None:
    began = time.process_time()
    find(piece * (size // len(piece)))
    assert time.process_time() - began < 5
