"""Config files with several applications, and their refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.local.server import applications_to_json, grace_period_s, required_cpus
from deployments.settings import (
    DEFAULT_NAME,
    ServedApplication,
    Settings,
    SettingsError,
    as_applications,
    load_config,
    parse_settings,
)


def entry(name: str, **values: object) -> dict[str, object]:
    return {"name": name, "route_prefix": f"/{name}", "import_path": "deployments.app:build", **values}


def written(directory: Path, *entries: object, **others: object) -> Path:
    file = directory / "models.yaml"
    file.write_text(yaml.safe_dump({**others, "applications": list(entries)}))
    return file


def test_a_file_of_settings_is_one_application(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("scaling: {max_replicas: 4}\n")
    settings = load_config(file)
    assert isinstance(settings, Settings)
    (one,) = as_applications(settings)
    assert (one.name, one.route_prefix, one.path, one.settings.scaling.max_replicas) == (DEFAULT_NAME, "/", "", 4)


def test_places_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "one.yaml").write_text("{bundle: b, base_model: m, keys: {file: keys.yaml}}")
    file = written(
        tmp_path, entry("one", args={"config": "there/one.yaml"}), entry("two", args={"bundle": "b", "base_model": "m"})
    )
    served = load_config(file)
    assert isinstance(served, tuple)
    one, two = served
    assert (one.path, two.path) == ("/one", "/two")
    assert one.settings.bundle_path == tmp_path / "there" / "b"
    assert one.settings.keys.file == str(tmp_path / "there" / "keys.yaml")
    assert two.settings.base_model_path == tmp_path / "m"


def test_what_the_file_says_of_the_cluster_is_passed_over(tmp_path: Path) -> None:
    """The same file is for ``serve deploy``, which reads these sections."""
    others = {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0"}, "logging_config": {}}
    served = load_config(written(tmp_path, entry("one", args={}), **others))
    assert isinstance(served, tuple)
    assert [one.name for one in served] == ["one"]


@pytest.mark.parametrize(
    ("entries", "others", "words"),
    [
        ([], {}, "applications must hold at least one"),
        ([entry("a"), entry("a")], {}, "name must be unique .*, got a more than once"),
        (
            [entry("a", route_prefix="/x"), entry("b", route_prefix="/x")],
            {},
            "route_prefix must be unique",
        ),
        ([entry("a", route_prefix="x")], {}, r"applications\.0\.route_prefix must match pattern .*, got 'x'"),
        ([entry("a", route_prefix="/x/")], {}, r"applications\.0\.route_prefix must .*, got '/x/'"),
        ([entry("a b")], {}, r"applications\.0\.name must .*, got 'a b'"),
        ([entry("a", import_path="other:app")], {}, "deployments.app:build"),
        ([entry("a", args={"config": "a.yaml", "bundle": "b"})], {}, "the path of a file"),
        ([entry("a", args={"config": "a.yaml"})], {}, "a.yaml must be readable"),
        ([entry("a", args={"scaling": {"replicas": 2}})], {}, "a: args: scaling.replicas"),
        ([entry("a", runtime_env={})], {}, "runtime_env"),
        ([entry("a")], {"scaling": {}}, "scaling"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, entries: list[object], others: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_config(written(tmp_path, *entries, **others))
    assert str(tmp_path) in str(caught.value)


def test_the_cluster_has_room_for_all_of_them() -> None:
    """With one more replica of each for replacements."""
    values = [(3, 1.0, 20), (2, 0.5, 90)]
    served = [
        ServedApplication(
            str(index),
            f"/{index}",
            parse_settings({"scaling": {"max_replicas": most, "num_cpus": cpus, "graceful_shutdown_timeout_s": grace}}),
        )
        for index, (most, cpus, grace) in enumerate(values)
    ]
    assert required_cpus(served, 0) == 3 + 1 + 2
    assert required_cpus(served, 1) == 2 + 1
    assert grace_period_s(served) == 90
    assert [one["settings"]["scaling"]["max_surge_percent"] for one in applications_to_json(served, 1)] == [0, 0]
