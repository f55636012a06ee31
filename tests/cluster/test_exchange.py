"""One bundle replaces another: both are served for a while, and no frame is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from del_core.bundle import Bundle, load_bundle
from del_core.errors import BundleError, FrameError
from deployments.replica import load_extra_bundle
from deployments.service.service import PrivateLMService
from deployments.settings import load_settings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving_frames import encode, make_request
from tests.support.tiny import make_tiny

ServiceMaker = Callable[..., PrivateLMService]


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with other tables and decoders, for a model of its own."""
    return load_bundle(make_tiny(Path(tmp_path_factory.mktemp("other")), seed=7).bundle)


@pytest.fixture
def exchanging(make_service: ServiceMaker, bundle: Bundle, other: Bundle) -> PrivateLMService:
    return make_service(ScriptedEngine(), extra_bundles=[other])


async def rows(service: PrivateLMService, frame: bytes) -> Any:
    engine = service._engine
    assert isinstance(engine, ScriptedEngine)
    await service.complete(await service.parse(frame))
    return engine.calls[-1].embeddings


async def test_frames_of_both_bundles_are_decoded_by_their_own(
    make_service: ServiceMaker, exchanging: PrivateLMService, bundle: Bundle, other: Bundle
) -> None:
    """The engine receives the same as from a service of that bundle alone."""
    for one, alone in ((bundle, make_service(ScriptedEngine())), (other, make_service(ScriptedEngine(), bundle=other))):
        for variant in ("open", "strict"):
            frame = encode(one, make_request(one, variant))
            assert np.array_equal(await rows(exchanging, frame), await rows(alone, frame))


async def test_the_first_bundle_is_the_one_handed_out(exchanging: PrivateLMService, bundle: Bundle) -> None:
    assert exchanging.fingerprint == bundle.fingerprint
    assert {model["id"] for model in exchanging.models()} == {"open", "strict", "clear"}


async def test_faults_are_those_of_the_frames_own_bundle(exchanging: PrivateLMService, other: Bundle) -> None:
    unknown = replace(make_request(other, "open"), fingerprint="f" * 64)
    with pytest.raises(FrameError) as caught:
        await exchanging.parse(encode(other, unknown))
    assert caught.value.code == "bundle_outdated"
    assert "fetch the bundle again" in str(caught.value)
    broken = encode(other, make_request(other, "open"))[:-1]
    with pytest.raises(FrameError) as caught:
        await exchanging.parse(broken)
    assert caught.value.code == "payload_length_mismatch"


def test_another_base_model_is_refused(bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="must be for the same base model"):
        load_extra_bundle(Path(other.path), bundle)
    assert load_extra_bundle(Path(bundle.path), bundle).fingerprint == bundle.fingerprint


def test_directories_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("bundle: new\nbase_model: demo\nalso: [old, /elsewhere/older]\n")
    assert load_settings(file).extra_bundle_paths == (tmp_path / "old", Path("/elsewhere/older"))
