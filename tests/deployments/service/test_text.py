"""Incremental text is that of all tokens for any grouping; stop strings end it exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deployments.service.text import Anchor, TextStream
from tests.support.tiny import EOS_ID

TEXT = "Größe, naïveté: 日本語 and 🙂🙃 together, then THE END of it all."


_NONE = Anchor()


def stream(
    tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = (), anchor: Anchor = _NONE
) -> tuple[str, int]:
    """Return the whole text of a stream and its number of tokens."""
    text = TextStream(tokenizer, stop, anchor)
    out = []
    for count, token_id in enumerate(ids, start=1):
        out.append(text.push(token_id))
        if text.stopped:
            return "".join(out), count
    return "".join(out) + text.finish(), len(ids)


def test_text_of_the_parts_is_text_of_the_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT).ids
    assert len(ids) > len("🙂🙃".encode())
    assert stream(tokenizer, ids) == (TEXT, len(ids))


def test_no_part_has_half_a_character(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer)
    parts = [text.push(token_id) for token_id in tokenizer.encode(TEXT).ids]
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_unfinished_character_is_put_out_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂").ids[:-1]
    assert stream(tokenizer, ids)[0] == tokenizer.decode(ids) == "a\N{REPLACEMENT CHARACTER}"


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("over").ids
    assert stream(tokenizer, [*ids, EOS_ID, *ids])[0] == "overover"


@pytest.mark.parametrize("stop", [["THE END"], ["nothing", "END", "THE END"], ["END of", "THE"], ["🙃"], ["G"]])
def test_stop_string_ends_the_text_before_its_first_occurrence(tokenizer: Tokenizer, stop: list[str]) -> None:
    ids = tokenizer.encode(TEXT).ids
    text, used = stream(tokenizer, ids, stop)
    # The first token count after which a stop string can be seen, and the text before it.
    expected_used = next(k for k in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:k]) for s in stop))
    seen = tokenizer.decode(ids[:expected_used])
    assert used == expected_used
    assert text == seen[: min(seen.find(s) for s in stop if s in seen)]


def test_near_miss_of_a_stop_string_is_put_out_in_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("THE EN").ids
    text = TextStream(tokenizer, ["THE END"])
    assert "".join(text.push(token_id) for token_id in ids) == ""
    assert text.finish() == "THE EN"


def test_stop_string_in_the_last_text_is_found(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂").ids[:-1]
    text = TextStream(tokenizer, ["\N{REPLACEMENT CHARACTER}"])
    assert "".join(text.push(token_id) for token_id in ids) == "a"
    assert text.finish() == ""
    assert text.stopped


def test_nothing_follows_a_stop_string(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer, ["T"])
    text.push(tokenizer.encode("T").ids[0])
    with pytest.raises(ValueError, match="stop string"):
        text.push(5)


@pytest.mark.parametrize("stop", [(), ("END",), ("zzz", "🙃 to")])
def test_resumed_text_continues_where_it_was(tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
    """The text after k tokens and the rest after a replay of k tokens are the whole."""
    ids = tokenizer.encode(TEXT).ids
    whole, used = stream(tokenizer, ids, stop)
    for k in range(used):
        first = TextStream(tokenizer, stop)
        before = "".join(first.push(token_id) for token_id in ids[:k])
        second = TextStream(tokenizer, stop)
        for token_id in ids[:k]:
            second.push(token_id)
        after = "".join(second.push(token_id) for token_id in ids[k:used])
        assert before + after + second.finish() == whole, k


def test_garbage_costs_no_more_and_loses_nothing_readable(tokenizer: Tokenizer) -> None:
    """Bytes that form no character do not grow the window; later text is whole."""
    lone = tokenizer.encode("🙂").ids[:1]
    decoded = 0

    class Counting:
        def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    text = TextStream(Counting())
    out = "".join(text.push(token_id) for token_id in lone * 2000)
    tail = tokenizer.encode(" and then plain words").ids
    out += "".join(text.push(token_id) for token_id in tail) + text.finish()
    assert out.endswith(" and then plain words")
    assert decoded < 2000 * 200


def test_random_token_sequences(tokenizer: Tokenizer) -> None:
    """Random tokens are mostly invalid UTF-8: nothing raises, and valid runs are whole."""
    chooser = random.Random(20260)
    size = tokenizer.get_vocab_size()
    for _ in range(200):
        ids = [chooser.randrange(size) for _ in range(30)]
        assert stream(tokenizer, ids)[0] == tokenizer.decode(ids)


@pytest.mark.parametrize("stop", [(), ("an",)])
def test_groups_release_what_their_tokens_release_one_by_one(tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
    """Groups that cut characters, invalid bytes and special tokens equal single tokens."""
    generator = random.Random(7)
    text_ids = tokenizer.encode(TEXT).ids
    for _ in range(100):
        start = generator.randrange(len(text_ids))
        noise = [generator.randrange(tokenizer.get_vocab_size()) for _ in range(generator.randrange(50))]
        ids = [*text_ids[start:], *noise, *text_ids[: generator.randrange(20)]]
        grouped, single = TextStream(tokenizer, stop), TextStream(tokenizer, stop)
        while ids and not single.stopped:
            size = generator.choice([1, 2, 5, 16, 40])
            group, ids = ids[:size], ids[size:]
            expected = ""
            taken = 0
            for token_id in group:
                expected += single.push(token_id)
                taken += 1
                if single.stopped:
                    break
            assert grouped.extend(group) == (expected, taken)
            assert grouped.stopped == single.stopped
        assert grouped.finish() == single.finish()


@pytest.fixture
def metaspace() -> Tokenizer:
    """A tokenizer of the Llama type, whose decoder drops the space of a first word."""
    words = ("a", "that", "says", ",", "\u2581a", "\u2581that", "\u2581says", "\u2581")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def test_a_completion_keeps_its_leading_space(metaspace: Tokenizer) -> None:
    ids = [metaspace.token_to_id(piece) for piece in ("\u2581that", "\u2581says", ",", "\u2581", "\u2581a")]
    anchor = Anchor.of(metaspace)
    assert stream(metaspace, ids, anchor=anchor) == (" that says,  a", 5)
    assert stream(metaspace, ids, [" that"], anchor) == ("", 1)
    assert stream(metaspace, ids[1:], [" a"], anchor) == (" says, ", 4)
    text = TextStream(metaspace, (), anchor)
    assert text.extend(ids)[0] + text.finish() == " that says,  a"


def test_an_anchor_changes_no_other_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT).ids
    assert stream(tokenizer, ids, anchor=Anchor.of(tokenizer)) == (TEXT, len(ids))
    assert stream(tokenizer, [], anchor=Anchor.of(tokenizer)) == ("", 0)
