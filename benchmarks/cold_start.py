"""Time from no replica to a first token: python -m benchmarks.cold_start [--rounds N] [--json]

``scaling.min_replicas: 0`` behind HAProxy, a real engine with the demo's model. Each round waits
until no process of a replica is left and then sends one request with the client library's default
settings. The time from the call to the first token covers Ray Serve's reaction, the start of a
replica, and the completion. The start of the whole server is reported, too: that of Ray and of a
replica. With ``--stand-in`` the mock engine takes the place of the real one.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import suppress
from typing import Any

import click
import psutil

from client_lib import Client, public
from cluster.local import LocalServer, start_local
from deployments.settings import parse_settings

__all__ = ["run", "wait_until_asleep"]

_ASLEEP_WITHIN_S = 120.0


def wait_until_asleep(server: LocalServer, timeout_s: float = _ASLEEP_WITHIN_S) -> None:
    """Wait until no replica is left. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while _replicas(server):
        if time.monotonic() > deadline:
            raise TimeoutError(f"replicas are left after {timeout_s:.0f} s")
        time.sleep(0.1)


def _replicas(server: LocalServer) -> int:
    found = 0
    for process in server.processes():
        with suppress(psutil.Error):  # it ends just now
            found += process.name().startswith("ray::ServeRepl")
    return found


def run(rounds: int, *, stand_in: bool = False) -> dict[str, Any]:
    """Return the seconds to the first token from no replica, for each round."""
    settings = parse_settings(
        {"engine": {"stand_in": {}} if stand_in else {}, "scaling": {"min_replicas": 0, "downscale_delay_s": 2}}
    )
    seconds = []
    with start_local(settings) as server, Client(server.url) as client:
        for _ in range(rounds):
            wait_until_asleep(server)
            began = time.monotonic()
            for chunk in client.stream([public("My fellow citizens")], variant="clear", max_tokens=8, ignore_eos=True):
                if chunk.token_ids:
                    seconds.append(time.monotonic() - began)
                    break
        return {
            "engine": "stand-in" if stand_in else "vLLM, demo model",
            "proxy": server.proxy,
            "server_start_s": round(server.startup_s, 1),
            "first_token_s": [round(one, 1) for one in seconds],
            "median_s": round(statistics.median(seconds), 1),
        }


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 100))
@click.option("--stand-in", is_flag=True, help="Use the mock engine, to measure Ray alone.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def main(rounds: int, stand_in: bool, as_json: bool) -> None:
    """Waiting time of the first caller when no replica is kept."""
    click.echo(json.dumps(run(rounds, stand_in=stand_in), indent=None if as_json else 2))


if __name__ == "__main__":
    main()
