"""Text files as token windows: a batch depends on seed and step alone."""

from __future__ import annotations

import pytest
import torch

from del_core.lm.text import TextError, TokenWindows, read_texts, split_text


def test_splits_are_disjoint_and_lose_nothing():
    text = "".join(f"line {i}\n" for i in range(1000))
    splits = split_text([text], held_out=0.1)
    assert splits.train[0] + splits.validation[0] + splits.test[0] == text
    assert 0.09 < (len(splits.validation[0]) + len(splits.test[0])) / len(text) < 0.11


def test_every_window_of_an_epoch_is_seen_once():
    windows = TokenWindows(torch.arange(1003), length=10, seed=3)
    for epoch in range(2):
        starts = [int(windows.batch(epoch * windows.per_epoch + i, 1)[0, 0]) for i in range(windows.per_epoch)]
        assert len(set(starts)) == windows.per_epoch
        assert {start % 10 for start in starts} == {starts[0] % 10}


def test_a_batch_depends_on_nothing_but_seed_and_step():
    tokens = torch.arange(5000)
    forwards = [TokenWindows(tokens, 16, seed=1).batch(step, 4) for step in range(100)]
    windows = TokenWindows(tokens, 16, seed=1)
    for step in reversed(range(100)):
        assert torch.equal(windows.batch(step, 4), forwards[step])
    assert not torch.equal(TokenWindows(tokens, 16, seed=2).batch(0, 4), forwards[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "must exist"),
        (lambda p: p.write_bytes(b"\xff\xfe\xfd"), "must be UTF-8, got other bytes from 0 on"),
        (lambda p: p.write_text("  \n"), "must not be empty"),
        (lambda p: p.mkdir(), "must be a file, got the directory"),
    ],
)
def test_a_bad_text_file_is_named(tmp_path, make, message):
    path = tmp_path / "some.txt"
    make(path)
    with pytest.raises(TextError, match=message) as error:
        read_texts([path])
    assert str(path) in str(error.value)


def test_too_little_text_is_refused():
    with pytest.raises(TextError, match="at least 20 tokens, got 19"):
        TokenWindows(torch.arange(19), 10, seed=0)


def test_long_lines_are_cut_between_words():
    text = "\n".join(" ".join(f"word{line}of{index}" for index in range(1_000)) for line in range(10))
    splits = split_text([text])
    parts = [*splits.train, *splits.validation, *splits.test]
    assert "".join(parts) == text
    assert len(parts) == 3
    assert all(part.startswith("word") for part in parts)
