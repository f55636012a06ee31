"""Rollout of a config: the cluster replaces what has changed, while requests are served."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cluster.deploy.dashboard import ClusterError, Dashboard
from cluster.reasons import reason_in

_POLL_S = 0.5


def deploy(dashboard: Dashboard, config: Mapping[str, Any], *, timeout_s: float = 600.0) -> None:
    """Deploy a config, in Serve's schema, and wait until every application runs as it says.

    A new replica answers before an old one stops, which finishes its requests first. If the new
    settings do not start, the old replicas continue. Applications that were deployed in this way
    and are not in the config stop, as with ``serve deploy``.

    Raises:
        ClusterError: the cluster refused the config, an application did not start, or timeout.
    """
    deadline = time.monotonic() + timeout_s
    dashboard.put_applications(config)
    names = [one["name"] for one in config["applications"]]
    while True:
        found = dashboard.serve_details()["applications"]
        for name in names:
            if name in found and found[name]["status"] == "DEPLOY_FAILED":
                raise ClusterError(f"application {name} was not deployed: {failure_of(found[name])}")
        # Applications that a program has started, not a config, stay.
        leaving = [name for name, one in found.items() if name not in names and one["source"] == "declarative"]
        if not leaving and all(name in found and found[name]["status"] == "RUNNING" for name in names):
            return
        if time.monotonic() > deadline:
            states = ", ".join(f"{name} {one['status']}" for name, one in found.items()) or "no application"
            raise ClusterError(f"the applications did not run within {timeout_s:.0f} s: {states}")
        time.sleep(_POLL_S)


def failure_of(application: Mapping[str, Any]) -> str:
    """Return why an application failed, from its deployments if they say so."""
    messages = [one["message"] for one in application["deployments"].values() if one.get("message")]
    told = messages or [application.get("message") or application["status"]]
    return "\n".join(map(reason_in, told))
