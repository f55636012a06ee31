"""The JSON header of a frame (docs/reference/wire-format.md).

Both sides run the same checks, so the encoder refuses what :func:`read` would refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from del_core import _json as strict
from del_core.errors import BUNDLE_OUTDATED, CONTEXT_LENGTH_EXCEEDED, UNSUPPORTED_PARAMETER
from del_core.wire.types import Limits, PrivateSegment, PublicSegment, Request, Sampling, StructuredOutputs

MAX_DEPTH: Final = 8  # the format needs 4; more, so that a wrong type is named instead of its depth
FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
VARIANT: Final = re.compile(r"[a-z0-9-]{1,64}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # what a Python string may hold and UTF-8 may not

_REQUIRED: Final = ("fingerprint", "variant", "segments")
_SAMPLING: Final = tuple(item.name for item in fields(Sampling))  # max_tokens is the first
_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_STRUCTURES: Final = tuple(item.name for item in fields(StructuredOutputs))
# Parameters of OpenAI's or vLLM's completions that a server of private prompts cannot honor.
# Neutral values are accepted, so that a general client need not remove them.
NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "prompt_logprobs": (),
    "echo": (False,),
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
}


@dataclass(frozen=True)
class Header:
    """A checked header. Private segments are numbers of tokens."""

    fingerprint: str
    variant: str
    segments: tuple[int | PublicSegment, ...]
    sampling: Sampling
    resume: tuple[int, ...]

    @property
    def private_tokens(self) -> int:
        """Number of rows in the payload."""
        return sum(segment for segment in self.segments if isinstance(segment, int))


def to_json(request: Request) -> dict[str, Any]:
    """Return the unchecked header of a request without sampling fields at their default."""
    header: dict[str, Any] = {
        "fingerprint": request.fingerprint,
        "variant": request.variant,
        "segments": [
            {"private": segment.tokens}
            if isinstance(segment, PrivateSegment)
            else {"public": _plain(segment.token_ids)}
            for segment in request.segments
        ],
        "max_tokens": request.sampling.max_tokens,
    }
    default = Sampling()
    for name in _SAMPLING[1:]:
        value = getattr(request.sampling, name)
        if value != getattr(default, name) or type(value) is not type(getattr(default, name)):
            header[name] = _written(name, value)
    if request.resume:
        header["resume"] = _plain(request.resume)
    return header


def _written(name: str, value: Any) -> object:
    """Return the value of a sampling field as a member."""
    if name == "logit_bias" and isinstance(value, tuple):
        # A repeated id would be lost; what is no pair is left for the reader to refuse.
        pairs = [pair for pair in value if isinstance(pair, tuple) and len(pair) == 2]
        written = {str(token_id): bias for token_id, bias in pairs}
        return written if len(written) == len(value) else _plain(value)
    if isinstance(value, StructuredOutputs):
        structure = {one: getattr(value, one) for one in _STRUCTURES}
        return {
            one: list(given) if isinstance(given, tuple) else given
            for one, given in structure.items()
            if given not in (None, False, ())
        }
    return _plain(value) if isinstance(value, tuple) else value


def _plain(values: tuple[Any, ...]) -> list[Any]:
    """Return values with NumPy integers, which tokenizers may return, as Python integers."""
    return [int(value) if isinstance(value, np.integer) else value for value in values]


def read(header: object, limits: Limits, *, fingerprint: str | None = None) -> Header:
    """Return a parsed header after all checks, or raise JsonError.

    With ``fingerprint`` given, another one is refused before everything that depends on the bundle.
    """
    values = strict.members(header, "header", required=_REQUIRED, optional=(*_SAMPLING, *NEUTRAL, "resume"))
    found = strict.text(values["fingerprint"], "header.fingerprint", FINGERPRINT)
    if fingerprint is not None and found != fingerprint:
        message = f"must be {fingerprint}, the bundle that this server holds, got {found}; fetch the bundle again"
        raise strict.JsonError(BUNDLE_OUTDATED, "header.fingerprint", message)
    variant = strict.text(values["variant"], "header.variant", VARIANT)
    segments = _segments(values["segments"], limits)
    _refuse_unsupported(values)
    sampling = _sampling(values, limits)
    resume = _resume(values.get("resume"), sampling, limits)
    return Header(found, variant, segments, sampling, resume)


def _segments(value: object, limits: Limits) -> tuple[int | PublicSegment, ...]:
    items = strict.array(value, "header.segments", least=1, most=limits.max_segments)
    segments: list[int | PublicSegment] = []
    total = 0
    for index, item in enumerate(items):
        where = f"header.segments[{index}]"
        members = strict.members(item, where, optional=("private", "public"))
        if len(members) != 1:
            raise strict.invalid(where, f"must have exactly one of private, public, got {len(members)} of them")
        if "private" in members:
            count = strict.integer(members["private"], f"{where}.private", 1, 2**31 - 1)
            segments.append(count)
        else:
            ids = members["public"]
            # No array is longer than the header, so its length needs no other bound.
            most = max(1, limits.max_header_bytes)
            ids = strict.secret_integers(ids, f"{where}.public", limits.max_token_id, least=1, most=most)
            count = len(ids)
            segments.append(PublicSegment(ids))
        total += count
        if total > limits.max_prompt_tokens:
            message = f"must keep the prompt within {limits.max_prompt_tokens} tokens, got {total}"
            raise strict.JsonError(CONTEXT_LENGTH_EXCEEDED, where, message)
    return tuple(segments)


def _refuse_unsupported(values: dict[str, Any]) -> None:
    for name, neutral in NEUTRAL.items():
        value = values.get(name)
        # As in JSON, 0 equals 0.0 but not false.
        if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            continue
        allowed = " or ".join(["null", *(strict.shown(item) if item != {} else "{}" for item in neutral)])
        raise strict.JsonError(
            UNSUPPORTED_PARAMETER, f"header.{name}", f"must be absent or {allowed}, got a value that is not supported"
        )


def _sampling(values: dict[str, Any], limits: Limits) -> Sampling:
    """Return the sampling fields; an absent or null one has its default."""
    most_ids = limits.max_stop_token_ids
    readers: dict[str, Callable[[Any, str], object]] = {
        "max_tokens": lambda value, where: strict.integer(value, where, 1, limits.max_output_tokens),
        "temperature": lambda value, where: strict.number(value, where, 0.0, 2.0),
        "top_p": lambda value, where: strict.number(value, where, 0.0, 1.0, above=True),
        "seed": lambda value, where: strict.integer(value, where, -(2**63), 2**63 - 1),
        "stop": lambda value, where: _stop(value, where, limits),
        "stop_token_ids": lambda value, where: strict.secret_integers(
            value, where, limits.max_token_id, least=0, most=most_ids
        ),
        "stream": strict.boolean,
        "ignore_eos": strict.boolean,
        "top_k": lambda value, where: strict.integer(value, where, 0, 2**31 - 1),
        "min_p": lambda value, where: strict.number(value, where, 0.0, 1.0),
        "presence_penalty": lambda value, where: strict.number(value, where, -2.0, 2.0),
        "frequency_penalty": lambda value, where: strict.number(value, where, -2.0, 2.0),
        "repetition_penalty": lambda value, where: strict.number(value, where, 0.0, 2.0, above=True),
        "logit_bias": lambda value, where: _logit_bias(value, where, limits),
        "logprobs": lambda value, where: strict.integer(value, where, 0, limits.max_logprobs),
        "structured_outputs": lambda value, where: _structure(value, where, limits),
    }
    found: dict[str, Any] = {"max_tokens": min(Sampling.max_tokens, limits.max_output_tokens)}
    for name, read_value in readers.items():
        if values.get(name) is not None:
            found[name] = read_value(values[name], f"header.{name}")
    if found.get("ignore_eos") and "structured_outputs" in found:
        # A structure ends with an end of text.
        raise strict.invalid("header.ignore_eos", "must be false with structured_outputs, got true")
    return Sampling(**found)


def _stop(value: object, where: str, limits: Limits) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    items = strict.array(items, where, least=0, most=limits.max_stop_strings)
    for index, item in enumerate(items):
        most = limits.max_stop_bytes
        if not isinstance(item, str) or _SURROGATE.search(item) or not 1 <= len(item.encode()) <= most:
            raise strict.invalid(
                f"{where}[{index}]", f"must be a string of 1 to {most} bytes of UTF-8, got another value"
            )
    return tuple(items)


def _logit_bias(value: object, where: str, limits: Limits) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict) or len(value) > limits.max_logit_biases:
        found = f"{len(value)} members" if isinstance(value, dict) else "another type"
        raise strict.invalid(where, f"must be an object of at most {limits.max_logit_biases} members, got {found}")
    pairs = []
    for name, bias in value.items():
        if not _TOKEN_ID.fullmatch(name) or int(name) > limits.max_token_id:
            message = f"must have names of token ids from 0 to {limits.max_token_id}, got another name"
            raise strict.invalid(where, message)
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise strict.invalid(where, "must have numbers from -100 to 100, got another value")
        pairs.append((int(name), float(bias)))
    return tuple(pairs)


def _structure(value: object, where: str, limits: Limits) -> StructuredOutputs:
    """Return a checked structure; whether its schema or expression is valid, the engine decides."""
    members = strict.members(value, where, optional=_STRUCTURES)
    if len(members) != 1:
        raise strict.invalid(where, f"must have exactly one of {', '.join(_STRUCTURES)}, got {len(members)} of them")
    ((name, given),) = members.items()
    if name == "json_object":
        if given is not True:
            raise strict.invalid(f"{where}.{name}", "must be true, got another value")
        return StructuredOutputs(json_object=True)
    if name == "choice":
        choices = strict.array(given, f"{where}.{name}", least=1, most=limits.max_choices)
        left = limits.max_structure_bytes
        for index, choice in enumerate(choices):
            left -= len(_structure_text(choice, f"{where}.{name}[{index}]", left).encode())
        return StructuredOutputs(choice=tuple(choices))
    text = _structure_text(given, f"{where}.{name}", limits.max_structure_bytes)
    return StructuredOutputs(json=text) if name == "json" else StructuredOutputs(regex=text)


def _structure_text(value: object, where: str, most: int) -> str:
    if not isinstance(value, str) or _SURROGATE.search(value) or not 1 <= len(value.encode()) <= most:
        raise strict.invalid(where, f"must be a string of 1 to {most} bytes of UTF-8, got another value")
    return value


def _resume(value: object, sampling: Sampling, limits: Limits) -> tuple[int, ...]:
    if value is None:
        return ()
    most = sampling.max_tokens - 1
    ids = strict.secret_integers(value, "header.resume", limits.max_token_id, least=0, most=limits.max_output_tokens)
    if len(ids) > most:
        raise strict.invalid("header.resume", f"must have at most max_tokens - 1 = {most} token ids, got {len(ids)}")
    return ids
