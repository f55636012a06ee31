"""Client and AsyncClient against a real server: every test runs with both."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_lib import (
    BundleInvalidError,
    BundleOutdatedError,
    CacheUnavailableError,
    ClientClosedError,
    InvalidRequestError,
    ProtocolError,
    Usage,
    private,
    public,
)
from del_core import accounting
from del_core.bundle import ClientBundle, pack_client
from del_core.wire import PrivateSegment, PublicSegment, Sampling
from tests.client_lib.conftest import Calls
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, answer, error, expected_text, expected_tokens, status

Connect = Callable[..., Calls]
SECRET = "my test was positive"


# --- completing -----------------------------------------------------------------------------------


def test_complete(connect: Connect, server: ScriptedServer) -> None:
    result = connect().complete(SECRET, variant="open", max_tokens=9)
    assert result.text == expected_text(expected_tokens(9))
    assert result.token_ids == expected_tokens(9)
    assert result.finish_reason == "length"
    assert result.variant == "open"
    assert result.request_id == "req-1"
    (frame,) = server.frames
    assert result.bytes_sent == len(frame)
    request = server.decode(frame)
    assert [type(segment) for segment in request.segments] == [PublicSegment, PrivateSegment]
    prompt = request.prompt_tokens
    assert result.usage == Usage(prompt, 9, prompt + 9)


def test_sampling_fields_arrive(connect: Connect, server: ScriptedServer) -> None:
    connect().complete(
        SECRET,
        variant="open",
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["a", "b"],
        stop_token_ids=[4],
        ignore_eos=True,
    )
    assert server.decode(server.frames[0]).sampling == Sampling(
        3, 0.5, 0.9, 7, ("a", "b"), stream=False, stop_token_ids=(4,), ignore_eos=True
    )


def test_one_stop_string_need_not_be_a_list(connect: Connect, server: ScriptedServer) -> None:
    connect().complete(SECRET, variant="open", stop="end")
    assert server.decode(server.frames[0]).sampling.stop == ("end",)


def test_spans(connect: Connect, server: ScriptedServer) -> None:
    connect().complete([public("write to "), private("my doctor"), public(" please")], variant="strict")
    kinds = [type(segment) for segment in server.decode(server.frames[0]).segments]
    assert kinds == [PublicSegment, PublicSegment, PrivateSegment, PublicSegment]


def test_clear_sends_token_ids_only(connect: Connect, server: ScriptedServer) -> None:
    connect().complete("the quick brown fox", variant="clear")
    assert all(isinstance(segment, PublicSegment) for segment in server.decode(server.frames[0]).segments)


def test_fresh_noise_on_request_and_an_encoded_prompt_as_it_is(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    text = SECRET * 10
    for _ in range(2):
        calls.complete(text, variant="open", fresh=True)
    encoded = calls.call("encode", text, variant="open")
    for _ in range(2):
        calls.complete(encoded, variant="open")
    first, second, third, fourth = server.frames
    assert first != second
    assert third == fourth
    assert third not in (first, second)


def test_an_encoded_prompt_keeps_its_variant(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    encoded = calls.call("encode", SECRET, variant="open")
    with pytest.raises(InvalidRequestError, match=r"variant must be 'open', .*, got 'strict'"):
        calls.complete(encoded, variant="strict")
    assert server.frames == []


# --- what is refused before anything is sent ------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 1 << 70}, "seed"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 3}, "stop"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": 3}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"json": {1, 2}}}, "structured_outputs.json"),
        ({"stream": True}, "stream"),
        ({"variant": "secret"}, "variant"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [private(SECRET)], "variant": "clear"}, "prompt[0]"),
    ],
)
def test_bad_values_are_refused_here(
    connect: Connect, server: ScriptedServer, options: dict[str, Any], field: str
) -> None:
    calls = connect()
    options = {"prompt": SECRET, "variant": "open", **options}
    prompt = options.pop("prompt")
    for method in (calls.complete, calls.stream):
        with pytest.raises(InvalidRequestError) as caught:
            method(prompt, **options)
        assert caught.value.field == field
        assert caught.value.status is None
        assert re.match(rf"({re.escape(field)}|sampling field) ", str(caught.value))
        assert SECRET not in str(caught.value)
    assert server.frames == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "http://user:pass@host"}, "base_url"),
        ({"base_url": "http://host/?a=b"}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "k\n"}, "api_key"),
        ({"api_key": "kéy"}, "api_key"),
        ({"fingerprint": "abc"}, "fingerprint"),
        ({"timeout": 0}, "timeout.total"),
        ({"timeout": -1.0}, "timeout.total"),
        ({"timeout": math.inf}, "timeout.total"),
        ({"timeout": "5"}, "timeout.total"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_resumes": 1.5}, "max_resumes"),
    ],
)
def test_bad_settings_are_refused(connect: Connect, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        connect(**options)
    assert caught.value.field == field
    assert not any(secret in str(caught.value) for secret in ("pass", "k\n", "kéy"))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("host", "a URL without http:// or https://"),
        ("localhost:8000", "a URL without http:// or https://"),
        ("http://name:secret@host", "a URL with credentials"),
        ("http://host/#part", "a URL with a query or fragment"),
        ("ftp://host", "ftp://host"),
    ],
)
def test_the_fault_of_an_address_is_named(connect: Connect, url: str, fault: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"got {fault}$"):
        connect(base_url=url)


def test_a_closed_client_says_so(connect: Connect) -> None:
    calls = connect()
    calls.call("models")
    calls.close()
    with pytest.raises(ClientClosedError):
        calls.complete(SECRET, variant="open")


# --- the bundle -----------------------------------------------------------------------------------


def bundle_requests(server: ScriptedServer) -> list[str | None]:
    """The If-None-Match headers of the requests for the bundle."""
    return [received.headers.get("if-none-match") for received in server.requests_to("/v1/bundle")]


def test_the_bundle_is_fetched_once_and_revalidated_by_the_next_client(
    connect: Connect, server: ScriptedServer
) -> None:
    first = connect()
    for _ in range(3):
        first.complete(SECRET, variant="open")
    assert bundle_requests(server) == [None]
    connect().complete(SECRET, variant="open")
    assert bundle_requests(server) == [None, f'"{server.bundle.fingerprint}"']


def test_an_altered_cache_entry_is_fetched_again(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="open")
    table = tmp_path / "cache" / "bundles" / server.bundle.fingerprint / "table.safetensors"
    data = bytearray(table.read_bytes())
    data[-1] ^= 1
    table.write_bytes(data)
    connect().complete(SECRET, variant="open")
    assert bundle_requests(server) == [None, None]
    assert table.read_bytes() != bytes(data)


def test_a_pinned_bundle_comes_from_the_cache_without_a_question(connect: Connect, server: ScriptedServer) -> None:
    connect().complete(SECRET, variant="open")
    connect(fingerprint=server.bundle.fingerprint).complete(SECRET, variant="open")
    assert bundle_requests(server) == [None]


def test_a_bundle_other_than_the_pinned_one_is_refused(connect: Connect, server: ScriptedServer) -> None:
    with pytest.raises(BundleOutdatedError) as caught:
        connect(fingerprint="a" * 64).complete(SECRET, variant="open")
    assert server.bundle.fingerprint in str(caught.value)
    assert "a" * 64 in str(caught.value)
    assert server.frames == []


def test_a_local_bundle_needs_no_server(connect: Connect, server: ScriptedServer, bundle: ClientBundle) -> None:
    connect(bundle=bundle.path.parent).complete(SECRET, variant="open")
    assert bundle_requests(server) == []
    with pytest.raises(BundleOutdatedError, match="pinned"):
        connect(bundle=bundle.path.parent, fingerprint="a" * 64).complete(SECRET, variant="open")
    with pytest.raises(BundleInvalidError):
        connect(bundle=bundle.path / "nowhere").complete(SECRET, variant="open")


def test_a_damaged_download_is_refused(connect: Connect, server: ScriptedServer, bundle: ClientBundle) -> None:
    archive = bytearray(pack_client(bundle.path))
    archive[len(archive) // 2] ^= 1
    server.bundle_script.append(status(200, {}, bytes(archive)))
    calls = connect()
    with pytest.raises(BundleInvalidError, match="bundle from the server"):
        calls.complete(SECRET, variant="open")
    assert server.frames == []
    calls.complete(SECRET, variant="open")  # the next call fetches it anew


def test_not_modified_without_a_question_is_refused(connect: Connect, server: ScriptedServer) -> None:
    server.bundle_script.append(status(304))
    with pytest.raises(ProtocolError, match="304"):
        connect().complete(SECRET, variant="open")


def test_a_cache_that_cannot_be_written_is_named(connect: Connect, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(CacheUnavailableError, match="cache_dir"):
        connect(cache_dir=blocker).complete(SECRET, variant="open")


def test_models_variants_and_epsilon(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(api_key="key-1")
    models = calls.call("models")
    assert [model.id for model in models] == ["strict", "open", "clear"]
    assert models[0].guarantees == {"delta": 1e-6, "epsilon": 2.5, "epsilon_vocabulary": None}
    assert models[2].guarantees == {}
    assert all(received.headers["authorization"] == "Bearer key-1" for received in server.received)
    assert calls.call("bundle").fingerprint == server.bundle.fingerprint
    assert list(calls.call("variants")) == ["strict", "open"]
    # Not what the manifest claims (2.5) but what the mechanism gives.
    exact = accounting.epsilon(server.bundle.mechanism("open"), 1e-6, 3)
    assert calls.call("epsilon", "open", tokens=3) == exact != 2.5
    assert calls.call("epsilon", "clear") == math.inf
    with pytest.raises(InvalidRequestError):
        calls.call("epsilon", "open", delta=2.0)
    with pytest.raises(InvalidRequestError):
        calls.call("epsilon", "other")


# --- another bundle at the server -----------------------------------------------------------------


def test_the_same_counts_are_sent_when_only_the_servers_part_changed(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    calls = connect()
    calls.complete(SECRET, variant="open")
    server.bundle = make_bundle(tmp_path / "new", norm_limit=2.0)
    result = calls.complete(SECRET, variant="open")
    assert result.token_ids
    _, refused, accepted = (server.decode(frame) for frame in server.frames)
    assert refused.fingerprint != accepted.fingerprint == server.bundle.fingerprint
    assert refused.segments == accepted.segments
    assert len(bundle_requests(server)) == 2
    calls.complete(SECRET, variant="open")
    assert len(bundle_requests(server)) == 2


def test_fresh_noise_is_never_sent_unasked(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "new", table_seed=2)
    calls = connect(accept=other.fingerprint)
    calls.complete(SECRET, variant="open")
    server.bundle = other
    with pytest.raises(BundleOutdatedError, match="fresh noise") as caught:
        calls.complete(SECRET, variant="open")
    assert server.bundle.fingerprint in str(caught.value)
    assert caught.value.code == "bundle_outdated"
    assert len(server.frames) == 2
    assert calls.complete(SECRET, variant="open").token_ids  # asked again, under the new bundle
    assert len(server.frames) == 3


def test_public_prompts_are_simply_encoded_again(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    calls = connect()
    calls.complete("hello", variant="clear")
    server.bundle = make_bundle(tmp_path / "new", bos_token_id=None)
    assert calls.complete("hello", variant="clear").token_ids
    assert len(server.decode(server.frames[-1]).segments) == 1


@pytest.mark.parametrize("pin", ["fingerprint", "bundle"])
def test_a_pinned_client_does_not_follow(
    connect: Connect, server: ScriptedServer, bundle: ClientBundle, tmp_path: Path, pin: str
) -> None:
    options: dict[str, Any] = {"fingerprint": bundle.fingerprint} if pin == "fingerprint" else {"bundle": bundle.path}
    calls = connect(**options)
    calls.complete(SECRET, variant="open")
    fetched = len(bundle_requests(server))
    server.bundle = make_bundle(tmp_path / "new", norm_limit=2.0)
    with pytest.raises(BundleOutdatedError):
        calls.complete(SECRET, variant="open")
    assert len(server.frames) == 2
    assert len(bundle_requests(server)) == fetched


def test_a_server_that_contradicts_itself_is_asked_once(connect: Connect, server: ScriptedServer) -> None:
    """It hands out one bundle and refuses it: no loop, one question, one frame."""
    server.script.extend([error(409, "bundle_outdated")] * 3)
    with pytest.raises(BundleOutdatedError):
        connect().complete(SECRET, variant="open")
    assert len(server.frames) == 1
    assert len(bundle_requests(server)) == 2


def test_a_bundle_that_changes_all_the_time_is_followed_once(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    calls = connect()
    calls.complete(SECRET, variant="open")
    server.bundle = make_bundle(tmp_path / "new", norm_limit=2.0)
    server.script.extend([answer, error(409, "bundle_outdated"), answer])
    with pytest.raises(BundleOutdatedError):
        calls.complete(SECRET, variant="open")
    assert len(server.frames) == 3


def test_an_encoded_prompt_outlives_its_bundle_only_unchanged(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "table", table_seed=2)
    calls = connect(accept=[other.fingerprint])
    encoded = calls.call("encode", SECRET, variant="open")
    server.bundle = make_bundle(tmp_path / "server-side", norm_limit=2.0)
    calls.complete(encoded, variant="open")
    calls.complete(encoded, variant="open")  # moved to the bundle that is in use by now, without a refusal
    assert len(server.frames) == 3
    server.bundle = other
    for _ in range(2):
        with pytest.raises(BundleOutdatedError):
            calls.complete(encoded, variant="open")
    assert len(server.frames) == 4  # the second time it was refused here
