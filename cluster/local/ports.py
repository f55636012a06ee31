"""Free ports of this machine for the processes of a local cluster."""

from __future__ import annotations

import os
import secrets
import socket

NODE_PORTS = range(31_000, 31_600)
FREE_PORTS = range(31_600, 32_768)
"""Above HAProxy's blocks (:mod:`cluster.local.proxy`), below the ports of outgoing connections.

A node chooses its ports while others are chosen but not listened on, so the two do not overlap.
"""


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on a port of loopback."""
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port on which nothing listens. Raises OSError if there is none.

    The system's own choice, port 0, would lie among the ports of outgoing connections, and one of
    these could take it before the server listens.
    """
    for _ in range(100):
        port = FREE_PORTS.start + secrets.randbelow(len(FREE_PORTS))
        if port_is_free(port):
            return port
    raise OSError(f"a port from {FREE_PORTS.start} to {FREE_PORTS.stop - 1} must be free, got none")


_claims: dict[tuple[int, int], socket.socket] = {}
"""By process and port; held until the process ends."""


def _claim(port: int) -> bool:
    """Return whether this process, and no other, may choose the TCP ports from this one on.

    The claim is the UDP port of the same number, which no server needs, and which the system takes
    back however the process ends.
    """
    holder = (os.getpid(), port)
    if holder not in _claims:
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            return False
        _claims[holder] = claim
    return True


def free_ports(count: int) -> list[int]:
    """Return free ports in a row, others in each process. Raises OSError if there are none.

    Nodes that start at the same time choose before they listen, so a process claims its ports for
    as long as it runs.
    """
    blocks = len(NODE_PORTS) // count
    for offset in range(blocks):
        first = NODE_PORTS.start + count * ((os.getpid() + offset) % blocks)
        ports = list(range(first, first + count))
        if all(map(port_is_free, ports)) and _claim(first):
            return ports
    raise OSError(f"{count} ports in a row from {NODE_PORTS.start} to {NODE_PORTS.stop - 1} must be free, got none")
