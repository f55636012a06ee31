"""The load of replicas is what the gauges of the nodes say; ``delctl serve`` shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.deploy import ReplicaLoad, replica_loads
from delctl.commands.serve import watch

PAGE = """# HELP ray_del_tokens_per_second Tokens generated a second
ray_del_tokens_per_second{{application="a",replica="one"}} {rate}
ray_del_tokens_per_second{{application="a",replica="two"}} 7.5
ray_del_tokens_per_seconds{{application="a",replica="two"}} 1e9
ray_del_requests_in_flight{{application="a",replica="one"}} {rate}
ray_del_outstanding_tokens{{application="a",replica="one"}} 40.0
"""


class Node(ThreadingHTTPServer):
    """A node of Ray that gives these answers: status and page of metrics."""

    answers: Iterator[tuple[int, bytes]] = iter(())


class Metrics(BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        status, body = next(self.server.answers)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(("127.0.0.1", 0), Metrics) as running:
        serving = threading.Thread(target=running.serve_forever)
        serving.start()
        yield running
        running.shutdown()
        serving.join()


def test_the_load_of_each_replica(node: Node) -> None:
    node.answers = iter([(200, PAGE.format(rate=3).encode())])
    unreachable = "127.0.0.1:1"
    assert replica_loads([unreachable, f"127.0.0.1:{node.server_port}"]) == {
        "one": ReplicaLoad(3.0, 40.0, 3.0),
        "two": ReplicaLoad(tokens_per_s=7.5),
    }


def test_lines_are_printed_while_the_server_has_requests(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers = iter([(200, PAGE.format(rate=3).encode()), (500, b"no"), (200, PAGE.format(rate=1).encode())])
    ends = iter([False, False, False, True])
    server: Any = SimpleNamespace(metrics=(f"127.0.0.1:{node.server_port}",), wait=lambda timeout_s: next(ends))
    watch(server)
    assert capsys.readouterr().err.splitlines() == ["10.5 tokens/s, 3 in flight", "8.5 tokens/s, 1 in flight"]
