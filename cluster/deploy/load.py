"""Load of the replicas of a cluster, from the metrics of its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx

_TIMEOUT_S = 5.0
_GAUGES = {
    "ray_del_requests_in_flight": "requests",
    "ray_del_outstanding_tokens": "outstanding_tokens",
    "ray_del_tokens_per_second": "tokens_per_s",
}
_SAMPLE = re.compile(r"^(?P<name>[a-z_]+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_REPLICA = re.compile(r'\breplica="([^"]+)"')


@dataclass(frozen=True)
class ReplicaLoad:
    """Load of a replica. A field is None until the replica has reported it.

    Args:
        requests: completions that hold a place.
        outstanding_tokens: tokens promised and not yet generated.
        tokens_per_s: tokens generated a second, over the last ten seconds.
    """

    requests: float | None = None
    outstanding_tokens: float | None = None
    tokens_per_s: float | None = None


def replica_loads(addresses: Iterable[str]) -> dict[str, ReplicaLoad]:
    """Return the load of each replica by its id, from the nodes that answer.

    Processes report every few seconds, so shorter intervals show nothing new.

    Args:
        addresses: host:port of each node's Prometheus metrics.
    """
    found: dict[str, ReplicaLoad] = {}
    with ThreadPoolExecutor(max_workers=16) as pool:
        for text in pool.map(_scrape, addresses):
            for sample in _SAMPLE.finditer(text):
                replica = _REPLICA.search(sample["labels"])
                if sample["name"] in _GAUGES and replica is not None:
                    value = {_GAUGES[sample["name"]]: float(sample["value"])}
                    found[replica[1]] = replace(found.get(replica[1], ReplicaLoad()), **value)
    return found


def _scrape(address: str) -> str:
    try:
        answer = httpx.get(f"http://{address}/metrics", timeout=_TIMEOUT_S, trust_env=False)
        return answer.raise_for_status().text
    except httpx.HTTPError:
        return ""
