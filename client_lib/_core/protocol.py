"""Reading the server's answers: completion objects, stream events, error objects, the list of models.

Answers are untrusted: every field is checked for its type, and no message of a :class:`ProtocolError` holds anything
of the answer's content, which derives from the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from client_lib._core.retry import parse_retry_after
from client_lib.errors import DELClientError, ProtocolError, error_from_status
from client_lib.types import Chunk, Model, Usage
from del_core.errors import ERROR_STATUS

__all__ = ["StreamReader", "parse_completion", "parse_models", "read_failure"]

#: What ends a stream.
DONE = "[DONE]"


class StreamReader:
    """Collects the events of one stream, over all its connections if it is resumed.

    ``token_ids`` and ``text`` are what the caller has received so far. A stream is ``finished`` when an event
    carried a finish reason or ``max_tokens`` tokens have arrived; what comes after the end mark is ignored.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self._done = False

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids received so far."""
        return tuple(self._token_ids)

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(self._texts)

    @property
    def finished(self) -> bool:
        """Whether nothing that belongs to the completion is missing."""
        return self.finish_reason is not None

    def take(self, data: str) -> Chunk | None:
        """Account for one event; a chunk if it brought anything.

        Raises :class:`ProtocolError` for an event that is not what the wire format specifies, and the typed error
        for an error event.
        """
        if self._done or data.strip() == DONE:
            self._done = True
            return None
        event = _object(_parse(data, "event"), "event")
        if event.get("error") is not None:
            raise _stream_failure(event["error"])
        if event.get("usage") is not None:
            self.usage = _usage(event["usage"], "event.usage")
        choices = event.get("choices")
        if choices == []:
            return None
        text, token_ids, finish_reason = _choice(choices, "event")
        if self.finished:
            if text or token_ids:
                raise ProtocolError("event.choices[0]: more output after a finish reason; allowed: none")
            return None
        if not text and not token_ids and finish_reason is None:
            return None
        self._extend(text, token_ids, finish_reason)
        return Chunk(text, token_ids, finish_reason)

    def finish_if_full(self) -> Chunk | None:
        """The closing chunk of a stream that broke after its last possible token, before saying that it ended."""
        if self.finished or len(self._token_ids) < self._max_tokens:
            return None
        self.finish_reason = "length"
        return Chunk("", (), "length")

    def _extend(self, text: str, token_ids: tuple[int, ...], finish_reason: str | None) -> None:
        if len(self._token_ids) + len(token_ids) > self._max_tokens:
            raise ProtocolError(f"event.choices[0].token_ids: more tokens than asked for; allowed: {self._max_tokens}")
        self._texts.append(text)
        self._token_ids += token_ids
        self.finish_reason = finish_reason


def parse_completion(body: bytes, max_tokens: int) -> tuple[str, tuple[int, ...], str, Usage | None, str | None]:
    """Text, token ids, finish reason, usage and id of an OpenAI text completion object."""
    answer = _object(_parse(body, "body"), "body")
    text, token_ids, finish_reason = _choice(answer.get("choices"), "body")
    if finish_reason is None:
        raise ProtocolError("body.choices[0].finish_reason: null; allowed: a string")
    if len(token_ids) > max_tokens:
        raise ProtocolError(f"body.choices[0].token_ids: more tokens than asked for; allowed: {max_tokens}")
    usage = answer.get("usage")
    return text, token_ids, finish_reason, None if usage is None else _usage(usage, "body.usage"), _name(answer)


def parse_models(body: bytes) -> tuple[Model, ...]:
    """The variants of ``GET /v1/models``."""
    answer = _object(_parse(body, "body"), "body")
    entries = answer.get("data")
    if not isinstance(entries, list):
        raise ProtocolError(f"body.data: {_kind(entries)}; allowed: an array")
    models = []
    for index, entry in enumerate(entries):
        where = f"body.data[{index}]"
        name = _object(entry, where).get("id")
        if not isinstance(name, str):
            raise ProtocolError(f"{where}.id: {_kind(name)}; allowed: a string")
        guarantees, audit = (
            {} if entry.get(key) is None else dict(_object(entry[key], f"{where}.{key}"))
            for key in ("guarantees", "audit")
        )
        if not all(value is None or _is_number(value) for value in guarantees.values()):
            raise ProtocolError(f"{where}.guarantees: a member that is no number; allowed: numbers and null")
        models.append(Model(name, guarantees, audit))
    return tuple(models)


def read_failure(status: int, headers: Mapping[str, str], body: bytes | None, url: str) -> DELClientError:
    """The typed error of an answer that is not a success, whether or not its body is the error object it should be."""
    error: Mapping[str, Any] = {}
    if body:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None  # an intermediary's page; the status has to do
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            error = answer["error"]
    return error_from_status(
        status,
        message=_text_or_none(error.get("message")),
        code=_text_or_none(error.get("code")),
        field=_text_or_none(error.get("param")),
        request_id=headers.get("x-request-id"),
        retry_after=parse_retry_after(headers.get("retry-after")),
        url=url,
    )


def _stream_failure(error: object) -> DELClientError:
    """The typed error of an error event, which has a code but no HTTP status of its own."""
    fields = _object(error, "event.error")
    code = _text_or_none(fields.get("code"))
    return error_from_status(
        ERROR_STATUS.get(code or "", 500),
        message=_text_or_none(fields.get("message")),
        code=code,
        field=_text_or_none(fields.get("param")),
        request_id=None,
        retry_after=None,
        url="stream",
    )


def _parse(data: str | bytes, where: str) -> object:
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        pass
    # Raised outside the handler: the parser's error carries the whole document along.
    raise ProtocolError(f"{where}: not JSON; allowed: a JSON object")


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _choice(choices: object, where: str) -> tuple[str, tuple[int, ...], str | None]:
    """Text, token ids and finish reason of the one choice."""
    if not isinstance(choices, list) or len(choices) != 1:
        raise ProtocolError(f"{where}.choices: {_kind(choices)}; allowed: an array of one choice")
    where = f"{where}.choices[0]"
    choice = _object(choices[0], where)
    text, token_ids, finish_reason = choice.get("text"), choice.get("token_ids"), choice.get("finish_reason")
    if not isinstance(text, str):
        raise ProtocolError(f"{where}.text: {_kind(text)}; allowed: a string")
    if not isinstance(token_ids, list) or not all(_is_count(token_id) for token_id in token_ids):
        raise ProtocolError(f"{where}.token_ids: {_kind(token_ids)}; allowed: an array of integers from 0")
    if finish_reason is not None and not isinstance(finish_reason, str):
        raise ProtocolError(f"{where}.finish_reason: {_kind(finish_reason)}; allowed: a string or null")
    return text, tuple(token_ids), finish_reason


def _usage(value: object, where: str) -> Usage:
    fields = _object(value, where)
    counts = [fields.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    if not all(_is_count(count) for count in counts):
        raise ProtocolError(f"{where}: a count is missing or malformed; allowed: integers from 0")
    return Usage(*(int(count) for count in counts if count is not None))


def _name(answer: Mapping[str, Any]) -> str | None:
    return _text_or_none(answer.get("id"))


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: {_kind(value)}; allowed: an object")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _kind(value: object) -> str:
    """What a JSON value is, without saying what is in it."""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    names: dict[type, str] = {dict: "an object", str: "a string", bool: "a boolean", type(None): "missing or null"}
    return names.get(type(value), "a number")
