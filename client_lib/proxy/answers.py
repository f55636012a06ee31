"""The response objects of OpenAI's API, made from completions of the client."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client_lib.types import Chunk, Completion

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True)
class CompletionAnswer:
    """A response of ``/v1/completions``; ``fingerprint`` is that of the prompt's bundle."""

    model: str
    fingerprint: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: "cmpl-" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return the events before the first text."""
        return ()

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the object of a finished completion."""
        return self._object("text_completion", {"text": completion.text}, completion.finish_reason, completion)

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        return self._object("text_completion", {"text": chunk.text}, chunk.finish_reason)

    def closing(self, completion: Completion) -> tuple[dict[str, Any], ...]:
        """Return the events after the last text."""
        return ({**self.chunk(Chunk("", ())), "choices": [], **_usage(completion)},) if self.include_usage else ()

    def _object(
        self, kind: str, content: dict[str, Any], finish_reason: str | None, completion: Completion | None = None
    ) -> dict[str, Any]:
        made = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.fingerprint[:16]}",
            "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}],
        }
        if completion is not None:
            return {**made, **_usage(completion)}
        # In a stream that ends with the usage, earlier events have a null usage.
        return {**made, "usage": None} if self.include_usage else made


@dataclass(frozen=True)
class ChatAnswer(CompletionAnswer):
    """A response of ``/v1/chat/completions``."""

    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_hex(16))

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return the event that names the role."""
        return (self._delta({"role": "assistant", "content": ""}, None),)

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the object of a finished completion."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        return self._object("chat.completion", {"message": message}, completion.finish_reason, completion)

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        return self._delta({"content": chunk.text} if chunk.text else {}, chunk.finish_reason)

    def _delta(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return self._object("chat.completion.chunk", {"delta": delta}, finish_reason)


def _usage(completion: Completion) -> dict[str, Any]:
    return {"usage": dataclasses.asdict(completion.usage)}
