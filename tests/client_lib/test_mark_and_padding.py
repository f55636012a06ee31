"""Spans by a caller's detector, and private spans filled up to a bucket."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from client_lib import BundleInvalidError, InvalidRequestError, Padding, mark, private, public
from client_lib.prompts.encoder import Encoder
from del_core.bundle import ClientBundle
from del_core.wire import PrivateSegment
from tests.client_lib.conftest import Calls
from tests.client_lib.test_hooks import Ledger
from tests.support.scripted_server import ScriptedServer

Connect = Callable[..., Calls]


@given(st.text(), st.data())
def test_marked_spans_are_the_text(text: str, data: st.DataObject) -> None:
    """For every set of ranges that do not overlap, in any order."""
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    ranges = data.draw(st.permutations(list(zip(ends[::2], ends[1::2], strict=False))))
    spans = mark(text, lambda _: ranges)
    assert "".join(span.text for span in spans) == text
    assert [span.text for span in spans if span.is_private] == [text[start:end] for start, end in sorted(ranges)]
    assert all(span.text for span in spans)


def test_a_detector_is_a_function_of_the_text() -> None:
    def digits(text: str) -> Iterable[tuple[int, int]]:
        return (found.span() for found in re.finditer(r"\d+", text))

    assert mark("call 5512 or 77", digits) == (public("call "), private("5512"), public(" or "), private("77"))
    assert mark("", digits) == ()


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 3), (2, 4)],
        [(0, 6)],
        [(-1, 2)],
        [(2, 2)],
        [(3, 1)],
        [(0, 1), (0, 1)],
        [(0.0, 1)],
        [(True, 2)],
        [5],
        [(1, 2, 3)],
    ],
)
def test_unusable_ranges_are_refused(ranges: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        mark("Zebra", lambda _: ranges)
    assert caught.value.field == "detector"
    assert "Z" not in str(caught.value)


@pytest.mark.parametrize("bucket", [2, 16, 64])
@given(text=st.text("abc de", min_size=1, max_size=60))
def test_private_spans_fill_buckets(bundle: ClientBundle, bucket: int, text: str) -> None:
    encoder = Encoder(bundle)
    plain = encoder.tokenize([public(text), private(text)], "open")
    padded = encoder.tokenize([public(text), private(text)], "open", Padding(bucket))
    assert padded[0].ids == plain[0].ids
    ids = padded[1].ids
    assert len(ids) % bucket == 0
    assert 0 <= len(ids) - len(plain[1].ids) < bucket
    assert ids[len(ids) - len(plain[1].ids) :] == plain[1].ids
    filling = encoder.tokenize("\n", "open")[0].ids
    assert set(ids[: len(ids) - len(plain[1].ids)]) <= set(filling)


def test_padding_is_charged_and_reused(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger()
    calls = connect(variant="open", padding=Padding(32), ledger=ledger, subject="ann")
    calls.complete([private("hello"), public("and"), private("a letter " * 20)])
    segments = [s for s in server.decode(server.frames[0]).segments if isinstance(s, PrivateSegment)]
    assert segments[0].tokens == 32
    assert segments[1].tokens % 32 == 0
    assert sum(ledger.charged.values()) == sum(segment.tokens for segment in segments)
    calls.with_options(padding=None).complete("hello")
    assert sum(ledger.charged.values()) < sum(segment.tokens for segment in segments) + 32


def test_padding_is_noisy_like_the_rest(bundle: ClientBundle) -> None:
    """Equal padding tokens have independent counts, so 63 rows are not all equal."""
    encoder = Encoder(bundle)
    encoded = encoder.draw(encoder.tokenize("a", "open", Padding(64)), "open")
    codes = next(s for s in encoded.segments if isinstance(s, PrivateSegment)).codes[:-1]
    assert len(np.unique(codes, axis=0)) > 1


@pytest.mark.parametrize(
    ("arguments", "field"), [((1,), "bucket"), ((5000,), "bucket"), ((8.0,), "bucket"), ((8, ""), "text")]
)
def test_unusable_padding_is_refused(arguments: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Padding(*arguments)
    assert caught.value.field == f"padding.{field}"


@given(text=st.text(min_size=1, max_size=40), bucket=st.sampled_from([2, 16, 50]))
def test_padding_by_bytes_does_not_depend_on_the_tokenizer(bundle: ClientBundle, text: str, bucket: int) -> None:
    (part,) = Encoder(bundle).tokenize(text, "open", Padding(bucket, unit="bytes"))
    size = len(text.encode())
    assert len(part.ids) == -(-size // bucket) * bucket


def test_a_tokenizer_that_counts_for_the_server_is_refused() -> None:
    """A digit that becomes a run of tokens would be read from the length; nothing says how many."""
    padding = Padding(4, unit="bytes")
    assert len(padding.apply((1, 2, 3), (9,), 5)) == 8
    with pytest.raises(BundleInvalidError) as caught:
        padding.apply((7,) * 9, (9,), 5)
    assert "9" not in str(caught.value)
    assert padding.name != Padding(4).name
    with pytest.raises(InvalidRequestError, match=r"padding\.unit"):
        Padding(4, unit="words")  # type: ignore[arg-type]


def test_drawn_padding_has_the_frequencies_of_its_text(bundle: ClientBundle) -> None:
    """Chi-square with alpha = 1e-6; every expected count is at least 5."""
    encoder = Encoder(bundle)
    text = "the quick the brown the lazy dog the test"
    known = encoder.tokenize(text, "open")[0].ids
    padding = Padding(64, text=text, fill="draw")
    plain = encoder.tokenize("a", "open")[0].ids
    drawn = [one for _ in range(200) for one in encoder.tokenize("a", "open", padding)[0].ids[: 64 - len(plain)]]
    assert set(drawn) == set(known)
    ids, shares = np.unique(known, return_counts=True)
    expected = shares / len(known) * len(drawn)
    observed = np.array([drawn.count(one) for one in ids])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < chi2.isf(1e-6, len(ids) - 1)


def test_drawn_padding_is_sent_and_repeated(connect: Connect, server: ScriptedServer) -> None:
    """A prompt that is sent again repeats its counts, so its padding is drawn once."""
    calls = connect(variant="open", padding=Padding(32, text="the quick brown fox", fill="draw"))
    for _ in range(2):
        calls.complete([private("hello"), public("and")])
    first, second = (server.decode(frame).segments for frame in server.frames)
    assert [segment.tokens for segment in first if isinstance(segment, PrivateSegment)] == [32]
    codes = [
        segment.codes for segments in (first, second) for segment in segments if isinstance(segment, PrivateSegment)
    ]
    assert np.array_equal(codes[0], codes[1])


def test_fills_are_named() -> None:
    assert Padding(4, fill="draw").name != Padding(4).name
    with pytest.raises(InvalidRequestError, match=r"padding\.fill"):
        Padding(4, fill="noise")  # type: ignore[arg-type]
