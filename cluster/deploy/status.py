"""Status of a cluster: its nodes, the replicas on them, their load, and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.deploy.config import IMPORT_PATH
from cluster.deploy.dashboard import Dashboard
from cluster.deploy.load import ReplicaLoad, replica_loads
from cluster.deploy.rollout import failure_of
from deployments.settings import DEMO


@dataclass(frozen=True)
class NodeStatus:
    """A living node of the cluster."""

    id: str
    address: str
    head: bool
    cpus: float
    gpus: float
    replicas: int


@dataclass(frozen=True)
class ReplicaStatus:
    """A replica.

    Args:
        state: RUNNING, or Ray Serve's other states. Only a running replica serves requests.
        load: what the replica has reported.
    """

    id: str
    state: str
    node: str | None
    load: ReplicaLoad = field(default_factory=ReplicaLoad)


@dataclass(frozen=True)
class AppStatus:
    """An application.

    Args:
        wanted: replicas that the autoscaler wants.
        message: why it does not run; empty if it does.
    """

    name: str
    route_prefix: str | None
    status: str
    message: str
    wanted: int
    bundle: str | None
    base_model: str | None
    replicas: tuple[ReplicaStatus, ...]

    @property
    def running(self) -> int:
        """Replicas that serve requests; those that still load are no capacity."""
        return sum(one.state == "RUNNING" for one in self.replicas)

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second by all replicas."""
        return sum(one.load.tokens_per_s or 0.0 for one in self.replicas)


@dataclass(frozen=True)
class ClusterStatus:
    """What a cluster consists of and does."""

    ray_version: str
    nodes: tuple[NodeStatus, ...]
    applications: tuple[AppStatus, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and the running replicas and tokens of each application."""
        found = asdict(self)
        for values, one in zip(found["applications"], self.applications, strict=True):
            values |= {"running": one.running, "tokens_per_s": one.tokens_per_s}
            values["replicas"] = [{**replica, **replica.pop("load")} for replica in values["replicas"]]
        return found


def cluster_status(dashboard: Dashboard) -> ClusterStatus:
    """Ask a cluster for its status. Raises ClusterError."""
    details = dashboard.serve_details()
    alive = [node for node in dashboard.nodes() if node["state"] == "ALIVE"]
    loads = replica_loads(dashboard.metrics_addresses().values())
    applications = tuple(_application(name, one, loads) for name, one in sorted(details["applications"].items()))
    homes = [replica.node for one in applications for replica in one.replicas if replica.state == "RUNNING"]
    nodes = tuple(
        NodeStatus(
            id=node["node_id"],
            address=node["node_ip"],
            head=bool(node["is_head_node"]),
            cpus=node["resources_total"].get("CPU", 0.0),
            gpus=node["resources_total"].get("GPU", 0.0),
            replicas=homes.count(node["node_id"]),
        )
        for node in sorted(alive, key=lambda node: (not node["is_head_node"], node["start_time_ms"]))
    )
    return ClusterStatus(dashboard.ray_version(), nodes, applications)


def _application(name: str, details: Mapping[str, Any], loads: Mapping[str, ReplicaLoad]) -> AppStatus:
    config = details.get("deployed_app_config") or {}
    args, is_ours = config.get("args") or {}, config.get("import_path") == IMPORT_PATH
    shown = args if is_ours and "config" not in args else {"bundle": None}
    replicas = [replica for one in details["deployments"].values() for replica in one["replicas"]]
    healthy = details["status"] == "RUNNING"
    return AppStatus(
        name=name,
        route_prefix=details.get("route_prefix"),
        status=details["status"],
        message="" if healthy else failure_of(details),
        wanted=sum(one["target_num_replicas"] for one in details["deployments"].values()),
        bundle=shown.get("bundle", DEMO),
        base_model=shown.get("base_model"),
        replicas=tuple(
            ReplicaStatus(
                id=one["replica_id"],
                state=one["state"],
                node=one.get("node_id"),
                load=loads.get(one["replica_id"], ReplicaLoad()),
            )
            for one in replicas
        ),
    )
