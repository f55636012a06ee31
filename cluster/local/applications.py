"""What a local cluster is asked to serve: checked here, and in the form in which its supervisor is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from del_core.bundle import load_bundle
from del_core.net.addresses import is_loopback
from deployments.service.base_model import verify_checksum
from deployments.settings import ServedApplication, Settings

__all__ = ["check", "grace_s", "num_cpus", "to_json"]


def check(applications: Sequence[ServedApplication], host: str) -> None:
    """Refuse what cannot be served on ``host`` before anything starts.

    Raises SettingsError if nobody has decided who may call; BundleError, BaseModelError.
    """
    for one in applications:
        one.settings.keys.check(loopback=is_loopback(host))
        bundle = load_bundle(one.settings.bundle_path)
        verify_checksum(one.settings.base_model_path, bundle.manifest.base_model)


def to_json(applications: Sequence[ServedApplication], worker_nodes: int) -> list[dict[str, Any]]:
    """The applications as the supervisor gets them."""
    return [
        {"name": one.name, "route_prefix": one.route_prefix, "settings": _values(one.settings, worker_nodes)}
        for one in applications
    ]


def grace_s(applications: Sequence[ServedApplication]) -> float:
    """How long requests under way may go on at the end, at most."""
    return max(one.settings.scaling.graceful_shutdown_timeout_s for one in applications)


def num_cpus(applications: Sequence[ServedApplication], worker_nodes: int) -> int:
    """CPUs of each node. Ray counts them, it does not measure them: enough for every replica, on however few cores.

    Without worker nodes there is room for one more replica of each application, while it is replaced.
    """
    shares, spare = 0.0, 0.0
    for one in applications:
        scaling = one.settings.scaling
        shares += math.ceil(scaling.max_replicas / (1 + worker_nodes)) * scaling.num_cpus
        spare += scaling.num_cpus
    return math.ceil(shares) if worker_nodes else math.ceil(shares) + max(1, math.ceil(spare))


def _values(settings: Settings, worker_nodes: int) -> dict[str, Any]:
    # The supervisor works in a directory of its own, so relative paths would mean something else there.
    places: dict[str, Any] = {
        "bundle": str(settings.bundle_path.resolve()),
        "base_model": str(settings.base_model_path.resolve()),
        "extra_bundles": [str(path.resolve()) for path in settings.extra_bundle_paths],
    }
    values = {**settings.model_dump(mode="json"), **places}
    if settings.keys.file is not None:
        values["keys"]["file"] = str(Path(settings.keys.file).resolve())
    if worker_nodes:
        # Each node has room for its share of the replicas and no more: a new one would wait for ever.
        values["scaling"]["max_surge_percent"] = 0
    return values
