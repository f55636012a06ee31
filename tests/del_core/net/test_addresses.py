"""Which addresses only this machine can reach."""

from __future__ import annotations

import pytest

from del_core.net.addresses import is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.2",
        "127.255.255.254",
        "::1",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "[::ffff:127.0.0.2]",
        "localhost",
        "LocalHost",
    ],
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.example.org",
        "127.0.0.1.example.org",
        "localhost.example.org",
        "127.1",
        "127.0.0.1:8000",
        "127.0.0.01",
        "[127.0.0.1",
        "0.0.0.0",
        "::",
        "::ffff:192.0.2.1",
        "10.0.0.1",
        "192.0.2.1",
        "del.example.com",
        "",
        "[]",
    ],
)
def test_reachable_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)
