"""Typed placeholders beside private spans, and the originals put back into an answer.

Of a private value, a model that reads counts understands little. A placeholder such as
``[EMAIL_1]`` in front of it is public text: the model can refer to the value by it, and this
machine, which knows the value, puts it back into the answer.

**A placeholder tells the server the kind of a value, and where the same value stands again.** Of a
value that stands again, only the placeholder is sent, so that the server gets one drawing of it.
docs/guides/proxy.md says what else to consider.

    surrogates = Surrogates()
    spans = surrogates.spans("Ann wrote from ann@example.org")  # "... from [EMAIL_1] ", counts
    answer = surrogates.restore(client.complete(spans).text)
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence

from client_lib.prompts.answers import Change
from client_lib.prompts.detect import Detector, Finding, find
from client_lib.prompts.spans import Span, private, public

__all__ = ["SurrogateStream", "Surrogates"]

_MARKED = re.compile(r"\[[A-Za-z0-9_]{1,64}\]")
_MOST_KIND = 32  # characters of a kind's name


class Surrogates:
    """The placeholders of one chat: those of its values, in the order of their first places.

    Texts must be given in the order of the chat. A chat that grows keeps its placeholders. A number
    that the chat's own text has used before belongs to no value.
    """

    def __init__(self) -> None:
        self._placeholders: dict[str, str] = {}  # by value
        self._values: dict[str, str] = {}  # by placeholder in small letters
        self._sorted: list[str] | None = None
        self._numbers: dict[str, int] = {}
        self._taken: set[str] = set()

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Surrogates({len(self)} placeholders)"

    def public(self, text: str) -> tuple[Span, ...]:
        """Return a text of the chat as public; placeholders in it are those of earlier values."""
        self._taken.update(mark.lower() for mark in _MARKED.findall(text))
        return (public(text),)

    def spans(self, text: str, detectors: Sequence[Detector] = ()) -> tuple[Span, ...]:
        """Return a text as :func:`client_lib.prompts.detect.detected` does, with placeholders.

        A placeholder and a space stand before a private span. A value that has a placeholder
        already is this placeholder alone.
        """
        return self.marked(text, find(text, detectors))

    def marked(self, text: str, findings: Sequence[Finding]) -> tuple[Span, ...]:
        """Return the same for findings of the caller's, in order and without overlaps."""
        self.public(text)
        spans: list[Span] = []
        before, end = "", 0
        for one in findings:
            value = text[one.start : one.end].strip()
            if not value:
                continue
            start = text.index(value, one.start)
            known = self._placeholders.get(value)
            before += text[end:start] + (known or self._new(value, one.kind))
            if known is None:
                spans += [public(before + " "), private(value)]
                before = ""
            end = start + len(value)
        before += text[end:]
        return (*spans, public(before)) if before else tuple(spans)

    def _new(self, value: str, kind: str) -> str:
        kind = re.sub("[^A-Z0-9]+", "_", kind.upper()).strip("_")[:_MOST_KIND] or "VALUE"
        while True:
            self._numbers[kind] = self._numbers.get(kind, 0) + 1
            placeholder = f"[{kind}_{self._numbers[kind]}]"
            if placeholder.lower() not in self._taken:
                break
        self._placeholders[value] = placeholder
        self._values[placeholder.lower()] = value
        self._sorted = None
        return placeholder

    # --- answers ----------------------------------------------------------------------------------

    def restore(self, text: str, *, as_json: bool = False) -> str:
        """Return a text of the server with the values in place of their placeholders.

        ``as_json`` escapes the values, for a text that is JSON with placeholders in its strings.
        """
        return self.restored(text, json_from=0 if as_json else None)[0]

    def restored(self, text: str, *, json_from: int | None = None) -> tuple[str, tuple[Change, ...]]:
        """Return the same and what was changed; the text is JSON from ``json_from`` on."""
        pieces: list[str] = []
        changes: list[Change] = []
        end = length = 0
        for mark in _MARKED.finditer(text) if self._values else ():
            value = self._values.get(mark[0].lower())
            if value is None:
                continue
            if json_from is not None and mark.start() >= json_from:
                value = json.dumps(value, ensure_ascii=False)[1:-1]
            start = length + mark.start() - end
            pieces += [text[end : mark.start()], value]
            changes.append(Change(start, start + len(value), mark[0]))
            end, length = mark.end(), start + len(value)
        return "".join(pieces) + text[end:], tuple(changes)

    def stream(self, *, as_json: bool = False) -> SurrogateStream:
        """Return what restores a text that arrives in pieces."""
        return SurrogateStream(self, as_json=as_json)

    def may_begin(self, text: str) -> bool:
        """Return whether a placeholder begins with this text, and has more to it."""
        if not text.isascii():
            return False
        if self._sorted is None:
            self._sorted = sorted(self._values)
        text = text.lower()
        at = bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text) and self._sorted[at] != text


class SurrogateStream:
    """Restores a text in pieces. Only what may be the beginning of a placeholder is held back."""

    def __init__(self, surrogates: Surrogates, *, as_json: bool = False) -> None:
        self._surrogates = surrogates
        self._as_json = as_json
        self._held = ""

    def feed(self, text: str) -> str:
        """Take more text and return what is complete, which may be nothing."""
        text = self._held + text
        at = text.rfind("[")  # a placeholder has no other one in it
        is_held = at >= 0 and self._surrogates.may_begin(text[at:])
        self._held = text[at:] if is_held else ""
        return self._surrogates.restore(text[:at] if is_held else text, as_json=self._as_json)

    def finish(self) -> str:
        """Return what is left at the end of the text."""
        held, self._held = self._held, ""
        return held
