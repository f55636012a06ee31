"""Every alert begins under its condition, and not without it, in Prometheus' own test tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client_lib.proxy.metrics import Metrics
from deployments.telemetry.metrics import METRICS
from scripts.alerts import ALERTS, PROXY

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "cluster/monitoring"
REQUESTS = "ray_del_requests_total"
TARGET, HEALTHY = "ray_serve_autoscaling_target_replicas", "ray_serve_deployment_replica_healthy"
STARTS = "ray_serve_deployment_replica_starts_total"

Series = dict[tuple[str, str], str]
"""Values, in the notation of Prometheus' tests, by the name of a metric and further labels."""


@dataclass(frozen=True)
class Case:
    """What an alert sees, and whether it is on at a time."""

    alert: str
    series: Series
    at: str
    on: bool
    interval: str = "1m"


def shares(labels: str, good: int, bad: float, count: int) -> Series:
    """Return completions of two kinds for each interval."""
    return {(REQUESTS, 'variant="open",code="ok"'): f"0+{good}x{count}", (REQUESTS, labels): f"0+{bad}x{count}"}


def histogram(name: str, buckets: dict[str, int]) -> Series:
    return {(f"{name}_bucket", f'variant="open",le="{le}"'): f"0+{rate}x60" for le, rate in buckets.items()}


def code(name: str) -> str:
    return f'variant="open",code="{name}"'


FIRST, QUEUE = "ray_del_first_token_seconds", "ray_del_queue_seconds"
INTERNAL, CLEAR = code("internal_error"), 'variant="clear",code="ok"'
CASES = (
    Case("DelServeErrorBudgetFast", shares(INTERNAL, 98, 2, 120), "70m", on=True),
    Case("DelServeErrorBudgetFast", shares(code("overloaded"), 99, 1, 120), "70m", on=False),
    Case("DelServeErrorBudgetFast", shares(code("invalid_value"), 50, 50, 120), "70m", on=False),  # of the callers
    Case(  # it is over
        "DelServeErrorBudgetFast",
        shares(INTERNAL, 98, 0, 120) | {(REQUESTS, INTERNAL): "0+2x60 120x60"},
        "70m",
        on=False,
    ),
    Case("DelServeErrorBudgetSlow", shares(INTERNAL, 9980, 20, 200), "96h", on=True, interval="30m"),
    Case("DelServeErrorBudgetSlow", shares(INTERNAL, 9995, 5, 200), "96h", on=False, interval="30m"),
    Case("DelServeInternalError", {(REQUESTS, INTERNAL): "_x20 1x20"}, "21m", on=True),
    Case("DelServeInternalError", {(REQUESTS, INTERNAL): "1x20 2x20"}, "21m", on=True),
    Case("DelServeInternalError", {(REQUESTS, INTERNAL): "1x40"}, "21m", on=False),
    Case("DelServeEngineUnavailable", {(REQUESTS, code("engine_unavailable")): "0+1x30"}, "20m", on=True),
    Case("DelServeEngineUnavailable", {(REQUESTS, code("engine_unavailable")): "0+1x5 5x30"}, "20m", on=False),
    Case("DelServeNoReplica", {(TARGET, ""): "2x30", (HEALTHY, 'replica="a"'): "0x30"}, "15m", on=True),
    Case("DelServeNoReplica", {(TARGET, ""): "2x30"}, "15m", on=True),
    Case("DelServeNoReplica", {(TARGET, ""): "2x30", (HEALTHY, 'replica="a"'): "1x30"}, "15m", on=False),
    Case("DelServeNoReplica", {(TARGET, ""): "0x30"}, "15m", on=False),  # scaled to zero
    Case("DelServeEnginesDie", {(TARGET, ""): "2x60", (STARTS, ""): "2+1x60"}, "50m", on=True),
    Case("DelServeEnginesDie", {(TARGET, ""): "2x40 6x20", (STARTS, ""): "2x40 6x20"}, "50m", on=False),
    Case("DelServeOverloaded", shares(code("overloaded"), 98, 2, 60), "30m", on=True),
    Case("DelServeOverloaded", shares(code("overloaded"), 995, 5, 60), "30m", on=False),
    Case("DelServeFirstTokenSlow", histogram(FIRST, {"5": 90, "10": 100, "+Inf": 100}), "40m", on=True),
    Case("DelServeFirstTokenSlow", histogram(FIRST, {"5": 99, "10": 100, "+Inf": 100}), "40m", on=False),
    Case("DelServeQueueLong", histogram(QUEUE, {"2.5": 90, "5": 100, "+Inf": 100}), "40m", on=True),
    Case("DelServeQueueLong", histogram(QUEUE, {"2.5": 99, "5": 100, "+Inf": 100}), "40m", on=False),
    *(
        Case(
            "DelServeSoftPromptsNotCached",
            {
                ("ray_del_soft_prompts_total", 'cache="hit"'): f"0+{hits}x90",
                ("ray_del_soft_prompts_total", 'cache="miss"'): f"0+{100 - hits}x90",
            },
            "60m",
            on=on,
        )
        for hits, on in ((80, True), (95, False))
    ),
    Case("DelServePromptsInClear", {(REQUESTS, CLEAR): "0+1x30"}, "15m", on=True),
    Case("DelServePromptsInClear", {(REQUESTS, code("ok")): "0+9x30"}, "15m", on=False),
    Case("DelServeBundlesDiffer", shares(code("bundle_outdated"), 95, 5, 100), "80m", on=True),
    Case("DelServeBundlesDiffer", shares(code("bundle_outdated"), 995, 5, 100), "80m", on=False),
    Case("DelServeKeysRefused", {(REQUESTS, 'variant="none",code="invalid_api_key"'): "0+120x60"}, "40m", on=True),
    Case("DelServeKeysRefused", {(REQUESTS, 'variant="none",code="invalid_api_key"'): "0+30x60"}, "40m", on=False),
    Case("DelServeQuotasSpent", shares(code("rate_limit_exceeded"), 80, 20, 60), "40m", on=True),
    Case("DelServeQuotasSpent", shares(code("rate_limit_exceeded"), 95, 5, 60), "40m", on=False),
)

PROXIED = "del_proxy_requests_total"
CHAT = 'route="/v1/chat/completions"'


def answered(status: str, values: str, good: str = "0+95x90") -> Series:
    """Return the requests of a proxy: answered ones, others, and those of probes."""
    return {
        (PROXIED, f'{CHAT},status="200"'): good,
        (PROXIED, f'{CHAT},status="{status}"'): values,
        (PROXIED, 'route="/readyz",status="200"'): "0+10000x90",
    }


PROXY_CASES = (
    Case("DelProxyPolicyRefuses", answered("403 policy_violation", "0+1x90"), "60m", on=True),
    Case("DelProxyPolicyRefuses", answered("403 policy_violation", "0+1x5 5x90"), "60m", on=False),
    Case("DelProxyPolicyRefuses", answered("400 invalid_value", "0+1x90"), "60m", on=False),
    Case("DelProxyBudgetsSpent", answered("429 budget_exceeded", "0+10x90"), "60m", on=True),
    Case("DelProxyBudgetsSpent", answered("429 budget_exceeded", "0+1x90"), "60m", on=False),
    Case("DelProxyBudgetsSpent", answered("429 rate_limit_exceeded", "0+10x90"), "60m", on=False),  # the server's
    Case("DelProxyLedgerUnavailable", answered("503 ledger_unavailable", "0+1x90"), "30m", on=True),
    Case("DelProxyLedgerUnavailable", answered("503 ledger_unavailable", "0+1x5 5x90"), "30m", on=False),
    Case("DelProxyBundleRejected", answered("502 bundle_rejected", "_x20 1x20"), "21m", on=True),
    Case("DelProxyBundleRejected", answered("502 bundle_rejected", "1x20 2x20"), "21m", on=True),
    Case("DelProxyBundleRejected", answered("502 bundle_rejected", "1x40"), "31m", on=False),
    Case("DelProxyBundleReplaced", answered("409 bundle_outdated", "0+1x90"), "60m", on=True),
    Case("DelProxyBundleReplaced", answered("409 bundle_outdated", "0x10 1x90"), "60m", on=False),  # once
    Case("DelProxyPromptsInClear", {("del_proxy_prompt_tokens_total", 'variant="clear"'): "0+9x30"}, "15m", on=True),
    Case("DelProxyPromptsInClear", {("del_proxy_prompt_tokens_total", 'variant="open"'): "0+9x30"}, "15m", on=False),
    Case("DelProxyServerFails", answered("502 upstream_unreachable", "0+60x90", "0+40x90"), "30m", on=True),
    Case("DelProxyServerFails", answered("502 upstream_unreachable", "0+40x90", "0+60x90"), "30m", on=False),
    Case("DelProxyServerFails", answered("403 policy_violation", "0+60x90", "0+40x90"), "30m", on=False),
)
PARTS = (("alerts.yaml", ALERTS, CASES, "application"), ("proxy-alerts.yaml", PROXY, PROXY_CASES, "job"))


def to_promtool(case: Case, by: str) -> dict[str, Any]:
    """Return the case for promtool; ``by`` is the label that tells one service from another."""
    (alert,) = (one for one in (*ALERTS, *PROXY) if one.name == case.alert)
    rule = alert.to_rule()
    expected = {"exp_labels": {**rule["labels"], by: "a"}, "exp_annotations": rule["annotations"]}
    return {
        "interval": case.interval,
        "input_series": [
            {"series": f'{name}{{{by}="a"{labels and ","}{labels}}}', "values": values}
            for (name, labels), values in case.series.items()
        ],
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": case.alert, "exp_alerts": [expected] if case.on else []}
        ],
    }


def promtool(*arguments: str | Path) -> None:
    unpacked = Path(sys.prefix) / "lib/debian/usr/bin"  # where scripts/install puts Debian's Prometheus
    program = shutil.which("promtool") or shutil.which("promtool", path=str(unpacked))
    if program is None:
        pytest.fail("promtool is not there: it is a part of Prometheus, which scripts/install takes from Debian")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_in_both_states() -> None:
    for _, alerts, cases, _ in PARTS:
        for on in (True, False):
            assert {case.alert for case in cases if case.on is on} == {alert.name for alert in alerts}


def test_alerts_begin_under_their_conditions_and_not_without(tmp_path: Path) -> None:
    for rules, _, cases, by in PARTS:
        for interval in {case.interval for case in cases}:
            chosen = [to_promtool(case, by) for case in cases if case.interval == interval]
            tests = {"rule_files": [str(MONITORING / rules)], "evaluation_interval": interval, "tests": chosen}
            (tmp_path / f"{interval}-{rules}").write_text(json.dumps(tests))  # JSON is YAML
    promtool("test", "rules", *tmp_path.iterdir())


def test_the_cases_use_metrics_that_exist() -> None:
    ours = {f"ray_{one.name}" for one in METRICS.values()}
    used = {name.removesuffix("_total").removesuffix("_bucket") for case in CASES for name, _ in case.series}
    assert used - ours == {TARGET, HEALTHY, STARTS.removesuffix("_total")}


def test_the_cases_of_the_proxy_use_its_metrics_and_documented_codes() -> None:
    metrics = Metrics()
    metrics.requests[CHAT, "200"] += 1
    metrics.answered("open", 1, 1)
    used = {name for case in PROXY_CASES for name, _ in case.series}
    assert used <= set(re.findall(r"^\w+", metrics.text({}), re.MULTILINE))
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/guides/proxy.md").read_text("utf-8")))
    for alert in PROXY:
        assert set(re.findall(r'status="\d+ (\w+)"', alert.condition)) <= documented
