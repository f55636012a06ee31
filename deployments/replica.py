"""Start of a replica: verify bundle and base model, start the engine, make the service."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from pathlib import Path

from tokenizers import Tokenizer

from del_core.bundle import Bundle, load_bundle
from del_core.errors import BundleError
from deployments.engines import ENGINES
from deployments.service.base_model import EmbeddingTable, end_of_text_ids, verify_checksum
from deployments.service.service import Capacity, PrivateLMService, ServedModel
from deployments.settings import Settings

logger = logging.getLogger("deployments.replica")

# New objects between two garbage collections. With Python's default of 700, collections ran about
# sixty times a second and took 5 % of the replica's time; requests leave them almost nothing.
_GARBAGE_THRESHOLD = 10_000


async def start_service(settings: Settings) -> PrivateLMService:
    """Return the running service. Raises BundleError, BaseModelError before an engine starts."""
    began = time.monotonic()
    bundle, table = await asyncio.to_thread(_verify, settings.bundle_path, settings.base_model_path)
    extra = [await asyncio.to_thread(load_extra_bundle, path, bundle) for path in settings.extra_bundle_paths]
    engine = ENGINES.find(settings.engine.kind).create(settings.base_model_path, settings.engine)
    await engine.start()
    try:
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
    gc.set_threshold(_GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
    names = ", ".join(bundle.variants)
    logger.info("serving bundle %s (%s) after %.1f s", bundle.fingerprint[:12], names, time.monotonic() - began)
    return service


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
