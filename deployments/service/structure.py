"""Structured outputs: from what a request asks for to a grammar of the library llguidance.

The library, which vLLM brings along, needs no network: references of a schema to other documents
are refused. A grammar that it accepts here, it accepts in the engine's process.
"""

from __future__ import annotations

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
_ANY_OBJECT = '{"type":"object"}'
# Between two parts of a JSON text; without a bound a model may write white space without end.
_WHITE_SPACE = r"[ \n]?"


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
            if _is_json(schema):
                text = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITE_SPACE})
        else:
            expression = structure.regex or "|".join(map(re.escape, structure.choice))
            text = LLMatcher.grammar_from_regex(expression)
        # Its message may quote the schema, so that it is not passed on.
        if not text or LLMatcher.validate_grammar(text, self._tokenizer):
            name, wanted = ("regex", "a regular expression") if structure.regex else ("json", "a JSON schema")
            if structure.choice:
                name, wanted = "choice", "choices"
            message = f"must be {wanted} that the library llguidance accepts, got another one"
            raise FrameError(INVALID_VALUE, f"{_FIELD}.{name}", message)
        return Grammar(text, self._path, self._end)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | bool)
    except (ValueError, RecursionError):
        return False


def _unsupported(reason: str) -> FrameError:
    return FrameError(UNSUPPORTED_PARAMETER, _FIELD, f"must be absent, because {reason}")
