"""What a replica does before it answers: verify bundle and base model, start the engine, join them into a service."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from pathlib import Path

from tokenizers import Tokenizer

from del_core.bundle import Bundle, load_bundle
from del_core.errors import BundleError
from deployments.engines.base import Engine
from deployments.service.base_model import EmbeddingTable, end_of_text_ids, verify_checksum
from deployments.service.service import Capacity, PrivateLMService
from deployments.settings import Settings

__all__ = ["start_service"]

logger = logging.getLogger("deployments.replica")

# Objects that are new since the last collection of garbage before there is another; Python's default is 700. Serve has
# frozen what was there at the start, and a request leaves less than one object that only a collection finds: with 700
# it looked through the requests under way some sixty times a second, for 5 % of the replica's time.
_GARBAGE_THRESHOLD = 10_000


async def start_service(settings: Settings) -> PrivateLMService:
    """The running service of these settings.

    Raises BundleError or BaseModelError before the engine starts, if the bundle is damaged or made for another model.
    """
    began = time.monotonic()
    bundle, table = await asyncio.to_thread(_verify, settings.bundle_path, settings.base_model_path)
    also = [await asyncio.to_thread(_load_other, path, bundle) for path in settings.also_paths]
    engine = _engine(settings)
    await engine.start()
    try:
        service = PrivateLMService(
            bundle=bundle,
            table=table,
            tokenizer=Tokenizer.from_file(str(bundle.client.tokenizer_path)),
            end_of_text=end_of_text_ids(settings.base_model_path),
            engine=engine,
            capacity=Capacity(requests=settings.scaling.max_ongoing_requests),
            max_frame_bytes=settings.http.max_frame_bytes,
            also=also,
        )
    except BaseException:
        await engine.shutdown()
        raise
    gc.set_threshold(_GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
    names = ", ".join(bundle.variants)
    logger.info("serving bundle %s (%s) after %.1f s", bundle.fingerprint[:12], names, time.monotonic() - began)
    return service


def _verify(bundle_path: Path, model_path: Path) -> tuple[Bundle, EmbeddingTable]:
    bundle = load_bundle(bundle_path)
    base_model = bundle.manifest.base_model
    verify_checksum(model_path, base_model)
    return bundle, EmbeddingTable.open(model_path, base_model)


def _load_other(path: Path, bundle: Bundle) -> Bundle:
    """Another bundle that this replica can serve beside ``bundle``. Raises BundleError."""
    other = load_bundle(path)
    if other.manifest.base_model.sha256 != bundle.manifest.base_model.sha256:
        raise BundleError(f"also: {path}", f"was made for another base model than {bundle.path}; the same is required")
    if other.client.tokenizer_path.read_bytes() != bundle.client.tokenizer_path.read_bytes():
        raise BundleError(f"also: {path}", f"has another tokenizer.json than {bundle.path}; the same is required")
    return other


def _engine(settings: Settings) -> Engine:
    if settings.engine.stand_in is not None:
        from deployments.engines.mock import TokenClock

        return TokenClock(settings.engine, settings.engine.stand_in)
    from deployments.engines.vllm.engine import VllmEngine

    return VllmEngine(settings.base_model_path, settings.engine)
