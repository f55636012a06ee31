"""The classifier of topics finds what is there, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from benchmarks import topics
from del_core.bundle import load_bundle
from del_core.demo import bundle_path


def test_passages_are_those_of_five_topics() -> None:
    tokenizer = Tokenizer.from_file(str(load_bundle(bundle_path()).client.tokenizer_path))
    ids, found = topics.passages(tokenizer, 20)
    assert np.bincount(found).tolist() == [20] * len(topics.TOPICS)
    assert all(topics.SHORTEST <= len(one) <= topics.LONGEST for one in ids)
    assert "Ahab" in " ".join(tokenizer.decode(one) for one, topic in zip(ids, found, strict=True) if topic == 2)


def test_what_differs_is_found_and_what_does_not_is_not() -> None:
    drawn = np.random.default_rng(0)
    count = len(topics.TOPICS) * 40
    labels = np.arange(count) % len(topics.TOPICS)
    noise = drawn.normal(size=(count, 6))
    blind = topics.accuracy(noise, labels, 0)
    # 200 guesses at one of five: a z of 4.9 is 0.2 + 0.14.
    assert blind.success < 0.34
    told = topics.accuracy(noise + 5 * (labels[:, None] == np.arange(6)), labels, 0)
    assert told.success > 0.95
    assert told.low <= told.success <= told.high


def test_a_padded_stream_shows_its_rounds_only() -> None:
    report = topics.measure(each=20)
    assert report["chance"] == 0.2
    assert set(report["accuracy"]) == {"default", "padded", "tokens alone", "steps alone"}
    # A round has 16 events at 0.25 s; 400 tokens at 20 ms take 8 s.
    assert report["events_padded"]["kinds"] <= 3
    assert report["events_padded"]["median"] % 16 == 0
    assert report["events_default"]["kinds"] > 5
