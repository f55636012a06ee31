"""Configuration of the application and of several applications in one cluster.

The same fields come from a YAML file (:func:`load_settings`) or from Serve's ``args``. Several base
models are applications in Serve's own schema (:func:`load_config`). docs/reference/configuration.md
lists every field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from del_core import demo
from del_core.bundle import load_bundle
from deployments.engines import EngineSettings, parse_engine
from deployments.sections import (
    APIKey,
    AuthSettings,
    GatewaySettings,
    HTTPSettings,
    PassSettings,
    QuotaSettings,
    ScalingSettings,
    Section,
    SettingsError,
    StreamingSettings,
    TelemetrySettings,
    format_validation_error,
    parse_keys,
    read_yaml,
)
from deployments.service.storage import check_bundle, check_model, check_url, fetch_bundle, fetch_model, is_url

__all__ = [
    "DEFAULT_NAME",
    "DEMO",
    "APIKey",
    "AuthSettings",
    "EngineSettings",
    "HTTPSettings",
    "KeySettings",
    "KeysSettings",
    "QuotaSettings",
    "ScalingSettings",
    "ServedApplication",
    "Settings",
    "SettingsError",
    "StreamingSettings",
    "TelemetrySettings",
    "absolute_paths",
    "as_applications",
    "check_storage",
    "fetched",
    "load_config",
    "load_settings",
    "parse_keys",
    "parse_settings",
    "resolve_paths",
]

# Former names, kept until 1.0.
KeySettings = APIKey
KeysSettings = AuthSettings

DEMO = "demo"
"""Name of the packaged model or bundle, in place of a directory."""

DEFAULT_NAME = "del-serve"

# Sections of a Serve config file; locally, --host, --port and --proxy replace them.
_CLUSTER_SECTIONS = frozenset({"proxy_location", "http_options", "grpc_options", "logging_config"})


FILES: Mapping[str, tuple[str, ...]] = {
    "keys": ("file",),
    "gateway": ("key_file",),
    "passes": ("key_file", "former_key_file"),
}
"""Fields of sections that name files."""


class Settings(Section):
    """Configuration of one application."""

    bundle: str = DEMO
    """Directory or URL of the bundle, or "demo" for the packaged one."""
    extra_bundles: tuple[str, ...] = Field(
        default=(), max_length=8, validation_alias=AliasChoices("extra_bundles", "also")
    )
    """Other bundles for the same base model, served while one bundle replaces another."""
    base_model: str | None = None
    """Directory or URL of the base model (Hugging Face layout), or "demo"; null for the demo
    bundle."""
    engine: SerializeAsAny[EngineSettings] = Field(default_factory=lambda: parse_engine({}))
    http: HTTPSettings = HTTPSettings()
    keys: AuthSettings = AuthSettings()
    quotas: QuotaSettings = QuotaSettings()
    gateway: GatewaySettings = GatewaySettings()
    passes: PassSettings = PassSettings()
    streaming: StreamingSettings = StreamingSettings()
    scaling: ScalingSettings = ScalingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @field_validator("engine", mode="before")
    @classmethod
    def _engine_of_its_kind(cls, value: object) -> object:
        return parse_engine(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _complete(self) -> Settings:
        if self.base_model is None and self.bundle != DEMO:
            raise ValueError(f"base_model must be the directory of the base model of {self.bundle}, got null")
        for place in (self.bundle, *self.extra_bundles):
            check_url("bundle", place, pinned=True)
        check_url("base_model", self.base_model or DEMO, pinned=False)
        return self

    def check_access(self, *, loopback: bool) -> None:
        """Raise SettingsError if authentication is not configured as it must be.

        Not a part of the validation: replicas get the keys in another way.
        """
        self.keys.check(loopback=loopback)
        if self.passes.key_file is not None and not self.keys.given:
            raise SettingsError("keys.file or keys.names must be given with passes.key_file: keys buy passes")

    @property
    def bundle_path(self) -> Path:
        """Directory of the bundle."""
        return demo.bundle_path() if self.bundle == DEMO else Path(self.bundle)

    @property
    def extra_bundle_paths(self) -> tuple[Path, ...]:
        """Directories of the other bundles."""
        return tuple(Path(directory) for directory in self.extra_bundles)

    @property
    def base_model_path(self) -> Path:
        """Directory of the base model."""
        return demo.model_path() if self.base_model in (None, DEMO) else Path(self.base_model)


def _is_harmless(problem: Mapping[str, Any]) -> bool:
    """Return whether a message may repeat the value: not a key given in place of its hash."""
    return "hashes" not in problem["loc"] and isinstance(problem["input"], str | int | float | bool)


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Validate settings. Raises SettingsError."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(format_validation_error(error, _is_harmless)) from None


def load_settings(path: str | Path) -> Settings:
    """Read settings from a YAML file, and paths relative to it. Raises SettingsError."""
    path = Path(path)
    return resolve_paths(read_yaml(path), path.parent, str(path))


def resolve_paths(values: Mapping[str, Any], directory: Path, source: str) -> Settings:
    """Validate settings with paths relative to ``directory``; a SettingsError names ``source``."""

    def resolved(value: Any) -> Any:
        if not isinstance(value, str) or value == DEMO or is_url(value):
            return value
        return str((directory / value).resolve())

    values = dict(values)
    for name in ("bundle", "base_model"):
        if name in values:
            values[name] = resolved(values[name])
    for name in ("extra_bundles", "also"):
        if isinstance(values.get(name), list):
            values[name] = [resolved(value) for value in values[name]]
    for section, names in FILES.items():
        if isinstance(values.get(section), dict):
            given = {name: resolved(values[section][name]) for name in names if name in values[section]}
            values[section] = {**values[section], **given}
    try:
        return parse_settings(values)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from None


def absolute_paths(settings: Settings) -> dict[str, Any]:
    """Return the fields that are set, as JSON, with paths that do not depend on the directory."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    return resolve_paths(values, Path.cwd(), "settings").model_dump(mode="json", exclude_unset=True)


def check_storage(settings: Settings) -> None:
    """Look whether the bundles and the model that are URLs can be read, without copying them.

    Raises StorageError.
    """
    for place in filter(is_url, (settings.bundle, *settings.extra_bundles)):
        check_bundle(place)
    if settings.base_model is not None and is_url(settings.base_model):
        check_model(settings.base_model)


def fetched(settings: Settings) -> Settings:
    """Return the settings with verified copies, on this machine, of what they name by URL.

    Raises:
        StorageError: a bundle or the model cannot be read, or is not what it has to be.
        BundleError: the bundle of a model is a damaged directory.
    """
    values: dict[str, Any] = {}
    if is_url(settings.bundle):
        values["bundle"] = str(fetch_bundle(settings.bundle))
    if any(map(is_url, settings.extra_bundles)):
        values["extra_bundles"] = tuple(
            str(fetch_bundle(place)) if is_url(place) else place for place in settings.extra_bundles
        )
    settings = settings.model_copy(update=values)
    if settings.base_model is None or not is_url(settings.base_model):
        return settings
    expected = load_bundle(settings.bundle_path, verify=False).manifest.base_model
    return settings.model_copy(update={"base_model": str(fetch_model(settings.base_model, expected))})


@dataclass(frozen=True)
class ServedApplication:
    """One base model with its settings and its path: ``/`` or ``/some/words``."""

    name: str
    route_prefix: str
    settings: Settings

    @property
    def path(self) -> str:
        """Part of the URL between the server's address and ``/v1``; empty for ``/``."""
        return self.route_prefix.rstrip("/")


def as_applications(served: Settings | Sequence[ServedApplication]) -> tuple[ServedApplication, ...]:
    """Return the applications; settings become one application at ``/``. Raises SettingsError."""
    if isinstance(served, Settings):
        return (ServedApplication(DEFAULT_NAME, "/", served),)
    for field in ("name", "route_prefix"):
        values = [getattr(application, field) for application in served]
        for value in values:
            if values.count(value) > 1:
                raise SettingsError(f"{field} must be unique among the applications, got {value} more than once")
    if not served:
        raise SettingsError("applications must hold at least one application, got none")
    return tuple(served)


class ApplicationEntry(Section):
    """An application in a file of several, before its settings are read."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    route_prefix: Annotated[str, Field(pattern=r"^(/|(/[A-Za-z0-9._-]+)+)$")]
    import_path: Literal["deployments.app:build"] = "deployments.app:build"
    args: dict[str, Any] = Field(default_factory=dict)


class _Applications(Section):
    applications: list[ApplicationEntry]


def load_config(path: str | Path) -> Settings | tuple[ServedApplication, ...]:
    """Read a YAML file of one model or of several applications.

    Relative paths are relative to the file. Raises SettingsError.
    """
    path = Path(path)
    values = read_yaml(path)
    if "applications" not in values:
        return resolve_paths(values, path.parent, str(path))
    return served_applications(read_entries(values, path), path)


def read_entries(values: Mapping[str, Any], path: Path) -> list[ApplicationEntry]:
    """Return the applications in the content of a file; SettingsError names it as ``path``."""
    values = {name: value for name, value in values.items() if name not in _CLUSTER_SECTIONS}
    shown = {"name", "route_prefix", "import_path"}  # inline settings may hold anything
    try:
        return _Applications.model_validate(values).applications
    except ValidationError as error:
        text = format_validation_error(error, lambda problem: problem["loc"][-1] in shown and _is_harmless(problem))
        raise SettingsError(f"{path}: {text}") from None


def served_applications(entries: Sequence[ApplicationEntry], path: Path) -> tuple[ServedApplication, ...]:
    """Return applications with their settings; relative paths are relative to the file ``path``."""
    served = [ServedApplication(entry.name, entry.route_prefix, _settings(entry, path)) for entry in entries]
    try:
        return as_applications(served)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _settings(entry: ApplicationEntry, path: Path) -> Settings:
    config = entry.args.get("config")
    source = f"{path}: applications: {entry.name}: args"
    if config is None:
        return resolve_paths(entry.args, path.parent, source)
    if len(entry.args) != 1 or not isinstance(config, str):
        raise SettingsError(f"{source} must be the settings, or config (the path of a file) alone")
    return load_settings(path.parent / config)
