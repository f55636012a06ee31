"""REST API of a Ray cluster's dashboard: the part that deployment and status need.

``serve deploy`` and KubeRay use the same interface. Requests carry the cluster's token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from cluster.reasons import reason_in
from del_core.errors import DelError
from del_core.net.addresses import is_loopback

_APPLICATIONS = "/api/serve/applications/"
_TIMEOUT_S = 60.0


class ClusterError(DelError):
    """A Ray cluster did not answer, or refused a request; the message has the reason."""


def token_from_environment() -> str | None:
    """Return the cluster's token as Ray's own tools find it; None if there is none.

    ``RAY_AUTH_TOKEN`` holds it, or ``RAY_AUTH_TOKEN_PATH`` names its file. Raises ClusterError.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH must name a readable file, got {path} ({reason})") from None


class Dashboard:
    """Connection to the dashboard at ``address``, such as ``http://head:8265``."""

    def __init__(self, address: str, token: str | None = None) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClusterError(f"address must be that of a Ray dashboard, http://HOST:PORT, got {address}")
        self.address = address.rstrip("/")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        # A proxy of the environment must not get the token of a cluster on this machine.
        trust_env = not is_loopback(parts.hostname)
        self._client = httpx.Client(base_url=self.address, headers=headers, timeout=_TIMEOUT_S, trust_env=trust_env)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def serve_details(self) -> dict[str, Any]:
        """Return Serve's options, proxies and applications with their replicas."""
        return self._get(_APPLICATIONS)

    def put_applications(self, config: Mapping[str, Any]) -> None:
        """Make ``config``, in Serve's schema, the desired state. Raises ClusterError."""
        self._send("PUT", _APPLICATIONS, config)

    def nodes(self) -> list[dict[str, Any]]:
        """Return what Ray's state API says about each node, dead ones included."""
        found = self._get("/api/v0/nodes?detail=true&limit=10000")
        rows: list[dict[str, Any]] = found["data"]["result"]["result"]
        return rows

    def metrics_addresses(self) -> dict[str, str]:
        """Return host:port of the Prometheus metrics of each living node, by its id."""
        summary = self._get("/nodes?view=summary")["data"]["summary"]
        raylets = [one["raylet"] for one in summary if one["raylet"].get("state") == "ALIVE"]
        return {
            one["nodeId"]: f"{one['nodeManagerAddress']}:{one['metricsExportPort']}"
            for one in raylets
            if "metricsExportPort" in one
        }

    def ray_version(self) -> str:
        """Return the version of Ray on the cluster."""
        return str(self._get("/api/version")["ray_version"])

    def _get(self, path: str) -> dict[str, Any]:
        response = self._send("GET", path)
        try:
            found: dict[str, Any] = response.json()
        except ValueError:
            raise ClusterError(f"{self.address} must be a Ray dashboard, got another answer to {path}") from None
        return found

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ClusterError(f"no answer from the Ray dashboard at {self.address} ({type(error).__name__})") from None
        if response.status_code in (401, 403):
            raise ClusterError(
                f"the Ray dashboard at {self.address} needs the cluster's token, in RAY_AUTH_TOKEN or in the file that "
                "RAY_AUTH_TOKEN_PATH names"
            )
        if response.is_error:
            reason = reason_in(response.text)
            raise ClusterError(f"the Ray dashboard at {self.address} answered {response.status_code}: {reason}")
        return response
