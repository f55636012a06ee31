"""The response objects of OpenAI's API, made from completions of the client."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_lib.types import Chunk, Completion

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished completion; ``is_first`` of its prompt, whose tokens count once."""

    completion: Completion
    is_first: bool
    echo: str = field(default="", repr=False)


@dataclass(frozen=True)
class CompletionAnswer:
    """A response of ``/v1/completions``; ``fingerprint`` is that of the prompt's bundle."""

    model: str
    fingerprint: str
    include_usage: bool = False
    echo: str = ""
    """What stands in front of the text of a stream."""
    id: str = field(default_factory=lambda: "cmpl-" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return the events before the first text."""
        return (self.chunk(Chunk(self.echo, ())),) if self.echo else ()

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""
        return self._whole("text_completion", choices, [{"text": one.echo + one.completion.text} for one in choices])

    def _whole(self, kind: str, choices: Sequence[Choice], contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        listed = [
            {"index": index, **content, "logprobs": None, "finish_reason": one.completion.finish_reason}
            for index, (one, content) in enumerate(zip(choices, contents, strict=True))
        ]
        usages = [one.completion.usage for one in choices]
        prompt = sum(one.completion.usage.prompt_tokens for one in choices if one.is_first)
        completion = sum(usage.completion_tokens for usage in usages)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**self._head(kind), "choices": listed, "usage": usage}

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        return self._object("text_completion", {"text": chunk.text}, chunk.finish_reason)

    def closing(self, completion: Completion) -> tuple[dict[str, Any], ...]:
        """Return the events after the last text."""
        return ({**self.chunk(Chunk("", ())), "choices": [], **_usage(completion)},) if self.include_usage else ()

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.fingerprint[:16]}",
        }

    def _object(self, kind: str, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        made = {**self._head(kind), "choices": [choice]}
        # In a stream that ends with the usage, earlier events have a null usage.
        return {**made, "usage": None} if self.include_usage else made


@dataclass(frozen=True)
class ChatAnswer(CompletionAnswer):
    """A response of ``/v1/chat/completions``."""

    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_hex(16))

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return the event that names the role."""
        return (self._delta({"role": "assistant", "content": ""}, None),)

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""
        messages = [{"role": "assistant", "content": one.completion.text, "refusal": None} for one in choices]
        return self._whole("chat.completion", choices, [{"message": message} for message in messages])

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        return self._delta({"content": chunk.text} if chunk.text else {}, chunk.finish_reason)

    def _delta(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return self._object("chat.completion.chunk", {"delta": delta}, finish_reason)


def _usage(completion: Completion) -> dict[str, Any]:
    return {"usage": dataclasses.asdict(completion.usage)}
