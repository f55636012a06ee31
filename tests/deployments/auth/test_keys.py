"""API keys: hashes, rotation, refusals, cache isolation of callers."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from del_core.bundle import Bundle
from delctl.main import cli
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.app import build
from deployments.auth.keys import InvalidKeyError, KeyRing, Keys, hash_key, new_key
from deployments.engines.base import EngineSampling
from deployments.engines.vllm.engine import VllmEngine, VllmSettings
from deployments.settings import SettingsError, parse_keys, parse_settings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving_frames import HEADERS, PATH, make_frame
from tests.support.tiny import HIDDEN_SIZE, SOFT_PROMPT_LENGTH, Tiny

OLD, NEW, OTHER = new_key(), new_key(), new_key()


def ring(*keys: str, name: str = "app") -> dict[str, Any]:
    return {name: {"hashes": [hash_key(key) for key in keys]}}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_is_256_random_bits_and_its_hash_is_what_is_configured() -> None:
    assert re.fullmatch(r"del-[A-Za-z0-9_-]{43}", OLD)
    assert len({OLD, NEW, OTHER}) == 3
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", hash_key(OLD))
    caller = KeyRing(parse_keys(ring(OLD, NEW))).caller(f"Bearer {NEW}")
    assert caller.name == "app"
    assert KeyRing(parse_keys(ring(OLD))).caller(f"bearer  {OLD}").cache_salt == caller.cache_salt
    assert KeyRing(parse_keys(ring(OLD, name="web"))).caller(f"Bearer {OLD}").cache_salt != caller.cache_salt


@pytest.mark.parametrize(
    "header",
    [None, "", OLD, f"Basic {OLD}", f"Bearer {OTHER}", "Bearer ", f"Bearer {OLD} x", f"Bearer {hash_key(OLD)}"],
    ids=["none", "empty", "bare", "basic", "other", "no-key", "trailing", "hash"],
)
def test_everything_else_is_refused_without_repeating_it(header: str | None) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        KeyRing(parse_keys(ring(OLD))).caller(header)
    assert OLD not in str(caught.value)
    assert OTHER not in str(caught.value)


def test_telling_a_caller_costs_microseconds_with_ten_thousand_keys() -> None:
    many = {f"n{index}": {"hashes": [hash_key(f"{index}")]} for index in range(10_000)}
    one = KeyRing(parse_keys({**many, **ring(OLD)}))
    header = f"Bearer {OLD}"
    best = min(_seconds(lambda: one.caller(header)) for _ in range(5))
    # 1.2 us measured on an idle machine; the bound allows for a slow and busy machine.
    assert best < 100e-6


def _seconds(call: Callable[[], Any], times: int = 1000) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def test_a_file_is_exchanged_while_requests_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keys, "CHECK_S", 0.0)
    file = tmp_path / "keys.yaml"
    write(file, f"app: {{hashes: ['{hash_key(OLD)}']}}\n")
    keys = Keys(file=file)
    assert keys.caller(f"Bearer {OLD}").name == "app"
    write(file, f"app: {{hashes: ['{hash_key(OLD)}', '{hash_key(NEW)}'], tokens_per_minute: 5}}\n")
    assert keys.caller(f"Bearer {OLD}").tokens_per_minute == 5
    assert keys.caller(f"Bearer {NEW}").name == "app"
    write(file, f"app: {{hashes: ['{hash_key(NEW)}']}}\n")
    with pytest.raises(InvalidKeyError):
        keys.caller(f"Bearer {OLD}")
    # A file that somebody broke, or took away, leaves the keys as they were.
    write(file, f"app: {{hashes: ['{OLD}']}}\n")
    assert keys.caller(f"Bearer {NEW}").name == "app"
    file.unlink()
    assert keys.caller(f"Bearer {NEW}").name == "app"


def write(file: Path, text: str) -> None:
    """Replace the file in one step, so that no reader sees half of it."""
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


@pytest.mark.parametrize(
    "text",
    ["- a list\n", "app: {hashes: []}\n", "app: {hash: x}\n", ": : :\n", f"app: {{hashes: [{OLD}]}}"],
    ids=["list", "no-hashes", "unknown-field", "no-yaml", "key-in-place-of-hash"],
)
def test_a_malformed_file_is_refused_without_repeating_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"keys\.yaml") as caught:
        Keys(file=tmp_path / "keys.yaml")
    assert OLD not in str(caught.value)


def test_settings_hold_hashes_and_a_cluster_is_closed_by_default() -> None:
    with pytest.raises(SettingsError, match=r"keys.names.app.hashes.0") as caught:
        parse_settings({"keys": {"names": {"app": {"hashes": [OLD]}}}})
    assert OLD not in str(caught.value)
    with pytest.raises(SettingsError, match=r"keys\.file, names and open: true must not"):
        parse_settings({"keys": {"names": ring(OLD), "open": True}})
    with pytest.raises(SettingsError, match=r"keys\.open: true"):
        build({})
    build({"keys": {"open": True}})
    parse_settings({}).keys.check(loopback=True)
    with pytest.raises(SettingsError, match="keys"):
        parse_settings({"keys": {"open": False}}).keys.check(loopback=True)


def test_hashes_in_place_are_exchanged_without_new_replicas() -> None:
    one, two = (build({"keys": {"names": ring(key)}})._bound_deployment for key in (OLD, NEW))
    assert one.init_args == two.init_args
    assert one.user_config != two.user_config


async def test_http_refuses_before_it_reads_and_salts_by_name(make_service: Callable[..., Any], bundle: Bundle) -> None:
    engine = ScriptedEngine()
    keys = Keys(parse_keys({**ring(OLD, NEW), **ring(OTHER, name="web")}))
    app = create_app(make_service(engine), APIOptions(keys=keys))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for response in (
            await client.post(PATH, content=b"\x00", headers=HEADERS),
            await client.post(PATH, content=b"", headers=HEADERS | bearer(new_key())),
            await client.get("/v1/models"),
            await client.get("/v1/bundle"),
        ):
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(OLD))).status_code == 200
        for stream, key in ((False, OLD), (True, NEW), (False, OTHER)):
            frame = make_frame(bundle, stream=stream)
            assert (await client.post(PATH, content=frame, headers=HEADERS | bearer(key))).status_code == 200
    salts = [call.cache_salt for call in engine.calls]
    assert salts[0] == salts[1] != salts[2]
    assert None not in salts
    assert [call.shared_rows for call in engine.calls] == [SOFT_PROMPT_LENGTH] * 3


def test_the_command_prints_a_key_once_and_its_hash() -> None:
    result = CliRunner().invoke(cli, ["keys", "new"])
    assert result.exit_code == 0, result.output
    key, hashed = (line.split()[1] for line in result.output.splitlines())
    assert hash_key(key) == hashed
    found = json.loads(CliRunner().invoke(cli, ["keys", "new", "--json"]).output)
    assert hash_key(found["key"]) == found["hash"]


@pytest.mark.cluster
async def test_callers_share_the_soft_prompt_and_nothing_else(tiny: Tiny) -> None:
    """By the engine's own count of cached rows."""
    engine = VllmEngine(tiny.model, VllmSettings())
    await engine.start()
    try:
        generator = np.random.default_rng(1)
        soft = generator.standard_normal((SOFT_PROMPT_LENGTH, HIDDEN_SIZE)).astype(np.float32)
        prompt = np.concatenate([soft, generator.standard_normal((70, HIDDEN_SIZE)).astype(np.float32)])
        sampling = EngineSampling(max_tokens=1, temperature=0.0)

        async def cached(number: int, salt: str | None, shared: int = SOFT_PROMPT_LENGTH) -> int | None:
            rows = None
            async for delta in engine.generate(str(number), prompt, sampling, cache_salt=salt, shared_rows=shared):
                rows = delta.cached_rows
            return rows

        assert await cached(1, "a") == 0
        assert await cached(2, "a") == SOFT_PROMPT_LENGTH + 64
        assert await cached(3, "b") == SOFT_PROMPT_LENGTH
        assert await cached(4, "b") == SOFT_PROMPT_LENGTH + 64
        assert await cached(5, None) == SOFT_PROMPT_LENGTH
        assert await cached(6, "c", 0) == 0
    finally:
        await engine.shutdown()
