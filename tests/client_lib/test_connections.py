"""How a connection to a name of several addresses is opened."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpcore
import pytest

from client_lib import Client, DELClientError, Timeout

ADDRESSES = ("2001:db8::1", "192.0.2.1")


def test_a_first_address_that_drops_packets_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither address is contacted: the system's own connections are replaced."""
    tried: list[tuple[str, float]] = []

    def connect(self: object, host: str, port: int, timeout: float | None = None, *more: Any) -> Any:
        assert timeout is not None
        tried.append((host, timeout))
        raise httpcore.ConnectTimeout

    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ADDRESSES]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    timeout = Timeout(connect=4.0)
    client = Client("http://del.example.org", allow_http=True, cache_dir=tmp_path, max_retries=0, timeout=timeout)
    with client, pytest.raises(DELClientError):
        client.models()
    assert [address for address, _ in tried] == list(ADDRESSES)
    assert tried[0][1] == pytest.approx(2.0, abs=0.2)
    assert tried[1][1] == pytest.approx(4.0, abs=0.2)  # the first one failed at once
