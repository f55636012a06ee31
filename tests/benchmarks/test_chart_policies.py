"""Objects and counts of the comparison of charts; checkov itself is not installed for tests."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chart_policies import OURS, objects_of, policies_of


def test_the_pods_of_a_ray_cluster_are_judged_too() -> None:
    objects = objects_of(OURS, {"cpu": {"replicas": 1}})
    pods = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Pod"}
    assert set(pods) == {"release-test", "release-head", "release-cpu"}
    (service,) = (one for one in objects if one["kind"] == "RayService")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert pods["release-cpu"]["spec"] == group["template"]["spec"]
    assert pods["release-cpu"]["metadata"]["labels"] == group["template"]["metadata"]["labels"]


def test_dependencies_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/one.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    metadata = (
        "apiVersion: v2\nname: other\nversion: 1.0.0\ndependencies: [{name: x, version: 1.0.0, repository: oci://h}]\n"
    )
    (tmp_path / "Chart.yaml").write_text(metadata)
    assert [one["kind"] for one in objects_of(tmp_path, {})] == ["Service"]
    assert (tmp_path / "Chart.yaml").read_text() == metadata


def test_a_policy_that_one_object_fails_is_not_passed() -> None:
    checks = {"passed_checks": ["A", "A", "B"], "failed_checks": ["B", "C"]}
    report = {"results": {kind: [{"check_id": one} for one in ids] for kind, ids in checks.items()}}
    expected = {"checks_passed": 3, "checks_failed": 2, "policies_passed": 1, "policies_failed": 2}
    assert policies_of(report) == expected
