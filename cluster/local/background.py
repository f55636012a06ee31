"""A local cluster that runs in the background: start it, find it, stop it.

There is at most one for each state directory (:mod:`cluster.local.state`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config.env import python_path
from cluster.deploy import serve_config
from cluster.local import processes
from cluster.local.keeper import KeeperOptions
from cluster.local.nodes import IDLE_TIMEOUT_S, LOOPBACK, Nodes
from cluster.local.server import LocalServerError, ProxyChoice, check_applications
from cluster.local.state import ClusterRecord, lock, read_record, remove_record, state_directory
from deployments.settings import ServedApplication, Settings, absolute_paths, as_applications, parse_settings

_POLL_S = 0.1
_ORPHANS_END_WITHIN_S = 15.0
_DRAIN_WITHIN_S = 600.0
_STOP_WITHIN_S = 60.0


@dataclasses.dataclass(frozen=True)
class UpOptions:
    """Options of a cluster in the background.

    Args:
        nodes, max_nodes: Ray nodes, head included; more than ``nodes`` are added with load.
        cpus: CPUs that each node declares; None for what the applications need.
        port: HTTP port; 0 takes a free one.
    """

    nodes: int = 1
    max_nodes: int | None = None
    cpus: int | None = None
    idle_timeout_s: float = IDLE_TIMEOUT_S
    port: int = 8000
    proxy: ProxyChoice = "auto"
    startup_timeout_s: float = 600.0


def running_cluster() -> ClusterRecord | None:
    """Return the cluster that is recorded and alive; None if there is none. Raises StateError."""
    record = read_record()
    return record if record is not None and record.keeper.alive else None


def up(served: Settings | Sequence[ServedApplication], options: UpOptions) -> ClusterRecord:
    """Start a cluster that serves these applications, and return when they run.

    What a cluster that has crashed has left behind is removed first.

    Raises:
        SettingsError, BundleError, BaseModelError: nothing was started.
        LocalServerError: a cluster runs already, or it did not start; nothing is left running.
        StateError: another command starts or stops a cluster.
    """
    with lock():
        found = read_record()
        if found is not None and found.keeper.alive:
            raise LocalServerError(f"a cluster runs already at {found.url}; stop it with: delctl down")
        applications = check_applications(as_applications(served), LOOPBACK)
        if found is not None:
            _clean_up(found)
        return _start(applications, nodes_for(applications, options), options)


def nodes_for(applications: Sequence[ServedApplication], options: UpOptions) -> Nodes:
    """Return the nodes for the options.

    If ``cpus`` is None, the replicas of all applications fit on the largest number of nodes. There
    is room for one more replica of each, on every node of a cluster of fixed size, so that one can
    start before another one stops.
    """
    maximum = max(options.nodes, options.max_nodes or 0)
    if options.cpus is not None:
        return Nodes(options.nodes, maximum, options.cpus, options.idle_timeout_s)
    scalings = [one.settings.scaling for one in applications]
    if maximum > options.nodes:
        cpus = sum((one.max_replicas + 1) * one.num_cpus for one in scalings) / maximum
    else:
        cpus = sum((math.ceil(one.max_replicas / maximum) + 1) * one.num_cpus for one in scalings)
    return Nodes(options.nodes, maximum, max(1, math.ceil(cpus)), options.idle_timeout_s)


def local_config(served: Settings | Sequence[ServedApplication], http_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of applications for a cluster on this machine, in Serve's schema.

    Paths become absolute. Without keys, callers on loopback are admitted, and there are no others.
    """
    local = [dataclasses.replace(one, settings=_local(one.settings)) for one in as_applications(served)]
    return serve_config(local, http_options=http_options, proxy_location="HeadOnly")


def _local(settings: Settings) -> Settings:
    values = absolute_paths(settings)
    if not settings.keys.given and settings.keys.open is None:
        values["keys"] = {"open": True}
    return parse_settings(values)


def _start(applications: Sequence[ServedApplication], nodes: Nodes, options: UpOptions) -> ClusterRecord:
    keeper = KeeperOptions(
        config=local_config(applications, {}),
        nodes=dataclasses.asdict(nodes),
        port=options.port,
        proxy=options.proxy,
        startup_timeout_s=options.startup_timeout_s,
    )
    with (state_directory() / "keeper.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.local.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH"))},
            start_new_session=True,  # it outlives this terminal
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(dataclasses.asdict(keeper)).encode() + b"\n")
        process.stdin.close()
        line = process.stdout.readline()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_WITHIN_S)
        raise
    answer = json.loads(line or b"{}")
    record = read_record()
    if not answer.get("ready") or record is None:
        process.wait(_STOP_WITHIN_S)
        place = state_directory() / "keeper.log"
        reason = answer.get("failed") or f"it ended with status {process.returncode}; its log is {place}"
        raise LocalServerError(reason if "failed" in answer else f"the cluster did not start: {reason}")
    return record


def down(*, drain: bool = True) -> ClusterRecord | None:
    """Stop the recorded cluster and remove what it left; return it, or None if there was none.

    Args:
        drain: finish the requests in flight first, within their shutdown timeout.

    Raises:
        LocalServerError: it did not stop in time.
        StateError: another command starts or stops a cluster, or the record is damaged.
    """
    with lock():
        record = read_record()
        if record is None:
            return None
        if record.keeper.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.keeper.pid, signal.SIGTERM if drain else signal.SIGINT)
            if not _wait_for(lambda: not record.keeper.alive, _DRAIN_WITHIN_S if drain else _STOP_WITHIN_S):
                raise LocalServerError(f"the cluster at {record.url} did not stop in time; try: delctl down --now")
        _clean_up(record)
        return record


def _clean_up(record: ClusterRecord) -> None:
    """Remove what a cluster without a keeper has left: processes, files and the record."""
    # The supervisor notices the keeper's end and stops everything, unless it has died, too.
    _wait_for(lambda: not record.supervisor.alive, _ORPHANS_END_WITHIN_S)
    session, directory = record.supervisor.pid, Path(record.directory)
    is_ours = processes.is_session_of(record.token, session, directory)
    left = processes.end_all(record.token, session if is_ours else None)
    if left:
        raise LocalServerError(f"{left} processes of the cluster at {record.url} could not be ended")
    shutil.rmtree(directory, ignore_errors=True)
    remove_record(record.keeper.pid)


def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
