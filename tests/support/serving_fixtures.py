"""Fixtures of the serving tests: tiny model, bundle, service with a scripted engine, server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from cluster.local import LocalServer, start_local
from del_core.bundle import Bundle, load_bundle
from deployments.service.base_model import EmbeddingTable, end_of_text_ids
from deployments.service.service import Capacity, PrivateLMService, ServedModel
from deployments.settings import Settings, parse_settings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny import Tiny, make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny base model and its bundle."""
    return make_tiny(Path(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def bundle(tiny: Tiny) -> Bundle:
    """The tiny bundle, loaded."""
    return load_bundle(tiny.bundle)


@pytest.fixture(scope="session")
def table(tiny: Tiny, bundle: Bundle) -> EmbeddingTable:
    """The tiny model's embedding table."""
    return EmbeddingTable.open(tiny.model, bundle.manifest.base_model)


@pytest.fixture(scope="session")
def tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of the tiny bundle."""
    return Tokenizer.from_file(str(bundle.client.tokenizer_path))


ServiceMaker = Callable[..., PrivateLMService]


@pytest.fixture
def make_service(tiny: Tiny, bundle: Bundle, table: EmbeddingTable, tokenizer: Tokenizer) -> ServiceMaker:
    """Return a function that makes a service with a scripted engine."""

    default = bundle

    def make(
        engine: ScriptedEngine,
        *,
        requests: int = 64,
        max_frame_bytes: int = 1 << 20,
        bundle: Bundle = default,
        extra_bundles: Sequence[Bundle] = (),
    ) -> PrivateLMService:
        return PrivateLMService(
            ServedModel(
                bundle=bundle,
                extra_bundles=tuple(extra_bundles),
                table=table,
                tokenizer=tokenizer,
                end_of_text=end_of_text_ids(tiny.model),
            ),
            engine,
            Capacity(requests=requests, max_frame_bytes=max_frame_bytes),
        )

    return make


@pytest.fixture(scope="session")
def settings(tiny: Tiny) -> Settings:
    """Settings that serve the tiny model in float32."""
    return parse_settings({"bundle": str(tiny.bundle), "base_model": str(tiny.model), "engine": {"dtype": "float32"}})


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[LocalServer]:
    """A server with HTTP, Serve and vLLM; no process and no file is left at the end."""
    with start_local(settings) as running:
        yield running
        directory = running.directory
    assert not running.processes()
    assert not directory.exists()
