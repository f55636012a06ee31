"""The Ray Serve application: ``deployments.app:build``.

One deployment, ``PrivateLM``. Each of its replicas is the HTTP ingress and holds everything that a completion takes:
frame parser, decoders, soft prompts, and the engine. No token crosses a process boundary between the engine's
frontend and the socket.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from deployments.settings import Settings, SettingsError, load_settings, parse_keys, parse_settings
from deployments.telemetry.scaling import OUTSTANDING_TOKENS

__all__ = ["DEPLOYMENT", "PrivateLM", "build", "build_from"]

logger = logging.getLogger("deployments.app")

DEPLOYMENT = "PrivateLM"

# Serve lets this many more requests into a replica than it works on, so that health checks, listings and the refusal of
# what is too much are answered while every slot is taken.
_SPARE_REQUESTS = 64


@serve.ingress()
class PrivateLM:
    """One replica: a private-LM service with its engine, as an ASGI application."""

    async def __init__(self, settings: Mapping[str, Any], named_keys: bool) -> None:  # type: ignore[misc]
        """With ``named_keys``, nobody may call before :meth:`reconfigure` has said who may."""
        self._settings = parse_settings(settings)
        # Imported here, on the replica, so that whoever builds the application needs neither numpy nor an engine.
        from deployments.auth.keys import Keys
        from deployments.replica import start_service
        from deployments.telemetry.setup import Telemetry

        file = self._settings.keys.file
        self._keys = Keys({} if named_keys else None, file=None if file is None else Path(file))
        self._service = await start_service(self._settings)
        self._telemetry = Telemetry(self._settings.telemetry)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Called by Serve, also while requests run, when the keys in the settings have changed and nothing else."""
        self._keys.replace(parse_keys(user_config["keys"]))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application that Serve runs in this replica."""
        from deployments.api.routes import Coalescing, create_app
        from deployments.auth.quota_actor import RayLeases
        from deployments.auth.quotas import Quotas

        settings = self._settings
        streaming = settings.streaming
        return create_app(
            self._service,
            coalescing=Coalescing(max_tokens=streaming.max_tokens, max_delay=streaming.max_delay_s),
            body_timeout=settings.http.body_timeout_s,
            write_timeout=settings.http.write_timeout_s,
            add_request_id=False,
            keys=self._keys,
            quotas=Quotas(RayLeases(serve.get_replica_context().app_name)),
            quotas_fail_open=settings.quotas.fail_open,
            observer=self._telemetry.observe,
        )

    async def check_health(self) -> None:
        """Called by Serve; raises when the engine is dead, upon which the replica is replaced."""
        service = self._service
        self._telemetry.flush(in_flight=service.in_flight, outstanding_tokens=service.outstanding_tokens)
        await service.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for the autoscaling policy."""
        return {OUTSTANDING_TOKENS: float(self._service.outstanding_tokens)}

    async def __del__(self) -> None:
        """Called by Serve when the replica has finished its last request: no process of the engine stays behind."""
        telemetry = getattr(self, "_telemetry", None)
        if telemetry is not None:
            telemetry.shutdown()
        service = getattr(self, "_service", None)
        if service is not None:
            await service.shutdown()


def build(args: dict[str, Any]) -> Application:
    """The application from Serve's ``args``: the settings themselves, or ``{"config": <path of a YAML file>}``.

    Raises SettingsError.
    """
    if "config" in args:
        if len(args) != 1:
            others = ", ".join(sorted(set(args) - {"config"}))
            raise SettingsError(f"args: has config and {others}; either config alone or the settings are allowed")
        settings = load_settings(Path(args["config"]))
    else:
        settings = parse_settings(args)
    # Who can reach a cluster's ports is not known here, so it is closed unless somebody has decided.
    settings.keys.check(loopback=False)
    return build_from(settings)


def build_from(settings: Settings, *, start_attempts: int = 3) -> Application:
    """The application for these settings; a replica that fails to start is tried ``start_attempts`` times."""
    scaling = settings.scaling
    with warnings.catch_warnings():
        # Serve reads the measuring interval here, and warns that one day it will come from the environment alone.
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
        # Apart from the other settings: Serve replaces replicas for a change of those, and tells running ones of this.
        user_config={"keys": settings.model_dump(mode="json")["keys"]["names"]},
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        # The access log would hold paths and ids that callers choose; metrics count the same.
        logging_config=LoggingConfig(
            enable_access_log=False, encoding="JSON" if settings.telemetry.log_format == "json" else "TEXT"
        ),
    )
    values = settings.model_dump(mode="json")
    values["keys"]["names"] = {}
    return deployment.bind(values, named_keys=bool(settings.keys.names))
