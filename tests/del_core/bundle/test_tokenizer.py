"""Which tokenizers a bundle may have: those of the field, and nothing that expands or stalls."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from del_core.bundle import BundleError
from del_core.bundle.tokenizer import MAX_TOKEN_CHARACTERS, check_tokenizer
from tests.support.field_tokenizers import FIELD_TOKENIZERS

DEMO = Path(__file__).parents[3] / "del_core" / "demo" / "model" / "tokenizer.json"
FIELD = {name: json.loads(make().to_str()) for name, make in FIELD_TOKENIZERS.items()}


def checked(value: object) -> None:
    check_tokenizer(json.dumps(value).encode())


@pytest.mark.parametrize("name", FIELD)
def test_the_tokenizers_of_the_field_are_accepted(name: str) -> None:
    checked(FIELD[name])


def test_the_tokenizer_of_the_demo_is_accepted() -> None:
    check_tokenizer(DEMO.read_bytes())


def test_a_file_without_the_types_of_models_is_accepted() -> None:
    """As the library wrote them until 2020."""
    for value in copy.deepcopy(list(FIELD.values())):
        del value["model"]["type"]
        checked(value)


CHARACTERS = 1 << 15
# A run of one character is the worst case of every part: no boundary ends a word.
WORST = {
    "spaces": " ", "newlines": "\n", "letters": "a", "capitals": "A", "mixed": "aA", "digits": "1", "marks": "\u0301",
    "ideographs": "\u6f22", "punctuation": "!", "ligatures": "\ufdfa", "unknown": "\U0001f642", "words": "the ",
}  # fmt: skip


@pytest.mark.parametrize("name", FIELD)
def test_the_longest_words_take_linear_time_and_memory(name: str) -> None:
    """Each text has 32,768 characters; a quadratic part would take minutes."""
    tokenizer = FIELD_TOKENIZERS[name]()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for what, unit in WORST.items():
        text = (unit * CHARACTERS)[:CHARACTERS]
        began = time.process_time()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert time.process_time() - began < 5, what
        assert len(ids) <= 40 * CHARACTERS, what  # U+FDFA is 18 characters of two bytes under NFKC


def with_part(name: str, value: object) -> dict[str, Any]:
    return {**FIELD["gpt2"], name: value}


def model(**fields: object) -> dict[str, Any]:
    return with_part("model", {**FIELD["gpt2"]["model"], **fields})


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SPLIT = {"type": "Split", "pattern": {"Regex": "x*"}, "behavior": "Isolated", "invert": False}
TWICE = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
PAIR = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (with_part("normalizer", REPLACE), "normalizer must be a replacement of a published tokenizer"),
        (with_part("normalizer", {"type": "Sequence", "normalizers": [REPLACE]}), r"normalizer\.normalizers\[0\]"),
        (with_part("normalizer", {**REPLACE, "pattern": {"Regex": "(a|a)*b"}}), "normalizer must be a replacement"),
        (with_part("normalizer", {**REPLACE, "pattern": {"String": " "}}), "normalizer must be a replacement"),
        (with_part("normalizer", {"type": "Prepend", "prepend": "x" * 9}), r"normalizer\.prepend"),
        (with_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}), r"normalizer\.type"),
        (
            with_part(
                "normalizer", {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [REPLACE]}]}
            ),
            r"normalizer\.normalizers\[0\]\.type",
        ),
        (with_part("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}), "0 to 16 elements"),
        (with_part("pre_tokenizer", {"type": "FixedLength", "length": 0}), r"pre_tokenizer\.type must be one of"),
        (with_part("pre_tokenizer", {"type": "FixedLength", "length": 5}), r"got 'FixedLength'"),
        (with_part("pre_tokenizer", SPLIT), r"pre_tokenizer\.pattern must be"),
        (with_part("pre_tokenizer", {**SPLIT, "pattern": {"String": ""}}), r"pre_tokenizer\.pattern"),
        (
            with_part("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "CharDelimiterSplit"}]}),
            r"pre_tokenizer\.pretokenizers\[0\]\.type",
        ),
        (with_part("pre_tokenizer", {"type": "Metaspace", "replacement": "__"}), r"pre_tokenizer\.replacement"),
        (with_part("pre_tokenizer", {"type": "ByteLevel", "length": 0}), "pre_tokenizer must have no members but"),
        (
            with_part(
                "post_processor", {"type": "TemplateProcessing", "single": TWICE, "pair": PAIR, "special_tokens": {}}
            ),
            r"post_processor\.single\[1\]\.Sequence\.id",
        ),
        (with_part("post_processor", {"type": "Sequence", "processors": [{"type": "X"}]}), r"processors\[0\]\.type"),
        (with_part("decoder", {**REPLACE, "content": "a" * 1000}), "decoder must be a replacement"),
        (with_part("decoder", {"type": "CTC"}), r"decoder\.type"),
        (with_part("decoder", {"type": "Strip", "content": " ", "start": 1 << 40, "stop": 0}), r"decoder\.start"),
        (with_part("truncation", {"max_length": 1, "stride": 1}), r"truncation\.stride"),
        (with_part("padding", {"pad_to_multiple_of": 1 << 40}), r"padding\.pad_to_multiple_of"),
        (with_part("added_tokens", [{"id": 1, "content": ""}]), r"added_tokens\[0\]\.content"),
        (with_part("added_tokens", [{"id": 1, "content": "x" * (MAX_TOKEN_CHARACTERS + 1)}]), r"\[0\]\.content"),
        (with_part("added_tokens", [{"id": -1, "content": "x"}]), r"added_tokens\[0\]\.id"),
        (model(dropout=0.5), r"model\.dropout"),
        (model(continuing_subword_prefix="##"), r"model\.continuing_subword_prefix"),
        (model(vocab={"a": 0}, merges=["a a"]), r"model\.merges\[0\] must join two tokens"),
        (model(merges=[["a", 1]]), r"model\.merges\[0\] must be a pair"),
        (model(vocab={"a": 1.5}), r"model\.vocab"),
        (model(vocab={"a": True}), r"model\.vocab"),
        (model(vocab={"x" * (MAX_TOKEN_CHARACTERS + 1): 0}), r"model\.vocab"),
        (model(type="Neural"), r"model\.type"),
        (with_part("model", {**FIELD["bert"]["model"], "max_input_chars_per_word": 10**9}), "max_input_chars_per_word"),
        (with_part("model", {**FIELD["unigram"]["model"], "vocab": [["a", 1e300]]}), r"model\.vocab"),
        ({**FIELD["gpt2"], "extra": 1}, "the file must have no members but"),
        ([], "the file must be a JSON object"),
    ],
)
def test_other_parts_are_refused_by_name(value: object, named: str) -> None:
    with pytest.raises(BundleError, match=rf"^tokenizer\.json: .*{named}"):
        checked(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"model": {"type": "BPE"}, "model": {"type": "BPE"}}',
        b'{"model": {"type": "Unigram", "vocab": [["a", NaN]]}}',
        b"[" + b"1," * (1 << 22) + b"1]",
        b"[" * (1 << 23),
        b"{" + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_tokenizer_is_refused_in_little_memory(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^tokenizer\.json: the file must"):
        check_tokenizer(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KINDS = ("Replace", "Sequence", "Split", "Strip", "ByteLevel", "Metaspace", "BPE", "Unigram", "TemplateProcessing")


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_is_accepted_the_library_loads_or_refuses(data: st.DataObject) -> None:
    """No input raises anything but BundleError here, or anything but Exception in the library."""
    value = copy.deepcopy(FIELD[data.draw(st.sampled_from(sorted(FIELD)))])
    place: Any = value
    for _ in range(data.draw(st.integers(1, 4))):
        keys = sorted(place) if isinstance(place, dict) else list(range(min(len(place), 3)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
        else:
            place[key] = data.draw(JSON | st.sampled_from(KINDS) | st.sampled_from([{"type": kind} for kind in KINDS]))
            break
    text = json.dumps(value)
    try:
        check_tokenizer(text.encode())
    except BundleError:
        return
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception:  # a PanicException is none
        return
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode("The 3 foxes aren't here\u2026", add_special_tokens=False)
