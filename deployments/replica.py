"""Start of a replica: service with its verified bundle and engine, and telemetry."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from del_core.bundle import Bundle, load_bundle
from del_core.errors import BundleError
from deployments.engines import ENGINES
from deployments.engines.base import (
    AdapterEngine,
    DecodingEngine,
    Engine,
    EngineSampling,
    EngineStartError,
    variant_name,
)
from deployments.service.base_model import EmbeddingTable, check_adapter, end_of_text_ids, verify_checksum
from deployments.service.self_test import check_engine
from deployments.service.service import Capacity, PrivateLMService, ServedModel
from deployments.settings import Settings, TelemetrySettings, fetched
from deployments.telemetry import request_log
from deployments.telemetry.metrics import Load, ReplicaMetrics
from deployments.telemetry.observation import Observation, Observer
from deployments.telemetry.traces import Tracing

logger = logging.getLogger("deployments.replica")

# New objects between two garbage collections. With Python's default of 700, collections ran about
# sixty times a second and took 5 % of the replica's time; requests leave them almost nothing.
_GARBAGE_THRESHOLD = 10_000

_WARM_ROWS, _WARM_TOKENS = 32, 2


async def start_service(settings: Settings) -> PrivateLMService:
    """Return the running service.

    Raises StorageError, BundleError, BaseModelError, EngineStartError.
    """
    steps = _Steps()
    settings = await asyncio.to_thread(fetched, settings)
    steps.end("storage")
    bundle, table = await asyncio.to_thread(_verify, settings.bundle_path, settings.base_model_path)
    extra = [await asyncio.to_thread(load_extra_bundle, path, bundle) for path in settings.extra_bundle_paths]
    steps.end("verification")
    engine = ENGINES.find(settings.engine.kind).create(settings.base_model_path, settings.engine)
    await asyncio.to_thread(add_variants, engine, settings, (bundle, *extra))
    await engine.start()
    steps.end("engine")
    try:
        table, tested = await check_engine(engine, table, (bundle, *extra))
        if not tested:
            await warm_up(engine, table.rows(range(min(_WARM_ROWS, bundle.manifest.base_model.vocabulary_size))))
        service = PrivateLMService(
            ServedModel(
                bundle=bundle,
                table=table,
                tokenizer=Tokenizer.from_file(str(bundle.client.tokenizer_path)),
                end_of_text=end_of_text_ids(settings.base_model_path),
                extra_bundles=tuple(extra),
            ),
            engine,
            Capacity(requests=settings.scaling.max_ongoing_requests, max_frame_bytes=settings.http.max_frame_bytes),
        )
    except BaseException:
        await engine.shutdown()
        raise
    steps.end("first tokens")
    gc.set_threshold(_GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
    names = ", ".join(bundle.variants)
    logger.info("serving bundle %s (%s) after %s", bundle.fingerprint[:12], names, steps)
    return service


class _Steps:
    """Times of the steps of a start, in their order."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._times: list[str] = []

    def end(self, name: str) -> None:
        """Record the time since the last step."""
        now = time.monotonic()
        self._times.append(f"{name} {now - self._last:.1f} s")
        self._last = now

    def __str__(self) -> str:
        return f"{self._last - self._began:.1f} s ({', '.join(self._times)})"


def add_variants(engine: Engine, settings: Settings, bundles: Sequence[Bundle]) -> None:
    """Make all variants known to an engine that decodes, and their adapters to any.

    Raises EngineStartError, BaseModelError.
    """
    for bundle in bundles:
        if isinstance(engine, DecodingEngine):
            engine.add_bundle(bundle)
        for name in bundle.variants:
            adapter = bundle.adapter(name)
            if adapter is None:
                continue
            if not isinstance(engine, AdapterEngine):
                raise EngineStartError(
                    f"engine.kind must be one that serves adapters, since the variant {name} has one, "
                    f"got {settings.engine.kind}"
                )
            check_adapter(settings.base_model_path, name, adapter)
            engine.add_adapter(variant_name(bundle, name), adapter)


async def warm_up(engine: Engine, embeddings: NDArray[np.float32]) -> None:
    """Compute a short completion before the first request, which it would slow down.

    It also shows that the engine works: a replica that cannot generate never becomes ready.
    """
    sampling = EngineSampling(max_tokens=_WARM_TOKENS, temperature=0.0)
    async with contextlib.aclosing(engine.generate("warm-up", embeddings, sampling)) as deltas:
        async for _ in deltas:
            pass


def _verify(bundle_path: Path, model_path: Path) -> tuple[Bundle, EmbeddingTable]:
    bundle = load_bundle(bundle_path)
    base_model = bundle.manifest.base_model
    verify_checksum(model_path, base_model)
    return bundle, EmbeddingTable.open(model_path, base_model)


def load_extra_bundle(path: Path, bundle: Bundle) -> Bundle:
    """Load a bundle that can be served beside ``bundle``. Raises BundleError."""
    other = load_bundle(path)
    if other.manifest.base_model.sha256 != bundle.manifest.base_model.sha256:
        raise BundleError(f"extra_bundles: {path}", f"must be for the same base model as {bundle.path}")
    if other.client.tokenizer_path.read_bytes() != bundle.client.tokenizer_path.read_bytes():
        raise BundleError(f"extra_bundles: {path}", f"must have the same tokenizer.json as {bundle.path}")
    return other


class Telemetry:
    """Metrics, log and traces of one replica, created in its process."""

    def __init__(self, settings: TelemetrySettings) -> None:
        from ray import serve

        self._metrics = ReplicaMetrics() if settings.metrics else None
        self._tracing = None if settings.traces is None else Tracing(settings.traces, settings.trace_ratio)
        request_log.attach(settings.log_format, serve.get_replica_context().replica_tag, requests=settings.request_log)
        self._observers: list[Observer] = [one.observe for one in (self._metrics, self._tracing) if one is not None]
        if settings.request_log:
            self._observers.append(request_log.log_request)

    def observe(self, observation: Observation) -> None:
        """Record a completion that has ended."""
        for observer in self._observers:
            observer(observation)

    def flush(self, load: Load) -> None:
        """Record the current gauges; called about once a second."""
        if self._metrics is not None:
            self._metrics.flush(load)

    def shutdown(self) -> None:
        """Send pending traces."""
        if self._tracing is not None:
            self._tracing.shutdown()
