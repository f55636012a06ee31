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
from del_core.wire.types import Limits, PrivateSegment, PublicSegment, Request, Sampling

MAX_DEPTH: Final = 8  # the format needs 4; more, so that a wrong type is named instead of its depth
FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
VARIANT: Final = re.compile(r"[a-z0-9-]{1,64}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # what a Python string may hold and UTF-8 may not

_REQUIRED: Final = ("fingerprint", "variant", "segments")
_SAMPLING: Final = tuple(item.name for item in fields(Sampling))  # max_tokens is the first
# Parameters of OpenAI's or vLLM's completions that are not supported with prompt embeddings.
# Neutral values are accepted, so that a general client need not remove them.
NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (),
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
            header[name] = _plain(value) if isinstance(value, tuple) else value
    if request.resume:
        header["resume"] = _plain(request.resume)
    return header


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
    }
    found: dict[str, Any] = {"max_tokens": min(Sampling.max_tokens, limits.max_output_tokens)}
    for name, read_value in readers.items():
        if values.get(name) is not None:
            found[name] = read_value(values[name], f"header.{name}")
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


def _resume(value: object, sampling: Sampling, limits: Limits) -> tuple[int, ...]:
    if value is None:
        return ()
    most = sampling.max_tokens - 1
    ids = strict.secret_integers(value, "header.resume", limits.max_token_id, least=0, most=limits.max_output_tokens)
    if len(ids) > most:
        raise strict.invalid("header.resume", f"must have at most max_tokens - 1 = {most} token ids, got {len(ids)}")
    return ids
