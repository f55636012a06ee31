"""Environment variables of Ray, Serve and HAProxy, for the local cluster and for operators.

Ray and Serve read them when they are imported, so a Serve config file cannot hold them.
docs/guides/serving.md lists the ones for clusters. Replicas set the variables of vLLM themselves
(``deployments.engines.vllm.engine.engine_environment``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deployments.api.ingress import CALLBACK


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Args:
        local: value for a local cluster; None if unset there, or if each local cluster has its own.
        cluster: value for every node of a cluster; None for Ray's default.
        haproxy: only used with HAProxy.
    """

    name: str
    reason: str
    local: str | None = None
    cluster: str | None = None
    haproxy: bool = False


_BUSY = "a start on a busy machine takes longer than Ray's default allows"
_PUSH = "autoscaling reacts within seconds"
_RETRIES = "after a change of replicas, an old HAProxy process still has the former list of replicas"

VARIABLES = (
    Variable("RAY_SERVE_ENABLE_HA_PROXY", "HAProxy connects clients directly to replicas", "1", "1", haproxy=True),
    Variable(
        "RAY_SERVE_HAPROXY_RETRIES",
        f"{_RETRIES}: at least as many attempts as there are replicas, so that one of them succeeds",
        "50",
        "50",
        haproxy=True,
    ),
    Variable(
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT",
        f"{_RETRIES}: the first refused connection removes a replica from the list",
        "1",
        "1",
        haproxy=True,
    ),
    Variable(
        "RAY_SERVE_HAPROXY_MAXCONN",
        "by default a proxy holds 4,096 connections of clients, idle ones included, and further clients wait",
        cluster="50000",
        haproxy=True,
    ),
    Variable(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "errors of Serve itself become error objects with a code",
        CALLBACK,
        CALLBACK,
    ),
    Variable("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "no thread between application and socket", "0", "0"),
    Variable("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "no thread between application and socket", "0"),
    Variable("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", _PUSH, "0.5", "0.5"),
    Variable("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", _PUSH, "0.5", "0.5"),
    Variable("RAY_worker_niceness", "replicas and engines get normal priority; Ray's default is 15", "0", "0"),
    Variable("RAY_AUTH_MODE", "Ray's control ports listen on every interface and require a token", "token", "token"),
    Variable("RAY_AUTH_TOKEN", "secret of one local cluster"),
    Variable("RAY_AUTH_TOKEN_PATH", "file with the cluster's secret", cluster="..."),
    Variable("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "the node's address is loopback, as on macOS and Windows", "0"),
    Variable("RAY_USAGE_STATS_ENABLED", "no usage reports", "0", "0"),
    Variable("RAY_metrics_report_interval_ms", "interval at which processes export metrics", "5000"),
    Variable("RAY_SERVE_LOG_TO_STDERR", "replicas log to files only", "0"),
    Variable("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "Serve's default of 0.1 s costs 3 % of a core", "0.25"),
    Variable("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "a replica without requests stops sooner", "1"),
    Variable("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", _BUSY, "60"),
    Variable("RAY_DASHBOARD_STARTUP_TIMEOUT_S", _BUSY, "300"),
    Variable("RAY_agent_register_timeout_ms", _BUSY, "100000"),
    Variable("RAY_worker_register_timeout_seconds", _BUSY, "300"),
    Variable("RAY_prestart_worker_first_driver", "no process is started that nothing uses", "0"),
    Variable("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "a dead proxy is replaced after 2 s instead of 30 s", "0.5"),
)


def local_environment(*, haproxy: bool) -> dict[str, str]:
    """Return the variables with a local value that belong to HAProxy, or the others."""
    return {one.name: one.local for one in VARIABLES if one.local is not None and one.haproxy == haproxy}


def python_path(before: str | None) -> str:
    """Return ``PYTHONPATH`` with the folder of these packages first."""
    return os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [before])])


def cluster_environment() -> dict[str, str]:
    """Return the variables for every node of a cluster."""
    return {one.name: one.cluster for one in VARIABLES if one.cluster is not None}
