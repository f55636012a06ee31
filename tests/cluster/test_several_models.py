"""Base models side by side in one cluster, each under its own path and with its own bundle, behind
one HAProxy.

Two have real engines. A third one, a stand-in, has no replica while nobody asks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from client_lib import BundleOutdated, Client, ProtocolError, private, public
from cluster.local import LocalServer, start_local
from del_core.bundle import Bundle, load_bundle, unpack_client
from deployments.api.ingress import HOLD
from deployments.auth.keys import hash_key
from deployments.settings import load_config
from tests.cluster.test_stack import complete, expected_tokens, stream
from tests.support.serving_frames import HEADERS, PATH, make_frame, make_request
from tests.support.tiny import Tiny, make_tiny

NAMES = ("small", "large")
QUOTA = 3
WITHIN_S = 60.0
HOLD_S = 1.0  # less than any replica takes to start
# A replica that comes while the caller is away for the 5 s of Retry-After has to be there when it
# comes back.
SLEEPY = {"engine": {"kind": "mock"}, "scaling": {"min_replicas": 0, "downscale_delay_s": 10, "num_cpus": 0.1}}
KEY = "del-" + "k" * 43
LIMITED = ("del-" + "l" * 43, "del-" + "m" * 43)  # two, since a minute may end while one of them is spent
AUTHORIZED = {**HEADERS, "authorization": f"Bearer {KEY}"}


@dataclass(frozen=True)
class Model:
    """One of the two models: files, bundle, and the same model in transformers."""

    tiny: Tiny
    bundle: Bundle
    reference: Any


@pytest.fixture(scope="module")
def models(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    other = make_tiny(Path(tmp_path_factory.mktemp("large")), seed=77)
    return {
        name: Model(one, load_bundle(one.bundle), LlamaForCausalLM.from_pretrained(one.model, dtype=torch.float32))
        for name, one in zip(NAMES, (tiny, other), strict=True)
    }


@pytest.fixture(scope="module")
def config(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Serve config file with both models, one by a settings file and one inline."""
    directory = Path(tmp_path_factory.mktemp("config"))
    settings = {
        name: {
            "bundle": str(one.tiny.bundle),
            "base_model": str(one.tiny.model),
            "engine": {"kv_cache_memory_bytes": 64 * 1024 * 1024},
            "keys": {
                "names": {
                    "unlimited": {"hashes": [hash_key(KEY)]},
                    **{
                        f"limited-{turn}": {"hashes": [hash_key(key)], "requests_per_minute": QUOTA}
                        for turn, key in enumerate(LIMITED)
                    },
                }
            },
        }
        for name, one in models.items()
    }
    (directory / "small.yaml").write_text(yaml.safe_dump(settings["small"]))
    entries = [
        {"name": name, "route_prefix": f"/{name}", "import_path": "deployments.app:build", "args": args}
        for name, args in (("small", {"config": "small.yaml"}), ("large", settings["large"]))
    ]
    entries.append({"name": "asleep", "route_prefix": "/asleep", "args": SLEEPY})
    file = directory / "models.yaml"
    http_options = {"host": "0.0.0.0", "port": 8000}
    file.write_text(yaml.safe_dump({"http_options": http_options, "applications": entries}))
    return file


@pytest.fixture(scope="module")
def both(config: Path) -> Iterator[LocalServer]:
    served = load_config(config)
    assert isinstance(served, tuple)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOLD, str(HOLD_S))
        with start_local(served) as server:
            yield server


def cached(path: Path, url: str, **options: Any) -> Client:
    return Client(url, api_key=KEY, cache_dir=path / "cache", max_retries=0, **options)


@pytest.mark.parametrize("name", NAMES)
def test_each_answers_with_its_own_model(both: LocalServer, models: dict[str, Model], name: str) -> None:
    """Greedy tokens of both equal those of their model in transformers, whole and streamed."""
    one = models[name]
    request = make_request(one.bundle, "open", max_tokens=12)
    expected = expected_tokens(one.bundle, one.reference, request)
    streamed = make_request(one.bundle, "open", max_tokens=12, stream=True)
    with httpx.Client(base_url=f"{both.url}/{name}", timeout=60, headers=AUTHORIZED) as client:
        assert complete(client, one.bundle, request)["token_ids"] == expected
        chunks = stream(client, one.bundle, streamed)
    assert [token for chunk in chunks for token in chunk["token_ids"]] == expected


def test_the_models_are_not_the_same(models: dict[str, Model]) -> None:
    """The comparison above needs models that generate different tokens."""
    one, other = models.values()
    assert one.bundle.fingerprint != other.bundle.fingerprint
    requests = [make_request(model.bundle, "open", max_tokens=12) for model in (one, other)]
    answers = [expected_tokens(m.bundle, m.reference, r) for m, r in zip((one, other), requests, strict=True)]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_client_library_needs_the_prefix_alone(
    both: LocalServer, models: dict[str, Model], name: str, tmp_path: Path
) -> None:
    """One cache serves both models: each has its own bundle, and conversations work."""
    with cached(tmp_path, f"{both.url}/{name}/") as client:
        assert client.bundle().fingerprint == models[name].bundle.fingerprint
        completion = client.complete([private("the old house")], variant="open", max_tokens=5, ignore_eos=True)
        assert len(completion.token_ids) == 5
        assert len(list(client.stream([public("the sea")], variant="clear", max_tokens=3, ignore_eos=True))) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_listings_and_bundles_are_each_ones_own(
    both: LocalServer, models: dict[str, Model], name: str, tmp_path: Path
) -> None:
    bundle = models[name].bundle
    with httpx.Client(base_url=f"{both.url}/{name}", timeout=60, headers=AUTHORIZED) as client:
        listed = client.get("/v1/models").json()
        assert listed["fingerprint"] == bundle.fingerprint
        assert {one["id"] for one in listed["data"]} == {*bundle.variants, "clear"}
        archive = client.get("/v1/bundle")
        assert archive.headers["etag"] == f'"{bundle.fingerprint}"'
        assert unpack_client(archive.content, tmp_path / "client").fingerprint == bundle.fingerprint
        assert client.get("/readyz").json()["status"] == "ready"
        unknown = client.get("/nowhere")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")


def test_the_other_ones_bundle_is_outdated(both: LocalServer, models: dict[str, Model], tmp_path: Path) -> None:
    """On the wire, and for a client that accepts one bundle only."""
    small = models["small"].bundle
    answer = httpx.post(f"{both.url}/large{PATH}", content=make_frame(small, "open"), headers=AUTHORIZED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "bundle_outdated")
    with (
        cached(tmp_path, f"{both.url}/large", bundle=small.path) as client,
        pytest.raises(BundleOutdated) as caught,
    ):
        client.complete([private("the old house")], variant="open", max_tokens=2)
    assert caught.value.code == "bundle_outdated"


def test_a_quota_is_counted_for_each_by_itself(both: LocalServer, models: dict[str, Model]) -> None:
    """Limits and their use belong to one application.

    A busy machine may answer a request 503 after the short hold of this cluster; whether it was
    counted is not known.
    """
    for key in LIMITED:
        headers = {**HEADERS, "authorization": f"Bearer {key}"}
        minute = time.time() // 60
        statuses: dict[str, list[int]] = {name: [] for name in NAMES}
        for name in NAMES:
            frame = make_frame(models[name].bundle, "clear", max_tokens=1)
            while 429 not in statuses[name] and len(statuses[name]) < 4 * QUOTA:
                answer = httpx.post(f"{both.url}/{name}{PATH}", content=frame, headers=headers, timeout=60)
                statuses[name].append(answer.status_code)
        if time.time() // 60 == minute:
            break
    for name in NAMES:
        assert statuses[name][-1] == 429
        assert set(statuses[name][:-1]) <= {200, 503}
        assert QUOTA - statuses[name].count(503) <= statuses[name].count(200) <= QUOTA


@pytest.mark.parametrize("path", ["", "/", "/v1/models", "/medium/v1/models", "/smaller/v1/models", "/small..", PATH])
def test_a_path_of_no_model_is_not_found(both: LocalServer, path: str) -> None:
    """A retry cannot help: 404, not the 503 of a starting cluster."""
    answer = httpx.get(both.url + path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("not_found", "invalid_request_error", None)
    assert "prefix" in error["message"]
    assert "retry-after" not in answer.headers


def test_the_client_library_says_so_at_once(both: LocalServer, tmp_path: Path) -> None:
    with cached(tmp_path, f"{both.url}/medium") as client, pytest.raises(ProtocolError, match="prefix"):
        client.complete([private("the old house")], variant="open", max_tokens=2)


def replica_ids(server: LocalServer) -> dict[int, str]:
    """Return the replicas' processes with the application of each."""
    found = {}
    for process in server.processes():
        with suppress(psutil.Error):  # it ends just now
            if match := re.match(r"ray::ServeReplica:([^:]+):", " ".join(process.cmdline())):
                found[process.pid] = match[1]
    return found


def replicas(server: LocalServer, name: str) -> int:
    return list(replica_ids(server).values()).count(name)


def wait_for(server: LocalServer, name: str, count: int) -> None:
    deadline = time.monotonic() + WITHIN_S
    while replicas(server, name) != count:
        assert time.monotonic() < deadline, (name, replicas(server, name))
        time.sleep(0.1)


def test_one_that_nobody_asks_sleeps_and_is_woken_by_a_request(both: LocalServer, tmp_path: Path) -> None:
    """Requests wait a while for the replica that they have brought, and are then told to come
    again, which the client does by itself with its default settings. The other applications stay as
    they are."""
    wait_for(both, "asleep", 0)
    assert [replicas(both, name) for name in NAMES] == [1, 1]
    answer = httpx.get(f"{both.url}/asleep/v1/models", timeout=WITHIN_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.elapsed.total_seconds() >= HOLD_S
    with Client(f"{both.url}/asleep", cache_dir=tmp_path / "cache") as client:
        chunks = list(client.stream([public("the sea")], variant="clear", max_tokens=5, ignore_eos=True))
        assert sum(len(chunk.token_ids) for chunk in chunks) == 5
        assert replicas(both, "asleep") == 1
        # Again, by several at once.
        wait_for(both, "asleep", 0)
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(client.complete, [public("the sea")], variant="clear", max_tokens=5) for _ in range(6)]
            assert [len(one.result(WITHIN_S).token_ids) for one in asked] == [5] * 6


def test_one_is_taken_away_while_the_others_go_on(both: LocalServer) -> None:
    """Unchanged applications keep their replicas; the path of a deleted one is unknown."""
    before = replica_ids(both)
    others = [one for one in both.applications if one.name != "asleep"]
    both.deploy(others)
    deadline = time.monotonic() + WITHIN_S
    while (status := httpx.get(f"{both.url}/asleep/v1/models", timeout=WITHIN_S).status_code) != 404:
        assert status in (200, 503)
        assert time.monotonic() < deadline
        for name in NAMES:
            assert httpx.get(f"{both.url}/{name}/readyz", timeout=WITHIN_S).status_code == 200
    assert {pid: name for pid, name in replica_ids(both).items() if name in NAMES} == {
        pid: name for pid, name in before.items() if name in NAMES
    }


def test_the_end_finishes_all_of_them(both: LocalServer) -> None:
    """Runs last: without applications, a client is told to retry."""
    both.drain()
    for name in NAMES:
        wait_for(both, name, 0)  # Serve forgets a replica when its requests have ended, before its process has
    for name in NAMES:
        # HAProxy is told of one application after the other: for a moment it may know the other one
        # alone.
        deadline = time.monotonic() + WITHIN_S
        while (answer := httpx.get(f"{both.url}/{name}/v1/models", timeout=WITHIN_S)).status_code == 404:
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
