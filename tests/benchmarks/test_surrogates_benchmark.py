"""The prompts about people, what is sent of them, and when an answer is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.surrogates import Asked, judged, made, spans_of

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "surrogates.json"


def values(asked: Asked) -> list[str]:
    return [asked.text[one.start : one.end] for one in asked.values]


def test_prompts_are_the_same_for_a_seed_and_have_one_right_value() -> None:
    prompts = made(3, 5)
    assert prompts == made(3, 5) != made(3, 6)
    assert {asked.template for asked in prompts} == set(range(len(prompts) // 3))
    assert {asked.people for asked in prompts} == {1, 2}
    for asked in prompts:
        assert asked.right in values(asked)
        assert asked.right not in asked.others
        assert set(asked.others) <= set(values(asked))


def test_what_is_sent() -> None:
    for asked in made(1, 0):
        ways = {way: spans_of(asked, way) for way in ("clear", "counts", "surrogates", "alone")}
        texts = {way: "".join(span.text for span in spans) for way, (spans, _) in ways.items()}
        hidden = {way: [span.text for span in spans if span.is_private] for way, (spans, _) in ways.items()}
        assert texts["clear"] == texts["counts"] == asked.text
        assert hidden["clear"] == hidden["alone"] == []
        assert hidden["counts"] == values(asked)
        assert hidden["surrogates"] == list(dict.fromkeys(values(asked)))
        assert not any(value in texts["alone"] for value in values(asked))
        for way in ("surrogates", "alone"):
            assert ways[way][1].restore(texts["alone"]) == asked.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ask BORIS.", "right"),
        ("Boris and Agnes.", "wrong"),
        ("Agnes!", "wrong"),
        ("Borisov or Agnesia", "neither"),
        ("", "neither"),
    ],
)
def test_answers_are_judged_by_the_values_in_them(answer: str, expected: str) -> None:
    assert judged(Asked(0, "", (), "Boris", ("Agnes",)), answer) == expected


def test_the_committed_figures_are_of_these_prompts() -> None:
    found = json.loads(RESULT.read_text("utf-8"))
    prompts = made(found["each"], found["seed"])
    for ways in found["results"].values():
        for row in ways.values():
            for people in (1, 2):
                assert row[str(people)]["prompts"] == sum(asked.people == people for asked in prompts)
