"""The response objects and events of OpenAI's API, made from completions of the client."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_lib.prompts.surrogates import Surrogates
from client_lib.proxy.errors import APIError
from client_lib.proxy.logprobs import Logprobs
from client_lib.proxy.tools import Part, ToolCall
from client_lib.types import Completion

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """Return one server-sent event, with a name if its API has named ones."""
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return (b"" if name is None else f"event: {name}\n".encode()) + b"data: " + body + b"\n\n"


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished completion as texts and calls; the ``is_first`` of a prompt counts its tokens."""

    completion: Completion
    parts: tuple[Part, ...] = field(repr=False)
    is_first: bool = True
    echo: str = field(default="", repr=False)
    logprobs: Logprobs | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The text beside the calls."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> list[ToolCall]:
        """The calls."""
        return [part for part in self.parts if isinstance(part, ToolCall)]

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, in the words of chats."""
        return "tool_calls" if self.calls and self.completion.finish_reason == "stop" else self.completion.finish_reason


class Restorer:
    """Puts the values of a prompt in place of their placeholders, while parts arrive.

    ``is_json`` says that the texts are JSON. Arguments of calls always are.
    """

    def __init__(self, surrogates: Surrogates | None, *, is_json: bool) -> None:
        self._surrogates = surrogates or Surrogates()
        self._is_json = is_json
        self._stream = self._surrogates.stream(as_json=is_json)

    def feed(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Take more parts and yield what is complete."""
        for part in parts:
            if isinstance(part, str):
                if text := self._stream.feed(part):
                    yield text
                continue
            yield from self.finish()  # no placeholder goes on behind a call
            yield dataclasses.replace(part, arguments=self._surrogates.restore(part.arguments, as_json=True))

    def finish(self) -> Iterator[Part]:
        """Yield what is left at the end of the answer."""
        if text := self._stream.finish():
            yield text

    def choice(self, choice: Choice) -> Choice:
        """Return a finished completion with the values."""
        text = self._surrogates.restore(choice.completion.text, as_json=self._is_json)
        parts = (*self.feed(choice.parts), *self.finish())
        return dataclasses.replace(choice, completion=dataclasses.replace(choice.completion, text=text), parts=parts)


class Answer(ABC):
    """The answer to one request: one object, or the events of a stream."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""

    @abstractmethod
    def opening(self) -> list[bytes]:
        """Return the events before the first part."""

    @abstractmethod
    def part(self, part: Part, logprobs: Logprobs | None) -> list[bytes]:
        """Return the events of the next text or call."""

    @abstractmethod
    def closing(self, choice: Choice) -> list[bytes]:
        """Return the events after the last part."""

    def failure(self, error: APIError) -> bytes:
        """Return the event of a failure, which ends the stream."""
        return event(error.body)


@dataclass
class CompletionAnswer(Answer):
    """A response of ``/v1/completions``; ``fingerprint`` is that of the prompt's bundle."""

    model: str
    fingerprint: str
    include_usage: bool = False
    echo: str = ""
    """What stands in front of the text of a stream."""
    id: str = field(default_factory=lambda: "cmpl-" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))
    _length: int = 0

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""
        contents = []
        for one in choices:
            logprobs = None if one.logprobs is None else one.logprobs.for_completion(len(one.echo))
            # A completion has no calls: what looks like one is text.
            contents.append({"text": one.echo + one.completion.text, "logprobs": logprobs})
        return self._whole("text_completion", choices, contents)

    def opening(self) -> list[bytes]:
        """Return the events before the first part."""
        return self.part(self.echo, None) if self.echo else []

    def part(self, part: Part, logprobs: Logprobs | None) -> list[bytes]:
        """Return the events of the next text or call."""
        assert isinstance(part, str)
        content = {"text": part, "logprobs": None if logprobs is None else logprobs.for_completion(self._length)}
        self._length += len(part)
        return [self._event("text_completion", content, None)]

    def closing(self, choice: Choice) -> list[bytes]:
        """Return the events after the last part."""
        last = self._event("text_completion", {"text": "", "logprobs": None}, choice.completion.finish_reason)
        return [last, *self._usage("text_completion", choice.completion), DONE]

    def _whole(self, kind: str, choices: Sequence[Choice], contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        listed = [
            {"index": index, **content, "finish_reason": one.finish_reason}
            for index, (one, content) in enumerate(zip(choices, contents, strict=True))
        ]
        prompt = sum(one.completion.usage.prompt_tokens for one in choices if one.is_first)
        completion = sum(one.completion.usage.completion_tokens for one in choices)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**self._head(kind), "choices": listed, "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.fingerprint[:16]}",
        }

    def _event(self, kind: str, content: dict[str, Any], finish_reason: str | None) -> bytes:
        made = {**self._head(kind), "choices": [{"index": 0, **content, "finish_reason": finish_reason}]}
        # In a stream that ends with the usage, earlier events have a null usage.
        return event({**made, "usage": None} if self.include_usage else made)

    def _usage(self, kind: str, completion: Completion) -> list[bytes]:
        if not self.include_usage:
            return []
        return [event({**self._head(kind), "choices": [], "usage": dataclasses.asdict(completion.usage)})]


@dataclass
class ChatAnswer(CompletionAnswer):
    """A response of ``/v1/chat/completions``."""

    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_hex(16))
    _calls: int = 0

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of finished completions."""
        contents = []
        for one in choices:
            message: dict[str, Any] = {"role": "assistant", "content": one.text, "refusal": None}
            if one.calls:
                message["content"] = one.text or None
                message["tool_calls"] = [_call(call) for call in one.calls]
            contents.append({"message": message, "logprobs": None if one.logprobs is None else one.logprobs.for_chat()})
        return self._whole("chat.completion", choices, contents)

    def opening(self) -> list[bytes]:
        """Return the events before the first part."""
        return [self._delta({"role": "assistant", "content": ""})]

    def part(self, part: Part, logprobs: Logprobs | None) -> list[bytes]:
        """Return the events of the next text or call."""
        shown = None if logprobs is None else logprobs.for_chat()
        if isinstance(part, str):
            return [self._delta({"content": part}, logprobs=shown)]
        index, self._calls = self._calls, self._calls + 1
        begun = _call(dataclasses.replace(part, arguments=""))
        rest = {"index": index, "function": {"arguments": part.arguments}}
        deltas = [{"tool_calls": [{"index": index, **begun}]}, {"tool_calls": [rest]}]
        return [self._delta(deltas[0], logprobs=shown), self._delta(deltas[1])]

    def closing(self, choice: Choice) -> list[bytes]:
        """Return the events after the last part."""
        last = self._delta({}, choice.finish_reason)
        return [last, *self._usage("chat.completion.chunk", choice.completion), DONE]

    def _delta(
        self, delta: dict[str, Any], finish_reason: str | None = None, *, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        return self._event("chat.completion.chunk", {"delta": delta, "logprobs": logprobs}, finish_reason)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
