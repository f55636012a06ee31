"""The text quality that each variant buys, from the JSON of ``delctl evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLEAR, NONE = "clear prompt", "no prompt"
"""Rows of an evaluation that are no variants."""


@dataclass(frozen=True)
class TextQuality:
    """Perplexity of the true continuations behind a variant, of the clear prompt, and of none."""

    ppl: float
    clear: float
    none: float | None = None

    @property
    def useless(self) -> bool:
        """Whether the text is no better than without any prompt."""
        return self.none is not None and self.ppl >= self.none

    @property
    def kept(self) -> float | None:
        """Share of the clear prompt's gain over no prompt, in log perplexity; negative if worse."""
        if self.none is None or self.none <= self.clear:
            return None
        return math.log(self.none / self.ppl) / math.log(self.none / self.clear)

    def to_json(self) -> dict[str, float]:
        """Return the object of a report and of a manifest."""
        found = {"ppl": self.ppl, "ppl_clear": self.clear, "ppl_no_prompt": self.none}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_json(cls, value: Any, name: str = "evaluation") -> TextQuality:
        """Read what ``to_json`` wrote; ValueError names a member that is missing or no number."""
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be an object, got {type(value).__name__}")
        none = value.get("ppl_no_prompt")
        return cls(
            _positive(value.get("ppl"), f"{name}.ppl"),
            _positive(value.get("ppl_clear"), f"{name}.ppl_clear"),
            None if none is None else _positive(none, f"{name}.ppl_no_prompt"),
        )


def read_quality(rows: Any) -> dict[str, TextQuality]:
    """Return the quality of every variant in the rows that ``delctl evaluate --json`` prints.

    Raises ValueError if they are something else.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("evaluation must be the array that `delctl evaluate --json` prints, got something else")
    found: dict[str, float] = {}
    for at, row in enumerate(rows):
        if row.get("without_soft_prompt"):
            continue
        method, ppl = row.get("method"), row.get("ppl")
        if not isinstance(method, str) or not isinstance(ppl, list) or not ppl:
            raise ValueError(f"evaluation[{at}] must have a method and a perplexity, got none")
        found[method] = _positive(ppl[0], f"evaluation[{at}].ppl")
    if CLEAR not in found:
        raise ValueError(f"evaluation must have a row of the {CLEAR}, got none")
    clear, none = found.pop(CLEAR), found.pop(NONE, None)
    return {name: TextQuality(ppl, clear, none) for name, ppl in found.items()}


def stated_quality(audit: Mapping[str, Any]) -> TextQuality | None:
    """Return the quality that the audit of a manifest states, or None if it states none."""
    try:
        return TextQuality.from_json(audit["evaluation"])
    except (KeyError, ValueError):
        return None


def stated_warnings(audits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the warnings of variants, from the audits that their manifest states."""
    found = {name: stated_quality(audit) for name, audit in audits.items()}
    return [said for name, one in found.items() if one is not None and (said := warning(name, one))]


def warning(name: str, quality: TextQuality) -> str | None:
    """Return a sentence about a variant behind which text is no better than without a prompt."""
    if not quality.useless:
        return None
    return (
        f"{name}: perplexity {quality.ppl:.1f} is no better than without any prompt ({quality.none:.1f}); "
        "choose another level for such text"
    )


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
    return float(value)
