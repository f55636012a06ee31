"""Several base models in one cluster: each an application of its own, under its own path.

The file that names them is the one that ``serve deploy`` takes on a cluster, so that the same file serves on a laptop:

    applications:
      - {name: small, route_prefix: /small, import_path: "deployments.app:build", args: {config: small.yaml}}
      - {name: large, route_prefix: /large, import_path: "deployments.app:build", args: {bundle: ..., base_model: ...}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.settings import Settings, SettingsError, load_settings, place_settings, problem_text, read_yaml

__all__ = ["DEFAULT_NAME", "ServedApplication", "as_applications", "load_config"]

DEFAULT_NAME = "del-serve"
"""What the application is called that is alone."""

# Sections of such a file that are about the cluster: on this machine --host, --port and --proxy say the same.
_ABOUT_THE_CLUSTER = frozenset({"proxy_location", "http_options", "grpc_options", "logging_config"})


@dataclass(frozen=True)
class ServedApplication:
    """One base model with its settings, and the path under which it is served: ``/`` or ``/some/words``."""

    name: str
    route_prefix: str
    settings: Settings

    @property
    def path(self) -> str:
        """What comes between a server's address and ``/v1``: the prefix, or nothing for ``/``."""
        return self.route_prefix.rstrip("/")


def as_applications(served: Settings | Sequence[ServedApplication]) -> tuple[ServedApplication, ...]:
    """What is to be served as applications: settings alone are one at ``/``. Raises SettingsError."""
    if isinstance(served, Settings):
        return (ServedApplication(DEFAULT_NAME, "/", served),)
    for field in ("name", "route_prefix"):
        values = [getattr(one, field) for one in served]
        for value in values:
            if values.count(value) > 1:
                raise SettingsError(f"applications: {value} is the {field} of more than one; each needs its own")
    if not served:
        raise SettingsError("applications: is empty; at least one is required")
    return tuple(served)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    route_prefix: Annotated[str, Field(pattern=r"^(/|(/[A-Za-z0-9._-]+)+)$")]
    import_path: Literal["deployments.app:build"] = "deployments.app:build"
    args: dict[str, Any] = Field(default_factory=dict)


class _Applications(BaseModel):
    model_config = ConfigDict(extra="forbid")

    applications: list[_Entry]


def load_config(path: str | Path) -> Settings | tuple[ServedApplication, ...]:
    """What a YAML file says is to be served: the settings of one model, or several applications.

    Relative directories, also those of ``args: {config: ...}``, are relative to the file. Raises SettingsError.
    """
    path = Path(path)
    values = read_yaml(path)
    if "applications" not in values:
        return place_settings(values, path.parent, str(path))
    values = {name: value for name, value in values.items() if name not in _ABOUT_THE_CLUSTER}
    try:
        entries = _Applications.model_validate(values).applications
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            # No other values: settings in place may hold anything.
            shown = problem["loc"][-1] in ("name", "route_prefix", "import_path") and isinstance(problem["input"], str)
            problems.append(problem_text(problem, ".".join(map(str, problem["loc"])), shown=shown))
        raise SettingsError(f"{path}: {'; '.join(problems)}") from None
    served = [ServedApplication(entry.name, entry.route_prefix, _settings(entry, path)) for entry in entries]
    try:
        return as_applications(served)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _settings(entry: _Entry, path: Path) -> Settings:
    config = entry.args.get("config")
    if config is None:
        return place_settings(entry.args, path.parent, f"{path}: applications: {entry.name}: args")
    if len(entry.args) != 1 or not isinstance(config, str):
        raise SettingsError(
            f"{path}: applications: {entry.name}: args: config alone, the path of a file, or the settings are allowed"
        )
    return load_settings(path.parent / config)
