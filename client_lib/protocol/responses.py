"""Parsing of the server's responses: completions, stream events, errors, the list of models.

Responses are untrusted: every field's type and size is checked, and no :class:`ProtocolError`
contains response content, which derives from the prompt. What is returned is valid Unicode, and
ids, names and reasons are printable ASCII, so that they fit into headers, logs and JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from client_lib._validation import NO_JSON, has_surrogate, is_number, json_kind, must_be, parse_json
from client_lib.errors import DELClientError, ProtocolError, error_from_status
from client_lib.protocol.retry import parse_retry_after
from client_lib.types import Chunk, Model, Usage
from del_core.bundle.tokenizer import MAX_TOKEN_CHARACTERS
from del_core.errors import ERROR_STATUS
from del_core.wire import LEAST_LOGPROB, TokenLogprobs

DONE = "[DONE]"
"""The end mark of a stream."""

REQUEST_ID = "x-request-id"

_ID = re.compile(r"[!-~]{1,200}")
_NAME = re.compile(r"[ -~]{1,256}")
_REASON = re.compile(r"[a-z_]{1,32}")
_LARGEST_NUMBER = 1e300


class StreamReader:
    """Collects the events of one stream, across resumptions; data after the end mark is ignored."""

    def __init__(self, max_tokens: int, logprobs: int | None = None) -> None:
        """Expect ``logprobs`` alternatives at each token; None expects no logarithms."""
        self._max_tokens = max_tokens
        self._top = logprobs
        self._logprobs: list[TokenLogprobs] = []
        self._room = max_tokens * MAX_TOKEN_CHARACTERS  # events may have text without token ids
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
        """Whether the completion is complete."""
        return self.finish_reason is not None

    @property
    def whole(self) -> Chunk:
        """What was received so far, as one chunk."""
        logprobs = None if self._top is None else tuple(self._logprobs)
        return Chunk(self.text, self.token_ids, self.finish_reason, logprobs)

    def take(self, data: str) -> Chunk | None:
        """Return the chunk of one event, or None. Raises ``ProtocolError``, or an event's error."""
        if self._done or data.strip() == DONE:
            self._done = True
            return None
        event = _parse(data, "event")
        if event.get("error") is not None:
            error = _object(event["error"], "event.error")
            # The code implies the HTTP status.
            code = error.get("code")
            status = ERROR_STATUS.get(code, 500) if isinstance(code, str) else 500
            raise error_from_status("stream", status, error)
        if event.get("usage") is not None:
            self.usage = _usage(event["usage"], "event.usage")
        choices = event.get("choices")
        if choices == []:
            return None
        chunk = _choice(choices, "event", self._top)
        if self.finished:
            if chunk.text or chunk.token_ids:
                raise _wrong("event.choices[0]", "empty after a finish reason", "more output")
            return None
        if not chunk.text and not chunk.token_ids and chunk.finish_reason is None:
            return None
        if len(self._token_ids) + len(chunk.token_ids) > self._max_tokens:
            raise _too_many("event", self._max_tokens)
        self._room -= len(chunk.text)
        if self._room < 0:
            raise _too_long("event", self._max_tokens)
        self._texts.append(chunk.text)
        self._token_ids += chunk.token_ids
        self._logprobs += chunk.logprobs or ()
        self.finish_reason = chunk.finish_reason
        return chunk

    def finish_if_full(self) -> Chunk | None:
        """Return the closing chunk of a stream that broke after ``max_tokens`` tokens."""
        if self.finished or len(self._token_ids) < self._max_tokens:
            return None
        self.finish_reason = "length"
        return Chunk("", (), "length")


def parse_completion(
    body: bytes, max_tokens: int, logprobs: int | None = None
) -> tuple[Chunk, Usage | None, str | None]:
    """Return the output, the usage and the id of a completion object."""
    answer = _parse(body, "body")
    chunk = _choice(answer.get("choices"), "body", logprobs)
    if chunk.finish_reason is None:
        raise _wrong("body.choices[0].finish_reason", "a string", "null")
    if len(chunk.token_ids) > max_tokens:
        raise _too_many("body", max_tokens)
    if len(chunk.text) > max_tokens * MAX_TOKEN_CHARACTERS:
        raise _too_long("body", max_tokens)
    usage, name = answer.get("usage"), answer.get("id")
    if name is not None and not is_id(name):
        raise _wrong("body.id", f"a string of the form {_ID.pattern}", json_kind(name))
    return chunk, None if usage is None else _usage(usage, "body.usage"), name


def is_id(value: object) -> bool:
    """Return whether a server's id of a request is one that headers and logs can carry."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def parse_models(body: bytes) -> tuple[Model, ...]:
    """Return the variants of ``GET /v1/models``."""
    answer = _parse(body, "body")
    entries = answer.get("data")
    if not isinstance(entries, list):
        raise _wrong("body.data", "an array", json_kind(entries))
    models = []
    for index, entry in enumerate(entries):
        where = f"body.data[{index}]"
        name = _object(entry, where).get("id")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _wrong(f"{where}.id", f"a string of the form {_NAME.pattern}", json_kind(name))
        guarantees, audit = (
            {} if entry.get(key) is None else dict(_object(entry[key], f"{where}.{key}"))
            for key in ("guarantees", "audit")
        )
        if not all(
            value is None or (is_number(value) and abs(value) <= _LARGEST_NUMBER) for value in guarantees.values()
        ):
            raise _wrong(f"{where}.guarantees", f"an object of numbers up to {_LARGEST_NUMBER} and null", "another")
        length = entry.get("context_length", entry.get("max_model_len"))  # the latter is vLLM's
        if length is not None and not _is_count(length):
            raise _wrong(f"{where}.context_length", "an integer from 0", json_kind(length))
        models.append(Model(name, guarantees, audit, length))
    return tuple(models)


def read_failure(status: int, headers: Mapping[str, str], body: bytes | None, url: str) -> DELClientError:
    """Return the typed error of an error response, even if its body is no error object."""
    # An intermediary may send a page of its own; the status decides then.
    answer = parse_json(body) if body else None
    error = answer.get("error") if isinstance(answer, dict) else None
    details = error if isinstance(error, dict) else {}
    retry_after = parse_retry_after(headers.get("retry-after"))
    return error_from_status(url, status, details, request_id=headers.get(REQUEST_ID), retry_after=retry_after)


def _parse(data: str | bytes, where: str) -> Mapping[str, Any]:
    found = parse_json(data)
    if found is NO_JSON:
        raise _wrong(where, "a JSON object", "something else")
    return _object(found, where)


def _choice(choices: object, where: str, top: int | None) -> Chunk:
    """Return the only choice, with its logarithms if ``top`` alternatives were asked for."""
    if not isinstance(choices, list) or len(choices) != 1:
        raise _wrong(f"{where}.choices", "an array of one choice", json_kind(choices))
    where = f"{where}.choices[0]"
    choice = _object(choices[0], where)
    text, token_ids, finish_reason = choice.get("text"), choice.get("token_ids"), choice.get("finish_reason")
    if not isinstance(text, str):
        raise _wrong(f"{where}.text", "a string", json_kind(text))
    if has_surrogate(text):
        raise _wrong(f"{where}.text", "valid Unicode", "a lone surrogate")
    if not isinstance(token_ids, list) or not all(_is_count(token_id) for token_id in token_ids):
        raise _wrong(f"{where}.token_ids", "an array of integers from 0", json_kind(token_ids))
    if finish_reason is not None and not (isinstance(finish_reason, str) and _REASON.fullmatch(finish_reason)):
        raise _wrong(
            f"{where}.finish_reason", f"a string of the form {_REASON.pattern} or null", json_kind(finish_reason)
        )
    logprobs = None if top is None else _logprobs(choice.get("logprobs"), f"{where}.logprobs", len(token_ids), top)
    return Chunk(text, tuple(token_ids), finish_reason, logprobs)


def _logprobs(value: object, where: str, tokens: int, top: int) -> tuple[TokenLogprobs, ...]:
    """Return the logarithms of ``tokens`` tokens, each with at most ``top`` alternatives."""
    members = _object(value, where)
    own, alternatives = members.get("token_logprobs"), members.get("top_logprobs")
    for name, values in (("token_logprobs", own), ("top_logprobs", alternatives)):
        if not isinstance(values, list) or len(values) != tokens:
            raise _wrong(f"{where}.{name}", f"an array of {tokens} members", "another value")
    assert isinstance(own, list)
    assert isinstance(alternatives, list)
    found = []
    for logprob, listed in zip(own, alternatives, strict=True):
        if not isinstance(listed, list) or len(listed) > top or not all(map(_is_alternative, listed)):
            raise _wrong(
                f"{where}.top_logprobs", f"up to {top} pairs of a token id and a logarithm each", "another value"
            )
        if not _is_logprob(logprob):
            raise _wrong(f"{where}.token_logprobs", f"numbers from {LEAST_LOGPROB:g} to 0", "another value")
        pairs = tuple((int(token_id), float(value)) for token_id, value in listed)
        found.append(TokenLogprobs(float(logprob), pairs))
    return tuple(found)


def _is_alternative(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and _is_logprob(value[1])


def _is_logprob(value: object) -> bool:
    return is_number(value) and LEAST_LOGPROB <= value <= 0


def _usage(value: object, where: str) -> Usage:
    fields = _object(value, where)
    counts = [fields.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    if not all(_is_count(count) for count in counts):
        raise _wrong(where, "an object of integers from 0", "a missing or malformed count")
    return Usage(*(int(count) for count in counts if count is not None))


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", json_kind(value))
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _wrong(where: str, wanted: str, found: str) -> ProtocolError:
    return ProtocolError(must_be(where, wanted, found))


def _too_long(where: str, max_tokens: int) -> ProtocolError:
    wanted = f"at most {MAX_TOKEN_CHARACTERS} characters for each of {max_tokens} tokens"
    return _wrong(f"{where}.choices[0].text", wanted, "more")


def _too_many(where: str, max_tokens: int) -> ProtocolError:
    return _wrong(f"{where}.choices[0].token_ids", f"at most {max_tokens} token ids", "more than requested")
