"""Logarithms of probabilities in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_lib.types import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The tokens of an answer or of a part of it; ``names`` has the bytes of every token id."""

    token_ids: tuple[int, ...] = field(repr=False)
    values: tuple[TokenLogprobs, ...] = field(repr=False)
    names: Mapping[int, bytes] = field(repr=False)

    def for_chat(self) -> dict[str, Any]:
        """Return the object of a chat."""
        content = []
        for token_id, value in zip(self.token_ids, self.values, strict=True):
            top = [self._entry(other, logprob) for other, logprob in value.top]
            content.append({**self._entry(token_id, value.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def for_completion(self, offset: int) -> dict[str, Any]:
        """Return the object of a completion whose text so far has ``offset`` characters."""
        texts = [self._text(token_id) for token_id in self.token_ids]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [value.logprob for value in self.values],
            "top_logprobs": [{self._text(other): logprob for other, logprob in value.top} for value in self.values],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self.names[token_id].decode("utf-8", "replace")

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token_id), "logprob": logprob, "bytes": list(self.names[token_id])}


def joined(parts: Sequence[Logprobs]) -> Logprobs | None:
    """Return the parts as one, or None if there are none."""
    if not parts:
        return None
    ids = tuple(one for part in parts for one in part.token_ids)
    values = tuple(one for part in parts for one in part.values)
    return Logprobs(ids, values, {key: name for part in parts for key, name in part.names.items()})
