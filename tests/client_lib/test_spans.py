"""Spans and what an encoder makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from client_lib import BundleInvalidError, Encoder, InvalidRequestError, Span, private, public
from client_lib.prompts.spans import spans_of
from del_core.bundle import ClientBundle, load_client
from del_core.wire import PrivateSegment, PublicSegment, Sampling, Shape, decode_frame
from tests.support.bundle import BOS, DIM, make_bundle, make_tokenizer

SECRET = "my test was positive"
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
SPANS = st.lists(st.builds(Span, TEXTS, st.booleans()), max_size=6)


def counter_bytes(count: int) -> bytes:
    """A random source that is not random, to compare what two ways of drawing give."""
    return (np.arange(count) * 73 % 256).astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def encoder(bundle: ClientBundle) -> Encoder:
    return Encoder(bundle)


@pytest.fixture(scope="module")
def tokenizer(bundle: ClientBundle) -> Tokenizer:
    return Tokenizer.from_file(str(bundle.tokenizer_path))


# --- spans ----------------------------------------------------------------------------------------


def test_a_plain_string_is_private_but_public_under_clear() -> None:
    assert spans_of("hello", "open") == (private("hello"),)
    assert spans_of("hello", "clear") == (public("hello"),)


@pytest.mark.parametrize("value", [private(SECRET), public(SECRET), [private(SECRET)]])
def test_representations_hide_the_text(value: object) -> None:
    assert "positive" not in repr(value)
    assert "positive" not in f"{value}"


@given(SPANS)
def test_spans_keep_order_and_content(spans: list[Span]) -> None:
    kept = [span for span in spans if span.text]
    if not kept:
        with pytest.raises(InvalidRequestError, match="prompt must be at least one character"):
            spans_of(spans, "open")
    else:
        assert list(spans_of(spans, "open")) == kept


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([private(""), public("")], "prompt"),
        (None, "prompt"),
        (b"positive", "prompt"),
        ({"positive": 1}, "prompt"),
        (["positive"], "prompt[0]"),
        ([public("a"), 3], "prompt[1]"),
        ([private(3)], "prompt[0]"),  # type: ignore[arg-type]
        ("positive \ud800", "prompt"),
        ([public("a"), private("positive \udfff")], "prompt[1]"),
    ],
)
def test_bad_prompts_are_named_but_not_shown(prompt: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spans_of(prompt, "open")
    assert caught.value.field == field
    assert ", got " in str(caught.value)
    assert "positive" not in str(caught.value)
    assert caught.value.__context__ is None


def test_private_spans_are_refused_under_clear() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt\[1\].*adds no noise") as caught:
        spans_of([public("a"), private(SECRET)], "clear")
    assert SECRET not in str(caught.value)


# --- encoding -------------------------------------------------------------------------------------


@given(SPANS)
def test_frame_holds_every_span_tokenised_on_its_own(bundle: ClientBundle, spans: list[Span]) -> None:
    """The frame has BOS, then one segment per span: exact public ids, the mechanism's counts."""
    encoder = Encoder(bundle, random_source=counter_bytes)
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    ids = [(span, tokenizer.encode(span.text, add_special_tokens=False).ids) for span in spans if span.text]
    if not any(tokens for _, tokens in ids):
        with pytest.raises(InvalidRequestError):
            encoder.encode(spans, "open")
        return
    encoded = encoder.encode(spans, "open")
    request = decode_frame(encoder.frame(encoded, Sampling()), {"open": Shape(4, DIM)})
    assert request.segments[0] == PublicSegment((BOS,))
    mechanism = bundle.mechanism("open")
    expected = [
        PrivateSegment(mechanism.sample(bundle.table[np.array(tokens)], counter_bytes))
        if span.is_private
        else PublicSegment(tuple(tokens))
        for span, tokens in ids
        if tokens
    ]
    assert list(request.segments[1:]) == expected
    assert encoded.private_tokens == sum(len(tokens) for span, tokens in ids if span.is_private)
    assert encoded.tokens == 1 + sum(len(tokens) for _, tokens in ids)


def test_noise_is_fresh_for_every_encoding_and_fixed_in_one(encoder: Encoder) -> None:
    """Two draws of 200 tokens agree with probability far below 1e-100."""
    text = "hello world " * 60
    first, second = encoder.encode(text, "open"), encoder.encode(text, "open")
    assert first.segments[1] != second.segments[1]
    assert encoder.frame(first, Sampling()) == encoder.frame(first, Sampling())


def test_resuming_changes_the_header_only(encoder: Encoder) -> None:
    encoded = encoder.encode(SECRET, "open")
    payload_bytes = encoded.private_tokens * DIM * 4 // 8
    first = encoder.frame(encoded, Sampling(max_tokens=9))
    second = encoder.frame(encoded, Sampling(max_tokens=9), resume=(5, 6))
    assert first != second
    assert first[-payload_bytes:] == second[-payload_bytes:]


def test_without_bos_nothing_is_put_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    encoder = Encoder(make_bundle(tmp_path / "bundle", bos_token_id=None))
    ids = tokenizer.encode("hello", add_special_tokens=False).ids
    assert encoder.encode("hello", "clear").segments == (PublicSegment(tuple(ids)),)


def test_text_is_never_cut_or_filled_up(tmp_path: Path) -> None:
    """A tokenizer file may ask for both; a prompt must arrive as it is."""
    tokenizer = Tokenizer.from_str(make_tokenizer().decode())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    encoder = Encoder(make_bundle(tmp_path / "bundle", tokenizer_json=tokenizer.to_str().encode(), bos_token_id=None))
    plain = Tokenizer.from_str(make_tokenizer().decode())
    text = "the quick brown fox jumps over the lazy dog"
    assert encoder.encode(text, "strict").tokens == len(plain.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("spaced", [False, True])
def test_parts_of_a_prompt_that_are_encoded_apart(tmp_path: Path, spaced: bool) -> None:
    """As the proxy does for the turns of a chat that it has not sent before."""
    tokenizer = Tokenizer.from_str(make_tokenizer().decode())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=spaced)
    encoder = Encoder(make_bundle(tmp_path / "bundle", tokenizer_json=tokenizer.to_str().encode()))
    spans = [public("the quick"), public(" brown"), public("fox")]
    whole = encoder.encode(spans, "clear").segments
    rest = encoder.draw(encoder.tokenize(spans[1:], "clear", before=spans[:1]), "clear", continues=True)
    assert (*encoder.encode(spans[:1], "clear").segments, *rest.segments) == whole
    ids = [token_id for segment in whole[1:] for token_id in segment.token_ids]  # type: ignore[union-attr]
    assert tokenizer.decode(ids).strip() == "the quick brownfox"


@pytest.mark.parametrize("variant", ["secret", "", "Open", None])
def test_unknown_variants_are_refused(encoder: Encoder, variant: Any) -> None:
    with pytest.raises(InvalidRequestError, match="one of strict, open, clear") as caught:
        encoder.encode("hello", variant)
    assert caught.value.field == "variant"


def test_a_tokenizer_that_does_not_fit_the_table_is_refused(tmp_path: Path) -> None:
    encoder = Encoder(make_bundle(tmp_path / "bundle", rows=20))
    with pytest.raises(BundleInvalidError, match="0 to 19"):
        encoder.encode("zebra", "open")


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tokenizer_json=b"{}", rows=20)
    with pytest.raises(BundleInvalidError, match=r"tokenizer\.json"):
        Encoder(bundle)


def test_representation_of_an_encoded_prompt_hides_everything(encoder: Encoder) -> None:
    encoded = encoder.encode([public("hello"), private(SECRET)], "open")
    shown = repr(encoded)
    assert not any(str(segment) in shown for segment in encoded.segments)
    assert shown == f"EncodedPrompt(fingerprint='{encoder.fingerprint}', variant='open')"


# --- moving a prompt to another bundle ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"norm_limit": 2.0}, True),  # only the server's part differs
        ({"table_seed": 2}, False),
        ({"ratio_numerator": 1 << 28}, False),
        ({"ratio_numerator": 1 << 30}, False),
        ({"bos_token_id": None}, False),
    ],
)
def test_counts_move_only_where_they_mean_the_same(
    encoder: Encoder, tmp_path: Path, changes: dict[str, Any], same: bool
) -> None:
    other = Encoder(make_bundle(tmp_path / "bundle", **changes))
    assert other.fingerprint != encoder.fingerprint
    encoded = encoder.encode(SECRET, "open")
    adopted = other.adopt(encoded)
    if same:
        assert adopted is not None
        assert adopted.segments is encoded.segments
        assert adopted.fingerprint == other.fingerprint
        other.frame(adopted, Sampling())
    else:
        assert adopted is None


def test_public_prompts_move_under_another_table(encoder: Encoder, tmp_path: Path) -> None:
    other = Encoder(make_bundle(tmp_path / "bundle", table_seed=2))
    assert other.adopt(encoder.encode("hello", "clear")) is not None


def test_a_frame_is_never_built_for_the_wrong_bundle(encoder: Encoder, tmp_path: Path) -> None:
    other = Encoder(make_bundle(tmp_path / "bundle", table_seed=2))
    with pytest.raises(InvalidRequestError, match="encoded for the bundle"):
        other.frame(encoder.encode("hello", "open"), Sampling())


def test_loading_again_gives_an_equal_origin(encoder: Encoder) -> None:
    again = Encoder(load_client(encoder.bundle.path))
    assert again.adopt(encoder.encode("hello", "open")) is not None


def test_groups_of_spans_are_not_merged(encoder: Encoder) -> None:
    """Adjacent private spans stay two independent segments."""
    segments = encoder.encode([private("a"), private("b"), public("c"), public("d")], "open").segments
    assert [isinstance(segment, PrivateSegment) for segment in segments] == [False, True, True, False, False]
