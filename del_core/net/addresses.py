"""The one definition of a loopback address."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``, an IP address or the name ``localhost``.

    Other names are never loopback, whatever they resolve to: a name such as ``127.example.org``
    belongs to whoever controls its zone. IPv6 addresses may stand in brackets.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host)
    except ValueError:
        return False
    # Python before 3.13 does not look at the IPv4 address inside ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
