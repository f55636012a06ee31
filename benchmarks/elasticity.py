"""Scaling under a step and a ramp of load: python -m benchmarks.elasticity [--quick] [--json]

The engine is the mock engine, which paces tokens like a GPU and computes nothing. Everything else
is real: clients with the client library's default settings, HAProxy, Ray Serve, its autoscaler
with this project's policy, one process per replica. Each client requests a stream, reads it to the
end and repeats. The number of clients follows a profile. Outcome and times of every request are
recorded, and twice per second the number of replicas.

``benchmarks.router`` measures the parts around the engine with a fixed number of replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from client_lib import AsyncClient, DELClientError, EncodedPrompt, private
from cluster.local import LocalServer, start_local
from deployments.settings import Settings, parse_settings

__all__ = ["PROFILES", "LoadReport", "clients_at", "run"]

PROMPT = "Dear sister, the doctor says that my fever will not go down before the end of the week"
OUTPUT_TOKENS = 64
_WINDOW_S = 2.0
_CLIENT_TIMEOUT_S = 60.0

#: Concurrent clients as (share of the duration, share of the maximum), linear in between.
PROFILES = {
    "step": ((0.0, 0.05), (0.1, 0.05), (0.1, 1.0), (0.45, 1.0), (0.45, 0.05), (1.0, 0.05)),
    "ramp": ((0.0, 0.05), (0.4, 1.0), (0.5, 1.0), (0.75, 0.05), (1.0, 0.05)),
}


def clients_at(profile: str, share: float, most: int) -> int:
    """Return the number of clients after ``share`` of the run, at least 1."""
    before = PROFILES[profile][0]
    for point in PROFILES[profile]:
        if point[0] > share:
            span = point[0] - before[0]
            part = (share - before[0]) / span if span else 1.0
            return max(1, round(most * (before[1] + part * (point[1] - before[1]))))
        before = point
    return max(1, round(most * before[1]))


@dataclass
class LoadReport:
    """Result of a run under one profile."""

    profile: str
    seconds: float = 0.0
    requests: int = 0
    succeeded: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    refusals: int = 0
    """503 answers that the retries of the client library absorbed."""
    replicas_at_most: int = 0
    replicas_at_the_end: int = 0
    first_new_replica_s: float | None = None
    """Seconds from the first increase of the load to a second replica."""
    timeline: list[dict[str, float]] = field(default_factory=list)
    """Rows by window: seconds, clients, replicas, requests per second, p50 and p95 of times."""


class _CountingTransport(httpx.AsyncBaseTransport):
    """Counter of 503 answers."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
        )
        self.refusals = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Handle a request; see httpx."""
        response = await self._inner.handle_async_request(request)
        self.refusals += response.status_code == 503
        return response

    async def aclose(self) -> None:
        """Close the transport; see httpx."""
        await self._inner.aclose()


def stand_in_settings(replicas_at_least: int, replicas_at_most: int, **pace: float) -> Settings:
    """Return settings of a service with the demo's bundle and mock engine that scales quickly."""
    return parse_settings(
        {
            "engine": {"stand_in": pace, "max_num_seqs": 8},
            "scaling": {
                "min_replicas": replicas_at_least,
                "max_replicas": replicas_at_most,
                "target_ongoing_requests": 6,
                "target_outstanding_tokens": 6 * OUTPUT_TOKENS,
                # A replica holds a whole burst until others have started: requests that are
                # refused for longer than a client retries would be lost.
                "max_ongoing_requests": 96,
                "upscale_delay_s": 1,
                "downscale_delay_s": 6,
                "graceful_shutdown_timeout_s": 30,
                "num_cpus": 0.01,
            },
        }
    )


@dataclass
class _Done:
    at: float
    first_s: float
    whole_s: float


async def _converse(
    client: AsyncClient,
    prompt: EncodedPrompt,
    wanted: tuple[int, ...],
    report: LoadReport,
    done: list[_Done],
    leave: Any,
) -> None:
    """Run one client: repeat requests until told to stop, then finish the last one."""
    while not leave.is_set():
        began = time.monotonic()
        first = None
        token_ids: list[int] = []
        report.requests += 1
        try:
            async with client.stream(
                prompt, variant=prompt.variant, max_tokens=OUTPUT_TOKENS, ignore_eos=True
            ) as stream:
                async for chunk in stream:
                    first = first or time.monotonic()
                    token_ids += chunk.token_ids
        except DELClientError as error:
            code = " ".join(str(part) for part in (type(error).__name__, error.status, error.code) if part)
            report.failed[code] = report.failed.get(code, 0) + 1
            continue
        now = time.monotonic()
        if tuple(token_ids) == wanted:
            report.succeeded += 1
        else:
            report.wrong += 1
        done.append(_Done(now, (first or now) - began, now - began))


async def _replicas(client: httpx.AsyncClient, metrics: str) -> int | None:
    """Return the number of healthy replicas by Serve's metrics; None if they are unavailable."""
    with contextlib.suppress(httpx.HTTPError):
        text = (await client.get(f"http://{metrics}/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("ray_serve_deployment_replica_healthy{")]
        return sum(float(line.rsplit(" ", 1)[1]) > 0 for line in lines)
    return None


async def _under(profile: str, server: LocalServer, seconds: float, most: int, idle_s: float) -> LoadReport:
    report = LoadReport(profile)
    done: list[_Done] = []
    tasks: list[asyncio.Task[None]] = []
    clients: list[asyncio.Event] = []
    looks: list[tuple[float, int, int]] = []
    transport = _CountingTransport()
    async with (
        AsyncClient(server.url, transport=transport, timeout=_CLIENT_TIMEOUT_S) as client,
        httpx.AsyncClient() as looking,
    ):
        prompt = await client.encode([private(PROMPT)], variant="balanced")
        wanted = (
            await client.complete(prompt, variant=prompt.variant, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        ).token_ids
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds + idle_s:
            target = clients_at(profile, now / seconds, most) if now < seconds else 0
            while len(clients) < target:
                leave = asyncio.Event()
                tasks.append(asyncio.create_task(_converse(client, prompt, wanted, report, done, leave)))
                clients.append(leave)
            for leave in clients[target:]:
                leave.set()
            del clients[target:]
            seen = await _replicas(looking, server.metrics[0])
            if seen is not None:
                looks.append((now, target, seen))
            await asyncio.sleep(0.5)
        for leave in clients:
            leave.set()
        await asyncio.gather(*tasks)
    report.seconds = round(time.monotonic() - began, 1)
    report.refusals = transport.refusals
    report.replicas_at_most = max(seen for _, _, seen in looks)
    report.replicas_at_the_end = looks[-1][2]
    start = next((at for at, target, _ in looks if target > looks[0][1]), None)
    grown = next((at for at, _, seen in looks if seen > 1), None)
    if start is not None and grown is not None:
        report.first_new_replica_s = round(grown - start, 1)
    report.timeline = list(_windows([_Done(one.at - began, one.first_s, one.whole_s) for one in done], looks))
    return report


def _windows(done: Sequence[_Done], looks: Sequence[tuple[float, int, int]]) -> Iterator[dict[str, float]]:
    end = looks[-1][0]
    at = 0.0
    while at < end:
        inside = [one for one in done if at <= one.at < at + _WINDOW_S]
        seen = [look for look in looks if at <= look[0] < at + _WINDOW_S]
        if seen:
            row = {"s": at, "clients": seen[-1][1], "replicas": seen[-1][2], "per_s": len(inside) / _WINDOW_S}
            for name, of in (("first", lambda one: one.first_s), ("whole", lambda one: one.whole_s)):
                for label, share in (("p50", 0.5), ("p95", 0.95)):
                    values = sorted(of(one) for one in inside)
                    if values:
                        row[f"{name}_{label}_ms"] = round(values[min(len(values) - 1, int(share * len(values)))] * 1000)
            yield row
        at += _WINDOW_S


def run(
    *, seconds: float = 180.0, most: int = 96, replicas: int = 16, profiles: Sequence[str] = tuple(PROFILES)
) -> list[LoadReport]:
    """Run each profile for ``seconds`` on its own server, with up to ``most`` clients."""
    reports = []
    for profile in profiles:
        click.echo(f"{profile}: {seconds:.0f} s", err=True)
        with start_local(stand_in_settings(1, replicas)) as server:
            reports.append(asyncio.run(_under(profile, server, seconds, most, idle_s=0.0)))
    return reports


def plot(reports: Sequence[LoadReport], path: Path) -> None:
    """Draw load, replicas and p95 over time, one column per profile."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, len(reports), figsize=(6 * len(reports), 7), sharex="col", squeeze=False)
    rows: tuple[tuple[str, Callable[[dict[str, float]], float | None]], ...] = (
        ("clients", lambda row: row["clients"]),
        ("replicas", lambda row: row["replicas"]),
        ("p95 of first token, ms", lambda row: row.get("first_p95_ms")),
    )
    for column, report in enumerate(reports):
        for index, (label, of) in enumerate(rows):
            points = [(row["s"], of(row)) for row in report.timeline]
            known = [(at, value) for at, value in points if value is not None]
            axes[index][column].plot(*zip(*known, strict=True), drawstyle="steps-post" if index < 2 else "default")
            axes[index][column].set_ylabel(label)
            axes[index][column].set_ylim(bottom=0)
            axes[index][column].grid(alpha=0.3)
        failed = sum(report.failed.values())
        axes[0][column].set_title(f"{report.profile}: {report.requests} requests, {failed} failed")
        axes[-1][column].set_xlabel("seconds")
    figure.suptitle("Stand-in engines (token clocks), real proxy, replicas, autoscaler and clients")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


@click.command()
@click.option("--seconds", default=150.0, show_default=True, help="Length of each profile.")
@click.option("--clients", default=96, show_default=True, help="Clients at the most.")
@click.option("--replicas", default=16, show_default=True, help="Replicas at the most.")
@click.option("--profile", "profiles", type=click.Choice(list(PROFILES)), multiple=True, help="Only these.")
@click.option("--quick", is_flag=True, help="Shorter and smaller: under five minutes.")
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path), help="Draw load, replicas and p95 over time there."
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def main(
    seconds: float,
    clients: int,
    replicas: int,
    profiles: tuple[str, ...],
    quick: bool,
    plot_path: Path | None,
    as_json: bool,
) -> None:
    """Load tests of everything around the engine, with mock engines."""
    indent = None if as_json else 2
    if quick:
        seconds, clients, replicas = 60.0, 48, 8
    reports = run(seconds=seconds, most=clients, replicas=replicas, profiles=profiles or tuple(PROFILES))
    if plot_path is not None:
        plot(reports, plot_path)
    click.echo(json.dumps([asdict(report) for report in reports], indent=indent))
    raise SystemExit(any(report.failed or report.wrong for report in reports))


if __name__ == "__main__":
    main()
