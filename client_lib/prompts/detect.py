"""Detectors of structured personal data and secrets in a text.

What is found can be sent as private spans and the rest as public text, which costs far less privacy
and noise than a private text as a whole. **What no detector finds goes out in the clear**, and no
detector knows names, places or what somebody tells in words. docs/guides/proxy.md says what is
found. Where a number has a checksum, it decides: card numbers by Luhn's (ISO/IEC 7812-1), IBANs by
that of ISO 13616 (mod 97, ISO 7064).
"""

from __future__ import annotations

import ipaddress
import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from client_lib.prompts.spans import Span, private, public


@dataclass(frozen=True, slots=True)
class Finding:
    """The characters ``start`` to ``end`` of a text, and what they are."""

    start: int
    end: int
    kind: str


Detector = Callable[[str], list[Finding]]
"""Finds something in a text; findings may overlap and stand in any order."""


def _is_card(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    if not 12 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    compact = re.sub(r"[ -]", "", text).upper()
    if not 15 <= len(compact) <= 34:
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_random(text: str) -> bool:
    """Return whether a long word is too mixed for one of a language: 3.5 bits a character."""
    kinds = sum(bool(re.search(kind, text)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    shares = [count / len(text) for count in Counter(text).values()]
    # A digit of base 16 has four bits at most.
    least = 3.0 if re.fullmatch("[A-Z]{0,2}[0-9a-fA-F]+", text) else 3.5
    return kinds >= 2 and bool(re.search("[0-9]", text)) and -sum(p * math.log2(p) for p in shares) >= least


def _is_phone(text: str) -> bool:
    digits = sum(character.isdigit() for character in text)
    return 7 <= digits <= 15


def _is_identifier(text: str) -> bool:
    return sum(character.isdigit() for character in text) >= 3 and any(character.isalpha() for character in text)


_MONTHS = (
    "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mär|mai|okt|dez|janv|févr|avr|juin|juil|août|déc|ene|abr|ago|dic"
)
_AT, _DOT = r" ?[\[(] ?at ?[\])] ?", r"(?:\.| ?[\[(] ?dot ?[\])] ?)"

# In the order of precedence: of two findings that overlap, the earlier kind stays.
_DETECTORS: Final[tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None], ...]] = (
    ("key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), None),
    ("key", re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), None),  # JSON Web Token
    (
        "key",
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
            r"|(?:sk|pk|rk)[-_](?:[a-z]+[-_])*[A-Za-z0-9_-]{16,}|AIza[\w-]{30,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}"
            r"|SG\.[\w-]{16,}\.[\w-]{16,}|ya29\.[\w-]{20,}|AAAA[BCE][A-Za-z0-9+/]{16,}=*)"
        ),
        None,
    ),
    (
        "key",
        re.compile(
            r"(?i:\b(?:password|passwd|passphrase|pass|secret|token|api[ _-]?key|pin)\b\s*(?:is|:|=)\s*"
            r"(?!(?:a|an|in|my|not|on|that|the|to|too|very)\b))([^\s,;]+)",
        ),
        None,
    ),
    ("key", re.compile(r"(?i:\bpass(?:word|phrase|code)?\s+)((?=\S*[\d!@#$%&*])[^\s,;]*[^\s,;.?])"), None),
    ("key", re.compile(r"(?<!\S)(\S{1,64}) as (?:my|his|her|their|our|your|the) password\b"), None),
    # A URL with a password
    ("key", re.compile(r"(?<![\w+.-])[a-z][a-z0-9+.-]{0,30}://[^\s/:@]+:[^\s/@]+@[^\s]+", re.I), None),
    ("email", re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+"), None),
    ("email", re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@\[[0-9A-Fa-f.:]+\]"), None),
    ("email", re.compile(r"\"[^\"\s@]{1,64}(?: [^\"\s@]{1,64})?\"@[\w.-]+"), None),
    ("email", re.compile(rf"(?<![\w.+%'-])[\w.+%'-]{{1,64}}{_AT}[\w-]+{_DOT}[\w-]+"), None),
    ("iban", re.compile(r"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}\b"), _is_iban),
    ("card", re.compile(r"(?<![\d.])\d(?:[ -]?\d){11,18}(?!\d)"), _is_card),
    ("network", re.compile(r"\b(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b"), None),
    ("network", re.compile(r"\b(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4}\b"), None),
    ("network", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,6}\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"), _is_address),
    ("network", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"), _is_address),
    ("network", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"), _is_address),
    (
        "date",
        re.compile(
            # A longer row of groups is a phone number or an identifier.
            r"(?<![\w+])(?<!\d[-/.])"
            r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2}))(?![-/.]?\w)"
            rf"|\b(?:\d{{1,2}}(?:st|nd|rd|th|\.)?[ -](?:of |de )?)?"
            rf"(?:{_MONTHS})[^\W\d]*\.?,?(?: de)?[ -](?:\d{{4}}|'\d{{2}})\b"
            rf"|\b(?:{_MONTHS})[^\W\d]*\.? \d{{1,2}}(?:st|nd|rd|th)?,? (?:\d{{4}}\b|'\d{{2}}\b)",
            re.I,
        ),
        None,
    ),
    ("number", re.compile(r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b"), None),  # UUID
    ("key", re.compile(r"(?<![\w/+=-])[A-Za-z0-9_/+=-]{20,}"), _is_random),
    # Groups of digits with letters among them: insurance numbers, number plates
    (
        "number",
        re.compile(
            r"(?<![\w.,+(/-])(?:[A-Z]{1,3} )?\d{1,9}(?:[ -]\d{1,9}){1,5}[ -][A-Z](?:[ -]\d{1,4})?(?![\w-])"
            r"|(?<![\w-])[A-Z]{1,3}[ -](?:[A-Z]{1,2}[ -])?\d{4,10}(?![\w.,-]?\d)"
            r"|(?<![\w-])[A-Z]-\d{4}-\d{3,9}\b"
        ),
        None,
    ),
    (
        "phone",
        re.compile(
            r"(?<![\w.])(?:\+|00)\d[\d ()/.-]{5,22}\d"
            r"|(?<![\w.])(?<!\d[ -])(?:1[ .-])?\(?0?\d{2,5}\)?[ /.-]\d{2,4}(?:[ .-]?\d{2,4}){1,3}(?!\w|[ .-]\d)"
        ),
        _is_phone,
    ),
    ("number", re.compile(r"(?<![A-Z0-9-])[A-Z0-9][A-Z0-9-]{5,24}(?![A-Z0-9-])"), _is_identifier),
    ("number", re.compile(r"(?<![\d.,])\d(?:[ -]?\d){5,}(?![\d]|[.,]\d)"), None),
)  # fmt: skip

KINDS: Final = tuple(dict.fromkeys(kind for kind, _, _ in _DETECTORS))
"""What is found."""


def find(text: str, detectors: Sequence[Detector] = ()) -> list[Finding]:
    """Return what the detectors find in a text, in order and without overlaps.

    Args:
        detectors: further ones, such as :func:`client_lib.prompts.detectors.load_detectors`
            returns. Of their findings stays what no earlier one covers.
    """
    found = _find(text)
    for detector in detectors:
        for one in detector(text):
            found = sorted([*found, *_uncovered(one, found)], key=lambda other: other.start)
    return found


def _uncovered(one: Finding, taken: list[Finding]) -> Iterator[Finding]:
    """Yield the parts of a finding outside those that are taken, which are in order."""
    start = one.start
    for other in taken:
        if start < other.start < one.end:
            yield Finding(start, other.start, one.kind)
        if other.start < one.end:
            start = max(start, other.end)
    if start < one.end:
        yield Finding(start, one.end, one.kind)


def _find(text: str) -> list[Finding]:
    taken: list[Finding] = []  # in order
    starts: list[int] = []
    for kind, pattern, check in _DETECTORS:
        for match in pattern.finditer(text):
            start, end = match.span(1) if pattern.groups else match.span()
            if check is not None and not check(text[start:end]):
                continue
            at = bisect(starts, start)
            if (at and taken[at - 1].end > start) or (at < len(starts) and starts[at] < end):
                continue
            taken.insert(at, Finding(start, end, kind))
            starts.insert(at, start)
    return taken


def detected(text: str, detectors: Sequence[Detector] = ()) -> tuple[Span, ...]:
    """Return a text as spans: what the detectors find is private, and the rest public.

    ``detectors`` are as for :func:`find`.
    """
    spans: list[Span] = []
    end = 0
    for one in find(text, detectors):
        if one.start > end:
            spans.append(public(text[end : one.start]))
        spans.append(private(text[one.start : one.end]))
        end = one.end
    if end < len(text):
        spans.append(public(text[end:]))
    return tuple(spans)
