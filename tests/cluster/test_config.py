"""Packaged config files are valid, and the guide lists the environment of a cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cluster.config.env import VARIABLES, cluster_environment, local_environment
from deployments.settings import load_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cluster/config").glob("*.yaml"))


def test_there_is_a_file_for_each_kind_of_cluster() -> None:
    names = ["gpu-cluster", "laptop", "one-gpu", "several-bundles", "several-models"]
    assert [file.stem for file in FILES] == names


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_are_valid_for_serve_and_for_the_application(file: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    served = load_config(file)
    assert isinstance(served, tuple)
    assert [(one.name, one.route_prefix) for one in served] == [
        (one.name, one.route_prefix) for one in schema.applications
    ]
    for one in served:
        one.settings.keys.check(loopback=False)


def test_the_docs_list_the_environment_of_a_cluster() -> None:
    page = (ROOT / "docs/guides/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Za-z_]+)=([^`]+)` \| [^|]+ \|$", page, flags=re.MULTILINE)
    assert dict(rows) == cluster_environment()
    assert len(rows) == len(cluster_environment())


def test_each_variable_has_one_entry_and_a_reason() -> None:
    assert len({one.name for one in VARIABLES}) == len(VARIABLES)
    assert all(one.reason for one in VARIABLES)
    assert not set(local_environment(haproxy=True)) & set(local_environment(haproxy=False))
