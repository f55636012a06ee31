"""No request in flight is lost when settings or bundles change or the server stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.local import LocalServer, LocalServerError, processes, start_local
from del_core.bundle import Bundle, load_bundle
from del_core.errors import BundleError
from deployments.settings import Settings, parse_settings
from tests.support.serving_frames import HEADERS, PATH, make_frame
from tests.support.tiny import Tiny, make_other_bundle

ROOT = Path(__file__).resolve().parents[2]
STEP_MS = 20.0
GONE_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def newer(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The next bundle for the same base model."""
    return load_bundle(make_other_bundle(tiny, Path(tmp_path_factory.mktemp("newer")) / "bundle", seed=7))


def settings_of(tiny: Tiny, bundle: Bundle, *also: Bundle, **scaling: Any) -> Settings:
    """Settings of a mock engine with a token every 20 ms."""
    pace = {"step_ms": STEP_MS, "quantum_ms": STEP_MS}
    return parse_settings(
        {
            "bundle": str(bundle.path),
            "also": [str(other.path) for other in also],
            "base_model": str(tiny.model),
            "engine": {"kind": "mock", **pace},
            "scaling": {"num_cpus": 0.1, **scaling},
        }
    )


@pytest.fixture(scope="module")
def running(tiny: Tiny, bundle: Bundle) -> Iterator[LocalServer]:
    with start_local(settings_of(tiny, bundle)) as server:
        yield server


async def stream(client: httpx.AsyncClient, frame: bytes, begun: asyncio.Event | None = None) -> str:
    """Return "whole", or the error code."""
    tokens, done = 0, False
    try:
        async with client.stream("POST", PATH, content=frame, headers=HEADERS) as answer:
            if answer.status_code != 200:
                return str(json.loads(await answer.aread())["error"]["code"])
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return str(event["error"]["code"])
                    tokens += len(event["choices"][0]["token_ids"])
                    if begun is not None:
                        begun.set()
    except httpx.HTTPError as error:
        return type(error).__name__
    return "whole" if done and tokens else "short"


@asynccontextmanager
async def load(server: LocalServer, *frames: bytes) -> AsyncIterator[list[Counter[str]]]:
    """Run one client per frame without retries; return the outcomes of each."""
    found: list[Counter[str]] = [Counter() for _ in frames]
    ending = asyncio.Event()

    async def one(client: httpx.AsyncClient, frame: bytes, codes: Counter[str]) -> None:
        while not ending.is_set():
            codes[await stream(client, frame)] += 1

    async with httpx.AsyncClient(base_url=server.url, timeout=GONE_WITHIN_S) as client, asyncio.TaskGroup() as group:
        for frame, codes in zip(frames, found, strict=True):
            group.create_task(one(client, frame, codes))
        try:
            yield found
        finally:
            ending.set()


def short(bundle: Bundle) -> bytes:
    return make_frame(bundle, "open", max_tokens=10, stream=True, ignore_eos=True)


def long(bundle: Bundle, seconds: float) -> bytes:
    return make_frame(bundle, "open", max_tokens=int(seconds * 1000 / STEP_MS), stream=True, ignore_eos=True)


async def test_a_new_bundle_rolls_out_without_a_dropped_request(
    running: LocalServer, tiny: Tiny, bundle: Bundle, newer: Bundle
) -> None:
    """Bundles old, old and new, new and old, new: each step completes and refuses nothing."""
    async with load(running, short(bundle), short(bundle), short(bundle)) as found:
        await asyncio.to_thread(running.deploy, settings_of(tiny, bundle, newer))
    assert all(codes.keys() == {"whole"} for codes in found), found
    async with load(running, short(bundle), short(bundle), short(newer)) as found:
        await asyncio.to_thread(running.deploy, settings_of(tiny, newer, bundle))
    assert all(codes.keys() == {"whole"} for codes in found), found
    assert httpx.get(f"{running.url}/v1/models").json()["fingerprint"] == newer.fingerprint

    async with load(running, short(bundle), short(newer), short(newer)) as found:
        begun = asyncio.Event()
        async with httpx.AsyncClient(base_url=running.url, timeout=GONE_WITHIN_S) as client:
            under_way = asyncio.create_task(stream(client, long(bundle, 8.0), begun))
            await begun.wait()
            await asyncio.to_thread(running.deploy, settings_of(tiny, newer))
            assert await under_way == "whole"
            assert await stream(client, short(bundle)) == "bundle_outdated"
    assert found[0].keys() <= {"whole", "bundle_outdated"}, found
    assert all(codes.keys() == {"whole"} for codes in found[1:]), found


def test_settings_that_cannot_be_served_change_nothing(
    running: LocalServer, tiny: Tiny, bundle: Bundle, newer: Bundle, tmp_path: Path
) -> None:
    running.deploy(settings_of(tiny, newer, bundle))
    with pytest.raises(BundleError):
        running.deploy(parse_settings({"bundle": str(tmp_path), "base_model": str(tiny.model)}))
    with pytest.raises(LocalServerError, match=r"scaling\.max_replicas 50,"):
        running.deploy(settings_of(tiny, newer, max_replicas=50))
    answer = httpx.post(running.url + PATH, content=make_frame(bundle, max_tokens=2), headers=HEADERS)
    assert answer.status_code == 200


async def test_sigterm_finishes_the_streams_under_way(tiny: Tiny, bundle: Bundle, tmp_path: Path) -> None:
    """Run ``delctl serve`` as an operator: the stream ends whole, then everything is gone."""
    config = tmp_path / "serve.yaml"
    config.write_text(json.dumps(settings_of(tiny, bundle).model_dump(mode="json")))  # JSON is YAML
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "delctl.main", "serve", "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = (await asyncio.to_thread(process.stdout.readline)).strip()
            assert url.startswith("http://127.0.0.1:")
            (supervisor,) = (
                child
                for child in psutil.Process(process.pid).children()
                if "cluster.local.supervisor" in child.cmdline()
            )
            token = supervisor.environ()[processes.MARKER]
            begun = asyncio.Event()
            async with httpx.AsyncClient(base_url=url, timeout=GONE_WITHIN_S) as client:
                under_way = asyncio.create_task(stream(client, long(bundle, 6.0), begun))
                await begun.wait()
                process.send_signal(signal.SIGTERM)
                assert await under_way == "whole"
            assert await asyncio.to_thread(process.wait, GONE_WITHIN_S) == 128 + signal.SIGTERM
            assert list(processes.members(token, supervisor.pid)) == []
        finally:
            process.kill()
