"""Structured outputs: from what a request asks for to a grammar of the library llguidance.

The library, which vLLM brings along, needs no network: references of a schema to other documents
are refused. A grammar that it accepts here, it accepts in the engine's process.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from del_core.errors import INVALID_VALUE, UNSUPPORTED_PARAMETER, FrameError
from del_core.wire import StructuredOutputs
from deployments.engines.base import Grammar

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_FIELD = "header.structured_outputs"
_REMEMBERED = 64
# The library's memory grows with them: ten bytes of a schema could take all that a machine has.
_MOST_ITEMS = 2000
_LITERALS = frozenset({"const", "default", "enum", "examples"})  # whose members are no keywords
_ANY_OBJECT = '{"type":"object"}'
# What stands between the parts of a JSON text, as expressions. There is no other white space: a
# small model would write it without end. The pattern for white space does not bound it, because a
# text may repeat what matches.
_COMMA, _COLON = ", ?", ": ?"


class Grammars:
    """The grammars of a model's completions. For one thread."""

    def __init__(self, tokenizer: Path, end_token_ids: tuple[int, ...]) -> None:
        self._path = str(tokenizer)
        self._end = end_token_ids
        self._known: OrderedDict[StructuredOutputs, Grammar] = OrderedDict()
        self._tokenizer: LLTokenizer | None = None

    def grammar(self, structure: StructuredOutputs) -> Grammar:
        """Return the grammar of a structure. Raises FrameError if there is none."""
        if (known := self._known.get(structure)) is None:
            known = self._known[structure] = self._checked(structure)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _checked(self, structure: StructuredOutputs) -> Grammar:
        if not self._end:
            raise _unsupported("the model has no end of text, with which a structure ends")
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError:
            raise _unsupported("the server lacks the library llguidance") from None
        if self._tokenizer is None:
            try:
                self._tokenizer = LLTokenizer(self._path, eos_token=list(self._end))
            except Exception:  # the library raises several kinds
                raise _unsupported("the library llguidance cannot read the model's tokenizer") from None
        text = ""
        if structure.regex is None and not structure.choice:
            schema = _ANY_OBJECT if structure.json is None else structure.json
            found = _schema(schema)
            if (items := _items(found)) > _MOST_ITEMS:
                message = f"must have minItems and maxItems of at most {_MOST_ITEMS} in all, got {items}"
                raise FrameError(INVALID_VALUE, f"{_FIELD}.json", message)
            if found is not None:
                with contextlib.suppress(ValueError):  # nested too deeply for the library
                    text = LLMatcher.grammar_from_json_schema(
                        schema,
                        overrides={"whitespace_flexible": False, "item_separator": _COMMA, "key_separator": _COLON},
                    )
        else:
            expression = structure.regex or "|".join(map(re.escape, structure.choice))
            text = LLMatcher.grammar_from_regex(expression)
        # Its message may quote the schema, so that it is not passed on.
        grammar = Grammar(text, self._path, self._end)
        if not text or LLMatcher.validate_grammar(text, self._tokenizer) or self._is_too_much(grammar):
            name, wanted = ("regex", "a regular expression") if structure.regex else ("json", "a JSON schema")
            if structure.choice:
                name, wanted = "choice", "choices"
            message = f"must be {wanted} that the library llguidance accepts, got another one"
            raise FrameError(INVALID_VALUE, f"{_FIELD}.{name}", message)
        return grammar

    def _is_too_much(self, grammar: Grammar) -> bool:
        """Return whether the library gives up at the first token, where it compiles the grammar."""
        assert self._tokenizer is not None
        matcher = grammar.matcher(self._tokenizer)
        matcher.compute_bitmask()
        return bool(matcher.is_error())


def _schema(text: str) -> dict[str, object] | bool | None:
    """Return a JSON schema, or None for what is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | bool) else None


def _items(schema: object) -> int:
    """Return the sum of the bounds on the lengths of arrays in a schema."""
    total, left = 0.0, [schema]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            for name, member in value.items():
                if name in ("minItems", "maxItems") and isinstance(member, int | float):
                    total += min(max(member, 0), 1e18)
                elif name not in _LITERALS:
                    left.append(member)
    return int(total)


def _unsupported(reason: str) -> FrameError:
    return FrameError(UNSUPPORTED_PARAMETER, _FIELD, f"must be absent, because {reason}")
