"""Detectors of other packages: how their findings join the built-in ones; how they are loaded.

No lock has the packages; `make test-slow` runs this file with them (tests/test_installation.py).
"""

from __future__ import annotations

import importlib.util
import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_lib.errors import InvalidRequestError
from client_lib.prompts import detectors
from client_lib.prompts.detect import Detector, Finding, detected, find
from client_lib.prompts.detectors import DETECTORS, load_detectors
from client_lib.proxy import ProxySettings

TEXT = "Anna Smith wrote from ann@example.org to Bob"


def fixed(*places: tuple[int, int]) -> Detector:
    """Return a detector that finds these places of every text."""
    return lambda text: [Finding(start, end, "name") for start, end in places]


def test_of_a_further_finding_stays_what_no_earlier_one_covers() -> None:
    at = TEXT.index("ann@")
    found = find(TEXT, [fixed((0, 10), (at - 5, at + 20), (at, at + 3), (0, 4))])
    email = TEXT.index(" to Bob")
    assert [(one.start, one.end, one.kind) for one in found] == [
        (0, 10, "name"),
        (at - 5, at, "name"),
        (at, email, "email"),
        (email, at + 20, "name"),
    ]
    spans = detected(TEXT, [fixed((0, 10))])
    assert spans[0].text == "Anna Smith"
    assert spans[0].is_private
    assert "".join(span.text for span in spans) == TEXT


@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)))))
def test_findings_never_overlap_and_all_that_was_found_is_covered(places: list[tuple[int, int]]) -> None:
    given_places = [(start, end) for start, end in places if start < end]
    found = find(TEXT, [fixed(*given_places)])
    assert all(one.start < one.end for one in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    covered = {at for one in found for at in range(one.start, one.end)}
    assert covered >= {at for start, end in given_places for at in range(start, end)}


def test_names_of_detectors_are_checked() -> None:
    with pytest.raises(InvalidRequestError, match="one of secrets, names"):
        load_detectors(["faces"])
    with pytest.raises(InvalidRequestError, match="with private='pii' only"):
        ProxySettings(detectors=("names",))


@pytest.mark.parametrize(("name", "package"), [("secrets", "detect_secrets"), ("names", "presidio_analyzer")])
def test_a_missing_package_is_named_with_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if name == "secrets":
        monkeypatch.setitem(sys.modules, "detect_secrets.core.plugins.util", None)
    with pytest.raises(InvalidRequestError, match=rf"del-serve\[{name}\]"):
        DETECTORS[name]()


@pytest.mark.skipif(importlib.util.find_spec("detect_secrets") is None, reason="needs the extra secrets")
def test_keys_by_the_rules_of_detect_secrets() -> None:
    key = "AKIAIOSFODNN7EXAMPLE"
    (found,) = load_detectors(["secrets"])
    text = f"first line\nuse {key} now"
    assert (text.index(key), text.index(key) + len(key)) in {(one.start, one.end) for one in found(text)}


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs the extra names")
def test_names_by_the_model() -> None:
    spans = detected("My name is Anna Smith and I live in Boston.", load_detectors(["names"]))
    assert {"Anna Smith", "Boston"} <= {span.text for span in spans if span.is_private}


@given(st.lists(st.sampled_from(["word ", "line\n", "x" * 30, "y"]), max_size=40))
def test_pieces_make_up_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors, "_PIECE", 16)
        pieces = list(detectors._pieces(text))
    assert "".join(piece for _, piece in pieces) == text
    assert all(text[start:].startswith(piece) and 0 < len(piece) <= 16 for start, piece in pieces)
