"""Faults of a network and of its machines, and what clients see of them."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import click

from benchmarks.faults import Answer, CountingTransport, Item, Outcomes, ask, ask_and_compare, make_items
from benchmarks.network.service import Service
from client_lib import AsyncClient

__all__ = ["CASES", "CaseReport", "run_cases"]

_BEFORE_S, _AFTER_S = 4.0, 4.0
_LAST_ANSWER_S = 150.0
_REPEATS = 3
_NARROW_KBIT_PER_S, _QUEUE_MS = 512, 500


@dataclass
class CaseReport(Outcomes):
    """What clients saw during a fault.

    Args:
        repeated: requests that failed, and were answered when the caller made them again, which
            sends the same bytes.
        lost: requests that failed each time.
        resumed: streams that went on where a connection had broken.
        p50_s, p95_s: duration of a request that was answered.
        moments: seconds that parts of the case took, by name.
    """

    repeated: int = 0
    lost: int = 0
    resumed: int = 0
    p50_s: float = 0.0
    p95_s: float = 0.0
    seconds: float = 0.0
    moments: dict[str, float] = field(default_factory=dict)


def _nothing(service: Service, seconds: float) -> dict[str, float]:
    time.sleep(seconds)
    return {}


def _machine_lost(service: Service, seconds: float) -> dict[str, float]:
    victim = service.machines[-1]
    service.network.power_off(victim)
    time.sleep(seconds)
    service.machines[-1] = service.power_on(victim.number)
    return {"back_s": service.until(service.whole, "the machine again")}


def _partition(service: Service, seconds: float) -> dict[str, float]:
    """Cut a machine off from all others, while the load balancer still reaches it."""
    victim, *others = reversed(service.machines)
    service.network.isolate(victim, others)
    time.sleep(seconds)
    service.network.join(victim, others)
    return {"back_s": service.until(service.whole, "one network again")}


def _slow_network(service: Service, seconds: float) -> dict[str, float]:
    for host in service.machines:
        service.network.narrow(host, _NARROW_KBIT_PER_S, _QUEUE_MS)
    time.sleep(seconds)
    for host in service.machines:
        service.network.widen(host)
    return {"back_s": service.until(service.whole, "all machines")}


#: Name of a case -> what happens in it. The clocks of two machines are wrong in all of them.
CASES: dict[str, Callable[[Service, float], dict[str, float]]] = {
    "clocks": _nothing,
    "machine lost": _machine_lost,
    "partition": _partition,
    "slow network": _slow_network,
}


async def run_cases(service: Service, names: Sequence[str], *, clients: int, seconds: float) -> dict[str, CaseReport]:
    """Run cases one after another, each under the load of ``clients`` that ask all the time."""
    reports = {}
    transport = CountingTransport()
    kept = {"cache_dir": service.directory / "cache", "trust": service.directory / "trust.json"}
    async with AsyncClient(service.url, transport=transport, **kept) as client:
        items = await make_items(client)
        expected = [(item, await ask(client, item)) for item in items]
        for name in names:
            before = transport.resumed
            reports[name] = await _run_case(client, expected, CASES[name], service, clients, seconds)
            reports[name].resumed = transport.resumed - before
            click.echo(f"{name}: {asdict(reports[name])}", err=True)
    return reports


async def _run_case(
    client: AsyncClient,
    expected: Sequence[tuple[Item, Answer]],
    case: Callable[[Service, float], dict[str, float]],
    service: Service,
    clients: int,
    seconds: float,
) -> CaseReport:
    report, leave, took = CaseReport(), asyncio.Event(), list[float]()
    began = time.monotonic()
    tasks = [asyncio.create_task(_ask_until(leave, client, expected, report, took, seed)) for seed in range(clients)]
    try:
        await asyncio.sleep(_BEFORE_S)
        report.moments = await asyncio.to_thread(case, service, seconds)
        await asyncio.sleep(_AFTER_S)
        leave.set()
        done, pending = await asyncio.wait(tasks, timeout=_LAST_ANSWER_S)
        report.hung += len(pending)
        for task in done:
            task.result()  # a defect here is no result of the run
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.seconds = round(time.monotonic() - began, 1)
    if took:
        report.p50_s = round(statistics.median(took), 2)
        report.p95_s = round(sorted(took)[int(0.95 * len(took))], 2)
    return report


async def _ask_until(
    leave: asyncio.Event,
    client: AsyncClient,
    expected: Sequence[tuple[Item, Answer]],
    report: CaseReport,
    took: list[float],
    seed: int,
) -> None:
    chooser = random.Random(seed)
    while not leave.is_set():
        item, wanted = chooser.choice(expected)
        for attempt in range(1 + _REPEATS):
            began = time.monotonic()
            if await ask_and_compare(client, item, wanted, report):
                took.append(time.monotonic() - began)
                report.repeated += attempt > 0
                break
        else:
            report.lost += 1
