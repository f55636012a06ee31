"""Ray's processes of one node, started so that a busy machine does not stop them.

A Ray node ends itself unless its agent has chosen its ports, and written them to files, within 15 s
each. Here the ports are chosen before. Ray 2.60 passes all but one on; that one is written first.
"""

from __future__ import annotations

from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._raylet import (  # type: ignore[attr-defined]  # a compiled module
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    persist_port,
)

from cluster.local.ports import free_ports

_AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


class _PatientNode(Node):
    def start_raylet(self, *arguments: Any, **keywords: Any) -> None:
        port = self._ray_params.dashboard_agent_listen_port
        persist_port(self._session_dir, self._node_id, DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        super().start_raylet(*arguments, **keywords)


def start_ray_node(*, head: bool, **params: Any) -> None:
    """Start the processes of a node with these ``RayParams``.

    The kernel ends those of a head with the calling thread, and this process those of a worker.
    """
    ports = dict(zip(_AGENT_PORTS, free_ports(len(_AGENT_PORTS)), strict=True))
    _PatientNode(RayParams(**ports, **params), head=head, shutdown_at_exit=not head, spawn_reaper=head)
