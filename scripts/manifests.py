"""Write the generated files of the Helm chart, the dashboard and the chart's plain manifests.

Usage: manifests.py [--check]. With --check, nothing is written, and the exit status is 1 if a file
is not current. The sources are

- cluster/config/env.py for files/environment.yaml of the chart and cluster/machines/environment;
- scripts/dashboard.py for cluster/monitoring/dashboard.json and files/dashboard.json;
- scripts/alerts.py for cluster/monitoring/alerts.yaml, cluster/monitoring/proxy-alerts.yaml, and
  files/alerts.yaml of each chart;
- deployments.settings for the definition `settings` of values.schema.json;
- the chart and cluster/manifests/values/NAME.yaml for cluster/manifests/NAME.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHART = ROOT / "cluster/helm/del-serve"
PROXY_CHART = ROOT / "cluster/helm/del-proxy"
MANIFESTS = ROOT / "cluster/manifests"
TOKEN_FILE = "/etc/del/ray-token"

# KubeRay sets these from spec.rayClusterConfig.authOptions.
SET_BY_KUBERAY = frozenset({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"})
# The chart sets these fields of the settings from its other values.
SET_BY_CHART = {
    "Settings": ("bundle", "base_model", "keys"),
    "ScalingSettings": ("graceful_shutdown_timeout_s",),
    "TelemetrySettings": ("traces",),
}

PROSE = ("title", "description")
ENGINE_KINDS = ("mock", "vllm")
DEFAULT_ENGINE = "vllm"

Generated = dict[Path, str]


def environment() -> str:
    """Return the environment variables of a cluster as YAML, each with its reason."""
    from cluster.config.env import VARIABLES

    lines = ["# Written by `make manifests` from cluster/config/env.py; do not edit."]
    for one in VARIABLES:
        if one.cluster is not None and one.name not in SET_BY_KUBERAY:
            lines += [f"# {one.reason}", f"{one.name}: {json.dumps(one.cluster)}"]
    return "\n".join(lines) + "\n"


def machines_environment() -> str:
    """Return the environment variables of a cluster for systemd and shells."""
    from cluster.config.env import VARIABLES

    lines = ["# Written by `make manifests` from cluster/config/env.py; do not edit."]
    for one in VARIABLES:
        if one.cluster is not None:
            value = TOKEN_FILE if one.name == "RAY_AUTH_TOKEN_PATH" else one.cluster
            lines += [f"# {one.reason}", f"{one.name}={value}"]
    return "\n".join(lines) + "\n"


def settings_definitions() -> dict[str, Any]:
    """Return JSON schemas of the application's settings without the fields that the chart sets."""
    from deployments.engines import ENGINES
    from deployments.settings import Settings

    schema = Settings.model_json_schema()
    found: dict[str, Any] = schema.pop("$defs")
    found["Settings"] = schema
    del found["EngineSettings"]
    # The kinds of plugins are checked by the server only.
    engine: dict[str, Any] = {"properties": {"kind": {"type": "string"}}, "type": "object", "allOf": []}
    for kind in ENGINE_KINDS:
        found[f"engine-{kind}"] = ENGINES.find(kind).settings.model_json_schema()
        chosen = {"properties": {"kind": {"const": kind}}, "required": [] if kind == DEFAULT_ENGINE else ["kind"]}
        engine["allOf"].append({"if": chosen, "then": {"$ref": f"#/$defs/engine-{kind}"}})
    schema["properties"]["engine"] = engine
    for section, fields in SET_BY_CHART.items():
        for field in fields:
            del found[section]["properties"][field]
    for unused in ("AuthSettings", "APIKey"):
        found.pop(unused, None)
    return found


def values_schema() -> str:
    """Return values.schema.json with the settings' definitions brought up to date."""
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    kept = {name: one for name, one in schema["$defs"].items() if name[0].islower() and not name.startswith("engine-")}
    schema["$defs"] = kept | {"settings": {"$ref": "#/$defs/Settings"}} | _without_prose(settings_definitions())
    return json.dumps(schema, indent=2) + "\n"


def _without_prose(value: Any) -> Any:
    """Remove titles and descriptions; docs/reference/configuration.md describes the fields."""
    if isinstance(value, list):
        return [_without_prose(one) for one in value]
    if isinstance(value, dict):
        return {k: _without_prose(v) for k, v in value.items() if not (k in PROSE and isinstance(v, str))}
    return value


def chart_files() -> Generated:
    """Return the generated files of the chart, and what is used without it, too."""
    from scripts.alerts import alerts_yaml, proxy_alerts_yaml
    from scripts.dashboard import dashboard_json

    return {
        ROOT / "cluster/monitoring/alerts.yaml": alerts_yaml(),
        ROOT / "cluster/monitoring/proxy-alerts.yaml": proxy_alerts_yaml(),
        ROOT / "cluster/monitoring/dashboard.json": dashboard_json(),
        CHART / "files/alerts.yaml": alerts_yaml(),
        PROXY_CHART / "files/alerts.yaml": proxy_alerts_yaml(),
        CHART / "files/environment.yaml": environment(),
        ROOT / "cluster/machines/environment": machines_environment(),
        CHART / "files/dashboard.json": dashboard_json(),
        CHART / "values.schema.json": values_schema(),
    }


def plain_manifests() -> Iterator[tuple[Path, str]]:
    """Render the chart with each file of values, without the pod of `helm test`."""
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        for values in sorted((MANIFESTS / "values").glob("*.yaml")):
            rendered = chart.render(yaml.safe_load(values.read_text("utf-8")), name="del-serve", namespace="del-serve")
            documents = [f"# Written by `make manifests` from the chart and values/{values.name}; do not edit."]
            for name in sorted(rendered):
                if "/tests/" not in name and not name.endswith("NOTES.txt") and rendered[name].strip():
                    documents.append(rendered[name].strip().removeprefix("---\n"))
            yield MANIFESTS / values.name, "\n---\n".join(documents) + "\n"


def update(files: Generated, *, check: bool) -> list[Path]:
    """Write the files that are not current, unless ``check``; return their paths."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in [] if check else stale:
        path.write_text(files[path], "utf-8")
    return stale


def main() -> int:
    """Write or check all files."""
    parser = argparse.ArgumentParser(description="Write the generated files of chart and manifests.")
    parser.add_argument("--check", action="store_true", help="only say which files are not current")
    check = parser.parse_args().check
    stale = update(chart_files(), check=check)
    stale += update(dict(plain_manifests()), check=check)  # renders the chart with the files above
    for path in stale:
        print(f"manifests: {path.relative_to(ROOT)} {'is not current' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
