"""The node provider with which Ray's autoscaler starts the workers of a local cluster.

Ray's provider of several nodes on one machine keeps the list of nodes. Here, each node is a process
of its own (:mod:`cluster.local.worker`) instead of a part of the autoscaler's, so a local cluster
has one way to start, find and end nodes. A node whose process has ended is no longer listed; the
autoscaler then replaces it.
"""

from __future__ import annotations

import subprocess
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from cluster.local.nodes import start_worker

_STOP_TIMEOUT_S = 10.0


class LocalProvider(FakeMultiNodeProvider):
    """Nodes of a local cluster, as :meth:`cluster.local.nodes.Nodes.autoscaler_config` asks."""

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the ids of the nodes with these tags whose process is alive."""
        with self.lock:
            ended = [name for name, node in self._nodes.items() if "node" in node and node["node"].poll() is not None]
            for name in ended:
                del self._nodes[name]
            found: list[str] = super().non_terminated_nodes(tag_filters)
        return found

    def _create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        with self.lock:
            self._next_node_id += 1
            name = f"worker-{self._next_node_id}"
            node = start_worker(self._gcs_address, int(resources["CPU"]), name, tags[TAG_RAY_USER_NODE_TYPE])
            self._nodes[name] = {"tags": dict(tags), "node": node}

    def _terminate_node(self, node: dict[str, Any]) -> None:
        process: subprocess.Popen[bytes] = node["node"]
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
