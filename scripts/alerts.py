"""The Prometheus alerts, which `make manifests` writes as YAML.

Those of the server use metrics of :data:`deployments.telemetry.metrics.METRICS` and of Ray Serve,
for every application by itself; docs/guides/operations.md says what to do at each. Those of the
client-side proxy use its counters (:mod:`client_lib.proxy.metrics`), for every job of Prometheus by
itself; docs/guides/proxy.md has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from client_lib.errors import (
    BudgetExceededError,
    BundleOutdatedError,
    BundleRejectedError,
    DELClientError,
    LedgerUnavailableError,
    PolicyViolationError,
)
from client_lib.prompts.spans import CLEAR
from client_lib.proxy.errors import api_error
from del_core.bundle.manifest import RESERVED_VARIANT
from del_core.errors import (
    BUNDLE_OUTDATED,
    ENGINE_UNAVAILABLE,
    ERROR_STATUS,
    INTERNAL_ERROR,
    INVALID_API_KEY,
    OVERLOADED,
    RATE_LIMIT_EXCEEDED,
)

OBJECTIVE = 0.999
"""Share of the completions that the server must not fail."""

_BUDGET = 1 - OBJECTIVE
_BY = "by (namespace, application)"  # without Kubernetes, the namespace is empty
_FAILED = "|".join(sorted(code for code, status in ERROR_STATUS.items() if status >= 500))


@dataclass(frozen=True)
class Alert:
    """An alert: its condition in PromQL, how long it must hold, and what a person should know."""

    name: str
    condition: str
    lasting: str
    severity: str
    meaning: str
    action: str

    def to_rule(self) -> dict[str, Any]:
        """Return the rule in Prometheus' schema."""
        return {
            "alert": self.name,
            "expr": self.condition,
            **({} if self.lasting == "0m" else {"for": self.lasting}),
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.meaning, "description": self.action},
        }


def _counter(labels: str = "") -> str:
    return f"ray_del_requests_total{{{labels}}}" if labels else "ray_del_requests_total"


def _requests(window: str, labels: str = "") -> str:
    return f"sum {_BY} (rate({_counter(labels)}[{window}]))"


def _code(code: str) -> str:
    return f'code="{code}"'


def _share(labels: str, window: str) -> str:
    return f"{_requests(window, labels)} / {_requests(window)}"


def _burns(factor: float, *windows: str) -> str:
    """Return the condition that the error budget is spent ``factor`` times too fast.

    The short window ends the alert soon after the errors (The Site Reliability Workbook, chapter
    5).
    """
    share = f'code=~"{_FAILED}"'
    return " and ".join(f"{_share(share, window)} > {factor * _BUDGET:.4g}" for window in windows)


def _p95(name: str, window: str) -> str:
    return f"histogram_quantile(0.95, sum by (le, namespace, application) (rate(ray_{name}_bucket[{window}])))"


_STARTS = f"sum {_BY} (increase(ray_serve_deployment_replica_starts_total[30m]))"
_WANTED = f"sum {_BY} (ray_serve_autoscaling_target_replicas)"
_WANTED_CHANGES = f"max {_BY} (changes(ray_serve_autoscaling_target_replicas[30m]))"
_HEALTHY = f"sum {_BY} (ray_serve_deployment_replica_healthy)"
_CLEAR = f'variant="{RESERVED_VARIANT}"'
_HITS = f'sum {_BY} (rate(ray_del_soft_prompts_total{{cache="hit"}}[15m]))'
_SOFT_PROMPTS = f"sum {_BY} (rate(ray_del_soft_prompts_total[15m]))"

SERVICE = (
    Alert(
        "DelServeErrorBudgetFast",
        _burns(14.4, "1h", "5m"),
        "2m",
        "critical",
        f"Errors of the server use up a month's budget ({_BUDGET * 100:.3g} % of the completions) within two days",
        "Look at the errors by code on the dashboard; the alert of that code says what to do.",
    ),
    Alert(
        "DelServeErrorBudgetSlow",
        _burns(1, "3d", "6h"),
        "1h",
        "warning",
        f"Errors of the server use up more than the budget ({_BUDGET * 100:.3g} % of the completions)",
        "Look at the errors by code on the dashboard over the last three days.",
    ),
    Alert(
        "DelServeInternalError",
        # The first error of a replica makes a series that begins with 1, which is no rate.
        f"{_requests('5m', _code(INTERNAL_ERROR))} > 0 or "
        f"sum {_BY} ({_counter(_code(INTERNAL_ERROR))}) unless sum {_BY} ({_counter(_code(INTERNAL_ERROR))} offset 5m)",
        "0m",
        "warning",
        f"Requests end with {INTERNAL_ERROR}",
        "The replica's log names the type of the exception and the lines of code. Report it.",
    ),
    Alert(
        "DelServeEngineUnavailable",
        f"{_requests('5m', _code(ENGINE_UNAVAILABLE))} > 0",
        "10m",
        "critical",
        "Requests find no working engine for longer than a start takes",
        "Look at delctl status, or the RayService's status, and at the logs of the replicas.",
    ),
    Alert(
        "DelServeNoReplica",
        f"{_WANTED} > 0 unless {_HEALTHY} > 0",
        "10m",
        "critical",
        "Serve wants replicas, and none is healthy",
        "Nodes may be missing, or the check of a model or bundle has failed: delctl status has the reason.",
    ),
    Alert(
        "DelServeEnginesDie",
        f"{_STARTS} > 3 and {_WANTED_CHANGES} == 0",
        "5m",
        "critical",
        "More than three replicas have started within half an hour without a change of their number",
        "Engines die. The last lines of the replaced replicas' logs have the cause; memory is the usual one.",
    ),
    Alert(
        "DelServeOverloaded",
        f"{_share(_code(OVERLOADED), '5m')} > 0.01",
        "10m",
        "warning",
        "More than 1 % of the requests are refused as overloaded",
        "Raise scaling.max_replicas and the number of nodes.",
    ),
    Alert(
        "DelServeFirstTokenSlow",
        f"{_p95('del_first_token_seconds', '15m')} > 5",
        "15m",
        "warning",
        "One completion in twenty waits more than five seconds for its first token",
        "If the queue is long, lower scaling.target_ongoing_requests or raise max_replicas; else prompts are long.",
    ),
    Alert(
        "DelServeQueueLong",
        f"{_p95('del_queue_seconds', '15m')} > 2.5",
        "15m",
        "warning",
        "One prompt in twenty is in the engine's queue or prefill for more than 2.5 seconds",
        "Lower scaling.target_ongoing_requests, or set max_ongoing_requests to engine.max_num_seqs.",
    ),
    Alert(
        "DelServeSoftPromptsNotCached",
        f"{_HITS} / {_SOFT_PROMPTS} < 0.9",
        "30m",
        "warning",
        "Less than 90 % of the soft prompts are in the engine's cache",
        "The KV cache is too small: enlarge engine.kv_cache_memory_bytes.",
    ),
)

PRIVACY = (
    Alert(
        "DelServePromptsInClear",
        f"{_requests('5m', _CLEAR)} > 0",
        "5m",
        "warning",
        "Callers send prompts without noise",
        "Find the caller and its policy. If it is intended, silence the alert for this application.",
    ),
    Alert(
        "DelServeBundlesDiffer",
        f"{_share(_code(BUNDLE_OUTDATED), '30m')} > 0.01",
        "30m",
        "warning",
        "More than 1 % of the requests are made for another bundle than the served ones",
        "A bundle was replaced without extra_bundles, or clients refuse the new one: compare with delctl trust.",
    ),
    Alert(
        "DelServeKeysRefused",
        f"{_requests('10m', _code(INVALID_API_KEY))} > 1",
        "10m",
        "warning",
        "More than one request a second has no valid key",
        "A caller has an old key, or somebody tries keys: limit the source in front of the server.",
    ),
    Alert(
        "DelServeQuotasSpent",
        f"{_share(_code(RATE_LIMIT_EXCEEDED), '15m')} > 0.1",
        "15m",
        "warning",
        "More than 10 % of the requests are beyond the quota of their caller",
        "Raise the quota of the key, or ask the caller whether it repeats prompts: each one costs privacy.",
    ),
)

ALERTS = SERVICE + PRIVACY
"""Alerts of the server."""


_OF_PROXY = "by (namespace, job)"
_PROMPTS = 'route=~"/v1/.*"'  # not those of probes
_FAILING = f'{_PROMPTS},status=~"5.. .*"'


def _status(kind: type[DELClientError]) -> str:
    """Return the label of requests to the proxy that ended with an error."""
    answer = api_error(kind(""))
    return f'status="{answer.status} {answer.code}"'


def _proxied(window: str, labels: str = _PROMPTS) -> str:
    return f"sum {_OF_PROXY} (rate(del_proxy_requests_total{{{labels}}}[{window}]))"


_REJECTED = f"del_proxy_requests_total{{{_status(BundleRejectedError)}}}"

PROXY = (
    Alert(
        "DelProxyPolicyRefuses",
        f"{_proxied('15m', _status(PolicyViolationError))} > 0",
        "15m",
        "warning",
        "Applications ask for prompts that the policy forbids",
        "Nothing was sent. The application's model, or the policy, must change; the proxy's log has the route.",
    ),
    Alert(
        "DelProxyBudgetsSpent",
        f"{_proxied('15m', _status(BudgetExceededError))} / {_proxied('15m')} > 0.05",
        "15m",
        "warning",
        "More than 5 % of the requests are refused because the privacy budget of their subject is spent",
        "Nothing was sent. delctl ledger status shows who spends it. A restarted proxy charges whole chats anew.",
    ),
    Alert(
        "DelProxyLedgerUnavailable",
        f"{_proxied('5m', _status(LedgerUnavailableError))} > 0",
        "5m",
        "critical",
        "The ledger does not answer, so no prompt is sent",
        "Look at the ledger's Redis or disk. Do not switch the ledger off: spending would go uncounted.",
    ),
    Alert(
        "DelProxyBundleRejected",
        # The first one makes a series that begins with 1, which is no rate.
        f"{_proxied('10m', _status(BundleRejectedError))} > 0 or "
        f"sum {_OF_PROXY} ({_REJECTED}) unless sum {_OF_PROXY} ({_REJECTED} offset 10m)",
        "0m",
        "critical",
        "The server offers another bundle than the accepted one, or a weaker one",
        "Nothing was sent for it. Ask the server's operator, compare with delctl trust, and accept it or leave.",
    ),
    Alert(
        "DelProxyBundleReplaced",
        f"{_proxied('15m', _status(BundleOutdatedError))} > 0",
        "15m",
        "warning",
        "The server replaces its bundle again and again, and each time prompts need fresh noise",
        "Fresh noise costs budget. Ask the server's operator to keep the old bundle in extra_bundles.",
    ),
    Alert(
        "DelProxyPromptsInClear",
        f'sum {_OF_PROXY} (rate(del_proxy_prompt_tokens_total{{variant="{CLEAR}"}}[5m])) > 0',
        "5m",
        "warning",
        "Applications send prompts without noise",
        "Leave clear out of the proxy's variants if that is not intended.",
    ),
    Alert(
        "DelProxyServerFails",
        f"{_proxied('5m', _FAILING)} / {_proxied('5m')} > 0.5",
        "10m",
        "critical",
        "More than half of the requests fail",
        "The label status says why: codes that begin with upstream are the server's or the network's.",
    ),
)
"""Alerts of the client-side proxy, for whoever runs it. The server knows nothing of them."""


def alerts_yaml() -> str:
    """Return the file of rules for the server."""
    return _groups(("del-serve", SERVICE), ("del-serve-privacy", PRIVACY))


def proxy_alerts_yaml() -> str:
    """Return the file of rules for the proxy."""
    return _groups(("del-proxy", PROXY))


def _groups(*named: tuple[str, tuple[Alert, ...]]) -> str:
    groups = [{"name": name, "rules": [alert.to_rule() for alert in alerts]} for name, alerts in named]
    text = yaml.safe_dump({"groups": groups}, sort_keys=False, width=110)
    return "# Written by `make manifests` from scripts/alerts.py; do not edit.\n" + text
