"""Serve config files: read, written from the typed settings, and compared field by field."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployments.sections import read_yaml
from deployments.service.storage import is_url
from deployments.settings import (
    DEMO,
    FILES,
    ServedApplication,
    Settings,
    SettingsError,
    as_applications,
    parse_settings,
    read_entries,
    served_applications,
)

IMPORT_PATH = "deployments.app:build"
_PATHS = ("bundle", "base_model")
_STORED = (*_PATHS, "extra_bundles", "also")
# Of the whole cluster; they take effect when Serve starts.
_START_OPTIONS = ("proxy_location", "http_options")
_SECRETS = ("args.keys.names", "runtime_env.env_vars")


def serve_config(
    served: Settings | Sequence[ServedApplication], *, http_options: Mapping[str, Any], proxy_location: str
) -> dict[str, Any]:
    """Return the config, in Serve's schema, of settings whose paths are absolute."""
    return {
        "proxy_location": proxy_location,
        "http_options": dict(http_options),
        "applications": [
            {
                "name": one.name,
                "route_prefix": one.route_prefix,
                "import_path": IMPORT_PATH,
                "args": one.settings.model_dump(mode="json", exclude_unset=True),
            }
            for one in as_applications(served)
        ],
    }


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a Serve config file for a cluster on other machines, where its paths must exist.

    The config is what ``serve deploy`` would send. Raises SettingsError: an invalid field, missing
    authentication, or a relative path.
    """
    path = Path(path)
    values = read_yaml(path)
    if "applications" not in values:
        raise SettingsError(f"{path}: applications must be given for a cluster, as in Serve's config files")
    entries = read_entries(values, path)
    for entry in entries:
        for field, value in _paths(entry.args):
            may_be_url = field.partition(".")[0] in _STORED
            if isinstance(value, str) and value != DEMO and not value.startswith("/"):
                if may_be_url and is_url(value):
                    continue
                wanted = "a URL, or an absolute path on every node" if may_be_url else "an absolute path on every node"
                raise SettingsError(f"{path}: args.{field} must be {wanted}, got {value}")
    # The settings of an application with config are in a file of the nodes.
    inline = [entry for entry in entries if "config" not in entry.args]
    for one in served_applications(inline, path) if inline else ():
        one.settings.check_access(loopback=False)
    return values


def _paths(args: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = [(name, args[name]) for name in (*_PATHS, "config") if name in args]
    for name in ("extra_bundles", "also"):
        if isinstance(args.get(name), list):
            found += [(f"{name}.{index}", value) for index, value in enumerate(args[name])]
    for section, names in FILES.items():
        given = args.get(section)
        if isinstance(given, dict):
            found += [(f"{section}.{name}", given[name]) for name in names if name in given]
    return found


@dataclass(frozen=True)
class Change:
    """A field that a deployment would change, add (``before`` is None) or remove (``after``).

    Args:
        application: None for an option of the whole cluster.
        field: name with dots; empty for a whole application.
        effect: what happens.
    """

    application: str | None
    field: str
    before: Any
    after: Any
    effect: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def changes(details: Mapping[str, Any], config: Mapping[str, Any]) -> list[Change]:
    """Compare what a cluster runs with a new config.

    Args:
        details: answer of :meth:`cluster.deploy.dashboard.Dashboard.serve_details`.
        config: in Serve's schema. Fields that it does not set have the defaults of the settings.
    """
    found: list[Change] = []
    if details.get("http_options") is not None:  # Serve runs
        for name, value in _flat({one: config[one] for one in _START_OPTIONS if one in config}).items():
            before = _flat({one: details.get(one) for one in _START_OPTIONS}).get(name)
            if before != value:
                found.append(Change(None, name, before, value, "only when Serve starts anew"))
    running = {
        name: one["deployed_app_config"]
        for name, one in details.get("applications", {}).items()
        if one.get("deployed_app_config") and one.get("status") != "DELETING"
    }
    wanted = {one["name"]: one for one in config["applications"]}
    for name in sorted({*running, *wanted}):
        if name not in running:
            found.append(Change(name, "", None, wanted[name]["route_prefix"], "starts"))
        elif name not in wanted:
            found.append(Change(name, "", running[name].get("route_prefix"), None, "stops"))
        else:
            before, after = _fields(running[name]), _fields(wanted[name])
            for field in sorted({*before, *after}):
                if before.get(field) != after.get(field):
                    found.append(_change(name, field, before.get(field), after.get(field)))
    return found


def _change(name: str, field: str, before: Any, after: Any) -> Change:
    effect = "another path" if field == "route_prefix" else "replicas are replaced one after another"
    if field.startswith(_SECRETS):
        before, after = (None if value is None else "..." for value in (before, after))
    return Change(name, field, before, after, effect)


def _fields(application: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an application with their names; settings with their defaults."""
    args = application.get("args") or {}
    if application.get("import_path") == IMPORT_PATH and "config" not in args:
        with contextlib.suppress(SettingsError):  # of another version
            args = parse_settings(args).model_dump(mode="json")
    kept = {name: application.get(name) for name in ("route_prefix", "import_path", "runtime_env", "deployments")}
    return _flat({**{name: value for name, value in kept.items() if value}, "args": args})


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
