"""The Grafana dashboard, which `make manifests` writes as JSON.

The panels show metrics of :data:`deployments.telemetry.metrics.METRICS` and of Ray Serve.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_WINDOW = "$__rate_interval"
_SELECT = 'application=~"$application", variant=~"$variant"'
_APPLICATION = 'application=~"$application"'


@dataclass(frozen=True)
class Panel:
    """A time series: title, unit of Grafana, pairs of legend and PromQL, description."""

    title: str
    unit: str
    targets: tuple[tuple[str, str], ...]
    description: str


def _rate(name: str, by: str, select: str = _SELECT) -> str:
    return f"sum by ({by}) (rate(ray_{name}_total{{{select}}}[{_WINDOW}]))"


def _quantile(name: str, quantile: float) -> str:
    inner = f"sum by (le, variant) (rate(ray_{name}_bucket{{{_SELECT}}}[{_WINDOW}]))"
    return f"histogram_quantile({quantile}, {inner})"


def _latency(title: str, name: str, description: str) -> Panel:
    targets = tuple((f"p{q * 100:.0f} {{{{variant}}}}", _quantile(name, q)) for q in (0.5, 0.95, 0.99))
    return Panel(title, "s", targets, description)


_HITS = _rate("del_soft_prompts", "variant", _SELECT + ', cache="hit"')
_ERRORS = _rate("del_requests", "code", _SELECT + ', code!="ok"')

PANELS = (
    Panel("Completions", "reqps", (("{{variant}}", _rate("del_requests", "variant")),), "Completions that ended."),
    Panel("Errors by code", "reqps", (("{{code}}", _ERRORS),), "Completions that ended with an error, by its code."),
    _latency("First token", "del_first_token_seconds", "From the request to its first token."),
    _latency("Between tokens", "del_inter_token_seconds", "Mean time between two tokens of a streamed completion."),
    _latency("Queue and prompt", "del_queue_seconds", "From the engine's getting a prompt to its first token."),
    _latency("Decoding", "del_decode_seconds", "From counts to embeddings."),
    Panel(
        "Tokens",
        "short",
        (
            ("out {{variant}}", _rate("del_output_tokens", "variant")),
            ("in {{variant}}", _rate("del_prompt_tokens", "variant")),
        ),
        "Tokens a second of completions that ended.",
    ),
    Panel(
        "Tokens generated",
        "short",
        (("{{replica}}", f"sum by (replica) (ray_del_tokens_per_second{{{_APPLICATION}}})"),),
        "Tokens a second over the last ten seconds, as they are generated.",
    ),
    Panel(
        "Soft prompts found in the cache",
        "percentunit",
        (("{{variant}}", f"{_HITS} / {_rate('del_soft_prompts', 'variant')}"),),
        "Share of prompts whose soft prompt needed no computation: 1 but for the first on each replica.",
    ),
    Panel("Bytes in", "Bps", (("{{variant}}", _rate("del_request_bytes", "variant")),), "Request frames."),
    Panel(
        "Replicas",
        "short",
        (
            ("running", f"sum(ray_serve_deployment_replica_healthy{{{_APPLICATION}}})"),
            ("wanted", f"sum(ray_serve_autoscaling_target_replicas{{{_APPLICATION}}})"),
        ),
        "Replicas that are healthy, and how many the autoscaler wants.",
    ),
    Panel(
        "In flight",
        "short",
        (("{{replica}}", f"sum by (replica) (ray_del_requests_in_flight{{{_APPLICATION}}})"),),
        "Completions that hold a place in a replica.",
    ),
    Panel(
        "Outstanding tokens",
        "short",
        (("{{replica}}", f"sum by (replica) (ray_del_outstanding_tokens{{{_APPLICATION}}})"),),
        "Tokens promised and not yet generated: what the autoscaler follows.",
    ),
)


def _variable(name: str, metric: str) -> dict[str, Any]:
    query = f"label_values(ray_{metric}_total, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "gridPos": {"x": 12 * (index % 2), "y": 8 * (index // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + number), "datasource": source, "expr": expression, "legendFormat": legend}
            for number, (legend, expression) in enumerate(panel.targets)
        ],
    }


def dashboard_json() -> str:
    """Return the file that Grafana imports."""
    board = {
        "uid": "del-serve",
        "title": "DEL Serve",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["del-serve"],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("application", "del_requests"),
                _variable("variant", "del_requests"),
            ]
        },
        "panels": [_panel(index, panel) for index, panel in enumerate(PANELS)],
    }
    return json.dumps(board, indent=2) + "\n"
