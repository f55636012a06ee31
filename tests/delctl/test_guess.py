"""The demo's view of the server: the guess from the counts, and its marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from client_lib import Encoder
from del_core.bundle import load_bundle
from del_core.mechanism.likelihood import map_tokens
from del_core.wire import Limits, PrivateSegment, Sampling, Shape, decode_frame
from delctl.guess import Guess, guess_tokens
from delctl.terminal import bytes_words, console, printable
from tests.support.bundle import DIM, make_bundle


def test_marks_what_is_right_and_keeps_spaces_outside() -> None:
    guess = Guess(((" a wrong", False), (" right one", True), (" end", False)), right=2, tokens=5)
    assert guess.marked() == " a wrong [right one] end"
    assert guess.styled().plain == guess.marked()
    assert guess.recovered_fraction == 0.4


def test_a_right_token_of_spaces_alone_is_marked_as_it_is() -> None:
    assert Guess(((" ", True), ("x", False)), right=1, tokens=2).marked() == "[ ]x"


def test_the_marks_survive_without_colour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console().print(Guess((("yes", True), (" no", False)), 1, 2).styled())
    assert capsys.readouterr().out == "[yes] no\n"


def test_guesses_from_the_bytes_that_are_sent(tmp_path: Path) -> None:
    client = make_bundle(tmp_path / "bundle", ratio_numerator=2**30)
    bundle = load_bundle(tmp_path / "bundle")
    # Seeded, so that the figures below are the same in every run.
    encoder = Encoder(client, random_source=np.random.Generator(np.random.PCG64(7)).bytes)
    encoded = encoder.encode("the quick brown fox jumps over the lazy dog", "open")
    tokenizer = Tokenizer.from_file(str(client.tokenizer_path))
    token_ids = tokenizer.encode("the quick brown fox jumps over the lazy dog").ids
    guess = guess_tokens(bundle, "open", encoded, tokenizer, token_ids)

    frame = encoder.frame(encoded, Sampling())
    request = decode_frame(frame, {"open": Shape(4, DIM)}, Limits(vocabulary_size=len(client.table)))
    codes = np.concatenate([part.codes for part in request.segments if isinstance(part, PrivateSegment)])
    seen = map_tokens(bundle.mechanism("open"), client.table, bundle.log_prior, codes).tolist()
    hits = [guessed == token for guessed, token in zip(seen, token_ids, strict=True)]
    assert (guess.right, guess.tokens) == (sum(hits), len(hits))
    assert 0 < guess.right < guess.tokens, "a seed whose guess has some tokens right and some wrong"
    assert "".join(text for text, _ in guess.runs) == printable(tokenizer.decode(seen, skip_special_tokens=False))


def test_printable_and_sizes() -> None:
    assert printable("a\tb\n\x1b[0m\u202e\x00é🙂") == "a\tb\n\ufffd[0m\ufffd\ufffdé🙂"
    assert [bytes_words(size) for size in (0, 999, 1000, 395_012, 22_000_000, 7 * 10**9)] == [
        "0 bytes", "999 bytes", "1.0 kB", "395.0 kB", "22.0 MB", "7.0 GB",
    ]  # fmt: skip
