"""A Ray cluster with the application on this machine."""

from cluster.local.ports import free_port
from cluster.local.server import (
    LocalServer,
    LocalServerError,
    Terminated,
    local_server,
    start_local,
    terminated_as_exit,
)

__all__ = [
    "LocalServer",
    "LocalServerError",
    "Terminated",
    "free_port",
    "local_server",
    "start_local",
    "terminated_as_exit",
]
