"""What passes cost: python -m benchmarks.passes [--rounds N] [--json]

The steps of a pass one by one, on one core: the client's request and check, the issuer's signature,
the server's check, and the record on this machine's disk. Bytes are those of the messages, without
headers of HTTP that a request has anyway.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from client_lib.passes import PassFile
from del_core.passes import (
    BATCH_REQUEST_TYPE,
    IssuerKey,
    PassRequest,
    answer_to,
    authorization,
    batch_of,
    check_pass,
    passes_from,
    presented,
)
from deployments.auth.pass_ledger import PassLedger

T = TypeVar("T")

_KEY = "del-" + "k" * 43  # as long as an API key


class _Times:
    """Medians of steps by name: of processor time, or of all time for a step that waits."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def of(self, name: str, step: Callable[[], T], clock: Callable[[], float] = time.process_time) -> T:
        began = clock()
        found = step()
        self._seconds.setdefault(name, []).append(clock() - began)
        return found

    def milliseconds(self) -> dict[str, float]:
        return {name: round(1000 * statistics.median(values), 3) for name, values in self._seconds.items()}


def measure(rounds: int) -> dict[str, Any]:
    """Return milliseconds (medians) of every step, and bytes."""
    key, times = IssuerKey.generate("del.example"), _Times()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spent"
        PassLedger.create(path)
        ledger, store = PassLedger(path), PassFile(Path(directory) / "passes.db")
        made: list[bytes] = []
        for _ in range(rounds):
            request = times.of("request", lambda: PassRequest(key.config))
            answer = times.of("sign", lambda request=request: key.signer.sign(request.data[3:]))  # type: ignore[misc]
            made.append(times.of("finish", lambda request=request, answer=answer: request.finish(answer)))  # type: ignore[misc]
        store.add(made)
        for _ in range(rounds):
            data = times.of("take", store.take, time.perf_counter)
            header = authorization(data)
            _, nonce = times.of("check", lambda header=header: check_pass([key.config], presented(header) or b""))  # type: ignore[misc]
            times.of("spend", lambda nonce=nonce: ledger.spend(nonce), time.perf_counter)  # type: ignore[misc]
        ledger.close()
    requests = [PassRequest(key.config) for _ in range(100)]
    sent = batch_of(requests)
    answer = answer_to(key, BATCH_REQUEST_TYPE, [request.data for request in requests])
    passes_from(requests, answer)
    return {
        "rounds": rounds,
        "ms": times.milliseconds(),
        "bytes": {
            "request for 100": len(sent),
            "answer with 100": len(answer),
            "header with a pass": len(f"authorization: {authorization(made[0])}\r\n"),
            "header with an API key": len(f"authorization: Bearer {_KEY}\r\n"),
        },
    }


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Passes that are made and spent.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")
def main(rounds: int, as_json: bool) -> None:
    """Measure what passes cost."""
    click.echo(json.dumps(measure(rounds), indent=None if as_json else 2))


if __name__ == "__main__":
    main()
