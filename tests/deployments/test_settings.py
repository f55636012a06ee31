"""Settings: defaults, files, and every refusal by the name of its field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from del_core import demo
from deployments.engines.vllm.engine import engine_environment
from deployments.settings import Settings, SettingsError, load_settings, parse_settings

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_are_the_demo() -> None:
    settings = parse_settings({})
    assert settings == Settings()
    assert settings.bundle_path == demo.bundle_path()
    assert settings.base_model_path == demo.model_path()
    assert settings.scaling.max_replicas == 1


def test_file_with_relative_directories(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("bundle: bundles/one\nbase_model: ../model\nengine: {threads: 4}\n")
    settings = load_settings(path)
    assert settings.bundle_path == tmp_path / "bundles" / "one"
    assert settings.base_model_path == (tmp_path / ".." / "model").resolve()
    assert settings.engine.threads == 4
    path.write_text("bundle: demo\n")
    assert load_settings(path).bundle_path == demo.bundle_path()
    path.write_text("")
    assert load_settings(path) == Settings()


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"colour": "red"}, "colour"),
        ({"engine": {"max_num_seq": 4}}, "engine.max_num_seq"),
        ({"engine": {"dtype": "float8"}}, "engine.dtype: is 'float8'"),
        ({"engine": {"threads": 0}}, "engine.threads: is 0"),
        ({"engine": {"block_size": 128}}, "engine.block_size: is 128"),
        ({"scaling": {"min_replicas": 3, "max_replicas": 2}}, "max_replicas is 2; at least min_replicas = 3"),
        ({"scaling": {"max_replicas": 0}}, "scaling.max_replicas"),
        ({"scaling": {"look_back_period_s": 0.5}}, "look_back_period_s is 0.5; more than metrics_interval_s = 0.5"),
        ({"scaling": {"target_ongoing_requests": float("nan")}}, "scaling.target_ongoing_requests"),
        ({"streaming": {"max_delay_s": -1}}, "streaming.max_delay_s: is -1"),
        ({"http": {"max_frame_bytes": "many"}}, "http.max_frame_bytes: is 'many'"),
        ({"bundle": "somewhere"}, "base_model is null"),
        ({"engine": 3, "http": 4}, "engine: is 3.*http: is 4"),
    ],
)
def test_refusals_name_the_field(values: dict[str, Any], where: str) -> None:
    with pytest.raises(SettingsError, match=where):
        parse_settings(values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a: [1", "line"), ("- 1\n", "is a list"), ("engine: {threads: x}", "engine.threads"), ("\x00", "not YAML")],
)
def test_malformed_files_name_the_file(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.yaml: cannot be read"):
        load_settings(tmp_path / "nothing.yaml")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
def test_application_from_settings_and_from_a_file(tmp_path: Path) -> None:
    from deployments.app import DEPLOYMENT, build

    path = tmp_path / "serve.yaml"
    path.write_text(
        "scaling: {min_replicas: 2, max_replicas: 5, max_ongoing_requests: 7, health_check_period_s: 3}\n"
        "keys: {open: true}\n"
    )
    for arguments in ({"config": str(path)}, yaml.safe_load(path.read_text())):
        deployment = build(arguments)._bound_deployment
        assert deployment.name == DEPLOYMENT
        scaling = deployment._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
        assert deployment._deployment_config.health_check_period_s == 3
        # Above the application's own limit, so that the application does the refusing.
        assert deployment._deployment_config.max_ongoing_requests > 7
    with pytest.raises(SettingsError, match="bundle"):
        build({"config": str(path), "bundle": "demo"})
    with pytest.raises(SettingsError, match="colour"):
        build({"colour": "red"})


def test_the_environment_keeps_vllm_quiet_offline_and_unbound() -> None:
    environment = engine_environment(parse_settings({"engine": {"threads": 3}}).engine)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_every_field_is_documented() -> None:
    """docs/reference/configuration.md has a row for every field, with its default."""
    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \|", page, flags=re.MULTILINE))

    def fields(model: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                found |= fields(value, f"{prefix}{name}.")
            else:
                assert field.description, name
                found[f"{prefix}{name}"] = value
        return found

    expected = fields(Settings())
    assert set(rows) == set(expected)
    for name, value in expected.items():
        assert rows[name].strip().strip("`") == ("null" if value is None else yaml.safe_dump(value).split("\n")[0]), (
            name
        )
