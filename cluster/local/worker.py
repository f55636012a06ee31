"""A Ray node beside the head of a local cluster, on the same machine; started by the supervisor.

    python -m cluster.local.worker ADDRESS NUM_CPUS OBJECT_STORE_BYTES

All processes of the node descend from this one. ``ray start`` cannot join a cluster on a loopback
address; Ray's own tests make nodes as this module does.
"""

from __future__ import annotations

import os
import sys

import psutil

from cluster.local.nodes import LOOPBACK


def main() -> None:
    """Run until the node or the supervisor ends."""
    address, num_cpus, object_store_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    from cluster.local.ray_node import start_ray_node

    parent = os.getppid()
    start_ray_node(
        head=False,
        gcs_address=address,
        node_ip_address=LOOPBACK,
        num_cpus=num_cpus,
        object_store_memory=object_store_bytes,
        include_log_monitor=False,
    )
    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    while os.getppid() == parent and not psutil.wait_procs(raylets, timeout=1.0)[0]:
        pass


if __name__ == "__main__":
    main()
