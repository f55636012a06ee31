"""How requests are paid for with passes (:mod:`client_lib.passes`), without input or output.

A pass that the server has seen is never used for another prompt, which it would link. All tries of
one request have the same pass, since their bytes link them anyway. A try whose connection broke may
have spent it; then another one is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from client_lib._core.effects import Flow, Head, Send, call, read_answer
from client_lib._validation import missing_package, must_be
from client_lib.errors import PassSpentError, ProtocolError
from client_lib.passes import PassStore, issuer_from, requests_for

T = TypeVar("T")

_PASSES = 3  # for one request: a server that calls every pass spent gets no more
_ANSWER_BYTES = 512  # an answer has 259 bytes for each pass


def paid(passes: PassStore | None, send: Send, carried_out: Callable[[Send], Flow[T]]) -> Flow[T]:
    """Carry out a request, with a pass if there is a store of them."""
    if passes is None:
        return (yield from carried_out(send))
    for tries_left in reversed(range(_PASSES)):
        # In no variable of this function: tracebacks may show them.
        with_pass = yield from call(lambda: _with_pass(send, passes))
        try:
            return (yield from carried_out(with_pass))
        except PassSpentError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _with_pass(send: Send, passes: PassStore) -> Send:
    """Take a pass, and return the request with it."""
    try:
        from del_core.passes import authorization
    except ImportError:
        raise missing_package("passes", "used with the package cryptography", "passes") from None
    return replace(send, headers={**send.headers, "authorization": authorization(passes.take())})


def bought(
    count: int,
    issuer: bytes | str,
    headers: dict[str, str],
    carried_out: Callable[[Send, Callable[[Head], Flow[bytes]]], Flow[bytes]],
) -> Flow[list[bytes]]:
    """Request passes, with the headers that name an API key, and check whose they are."""
    config = issuer_from(issuer)
    from del_core.passes import BATCH_REQUEST_TYPE, BATCH_RESPONSE_TYPE, PassError, batch_of, passes_from

    where = "POST /v1/passes: "
    requests = yield from call(lambda: requests_for(config, count))
    types = {"content-type": BATCH_REQUEST_TYPE, "accept": BATCH_RESPONSE_TYPE}
    send = Send("POST", "/v1/passes", {**headers, **types}, batch_of(requests))
    answer = yield from carried_out(send, lambda _: read_answer(_ANSWER_BYTES * (1 + count), where))

    def passes() -> list[bytes]:
        try:
            return passes_from(requests, answer)
        except PassError:
            raise ProtocolError(where + must_be("body", "signatures of the issuer", "something else")) from None

    return (yield from call(passes))
