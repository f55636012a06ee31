"""The chart of the client-side proxy, checked by rendering and schemas, without a cluster."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from scripts.alerts import PROXY
from tests.cluster.test_images import COMPOSE
from tests.cluster.test_manifests import matches, of_kind, schemas_are_read_once, validate_core, validate_object

__all__ = ["schemas_are_read_once"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "cluster/helm/del-proxy"
FINGERPRINT = "0" * 64
BASE: dict[str, Any] = {"server": {"url": "https://del.example.com"}, "trust": {"fingerprint": FINGERPRINT}}
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "signed": {"trust": {"fingerprint": "", "trustedKeys": ["1" * 64, "2" * 64]}},
    "first use": {"trust": {"fingerprint": "", "onFirstUse": True}},
    "inside": {"server": {"url": "http://del-serve-serve-svc.del-serve.svc:8000", "allowHttp": True}},
    "key of the server": {"server": {"apiKeySecret": "del-key"}},
    "no ledger": {"ledger": {"enabled": False}},
    "personal data": {
        "privacy": {"private": "pii", "detectors": ["names", "secrets"], "surrogates": True},
        "toolChoice": "first",
    },
    "limits": {
        "policy": {"maxEpsilonPerToken": 120, "maxEpsilonPerPrompt": 8000.5},
        "ledger": {"budgetEpsilon": 500, "budgetDays": 0},
        "extraArgs": ["--variant", "balanced", "--private", "user"],
    },
    "monitoring": {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        }
    },
    "names": {
        "fullnameOverride": "private-proxy",
        "replicas": 5,
        "drainSeconds": 90,
        "image": {"digest": "sha256:" + "a" * 64, "pullSecrets": ["registry"]},
        "service": {"port": 9000, "annotations": {"a.example.com/b": "c"}},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
    },
    "no policies": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
}
every_case = pytest.mark.parametrize("case", MATRIX)


@functools.cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def merged(case: dict[str, Any]) -> dict[str, Any]:
    values = copy.deepcopy(BASE)
    for name, value in case.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return values


def documents(files: dict[str, str]) -> list[dict[str, Any]]:
    texts = [text for path, text in sorted(files.items()) if not path.endswith("NOTES.txt")]
    return [one for text in texts for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]


def render(case: str) -> list[dict[str, Any]]:
    return documents(chart().render(merged(MATRIX[case]), name="release", namespace="space"))


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]


def proxy_values(arguments: list[str]) -> dict[str, Any]:
    """Parse the arguments as `delctl proxy` does."""
    from delctl.commands.proxy import proxy

    assert arguments[:2] == ["delctl", "proxy"]
    return proxy.make_context("proxy", arguments[2:]).params


@every_case
def test_the_chart_has_no_lint_findings(case: str) -> None:
    report = helm_python.lint(CHART, merged(MATRIX[case]), strict=True)
    assert report["errors"] == []
    assert [one["error"] for one in report["messages"]] == ["icon is recommended"]


@every_case
def test_every_object_matches_its_schema(case: str) -> None:
    for one in render(case):
        validate_object(one)


@every_case
def test_the_command_is_one_that_the_proxy_knows(case: str) -> None:
    values = merged(MATRIX[case])
    (container,) = pod(render(case))["spec"]["containers"]
    found = proxy_values(container["args"])
    assert found["server"] == values["server"]["url"]
    assert found["fingerprint"] == (values["trust"]["fingerprint"] or None)
    assert list(found["trusted_keys"]) == values["trust"].get("trustedKeys", [])
    assert found["allow_http"] is (case == "inside")
    assert found["budget_epsilon"] == (None if case == "no ledger" else 500 if case == "limits" else 20_000)
    assert found["host"] == "0.0.0.0"
    chosen = (found["private"], found["detectors"], found["surrogates"], found["tool_choice"])
    if case == "personal data":
        assert chosen == ("pii", ("names", "secrets"), True, "first")
    elif case != "limits":
        assert chosen == ("all", (), False, "auto")
    if case == "limits":
        assert (found["max_epsilon_per_token"], found["max_epsilon_per_prompt"]) == (120, 8000.5)
        assert (found["budget_days"], found["variants"], found["private"]) == (0, ("balanced",), "user")


@pytest.mark.parametrize("case", ["defaults", "key of the server", "no ledger"])
def test_secrets_are_files_and_without_one_nothing_starts(case: str, tmp_path: Path) -> None:
    template = pod(render(case))
    (container,) = template["spec"]["containers"]
    (volume,) = [one for one in template["spec"]["volumes"] if "projected" in one]
    items = [item for one in volume["projected"]["sources"] for item in one["secret"]["items"]]
    files = {"client-key": "k1", "api-key": "k2", "ledger-url": "redis://:secret@redis:6379"}
    for item in items:
        (tmp_path / item["path"]).write_text(files[item["path"]] + "\n")
    command = [one.replace("/etc/del-proxy", str(tmp_path)) for one in container["command"]]
    show = ["sh", "-c", 'echo "$DEL_PROXY_KEY|$DEL_API_KEY|$*"', "sh"]
    done = subprocess.run([*command, *show], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    ledger = "" if case == "no ledger" else f"--ledger {files['ledger-url']}"
    assert done.stdout == f"k1|{'k2' if case == 'key of the server' else ''}|{ledger}\n"
    for item in items:
        (tmp_path / item["path"]).rename(tmp_path / "away")
        failed = subprocess.run([*command, "echo", "started"], capture_output=True, text=True, check=False)
        assert failed.returncode != 0
        assert failed.stdout == ""
        (tmp_path / "away").rename(tmp_path / item["path"])


@every_case
def test_the_pod_is_restricted(case: str) -> None:
    spec = pod(render(case))["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsUser"] == 10001
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {"livenessProbe", "readinessProbe"} <= set(container)
    assert not any("secretKeyRef" in str(one) for one in container["env"])
    seconds = merged(MATRIX[case]).get("drainSeconds", 30)
    assert spec["terminationGracePeriodSeconds"] == seconds + 10
    assert proxy_values(container["args"])["grace"] == seconds


@every_case
def test_the_policy_denies_all_but_named_peers_and_ports(case: str) -> None:
    objects = render(case)
    policies = of_kind(objects, "NetworkPolicy")
    assert bool(policies) == (case != "no policies")
    for one in policies:
        assert matches(one["spec"]["podSelector"], pod(objects)["metadata"]["labels"])
        assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
        rules = [(rule["from"], rule["ports"]) for rule in one["spec"]["ingress"]]
        rules += [(rule["to"], rule["ports"]) for rule in one["spec"]["egress"]]
        assert all(peers and all(peers) and ports for peers, ports in rules)
        ports = [port["port"] for rule in one["spec"]["egress"] for port in rule["ports"]]
        assert ports == ([8000, 53, 53] if case == "no ledger" else [8000, 6379, 53, 53])
        assert len(one["spec"]["ingress"]) == (2 if case == "monitoring" else 1)


def test_monitoring_sends_the_key_and_has_the_alerts() -> None:
    objects = render("monitoring")
    (monitor,) = of_kind(objects, "PodMonitor")
    assert matches(monitor["spec"]["selector"], pod(objects)["metadata"]["labels"])
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "del-proxy-key", "key": "client-key"}
    (rule,) = of_kind(objects, "PrometheusRule")
    assert [one["alert"] for group in rule["spec"]["groups"] for one in group["rules"]] == [one.name for one in PROXY]


def test_another_chart_runs_the_proxy_as_a_sidecar(tmp_path: Path) -> None:
    """It listens on loopback and needs no key; its pods are the other chart's."""
    parent = tmp_path / "app"
    shutil.copytree(CHART, parent / "charts/del-proxy")
    (parent / "templates").mkdir()
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: app\nversion: 1.0.0\n")
    (parent / "templates/pod.yaml").write_text(
        '{{- $proxy := index .Subcharts "del-proxy" }}\n'
        "apiVersion: v1\nkind: Pod\nmetadata: {name: app}\nspec:\n  containers:\n"
        "    - name: app\n      image: app:1\n"
        '    - {{- include "del-proxy.container" $proxy | nindent 6 }}\n'
        '  volumes:\n    {{- include "del-proxy.volumes" $proxy | trim | nindent 4 }}\n'
    )
    for more in ({}, {"ledger": {"enabled": False}}):
        values = {"del-proxy": {**merged(more), "enabled": False}}
        (one,) = documents(helm_python.Chart.load(parent).render(values, name="release", namespace="space"))
        validate_core(one)
        container = one["spec"]["containers"][1]
        assert proxy_values(container["args"])["host"] == "127.0.0.1"
        assert "DEL_PROXY_KEY" not in container["command"][2]
        assert container["readinessProbe"]["exec"]["command"][-1] == "http://127.0.0.1:8081/readyz"
        (volume,) = [one for one in one["spec"]["volumes"] if "projected" in one]
        sources = volume["projected"]["sources"]
        assert len(sources) == (0 if more else 1)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"unknown": 1}, "unknown"),
        ({"server": {"url": "del.example.com"}}, "/server/url"),
        ({"trust": {"fingerprint": "abc"}}, "/trust/fingerprint"),
        ({"ledger": {"budgetEpsilon": 0}}, "/ledger/budgetEpsilon"),
        ({"clientKey": {"existingSecret": ""}}, "/clientKey/existingSecret"),
        ({"replicas": 0}, "/replicas"),
        ({"privacy": {"private": "none"}}, "/privacy/private"),
        ({"privacy": {"detectors": ["a b"]}}, "/privacy/detectors/0"),
        ({"toolChoice": "required"}, "/toolChoice"),
        ({"networkPolicy": {"server": {"to": []}}}, "/networkPolicy/server/to"),
        ({"networkPolicy": {"clients": [{}]}}, "/networkPolicy/clients/0"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
    ],
)
def test_the_schema_refuses_wrong_values_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(named)):
        chart().validate_schema(merged(values))


def test_a_bundle_must_be_trusted_on_purpose() -> None:
    with pytest.raises(
        helm_python.HelmError, match=r"trust\.fingerprint, trust\.trustedKeys or trust\.onFirstUse must be"
    ):
        chart().render({"server": BASE["server"]}, name="release", namespace="space")


@pytest.mark.parametrize("privacy", [{"detectors": ["names"]}, {"private": "user", "surrogates": True}])
def test_detectors_and_surrogates_are_of_pii_only(privacy: dict[str, Any]) -> None:
    with pytest.raises(
        helm_python.HelmError, match=r"privacy\.private must be pii with privacy\.detectors or privacy\.surrogates"
    ):
        chart().render(merged({"privacy": privacy}), name="release", namespace="space")


def test_the_schema_shares_its_definitions_with_the_servers_chart() -> None:
    ours, theirs = (
        json.loads((ROOT / f"cluster/helm/{name}/values.schema.json").read_text("utf-8"))["$defs"]
        for name in ("del-proxy", "del-serve")
    )
    assert ours == {name: theirs[name] for name in ours}
    assert chart().schema is not None


def test_the_image_is_that_of_compose() -> None:
    (container,) = pod(render("defaults"))["spec"]["containers"]
    assert container["image"] == COMPOSE["services"]["proxy"]["image"]
    assert chart().metadata["appVersion"] == chart().metadata["version"]
