"""Spans tokenize to the pieces of the whole text, whatever space the tokenizer writes in front."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from del_core.prompts import SpanTokenizer, begin_of_text_id, special_token_id

_TEXTS = ("the doctor says that the sea is near", "a house by the sea", "she says that the doctor is here")
_SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>")
KINDS = ("prepend", "always", "first", "never", "byte level", "byte level, spaced")


def make(kind: str) -> Tokenizer:
    """Return a tokenizer of a kind that writes a space in front by its normalizer, or otherwise."""
    if kind.startswith("byte level"):
        tokenizer = Tokenizer(models.BPE())
        spaced = kind.endswith("spaced")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=spaced)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        scheme = "always" if kind == "prepend" else kind
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = ["\u2581", *map(chr, range(97, 123))]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS * 20, trainer)
    if kind == "prepend":  # learned with words apart, so that merges end at spaces
        tokenizer.pre_tokenizer = None
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


MADE = {kind: make(kind) for kind in KINDS}


def pieces(kind: str, *spans: tuple[str, bool]) -> list[str]:
    tokenizer = MADE[kind]
    found = SpanTokenizer(tokenizer.to_str().encode()).encode_spans(spans)
    return [tokenizer.id_to_token(token_id) for ids in found for token_id in ids]


def whole(kind: str, *texts: str) -> list[str]:
    return list(MADE[kind].encode("".join(texts), add_special_tokens=False).tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "texts",
    [
        ("the doctor", " says"),
        ("the doctor", " says", " that"),
        ("<|user|>", "the doctor", " says</s>", "the sea"),
        ("<|user|>", " the doctor"),
        ("<s>", "<|user|>", "she says"),
        ("the sea", " is</s><s>the doctor", " says", "</s>"),
    ],
)
def test_public_spans_have_the_pieces_of_the_whole_text(kind: str, texts: tuple[str, ...]) -> None:
    assert pieces(kind, *((text, False) for text in texts)) == whole(kind, *texts)


@given(st.lists(st.sampled_from(["the", "doctor", "says", "that", "sea", "is"]), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", KINDS)
def test_words_in_spans_of_their_own(kind: str, words: list[str]) -> None:
    texts = [words[0], *(f" {word}" for word in words[1:])]
    assert pieces(kind, *((text, index % 2 == 1) for index, text in enumerate(texts))) == whole(kind, *texts)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_of_a_span_depends_on_a_private_one(kind: str) -> None:
    """Not even by a special token that the private text ends in."""
    after = {tuple(pieces(kind, (secret, True), ("the sea", False))[-2:]) for secret in ("a", "a</s>", "says ")}
    assert len(after) == 1


def test_begin_of_text_is_what_the_tokenizer_writes() -> None:
    tokenizer = make("first")
    assert begin_of_text_id(tokenizer) is None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert begin_of_text_id(tokenizer) == 1
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert begin_of_text_id(tokenizer) is None


def test_special_tokens_by_their_text() -> None:
    tokenizer = make("byte level")
    assert special_token_id(tokenizer, "</s>") == 2
    assert special_token_id(tokenizer, "the") is None  # a token, but not a special one
    assert special_token_id(tokenizer, "</s> ") is None
