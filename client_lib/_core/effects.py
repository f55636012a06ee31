"""The effects that the client's logic yields to a driver, which sends their results back.

A driver guarantees that at most one response is open per run (a new ``Send`` and the end of the run
close it); that failures of the transport are thrown into the generator as typed errors; and that no
effect outlasts the run's total time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from client_lib._validation import must_be
from client_lib.errors import ProtocolError
from client_lib.prompts.encoder import Encoder
from client_lib.types import Chunk
from del_core.bundle import SIGNATURE_HEADER
from del_core.wire import CONTEXT_LENGTH_HEADER

T = TypeVar("T")

_MAX_BUNDLE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request to ``path`` below the base URL. The result is the response's ``Head``."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)  # with what names or pays for the caller
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case) of the open response."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Read:
    """Read from the open response. The result is some bytes, or ``b""`` at its end."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait. The result is True, or at once False if the total time limit would pass first.

    ``why`` is ``resume``, or the name of the error that causes the retry.
    """

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Call:
    """Call a slow function; the asynchronous driver uses a thread."""

    function: Callable[[], Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class UseBundle:
    """Get the client's encoder, loaded first if there is none or its fingerprint is ``stale``."""

    stale: str | None = None


@dataclass(frozen=True, slots=True)
class Emit:
    """Give a chunk to the caller."""

    chunk: Chunk


Effect: TypeAlias = Send | Read | Sleep | Call | UseBundle | Emit
Flow: TypeAlias = Generator[Effect, Any, T]


def call(function: Callable[[], T]) -> Flow[T]:
    """Return the result of a :class:`Call`, typed."""
    return cast(T, (yield Call(function)))


def use_bundle(stale: str | None = None) -> Flow[Encoder]:
    """Return the result of a :class:`UseBundle`, typed."""
    return cast(Encoder, (yield UseBundle(stale)))


def read_all(limit: int) -> Flow[bytes | None]:
    """Return the rest of the response's body, or None if it exceeds ``limit`` bytes."""
    pieces: list[bytes] = []
    size = 0
    while piece := cast(bytes, (yield Read())):
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def read_answer(limit: int, where: str = "") -> Flow[bytes]:
    """Return the body of the open response. Raises ``ProtocolError`` beyond ``limit`` bytes."""
    body = yield from read_all(limit)
    if body is None:
        raise ProtocolError(where + must_be("body", f"at most {limit} bytes", "more"))
    return body


def read_bundle(head: Head) -> Flow[tuple[bytes | None, str | None, str | None]]:
    """Return a bundle (None if the cached one is current), its signature, the context length."""
    body = None if head.status == 304 else (yield from read_answer(_MAX_BUNDLE_BYTES, "GET /v1/bundle: "))
    return body, head.headers.get(SIGNATURE_HEADER), head.headers.get(CONTEXT_LENGTH_HEADER)


def keep_open(head: Head) -> Flow[Head]:
    """Check that an event stream has begun; the caller reads it."""
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise ProtocolError(must_be("content-type", "text/event-stream", "another type"))
    yield from ()  # a generator, as the other receivers are
    return head
