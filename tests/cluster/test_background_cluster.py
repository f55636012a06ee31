"""A cluster of three nodes from start to end, by its commands, while clients use it.

It serves the tiny model on vLLM and the mock engine, grows under load, takes a new config and a new
bundle, loses a node, shrinks and stops. The clients retry and resume as they do by default; no
request fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from client_lib import Client, private
from cluster.deploy import Dashboard, cluster_status
from cluster.local import processes
from cluster.local.state import ClusterRecord
from del_core.bundle import load_bundle
from tests.support.tiny import Tiny, make_other_bundle

ROOT = Path(__file__).resolve().parents[2]
# For the whole of the first test, on two cores; and for any one step.
WITHIN_S = 300.0
STEP_MS = 20.0
TOKENS = 40


class Commands:
    """``delctl`` in processes of its own, with a state directory of the test."""

    def __init__(self, state: Path) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEL_STATE_DIR": str(state)}
        self.state = state

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a command, which must end with ``code``, and return its output.

        ``pytest -rP`` shows how long each took.
        """
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "delctl.main", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=2 * WITHIN_S,
            check=False,
        )
        print(f"{time.monotonic() - began:6.1f} s  delctl {' '.join(arguments)}", flush=True)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr if code else done.stdout

    def status(self) -> dict[str, Any]:
        """Return what ``delctl status --json`` prints, without a process for each look."""
        record = self.record()
        with Dashboard(record.dashboard_url, record.ray_token) as dashboard:
            found: dict[str, Any] = json.loads(json.dumps(cluster_status(dashboard).to_json()))
        return found

    def record(self) -> ClusterRecord:
        return ClusterRecord.from_json(json.loads((self.state / "cluster.json").read_text()))

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Return the first status that meets the condition."""
        began = time.monotonic()
        while not condition(found := self.status()):
            assert time.monotonic() < began + WITHIN_S, (what, found)
            time.sleep(0.5)
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)
        return found


@pytest.fixture
def delctl(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path / "state")
    yield commands
    commands("down", "--now")


@contextlib.contextmanager
def load(url: str, cache: Path, clients: int) -> Iterator[Counter[str]]:
    """Run clients that stream one completion after another; count the outcomes."""
    found: Counter[str] = Counter()
    ending = threading.Event()

    def run() -> None:
        # Devices that have the old bundle refuse the new one until a person accepts it.
        with Client(url, cache_dir=cache, trust=cache / "trust.json") as client:
            while not ending.is_set():
                try:
                    with client.stream(
                        [private("the old house by the river")], variant="open", max_tokens=TOKENS
                    ) as stream:
                        text = "".join(chunk.text for chunk in stream)
                    whole = stream.completion is not None and stream.completion.finish_reason == "length"
                    found["whole" if whole and text else "short"] += 1
                except Exception as error:  # whatever it is, it is a failed request
                    found[repr(error)] += 1

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def ask(url: str, cache: Path) -> str:
    """Get a private completion; return the fingerprint of the bundle that it was made for."""
    with Client(url, cache_dir=cache, trust=cache / "trust.json") as client:
        answer = client.complete([private("the old house by the river")], variant="open", max_tokens=8)
        assert answer.finish_reason in ("length", "stop")
        return client.bundle().fingerprint


def app(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = (application for application in found["applications"] if application["name"] == name)
    return dict(one)


def settled(found: dict[str, Any]) -> bool:
    return all(one["status"] == "RUNNING" for one in found["applications"])


def kill_raylet(record: ClusterRecord, node: str) -> None:
    """Kill the process without which a node of the cluster is dead."""
    for process in processes.members(record.token, record.supervisor.pid):
        if process.name() == "raylet" and any(node in argument for argument in process.cmdline()):
            process.kill()
            return
    raise AssertionError(f"no raylet of node {node}")


@pytest.mark.slow
@pytest.mark.timeout(3 * WITHIN_S)
def test_a_cluster_of_three_nodes_from_start_to_end(delctl: Commands, tiny: Tiny, tmp_path: Path) -> None:
    newer = load_bundle(make_other_bundle(tiny, tmp_path / "newer", seed=7))
    config = tmp_path / "serve.yaml"

    def write(bundle: Path, *also: Path, **streaming: Any) -> None:
        scaling = {"downscale_delay_s": 2, "target_ongoing_requests": 2, "num_cpus": 1}
        mock = {
            "bundle": str(bundle),
            "base_model": str(tiny.model),
            "extra_bundles": [str(path) for path in also],
            "engine": {"kind": "mock", "step_ms": STEP_MS, "quantum_ms": STEP_MS},
            "scaling": {**scaling, "min_replicas": 2, "max_replicas": 3},
            "streaming": streaming,
        }
        real = {"bundle": str(tiny.bundle), "base_model": str(tiny.model), "engine": {"dtype": "float32"}}
        shared = {"import_path": "deployments.app:build"}
        applications = [
            {"name": "mock", "route_prefix": "/mock", "args": mock, **shared},
            {"name": "tiny", "route_prefix": "/tiny", "args": real, **shared},
        ]
        config.write_text(yaml.safe_dump({"applications": applications}))

    began = time.monotonic()
    write(tiny.bundle)
    printed = delctl(
        "up", "--nodes", "3", "--max-nodes", "4", "--cpus", "1", "--idle-timeout", "10", "--port", "0",
        "--config", str(config),
    )  # fmt: skip
    record = delctl.record()
    assert printed.splitlines()[0] == record.url
    assert f"runs already at {record.url}" in delctl("up", code=1)
    found = delctl.status()
    assert len(found["nodes"]) >= 3, "the command returns when the least number of nodes is there"
    assert [node["head"] for node in found["nodes"]].count(True) == 1
    assert {node["cpus"] for node in found["nodes"]} == {1.0}
    assert (app(found, "mock")["running"], app(found, "tiny")["running"]) == (2, 1)
    assert app(found, "tiny")["bundle"] == str(tiny.bundle)
    printed = json.loads(delctl("status", "--json"))
    assert printed["url"] == record.url
    assert [one["name"] for one in printed["applications"]] == ["mock", "tiny"]
    assert printed["nodes"] == found["nodes"]

    # Private completions, of a real engine.
    assert ask(f"{record.url}/tiny", tmp_path / "tiny") == load_bundle(tiny.bundle).fingerprint

    # Load adds a replica, which needs a fourth node. A replica that loads is no capacity.
    with load(f"{record.url}/mock", tmp_path / "old", 10) as outcomes:
        found = delctl.until(lambda found: app(found, "mock")["wanted"] == 3, "a third replica is wanted")
        found = delctl.until(lambda found: app(found, "mock")["running"] == 3, "the third replica")
        assert len(found["nodes"]) == 4
        found = delctl.until(lambda found: app(found, "mock")["tokens_per_s"] > 0, "a rate of tokens")
        assert sum(one["requests"] or 0 for one in app(found, "mock")["replicas"]) > 0
    assert outcomes.keys() == {"whole"}, outcomes

    # A new config and a new bundle, and the loss of a node, while two clients go on.
    with load(f"{record.url}/mock", tmp_path / "old", 2) as outcomes:
        # A config: replicas know the next bundle, too, so that it can replace the present one.
        write(tiny.bundle, newer.path, max_tokens=8)
        effect = "(replicas are replaced one after another)"
        expected = (
            f'mock: args.extra_bundles: [] -> ["{newer.path}"] {effect}\n'
            f"mock: args.streaming.max_tokens: 16 -> 8 {effect}\n"
        )
        assert delctl("deploy", str(config), "--check") == expected
        assert delctl("deploy", str(config)) == expected + "deployed\n"
        assert delctl("deploy", str(config), "--check") == "nothing changes\n"

        # A bundle: these clients keep the one that they have.
        write(newer.path, tiny.bundle, max_tokens=8)
        delctl("deploy", str(config))

        before = delctl.until(settled, "the applications run")
        workers = {node["id"]: node for node in before["nodes"] if not node["head"]}
        lost = next(one["node"] for one in app(before, "mock")["replicas"] if one["node"] in workers)
        kill_raylet(record, lost)
        delctl.until(
            lambda found: (
                lost not in {node["id"] for node in found["nodes"]}
                and len(found["nodes"]) >= 3
                and settled(found)
                and app(found, "mock")["running"] >= 2
            ),
            "another node and another replica",
        )
    assert outcomes.keys() == {"whole"}, outcomes
    # New clients get the new bundle, and the real engine is as before.
    assert ask(f"{record.url}/mock", tmp_path / "new") == newer.fingerprint
    assert ask(f"{record.url}/tiny", tmp_path / "tiny") == load_bundle(tiny.bundle).fingerprint
    # Idleness removes the node that the load had added.
    delctl.until(lambda found: len(found["nodes"]) == 3, "three nodes again")
    assert "serving bundle" in delctl("logs", "--part", "replicas", "--lines", "100")

    directory, session = Path(record.directory), record.supervisor.pid
    assert delctl("down") == f"the cluster at {record.url} is stopped\n"
    assert list(processes.members(record.token, session)) == []
    assert not directory.exists()
    assert not record.keeper.alive
    assert delctl("down") == "no cluster was running\n"
    took = time.monotonic() - began
    print(f"{took:6.1f} s  from the first command to the last")
    assert took < WITHIN_S


@pytest.mark.slow
@pytest.mark.timeout(3 * WITHIN_S)
def test_after_a_crash_of_keeper_and_supervisor_down_removes_the_rest(delctl: Commands, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("engine: {kind: mock}\n")
    delctl("up", "--port", "0", "--proxy", "serve", "--config", str(config))
    record = delctl.record()
    members = list(processes.members(record.token, record.supervisor.pid))
    os.kill(record.keeper.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        os.kill(record.supervisor.pid, signal.SIGKILL)
    assert "no cluster is running" in delctl("status", code=1)
    assert delctl("down") == f"the cluster at {record.url} is stopped\n"
    assert not [one for one in members if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not Path(record.directory).exists()


@pytest.mark.slow
@pytest.mark.timeout(3 * WITHIN_S)
def test_an_application_that_does_not_start_is_reported_and_leaves_nothing(delctl: Commands, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("engine: {max_model_len: 1000000}\n")
    printed = delctl("up", "--port", "0", "--proxy", "serve", "--config", str(config), code=1)
    assert "application del-serve was not deployed" in printed
    assert "max_model_len" in printed
    assert not (delctl.state / "cluster.json").exists()
