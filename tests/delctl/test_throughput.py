"""``delctl serve`` shows the tokens per second that the nodes' counters say."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from delctl.commands.serve import watch
from delctl.throughput import Throughput

PAGE = """# HELP ray_del_output_tokens_total Tokens generated
ray_del_output_tokens_total{{application="a",replica="one",variant="open"}} {one}
ray_del_output_tokens_total{{application="a",replica="two",variant="open"}} 7.0
ray_del_output_tokens_totals 1e9
ray_del_requests_in_flight{{application="a",replica="one"}} 3.0
"""


class Node(ThreadingHTTPServer):
    """A node of Ray with one counter that grows by 50 a scrape."""

    tokens = 0.0


class Metrics(BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        body = PAGE.format(one=self.server.tokens).encode()
        self.server.tokens += 50
        self.send_response(200)
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


def test_the_rate_is_what_has_happened_since_the_last_read(node: Node) -> None:
    throughput = Throughput([f"127.0.0.1:{node.server_port}"])
    assert throughput.read() is None
    first, second = throughput.read(), throughput.read()
    assert first is not None
    assert second is not None
    assert (first.tokens, first.in_flight, second.tokens) == (50, 3, 50)
    node.tokens = 0.0  # a replica was replaced
    third = throughput.read()
    assert third is not None
    assert third.tokens == 0
    assert re.fullmatch(r"0\.0 tokens/s, 3 in flight", third.words())


def test_a_node_that_does_not_answer_is_no_failure() -> None:
    assert Throughput(["127.0.0.1:1"]).read() is None


def test_lines_are_printed_while_the_server_runs(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    ends = iter([False, False, True])
    server: Any = SimpleNamespace(metrics=(f"127.0.0.1:{node.server_port}",), wait=lambda timeout_s: next(ends))
    watch(server)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"\d+\.\d tokens/s, 3 in flight", line) for line in lines)
