"""What the client's logic may ask its surroundings to do, as values.

The logic (:mod:`client_lib._core.flow`) is written once, as generators that yield these effects and receive their
results.
Two small drivers carry them out, one with blocking calls and one with ``await``. A driver guarantees:

- at most one response is open per run; a new ``Send`` and the end of the run close it;
- failures of the transport are thrown into the generator as typed errors of :mod:`client_lib.errors`;
- no effect outlasts the run's total time limit: it fails with ``TimeoutExceeded(phase="total")`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from client_lib.prompts.encoder import Encoder
from client_lib.types import Chunk

__all__ = ["Call", "Effect", "Emit", "Flow", "Head", "Read", "Send", "Sleep", "UseBundle", "call", "read_all"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request to ``path`` below the base URL; the result is the response's :class:`Head`."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case) of the response that is open now."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Read:
    """Read from the open response; the result is some bytes, or ``b""`` at its end."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait; the result is True, or False at once if the total time limit would pass before.

    ``why`` is ``resume``, or the name of the error after which a request is tried again.
    """

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function that uses the processor or the disk for a while (the asynchronous driver uses a thread)."""

    function: Callable[[], Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class UseBundle:
    """The client's current :class:`Encoder`; loads one if there is none, or if its fingerprint is ``stale``."""

    stale: str | None = None


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand a chunk to the caller."""

    chunk: Chunk


Effect: TypeAlias = Send | Read | Sleep | Call | UseBundle | Emit
Flow: TypeAlias = Generator[Effect, Any, T]


def call(function: Callable[[], T]) -> Flow[T]:
    """The result of a :class:`Call`, typed."""
    return cast(T, (yield Call(function)))


def use_bundle(stale: str | None = None) -> Flow[Encoder]:
    """The result of a :class:`UseBundle`, typed."""
    return cast(Encoder, (yield UseBundle(stale)))


def read_all(limit: int) -> Flow[bytes | None]:
    """The rest of the open response's body, or None if it has more than ``limit`` bytes."""
    pieces: list[bytes] = []
    size = 0
    while piece := cast(bytes, (yield Read())):
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)
