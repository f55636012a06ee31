"""The Ray nodes of a local cluster: one head, and workers beside it, all on loopback.

Without a range, the supervisor starts the workers and restarts one that dies. With a range
(``Nodes.maximum`` above ``Nodes.minimum``), Ray's autoscaler v2 does both, and adds and removes
workers with the demand, as KubeRay does with pods. The autoscaler runs in Ray's monitor process and
starts workers through :class:`cluster.local.provider.LocalProvider`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.local import processes

LOOPBACK = "127.0.0.1"
# Ray's minimum: no large objects are stored.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
HEAD_TYPE, WORKER_TYPE = "ray.head.default", "worker"  # the provider knows the head by this name
IDLE_TIMEOUT_S = 60.0
# The autoscaler identifies nodes by the id that their provider gave them.
_ID, _TYPE = "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME"
_HEAD_ID = "head"
_PROVIDER = "cluster.local.provider.LocalProvider"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a local cluster, head included.

    Args:
        minimum: nodes at all times.
        maximum: nodes with load; equal to ``minimum`` without node autoscaling.
        cpus: CPUs that each node declares to Ray, for scheduling only.
        idle_timeout_s: time after which a node without replicas is removed.
    """

    minimum: int = 1
    maximum: int = 1
    cpus: int = 1
    idle_timeout_s: float = IDLE_TIMEOUT_S

    @property
    def autoscaled(self) -> bool:
        """Whether Ray's autoscaler adds and removes nodes."""
        return self.maximum > self.minimum

    def autoscaler_config(self, address: str) -> dict[str, Any]:
        """Return the configuration of Ray's autoscaler for the cluster at ``address``."""
        resources = {"CPU": self.cpus}
        return {
            "cluster_name": "local",
            "max_workers": self.maximum - 1,
            "idle_timeout_minutes": self.idle_timeout_s / 60,
            "provider": {
                "type": "external",
                "module": _PROVIDER,
                "gcs_address": address,
                "head_node_id": _HEAD_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            # Ray asks for these, and has nothing to set up here.
            **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
            "initialization_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": resources, "node_config": {}, "max_workers": 0},
                WORKER_TYPE: {
                    "resources": resources,
                    "node_config": {},
                    "min_workers": self.minimum - 1,
                    "max_workers": self.maximum - 1,
                },
            },
        }


def start_head(nodes: Nodes, *, port: int, dashboard_port: int | None, directory: Path) -> str:
    """Start the head node's processes and return the cluster's address, on ``port``.

    The kernel ends the processes with the calling thread.
    """
    address, config = f"{LOOPBACK}:{port}", None
    if nodes.autoscaled:
        # Ray reads these in this process and in those that it starts.
        os.environ.update(RAY_enable_autoscaler_v2="1", RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
        config = directory / "nodes.json"  # YAML, too
        config.write_text(json.dumps(nodes.autoscaler_config(address)), encoding="utf-8")
    from cluster.local.ray_node import start_ray_node

    start_ray_node(
        head=True,
        node_ip_address=LOOPBACK,
        gcs_server_port=port,
        num_cpus=nodes.cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=dashboard_port is not None,
        dashboard_host=LOOPBACK,
        dashboard_port=dashboard_port,
        temp_dir=str(directory / "r"),
        # The log monitor passes the workers' output on to drivers, and none listens here.
        include_log_monitor=False,
        no_monitor=not nodes.autoscaled,
        autoscaling_config=None if config is None else str(config),
        env_vars={_ID: _HEAD_ID, _TYPE: HEAD_TYPE},
    )
    return address


def start_worker(
    address: str, cpus: int, identity: str | None = None, node_type: str = WORKER_TYPE
) -> subprocess.Popen[bytes]:
    """Start a node beside the head; :mod:`cluster.local.worker` is its root process."""
    command = [sys.executable, "-m", processes.WORKER_NODE, address, str(cpus), str(OBJECT_STORE_BYTES)]
    environment = {**os.environ, **({} if identity is None else {_ID: identity, _TYPE: node_type})}
    # Standard output is reserved for reports, or closed.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)


class FixedNodes:
    """Workers whose number is fixed. A node that dies is restarted, as on a managed cluster."""

    def __init__(self, address: str, count: int, cpus: int) -> None:
        self._address, self._cpus = address, cpus
        self._nodes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.start_missing()

    def start_missing(self) -> None:
        """Start the nodes that are not there."""
        for index, node in enumerate(self._nodes):
            if node is None or node.poll() is not None:
                self._nodes[index] = start_worker(self._address, self._cpus)
