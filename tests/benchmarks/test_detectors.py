"""The labelled sentences, and that the detectors still find in them what the page says."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.detectors.measure import labelled, measure

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "detectors.json"


def test_the_labelled_sentences() -> None:
    sentences = labelled()
    assert len(sentences) > 400
    assert not any("⟦" in one.text or "⟧" in one.text for one in sentences)
    assert sum(not one.entities for one in sentences) == 100
    (found,) = [one for one in sentences if one.text == "Please transfer the rent to DE89 3704 0044 0532 0130 00."]
    assert [found.text[one.start : one.end] for one in found.entities] == ["DE89 3704 0044 0532 0130 00"]


def test_the_committed_figures_are_those_of_the_detectors() -> None:
    committed = json.loads(RESULT.read_text("utf-8"))
    assert committed.pop("about")
    assert committed == json.loads(json.dumps(measure()))


def test_a_detector_of_nothing_misses_everything() -> None:
    found = measure(lambda _: [])
    assert found["missed"]["structured"][0] == 1
    assert found["recall"]["email"]["hidden"][0] == 0
