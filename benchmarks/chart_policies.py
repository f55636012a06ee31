"""Two Helm charts under checkov's policies for Kubernetes.

    python -m benchmarks.chart_policies --checkov PATH --other CHART [--json]

The charts are this project's and that of vLLM's production-stack, of which CHART is the directory
``helm`` in a clone of https://github.com/vllm-project/production-stack. Each is rendered with its
default values and with its own example for GPUs. checkov is installed in an environment of its own
(``pip install checkov==3.3.30``).

checkov knows no custom resources, so the pods that KubeRay makes from a RayService or RayCluster
are put beside it. Dependencies of a chart, which are other projects, are left out. A policy is
passed if no object of the chart fails it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import yaml

__all__ = ["Policies", "measure", "objects_of", "policies_of"]

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / "cluster/helm/del-serve"
OUR_EXAMPLE = ROOT / "cluster/manifests/values/del-serve-gpu.yaml"
THEIR_EXAMPLE = "values-example.yaml"

Policies = dict[str, int]
"""Checks and policies, passed and failed."""


def objects_of(chart: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Render a chart without its dependencies; add the pods that KubeRay makes."""
    import helm_python

    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / chart.name
        shutil.copytree(chart, copy)
        (copy / "Chart.lock").unlink(missing_ok=True)
        metadata = yaml.safe_load((copy / "Chart.yaml").read_text("utf-8"))
        metadata.pop("dependencies", None)
        (copy / "Chart.yaml").write_text(yaml.safe_dump(metadata), "utf-8")
        with helm_python.Chart.load(copy) as loaded:
            files = loaded.render(values, name="release", namespace="space")
    texts = [text for name, text in sorted(files.items()) if not name.endswith("NOTES.txt")]
    found = [one for text in texts for one in yaml.safe_load_all(text) if one]
    return [*found, *(pod for one in found for pod in _pods(one))]


def _pods(one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a pod of each group of a Ray cluster."""
    if one["kind"] not in ("RayService", "RayCluster"):
        return
    ray = one["spec"].get("rayClusterConfig", one["spec"])
    for group in [{"groupName": "head", **ray["headGroupSpec"]}, *ray.get("workerGroupSpecs", [])]:
        name = f"{one['metadata']['name']}-{group['groupName']}"
        metadata = {"namespace": "space", **group["template"].get("metadata", {}), "name": name}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group["template"]["spec"]}


def policies_of(report: dict[str, Any]) -> Policies:
    """Count the checks and the policies of checkov's report."""
    passed, failed = ([one["check_id"] for one in report["results"][f"{kind}_checks"]] for kind in ("passed", "failed"))
    return {
        "checks_passed": len(passed),
        "checks_failed": len(failed),
        "policies_passed": len(set(passed) - set(failed)),
        "policies_failed": len(set(failed)),
    }


def _checked(checkov: str, objects: Iterable[dict[str, Any]]) -> Policies:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "objects.yaml").write_text(yaml.safe_dump_all(objects), "utf-8")
        command = [checkov, "-d", directory, "--framework", "kubernetes", "-o", "json", "--compact"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # 1: a policy failed
    report = json.loads(done.stdout)
    if report["summary"]["parsing_errors"]:
        raise click.ClickException("checkov could not parse the objects")
    return policies_of(report)


def measure(checkov: str, other: Path) -> dict[str, dict[str, Policies]]:
    """Return the counts of both charts under both sets of values."""
    charts = {"del-serve": (OURS, OUR_EXAMPLE), "production-stack": (other, other / THEIR_EXAMPLE)}
    return {
        name: {
            "default values": _checked(checkov, objects_of(chart, {})),
            "its example": _checked(checkov, objects_of(chart, yaml.safe_load(example.read_text("utf-8")))),
        }
        for name, (chart, example) in charts.items()
    }


@click.command()
@click.option("--checkov", default="checkov", show_default=True, help="The program.")
@click.option("--other", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, metavar="CHART")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(checkov: str, other: Path, as_json: bool) -> None:
    """Count the policies that the charts pass."""
    found = measure(checkov, other)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for chart, cases in found.items():
        for values, counts in cases.items():
            click.echo(f"{chart}, {values}: {counts}")


if __name__ == "__main__":
    main()
