"""The Helm chart and the plain manifests, checked by rendering and schemas, without a cluster."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils as kubernetes_utils

from cluster.config.env import cluster_environment
from cluster.local.nodes import Nodes
from deployments.settings import parse_settings
from deployments.telemetry.metrics import METRICS
from scripts.alerts import ALERTS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "cluster/helm/del-serve"
KUBERNETES = "1.37"
CUSTOM = json.loads((Path(__file__).parent / "custom_resources.schema.json").read_text("utf-8"))["$defs"]

DIGEST = hashlib.sha256(b"x").hexdigest()
GPU: dict[str, Any] = {
    "cpu": {"enabled": False},
    "gpu": {"enabled": True},
    "settings": {"scaling": {"num_gpus": 1}, "engine": {"dtype": "bfloat16", "kv_cache_memory_bytes": None}},
}
AUTOSCALER = {"autoscaler": {"enabled": True}, "networkPolicy": {"apiServer": {"cidrs": ["192.0.2.1/32"]}}}
HASHED = {"path": "some/model", "sha256": {"model.safetensors": DIGEST, "sub/config.json": DIGEST}}

MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gpu": GPU,
    "both groups": {**GPU, "cpu": {"enabled": True, "replicas": 2}},
    "autoscaler": AUTOSCALER,
    "autoscaler with bounds": {
        **AUTOSCALER,
        "autoscaler": {"enabled": True, "idleTimeoutSeconds": 90},
        "cpu": {"minReplicas": 2, "replicas": 2, "maxReplicas": 6},
    },
    "incremental upgrade": {
        **AUTOSCALER,
        "upgrade": {"strategy": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "istio"},
    },
    "no upgrade": {"upgrade": {"strategy": "None"}},
    "redis": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6399", "passwordSecret": "redis"}},
    "redis without password": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379"}},
    "existing claims": {
        "model": {"source": "claim", "claim": "models", **HASHED},
        "bundle": {"source": "claim", "claim": "bundles", "sha256": {"manifest.json": DIGEST}},
    },
    "new claims": {
        "model": {"source": "newClaim", **HASHED, "newClaim": {"storageClass": "fast"}},
        "bundle": {"source": "newClaim", **HASHED},
    },
    "image volumes": {
        "model": {"source": "image", "image": "registry.example.com/models/m@sha256:" + DIGEST, **HASHED},
        "bundle": {"source": "image", "image": "registry.example.com/bundles/b:1", **HASHED},
    },
    "commands": {
        "model": {
            "source": "command",
            "command": {"image": "fetch:1", "command": ["sh", "-c", "cp -r /m $TARGET"], "envSecret": "bucket"},
            **HASHED,
        },
        "bundle": {"source": "command", "command": {"command": ["fetch", "bundle"]}, **HASHED},
        "networkPolicy": {
            "extraEgress": [
                {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"protocol": "TCP", "port": 443}]}
            ]
        },
    },
    "ingress": {"ingress": {"enabled": True, "host": "del.example.com", "tls": {"secretName": "del-tls"}}},
    "ingress with cert-manager": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "host": "del.example.com",
            "annotations": {"a.example.com/b": "c"},
            "tls": {"secretName": "del-tls", "clusterIssuer": "issuer"},
        }
    },
    "route": {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "gateway", "namespace": "edge", "sectionName": "https"}],
            "hostnames": ["del.example.com"],
        }
    },
    "route for any host": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}},
    "open": {"keys": {"open": True, "existingSecret": ""}, "test": {"apiKeySecret": ""}},
    "no policies": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
    "monitoring": {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True},
        }
    },
    "traces": {
        "otlp": {"enabled": True, "endpoint": "http://collector.obs.svc:4318/v1/traces", "headersSecret": "otlp"},
        "settings": {"telemetry": {"trace_ratio": 0.1, "request_log": True}},
    },
    "names": {
        "fullnameOverride": "private-lm",
        "drainSeconds": 300,
        "images": {
            "cpu": {"repository": "registry.example.com/d", "digest": "sha256:" + DIGEST},
            "pullPolicy": "Always",
            "pullSecrets": ["registry"],
        },
        "auth": {"existingSecret": "ray-token"},
        "service": {"type": "LoadBalancer", "annotations": {"a.example.com/internal": "true"}},
        "safeToEvict": {"workers": True},
        "cpu": {"nodeSelector": {"pool": "cpu"}, "affinity": {"nodeAffinity": {}}},
    },
    "mock engine": {"settings": {"engine": {"kind": "mock", "step_ms": 5}}},
}
Objects = list[dict[str, Any]]


@functools.cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


@functools.cache
def _rendered(name: str) -> Objects:
    files = chart().render(MATRIX[name], name="release", namespace="space")
    texts = [text for path, text in sorted(files.items()) if not path.endswith("NOTES.txt")]
    return [one for text in texts for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]


def render(name: str = "defaults") -> Objects:
    return copy.deepcopy(_rendered(name))


def of_kind(objects: Objects, kind: str) -> Objects:
    return [one for one in objects if one["kind"] == kind]


def service(objects: Objects) -> dict[str, Any]:
    (one,) = of_kind(objects, "RayService")
    return one["spec"]


def templates(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod template with its component: head, worker or test."""
    ray = service(objects)["rayClusterConfig"]
    yield "head", ray["headGroupSpec"]["template"]
    for group in ray["workerGroupSpecs"]:
        yield "worker", group["template"]
    for pod in of_kind(objects, "Pod"):
        yield "test", {"metadata": pod["metadata"], "spec": pod["spec"]}


def containers(objects: Objects) -> Iterator[dict[str, Any]]:
    for _, template in templates(objects):
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]
    options = service(objects)["rayClusterConfig"].get("autoscalerOptions")
    if options is not None:
        yield {"name": "autoscaler", **options}


def workers(objects: Objects) -> Objects:
    return [template["spec"] for component, template in templates(objects) if component == "worker"]


def serve_config(objects: Objects) -> dict[str, Any]:
    return yaml.safe_load(service(objects)["serveConfigV2"])


@functools.cache
def _validate_core(text: str) -> None:
    kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)


def validate_core(one: dict[str, Any]) -> None:
    """Validate an object of Kubernetes itself; objects that cases share are validated once."""
    _validate_core(json.dumps(one, sort_keys=True))


def validate_object(one: dict[str, Any]) -> None:
    """Validate an object of Kubernetes itself or of a known custom kind."""
    if one["kind"] in CUSTOM:
        jsonschema.Draft202012Validator({"$ref": f"#/$defs/{one['kind']}", "$defs": CUSTOM}).validate(one)
    else:
        validate_core(one)


@pytest.fixture(autouse=True, scope="module")
def schemas_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_utils, "schema_contents", functools.cache(kubernetes_utils.schema_contents))
        yield


every_case = pytest.mark.parametrize("case", MATRIX)


# ------------------------------------------------------------------------------------------ schemas


@every_case
def test_the_chart_has_no_lint_findings(case: str) -> None:
    report = helm_python.lint(CHART, MATRIX[case], strict=True)
    assert report["errors"] == []
    assert [one["error"] for one in report["messages"]] == ["icon is recommended"]


@every_case
def test_every_object_matches_its_schema(case: str) -> None:
    for one in render(case):
        validate_object(one)
    spec = service(render(case))
    for _, template in templates(render(case)):
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod"}}
        validate_core(pod)
    validate_core({"apiVersion": "v1", "kind": "Service", **spec["serveService"]})
    options = spec["rayClusterConfig"].get("autoscalerOptions")
    if options is not None:
        fields = ("env", "resources", "securityContext", "volumeMounts")
        container = {"name": "autoscaler", **{name: options[name] for name in fields}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [container]}}
        validate_core(pod)


def test_the_schemas_refuse_what_is_wrong() -> None:
    (one,) = of_kind(render(), "RayService")
    one["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft202012Validator({"$ref": "#/$defs/RayService", "$defs": CUSTOM}).validate(one)
    (pod,) = of_kind(render(), "Pod")
    pod["spec"]["containers"][0]["securityContext"]["runAsNonroot"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="runAsNonroot"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
@every_case
def test_the_serve_config_is_valid_for_serve_and_for_the_application(case: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = serve_config(render(case))
    (application,) = ServeDeploySchema.model_validate(config).applications
    settings = parse_settings(application.args)
    settings.keys.check(loopback=False)
    values = chart().merge_values(MATRIX[case])
    assert settings.bundle == ("demo" if values["bundle"]["source"] == "demo" else settings.bundle)
    for name, root in (("bundle", "/bundles"), ("base_model", "/models")):
        part = values["bundle" if name == "bundle" else "model"]
        expected = "demo" if part["source"] == "demo" else "/".join(filter(None, [root, part["path"]]))
        assert getattr(settings, name) == expected
    for section, fields in MATRIX[case].get("settings", {}).items():
        given = getattr(settings, section).model_dump()
        assert {name: given[name] for name in fields} == fields
    if values["otlp"]["enabled"]:
        assert settings.telemetry.traces == values["otlp"]["endpoint"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"unknown": 1}, "unknown"),
        ({"cpu": {"replica": 1}}, "replica"),
        ({"drainSeconds": "60"}, "/drainSeconds"),
        ({"drainSeconds": 0}, "/drainSeconds"),
        ({"fullnameOverride": "1st"}, "/fullnameOverride"),
        ({"upgrade": {"strategy": "Rolling"}}, "/upgrade/strategy"),
        ({"images": {"cpu": {"digest": "sha256:12"}}}, "/images/cpu/digest"),
        ({"settings": {"bundle": "/bundles"}}, "bundle"),
        ({"settings": {"keys": {"open": True}}}, "keys"),
        ({"settings": {"scaling": {"graceful_shutdown_timeout_s": 5}}}, "graceful_shutdown_timeout_s"),
        ({"settings": {"telemetry": {"traces": "http://c.example"}}}, "traces"),
        ({"settings": {"engine": {"dtyp": "auto"}}}, "dtyp"),
        ({"settings": {"engine": {"kind": "mock", "dtype": "auto"}}}, "dtype"),
        ({"settings": {"scaling": {"max_replicas": 0}}}, "/settings/scaling/max_replicas"),
        ({"model": {"source": "web"}}, "/model/source"),
        ({"model": {"source": "claim", "claim": "m"}}, "/model/sha256"),
        ({"model": {"source": "claim", **HASHED}}, "/model/claim"),
        ({"model": {"source": "image", **HASHED}}, "/model/image"),
        ({"bundle": {"source": "command", **HASHED}}, "/bundle/command/command"),
        ({"bundle": {"source": "claim", "claim": "b", "sha256": {"a": "1"}}}, "/bundle/sha256/a"),
        ({"bundle": {"source": "claim", "claim": "b", "sha256": {"../a": DIGEST}}}, "../a"),
        ({"bundle": {"source": "claim", "claim": "b", "path": "/b", "sha256": {"a": DIGEST}}}, "/bundle/path"),
        ({"keys": {"open": True}}, "/keys"),
        ({"keys": {"existingSecret": ""}}, "/keys"),
        ({"autoscaler": {"enabled": True}}, "/networkPolicy/apiServer/cidrs"),
        ({"gcsFaultTolerance": {"enabled": True}}, "/gcsFaultTolerance/redisAddress"),
        ({"otlp": {"enabled": True}}, "/otlp/endpoint"),
        ({"ingress": {"enabled": True, "host": "a.example"}}, "/ingress/tls/secretName"),
        ({"httpRoute": {"enabled": True}}, "/httpRoute/parentRefs"),
        ({"networkPolicy": {"clients": [{}]}}, "/networkPolicy/clients/0"),
        ({"networkPolicy": {"dns": []}}, "/networkPolicy/dns"),
        ({"networkPolicy": {"extraEgress": [{"ports": [{"port": 443}]}]}}, "/networkPolicy/extraEgress/0"),
    ],
)
def test_the_schema_refuses_wrong_values_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(named)):
        chart().validate_schema(values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"cpu": {"enabled": False}}, "cpu.enabled or gpu.enabled must be true"),
        ({"settings": {"scaling": {"num_gpus": 1}}}, "gpu.enabled must be true"),
        ({"gpu": {"enabled": True}}, "settings.scaling.num_gpus must be from 1 to gpu.count = 1"),
        ({"cpu": {"replicas": 9}}, "cpu.replicas must be from minReplicas = 1 to maxReplicas = 4, got 9"),
        ({"upgrade": {"strategy": "NewClusterWithIncrementalUpgrade"}}, "autoscaler.enabled must be true"),
        (
            {**MATRIX["incremental upgrade"], **MATRIX["ingress"]},
            "ingress.enabled and httpRoute.enabled must be false",
        ),
    ],
)
def test_rendering_refuses_values_that_contradict_each_other(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(named)):
        chart().render(values, name="release", namespace="space")


def test_the_schema_knows_exactly_the_values() -> None:
    schema = chart().schema
    assert schema is not None

    def compare(values: dict[str, Any], known: dict[str, Any], path: str) -> None:
        while "$ref" in known:
            known = schema["$defs"][known["$ref"].rpartition("/")[2]]
        if "properties" not in known:
            return
        assert known["additionalProperties"] is False, path
        assert set(values) == set(known["properties"]) - {"global"}, path
        for name, value in values.items():
            if isinstance(value, dict) and name != "settings":
                compare(value, known["properties"][name], f"{path}/{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), schema, "")


def test_every_value_has_a_comment() -> None:
    """A comment stands above a value, or above the section that one comment explains."""
    commented: dict[int, bool] = {}
    above = False
    for line in (CHART / "values.yaml").read_text("utf-8").splitlines():
        text = line.strip()
        if not text:
            above = False
        elif text.startswith("#"):
            above = True
        elif match := re.match(r"( *)(\w+):", line):
            depth = len(match[1])
            commented[depth] = above
            parents = [explained for other, explained in commented.items() if other <= depth]
            assert any(parents) or line.endswith(":") or depth > 0, line
            commented = {other: explained for other, explained in commented.items() if other <= depth}


# ----------------------------------------------------------------------------------------- security


@every_case
def test_every_container_is_restricted(case: str) -> None:
    objects = render(case)
    for _, template in templates(objects):
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] >= 10_000  # no user of a host
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"])
        assert not any("hostPath" in volume for volume in template["spec"].get("volumes", []))
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }, container["name"]
        assert set(container["resources"]) == {"requests", "limits"}, container["name"]
        if not container["name"].startswith("verify-"):  # writes nothing
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], container["name"]


@every_case
def test_only_the_autoscaler_has_a_token(case: str) -> None:
    objects = render(case)
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    names = {account["metadata"]["name"] for account in of_kind(objects, "ServiceAccount")}
    for component, template in templates(objects):
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["serviceAccountName"] in names
        tokens = {volume["name"] for volume in template["spec"]["volumes"] if "projected" in volume}
        assert tokens == ({"api-token"} if component == "head" and "autoscaler" in MATRIX[case] else set())
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            assert not tokens & {mount["name"] for mount in container.get("volumeMounts", [])}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    fits = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        fits = fits and labels.get(one["key"]) in one["values"]
    return fits


def egress(objects: Objects, labels: dict[str, str]) -> Objects:
    """Return the egress rules of all policies that select a pod with these labels."""
    policies = [one["spec"] for one in of_kind(objects, "NetworkPolicy")]
    selecting = [one for one in policies if matches(one["podSelector"], labels)]
    assert selecting
    assert any("Egress" in one["policyTypes"] for one in selecting)
    return [rule for one in selecting for rule in one.get("egress", [])]


@every_case
def test_policies_deny_both_directions_except_to_named_peers_and_ports(case: str) -> None:
    objects = render(case)
    policies = of_kind(objects, "NetworkPolicy")
    assert bool(policies) == (case != "no policies")
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                assert rule[peers], "an empty list of peers means everybody"
                assert all(rule[peers]), "an empty peer means everybody"
                assert rule["ports"], "an empty list of ports means every port"
    if policies:
        (deny,) = [one["spec"] for one in policies if one["metadata"]["name"].endswith("-deny")]
        assert not {"ingress", "egress"} & set(deny)
        for _, template in templates(objects):
            assert matches(deny["podSelector"], template["metadata"]["labels"])


def test_a_worker_reaches_ray_and_dns_only() -> None:
    objects = render()
    (labels,) = [template["metadata"]["labels"] for name, template in templates(objects) if name == "worker"]
    ray, dns = egress(objects, labels)
    (peer,) = ray["to"]
    assert set(peer) == {"podSelector"}  # pods of this namespace
    reached = [name for name, one in templates(objects) if matches(peer["podSelector"], one["metadata"]["labels"])]
    assert reached == ["head", "worker"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert dns["to"] == chart().values["networkPolicy"]["dns"]


@pytest.mark.parametrize(
    ("case", "component", "port"),
    [
        ("redis", "head", 6399),
        ("autoscaler", "head", 6443),
        ("traces", "worker", 4318),
        ("commands", "worker", 443),
    ],
)
def test_a_named_destination_is_open_to_the_pods_that_need_it(case: str, component: str, port: int) -> None:
    open_for = {
        name
        for name, template in templates(render(case))
        for rule in egress(render(case), template["metadata"]["labels"])
        if port in [one["port"] for one in rule["ports"]]
    }
    assert component in open_for
    assert "test" not in open_for
    if component == "head" or case == "commands":
        assert open_for == {component}


def test_ray_listens_on_ports_that_the_policies_open() -> None:
    objects = render()
    (policy,) = [one for one in of_kind(objects, "NetworkPolicy") if one["metadata"]["name"] == "release-ray"]
    ranges = [(port["port"], port.get("endPort", port["port"])) for port in policy["spec"]["ingress"][0]["ports"]]
    ray = service(objects)["rayClusterConfig"]
    for group in [ray["headGroupSpec"], *ray["workerGroupSpecs"]]:
        ports = {name: int(value) for name, value in group["rayStartParams"].items() if name.endswith("port")}
        assert len(ports) == 8
        for name, port in ports.items():
            inside = any(low <= port <= high for low, high in ranges)
            assert inside == (name != "metrics-export-port"), name
    workers_range = (int(group["rayStartParams"]["min-worker-port"]), int(group["rayStartParams"]["max-worker-port"]))
    assert workers_range in ranges
    from ray.serve._private import constants

    replicas = (constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT, constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT)
    assert replicas in ranges


def test_keys_come_from_a_secret_that_can_change() -> None:
    (worker,) = workers(render())
    mounts = {mount["name"]: mount for mount in worker["containers"][0]["volumeMounts"]}
    assert "subPath" not in mounts["keys"]  # the kubelet never updates a subPath
    assert mounts["keys"]["readOnly"] is True
    (volume,) = [one for one in worker["volumes"] if one["name"] == "keys"]
    file = f"{mounts['keys']['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert serve_config(render())["applications"][0]["args"]["keys"] == {"file": file}
    assert not any(volume["name"] == "keys" for volume in workers(render("open"))[0]["volumes"])


# ------------------------------------------------------------------------------------ start and end


@pytest.mark.parametrize("case", ["defaults", "names", "both groups"])
def test_one_value_is_the_drain_time_everywhere(case: str) -> None:
    objects = render(case)
    seconds = MATRIX[case].get("drainSeconds", 60)
    (application,) = serve_config(objects)["applications"]
    assert application["args"]["scaling"]["graceful_shutdown_timeout_s"] == seconds
    grace = {
        template["spec"]["terminationGracePeriodSeconds"] for name, template in templates(objects) if name != "test"
    }
    assert grace == {seconds + 30}
    assert service(objects)["rayClusterDeletionDelaySeconds"] == seconds + 30
    for worker in workers(objects):
        command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["bash", "/etc/del-serve-scripts/drain.sh", str(seconds)]


def test_the_budget_covers_the_serving_pods() -> None:
    objects = render()
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    selector = budget["spec"]["selector"]
    covered = [name for name, template in templates(objects) if matches(selector, template["metadata"]["labels"])]
    assert covered == ["worker"]


@pytest.fixture
def node(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory like /proc with one raylet, and an environment whose `ray` records arguments."""
    process = tmp_path / "proc/17"
    process.mkdir(parents=True)
    (process / "cmdline").write_bytes(b"raylet\0--raylet_socket_name=x\0--node_id=0a1b\0")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "ray").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    (binaries / "ray").chmod(0o755)
    environment = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PROC": str(tmp_path / "proc"),
        "RAY_ADDRESS": "head:6379",
    }
    return process, environment


@pytest.mark.parametrize("zombie", [False, True])
def test_drain_waits_until_the_node_has_stopped(
    node: tuple[Path, dict[str, str]], tmp_path: Path, zombie: bool
) -> None:
    process, environment = node
    end = (
        functools.partial((process / "cmdline").write_bytes, b"")
        if zombie
        else functools.partial(shutil.rmtree, process)
    )
    stop = threading.Timer(0.5, end)
    stop.start()
    began = time.monotonic()
    subprocess.run(["bash", CHART / "files/drain.sh", "30"], env=environment, check=True, timeout=20)
    assert 0.5 <= time.monotonic() - began < 10
    called = (tmp_path / "called").read_text()
    assert called.startswith("drain-node --address head:6379 --node-id 0a1b --reason DRAIN_NODE_REASON_PREEMPTION")
    assert "--deadline-remaining-seconds 30" in called
    shutil.rmtree(tmp_path / "proc")
    (tmp_path / "called").unlink()
    subprocess.run(["bash", CHART / "files/drain.sh", "30"], env=environment, check=True, timeout=20)
    assert not (tmp_path / "called").exists()


def test_drain_ends_in_time(node: tuple[Path, dict[str, str]]) -> None:
    began = time.monotonic()
    subprocess.run(["bash", CHART / "files/drain.sh", "1"], env=node[1], check=True, timeout=20)
    assert 1 <= time.monotonic() - began < 5


def test_ray_has_the_options_that_drain_uses() -> None:
    from ray.scripts.scripts import drain_node

    options = {option for parameter in drain_node.params for option in parameter.opts}
    used = set(re.findall(r"--(?:address|node-id|reason-message|reason|deadline-remaining-seconds)\b", DRAIN))
    assert used <= options
    assert len(used) == 5
    (reason,) = [parameter for parameter in drain_node.params if parameter.name == "reason"]
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices


DRAIN = (CHART / "files/drain.sh").read_text("utf-8")


@pytest.mark.parametrize("case", ["existing claims", "new claims", "image volumes", "commands"])
def test_files_are_verified_before_ray_starts(case: str, tmp_path: Path) -> None:
    objects = render(case)
    (files,) = [one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == "release-files"]
    (worker,) = workers(objects)
    names = [container["name"] for container in worker["initContainers"]]
    fetched = ["fetch-model", "verify-model", "fetch-bundle", "verify-bundle"]
    assert names == (fetched if case == "commands" else fetched[1::2])
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    for name in HASHED["sha256"]:
        (directory / name).write_bytes(b"x")
    sums = tmp_path / "sums"
    sums.write_text(files["data"]["model.sha256"])
    (verify,) = [container for container in worker["initContainers"] if container["name"] == "verify-model"]
    *command, verified, listed = verify["command"]
    assert (verified, listed) == ("/models/some/model", "/checksums/model")
    run = functools.partial(subprocess.run, [*command, directory, sums], capture_output=True, text=True, check=False)
    assert run().returncode == 0
    (directory / "sub/config.json").write_bytes(b"y")
    assert run().returncode == 1
    assert "sub/config.json: FAILED" in run().stdout
    (directory / "sub/config.json").unlink()
    assert run().returncode == 1
    # What was verified is what the server reads, and it cannot change it.
    mounts = {mount["name"]: mount for mount in worker["containers"][0]["volumeMounts"]}
    for name, path in (("model", "/models"), ("bundle", "/bundles")):
        assert mounts[name] == {"name": name, "mountPath": path, "readOnly": True}


def test_a_changed_checksum_replaces_the_pods() -> None:
    def annotations(digest: str) -> dict[str, str]:
        values = {"model": {"source": "claim", "claim": "m", "sha256": {"a": digest}}}
        text = chart().render(values, name="r", namespace="n")["del-serve/templates/rayservice.yaml"]
        group = yaml.safe_load(text)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        return group["template"]["metadata"]["annotations"]

    assert annotations(DIGEST) == annotations(DIGEST)
    assert annotations(DIGEST) != annotations("0" * 64)


# ----------------------------------------------------------------------------- environment and more


@every_case
def test_every_ray_container_has_the_environment_of_a_cluster(case: str) -> None:
    expected = cluster_environment()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):  # by KubeRay, from authOptions
        del expected[name]
    assert service(render(case))["rayClusterConfig"]["authOptions"]["mode"] == "token"
    for component, template in templates(render(case)):
        if component != "test":
            (container,) = template["spec"]["containers"]
            found = {one["name"]: one.get("value") for one in container["env"]}
            assert expected.items() <= found.items()
            assert len(found) == len(container["env"])
            assert ("OTEL_EXPORTER_OTLP_HEADERS" in found) == (case == "traces")


@pytest.mark.parametrize(("case", "count"), [("gpu", {"gpu"}), ("both groups", {"cpu", "gpu"}), ("defaults", {"cpu"})])
def test_gpus_belong_to_the_gpu_group(case: str, count: set[str]) -> None:
    groups = service(render(case))["rayClusterConfig"]["workerGroupSpecs"]
    assert {group["groupName"] for group in groups} == count
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(group["groupName"])
        for amounts in container["resources"].values():
            assert amounts.get("nvidia.com/gpu") == (1 if group["groupName"] == "gpu" else None)
        assert (group["minReplicas"], group["maxReplicas"]) == (group["replicas"],) * 2


def test_the_autoscaler_has_its_bounds() -> None:
    ray = service(render("autoscaler"))["rayClusterConfig"]
    assert ray["enableInTreeAutoscaling"] is True
    assert ray["autoscalerOptions"]["version"] == "v2"
    (group,) = ray["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 4)
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_rays_autoscaler_reads_the_chart_as_it_reads_a_local_cluster() -> None:
    """The same bounds and the same idle timeout, from `delctl up` and from the chart's values."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    ray = service(render("autoscaler with bounds"))["rayClusterConfig"]
    kuberay = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "x"}, "spec": ray})
    local = Nodes(minimum=3, maximum=7, idle_timeout_s=90.0).autoscaler_config("127.0.0.1:1")
    read = [AutoscalingConfig(config, skip_content_hash=True) for config in (kuberay, local)]
    assert read[0].get_idle_timeout_s() == read[1].get_idle_timeout_s() == 90.0
    assert read[0].get_max_num_worker_nodes() == read[1].get_max_num_worker_nodes() == 6
    groups = [one.get_node_type_configs()[name] for one, name in zip(read, ("cpu", "worker"), strict=True)]
    assert {(group.min_worker_nodes, group.max_worker_nodes) for group in groups} == {(2, 6)}


def test_pods_say_whether_they_may_be_evicted() -> None:
    key = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    for case, worker in (("defaults", "false"), ("names", "true")):
        found = {name: one["metadata"]["annotations"].get(key) for name, one in templates(render(case))}
        assert found == {"head": "false", "worker": worker, "test": None}


@pytest.mark.parametrize("case", ["ingress", "ingress with cert-manager", "route", "route for any host", "names"])
def test_traffic_goes_to_the_service_that_kuberay_keeps(case: str) -> None:
    objects = render(case)
    name = service(objects)["serveService"]["metadata"]["name"]
    assert name == f"{'private-lm' if case == 'names' else 'release'}-serve-svc"
    for ingress in of_kind(objects, "Ingress"):
        (rule,) = ingress["spec"]["rules"]
        assert rule["http"]["paths"][0]["backend"]["service"] == {"name": name, "port": {"number": 8000}}
        assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "del-tls"}]
        issuer = ingress["metadata"]["annotations"].get("cert-manager.io/cluster-issuer")
        assert issuer == ("issuer" if case == "ingress with cert-manager" else None)
    for route in of_kind(objects, "HTTPRoute"):
        assert route["spec"]["rules"][0]["backendRefs"] == [{"name": name, "port": 8000}]
    (pod,) = of_kind(objects, "Pod")
    assert {"name": "DEL_URL", "value": f"http://{name}:8000"} in pod["spec"]["containers"][0]["env"]


@pytest.mark.parametrize("case", ["defaults", "open"])
def test_the_test_pod_asks_for_a_private_completion(case: str, tmp_path: Path) -> None:
    from del_core import demo
    from del_core.bundle import load_bundle
    from delctl.commands.ask import ask

    (pod,) = of_kind(render(case), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    asked = container["args"] if case == "defaults" else container["command"]
    program, command, *arguments = asked
    assert (program, command) == ("delctl", "ask")
    values = ask.make_context("ask", arguments).params
    assert values["variant"] in load_bundle(demo.bundle_path()).variants
    assert values["variant"] != "clear"
    if case == "defaults":  # the key comes from the file of the secret
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "key"]
        assert volume["secret"]["items"] == [{"key": "api-key", "path": "api-key"}]
        (tmp_path / "api-key").write_text("del-secret\n")
        shell = [one.replace(mounts["key"], str(tmp_path)) for one in container["command"]]
        done = subprocess.run([*shell, "printenv", "DEL_API_KEY"], capture_output=True, text=True, check=True)
        assert done.stdout == "del-secret\n"


def test_alerts_name_metrics_that_exist() -> None:
    (rule,) = of_kind(render("monitoring"), "PrometheusRule")
    alerts = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    assert [one["alert"] for one in alerts] == [one.name for one in ALERTS]
    ours = {f"ray_{one.name}{'_total' if one.kind == 'counter' else ''}" for one in METRICS.values()}
    used = {name.removesuffix("_bucket") for one in alerts for name in re.findall(r"\bray_\w+", one["expr"])}
    assert used - ours == {
        "ray_serve_autoscaling_target_replicas",
        "ray_serve_deployment_replica_healthy",
        "ray_serve_deployment_replica_starts_total",
    }
    for one in alerts:
        assert set(one["annotations"]) == {"summary", "description"}
        assert one["labels"]["severity"] in {"warning", "critical"}


def test_monitoring_finds_the_pods_and_holds_the_dashboard() -> None:
    objects = render("monitoring")
    (monitor,) = of_kind(objects, "PodMonitor")
    found = [
        name for name, one in templates(objects) if matches(monitor["spec"]["selector"], one["metadata"]["labels"])
    ]
    assert found == ["head", "worker"]
    (board,) = [one for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"].endswith("-dashboard")]
    assert json.loads(board["data"]["del-serve.json"]) == json.loads(
        (ROOT / "cluster/monitoring/dashboard.json").read_text("utf-8")
    )
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


# -------------------------------------------------------------------------------------- other files


@functools.cache
def script() -> ModuleType:
    return importlib.import_module("scripts.manifests")


def test_generated_files_of_the_chart_are_current() -> None:
    assert script().update(script().chart_files(), check=True) == []


def test_plain_manifests_are_current() -> None:
    files = dict(script().plain_manifests())
    assert sorted(path.name for path in files) == ["del-serve-cpu.yaml", "del-serve-gpu.yaml"]
    assert script().update(files, check=True) == []
    for text in files.values():
        kinds = [one["kind"] for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]
        assert kinds.count("RayService") == 1
        assert "Pod" not in kinds  # of `helm test`


def test_the_argo_cd_example_uses_the_chart() -> None:
    application = yaml.safe_load((ROOT / "examples/kubernetes/argocd.yaml").read_text("utf-8"))
    source = application["spec"]["source"]
    assert ROOT / source["path"] == CHART
    chart().validate_schema(source["helm"]["valuesObject"])
    assert chart().render(source["helm"]["valuesObject"], name=source["helm"]["releaseName"], namespace="n")


def test_the_chart_has_the_version_of_the_project() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    metadata = chart().metadata
    assert metadata["appVersion"] == metadata["version"] == version.removesuffix(".dev0")
