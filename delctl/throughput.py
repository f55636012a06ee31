"""The tokens per second of a running server, from the metrics of its nodes."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

_TOKENS = re.compile(r"^ray_del_output_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_IN_FLIGHT = re.compile(r"^ray_del_requests_in_flight(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Rate:
    """Tokens generated in ``seconds``, and completions in flight at their end."""

    tokens: int
    seconds: float
    in_flight: int

    def words(self) -> str:
        """Return the rate for a person."""
        return f"{self.tokens / self.seconds:.1f} tokens/s, {self.in_flight} in flight"


class Throughput:
    """Reads the counters of all nodes; each :meth:`read` returns what has happened since the last.

    Ray exports a process's counters every few seconds, so shorter intervals show nothing.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._before: tuple[float, float] | None = None

    def read(self) -> Rate | None:
        """Return the rate since the last call; None at first, or if a node did not answer."""
        import httpx

        pages = []
        try:
            for address in self._addresses:
                answer = httpx.get(f"http://{address}/metrics", timeout=_TIMEOUT_S, trust_env=False)
                pages.append(answer.raise_for_status().text)
        except httpx.HTTPError:
            return None
        now, page = time.monotonic(), "\n".join(pages)
        tokens = sum(float(value) for value in _TOKENS.findall(page))
        before, self._before = self._before, (now, tokens)
        if before is None:
            return None
        # The counter of a replica that has ended is gone.
        new = max(0.0, tokens - before[1])
        in_flight = sum(float(value) for value in _IN_FLIGHT.findall(page))
        return Rate(round(new), now - before[0], round(in_flight))
