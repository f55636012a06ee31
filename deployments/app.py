"""The Ray Serve application: ``deployments.app:build``.

Each replica is an HTTP ingress with an engine of its own, so no token crosses a process boundary
between the engine's frontend and the socket.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from deployments.settings import Settings, SettingsError, check_storage, load_settings, parse_keys, parse_settings
from deployments.telemetry.metrics import Load
from deployments.telemetry.scaling import OUTSTANDING_TOKENS

if TYPE_CHECKING:
    from deployments.auth.passes import Passes

logger = logging.getLogger("deployments.app")

DEPLOYMENT = "PrivateLM"

# Serve admits this many requests beyond a replica's slots, so that it can answer health checks and
# listings and refuse completions while every slot is taken.
_SPARE_REQUESTS = 64


@serve.ingress()
class PrivateLM:
    """A replica as an ASGI application."""

    async def __init__(self, settings: Mapping[str, Any], named_keys: bool) -> None:  # type: ignore[misc]
        """With ``named_keys``, reject all requests until :meth:`reconfigure` supplies the keys."""
        self._settings = parse_settings(settings)
        # Imported on the replica only: the process that builds the application does not need them.
        from deployments.auth.keys import Keys
        from deployments.replica import Telemetry, start_service

        file = self._settings.keys.file
        self._keys = Keys({} if named_keys else None, file=None if file is None else Path(file))
        self._telemetry = Telemetry(self._settings.telemetry)  # first: the start is logged
        self._service = await start_service(self._settings)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Replace the keys. Serve calls this if nothing but ``user_config`` has changed."""
        self._keys.replace(parse_keys(user_config["keys"]))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from deployments.api.context import APIOptions
        from deployments.api.routes import create_app
        from deployments.auth.quota_actor import RayLeases
        from deployments.auth.quotas import Quotas

        settings = self._settings
        options = APIOptions(
            http=settings.http,
            streaming=settings.streaming,
            keys=self._keys,
            quotas=Quotas(RayLeases(serve.get_replica_context().app_name)),
            quota_settings=settings.quotas,
            gateway_key=settings.gateway.load(),
            passes=_passes(settings),
            observer=self._telemetry.observe,
            add_request_id=False,
        )
        return create_app(self._service, options)

    async def check_health(self) -> None:
        """Raise if the engine has stopped; Serve then replaces the replica."""
        service = self._service
        self._telemetry.flush(
            Load(
                in_flight=service.in_flight,
                outstanding_tokens=service.outstanding_tokens,
                generated_tokens=service.generated_tokens,
            )
        )
        await service.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the statistics for the autoscaling policy."""
        return {OUTSTANDING_TOKENS: float(self._service.outstanding_tokens)}

    async def __del__(self) -> None:
        """Stop the engine. Serve calls this when the replica has finished its last request."""
        if hasattr(self, "_telemetry"):  # the start may have failed
            self._telemetry.shutdown()
        if hasattr(self, "_service"):
            await self._service.shutdown()


def _passes(settings: Settings) -> Passes | None:
    """Return the passes of a server that gives out and takes some. Raises SettingsError."""
    from deployments.auth.pass_actor import RayPassRecord
    from deployments.auth.passes import Passes

    found = settings.passes.load()
    if not found:
        return None
    record = RayPassRecord({key.config.key_id: path for key, path in found})
    return Passes([key for key, _ in found], record, settings.passes.tokens, settings.passes.required)


def build(args: dict[str, Any]) -> Application:
    """Return the application for Serve's ``args``: the settings, or ``{"config": <YAML file>}``.

    Raises:
        SettingsError: invalid settings, or authentication is not configured.
        StorageError: a bundle or model that is a URL cannot be read.
    """
    if "config" in args:
        if len(args) != 1:
            others = ", ".join(sorted(set(args) - {"config"}))
            raise SettingsError(f"args must be config alone or the settings, got config and {others}")
        settings = load_settings(Path(args["config"]))
    else:
        settings = parse_settings(args)
    # Other machines may reach the cluster's ports, so the settings must configure authentication.
    settings.check_access(loopback=False)
    check_storage(settings)  # one error now instead of replicas that fail one after another
    return build_from(settings)


def build_from(settings: Settings, *, start_attempts: int = 3) -> Application:
    """Return the application; a replica that fails is started ``start_attempts`` times."""
    scaling = settings.scaling
    with warnings.catch_warnings():
        # Serve still reads the interval here, with a warning.
        warnings.filterwarnings("ignore", ".*metrics_interval_s", DeprecationWarning)
        autoscaling = AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            initial_replicas=max(1, scaling.min_replicas),
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            look_back_period_s=scaling.look_back_period_s,
            metrics_interval_s=scaling.metrics_interval_s,
            policy=AutoscalingPolicy(
                policy_function="deployments.telemetry.scaling:ByWork",
                policy_kwargs={"target_outstanding_tokens": scaling.target_outstanding_tokens},
            ),
        )
    deployment = serve.deployment(
        PrivateLM,
        name=DEPLOYMENT,
        max_ongoing_requests=scaling.max_ongoing_requests + _SPARE_REQUESTS,
        max_queued_requests=scaling.max_ongoing_requests + _SPARE_REQUESTS,
        autoscaling_config=autoscaling,
        health_check_period_s=scaling.health_check_period_s,
        health_check_timeout_s=scaling.health_check_timeout_s,
        graceful_shutdown_timeout_s=scaling.graceful_shutdown_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=scaling.max_surge_percent,
        max_constructor_retry_count=start_attempts,
        # Serve updates running replicas if only this field changes, and replaces them otherwise.
        user_config={"keys": settings.model_dump(mode="json")["keys"]["names"]},
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        # The access log would hold paths and ids that callers choose.
        logging_config=LoggingConfig(
            enable_access_log=False, encoding="JSON" if settings.telemetry.log_format == "json" else "TEXT"
        ),
    )
    values = settings.model_dump(mode="json")
    values["keys"]["names"] = {}
    return deployment.bind(values, named_keys=bool(settings.keys.names))
