"""Deployment to a Ray cluster through its dashboard's REST API, and the cluster's status."""

from cluster.deploy.config import Change, changes, read_config, serve_config
from cluster.deploy.dashboard import ClusterError, Dashboard, token_from_environment
from cluster.deploy.load import ReplicaLoad, replica_loads
from cluster.deploy.rollout import deploy
from cluster.deploy.status import ClusterStatus, cluster_status

__all__ = [
    "Change",
    "ClusterError",
    "ClusterStatus",
    "Dashboard",
    "ReplicaLoad",
    "changes",
    "cluster_status",
    "deploy",
    "read_config",
    "replica_loads",
    "serve_config",
    "token_from_environment",
]
