"""Settings: defaults, files, refusals by field."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from del_core import demo
from deployments.engines import ENGINES
from deployments.engines.mock import MockSettings
from deployments.engines.vllm.engine import VllmSettings, engine_environment
from deployments.settings import EngineSettings, Settings, SettingsError, load_settings, parse_settings

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
        ({"engine": {"kind": "other"}}, "engine.kind must be one of .*, got 'other'"),
        ({"engine": {"kind": 3}}, "engine.kind must be .*, got 3"),
        ({"engine": {"kind": "mock", "dtype": "float32"}}, "engine.dtype must be left out"),
        ({"engine": {"stand_in": {"step_ms": 0}}}, "engine.step_ms must be .*, got 0"),
        ({"engine": {"max_num_seq": 4}}, "engine.max_num_seq"),
        ({"engine": {"dtype": "float8"}}, "engine.dtype must be .*, got 'float8'"),
        ({"engine": {"threads": 0}}, "engine.threads must be .*, got 0"),
        ({"engine": {"block_size": 128}}, "engine.block_size must be .*, got 128"),
        (
            {"scaling": {"min_replicas": 3, "max_replicas": 2}},
            "scaling.max_replicas must be at least min_.* = 3, got 2",
        ),
        ({"scaling": {"max_replicas": 0}}, "scaling.max_replicas"),
        (
            {"scaling": {"look_back_period_s": 0.5}},
            "look_back_period_s must be greater than .* = 0.5, got 0.5",
        ),
        ({"scaling": {"target_ongoing_requests": float("nan")}}, "scaling.target_ongoing_requests"),
        ({"streaming": {"max_delay_s": -1}}, "streaming.max_delay_s must be .*, got -1"),
        ({"http": {"max_frame_bytes": "many"}}, "http.max_frame_bytes must be .*, got 'many'"),
        ({"bundle": "somewhere"}, "base_model must be .*, got null"),
        ({"engine": 3, "http": 4}, "engine must be .*, got 3; http must be .*, got 4"),
    ],
)
def test_refusals_name_the_field(values: dict[str, Any], where: str) -> None:
    with pytest.raises(SettingsError, match=where):
        parse_settings(values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a: [1", "line"), ("- 1\n", "got a list"), ("engine: {threads: x}", "engine.threads"), ("\x00", "must be YAML")],
)
def test_malformed_files_name_the_file(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_former_spellings_stay_valid() -> None:
    """Former spellings: ``engine.stand_in`` beside fields of vLLM, and ``also``."""
    former = parse_settings({"engine": {"stand_in": {"step_ms": 2}, "max_num_seqs": 8, "threads": 2}, "also": ["a"]})
    engine = {"kind": "mock", "step_ms": 2, "max_num_seqs": 8}
    assert former == parse_settings({"engine": engine, "extra_bundles": ["a"]})
    assert isinstance(former.engine, MockSettings)
    assert parse_settings(former.model_dump(mode="json")) == former
    assert parse_settings({"engine": {"stand_in": None}}) == Settings()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.yaml must be readable"):
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
    environment = engine_environment(VllmSettings(threads=3))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_nothing_is_compiled_on_cpus_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling = "TORCH_COMPILE_DISABLE"
    assert engine_environment(VllmSettings())[compiling] == "1"
    assert compiling not in engine_environment(VllmSettings(enforce_eager=False))
    monkeypatch.setattr("deployments.engines.vllm.engine.is_cpu_build", lambda: False)
    assert compiling not in engine_environment(VllmSettings())


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def fields_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every field with its default, nested sections included, except the engine's."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if isinstance(value, EngineSettings):
            continue
        optional = next((one for one in typing.get_args(field.annotation) if _is_section(one)), None)
        if value is None and optional is not None:
            found |= fields_of(optional, f"{prefix}{name}.")
        if isinstance(value, BaseModel):
            found |= fields_of(type(value), f"{prefix}{name}.")
        else:
            assert field.description, name
            found[f"{prefix}{name}"] = value
    return found


def test_every_field_is_documented() -> None:
    """docs/reference/configuration.md has a row for every field, in a table for each kind."""
    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^##+ ([^\n]*)$(.*?)(?=^##|\Z)", page, flags=re.MULTILINE | re.DOTALL))

    def rows(text: str) -> dict[str, str]:
        return dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \|", text, flags=re.MULTILINE))

    def check(found: dict[str, str], expected: dict[str, Any]) -> None:
        assert set(found) == set(expected)
        for name, value in expected.items():
            default = "null" if value is None else yaml.safe_dump(value).split("\n")[0]
            assert found[name].strip().strip("`") == default, name

    general = fields_of(EngineSettings, "engine.")
    check(rows(sections["Engine"]), general)
    headings = {"vllm": "vLLM", "mock": "Mock engine"}
    assert set(headings) == set(ENGINES)
    for kind, heading in headings.items():
        own = fields_of(ENGINES[kind].settings, "engine.")
        check(rows(sections[heading]), {name: value for name, value in own.items() if name not in general})
    others = [text for heading, text in sections.items() if heading not in ("Engine", *headings.values())]
    check(rows("".join(others)), fields_of(Settings))
