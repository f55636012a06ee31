"""Every kind of downgrade is refused by default, by the client, the proxy and ``delctl ask``.

A server that everybody accepted turns malicious and offers one bundle that is weaker in one way.
Nothing may be sent for that bundle, whether the caller runs already or starts again.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from client_lib import BundleRejectedError, Client
from client_lib.proxy import ProxySettings
from del_core.bundle import ClientBundle, load_client, replace_audit, sign_bundle
from del_core.bundle.signing import new_key
from delctl.main import run
from tests.support.bundle import make_bundle, make_tokenizer
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer

KEY, OTHER = new_key(), new_key()


def offer(path: Path, *, date: str | None = "2026-05-01", key: bytes | None = KEY, **changes: Any) -> ClientBundle:
    """Write a bundle that is audited and signed; ``changes`` are those of ``make_bundle``."""
    make_bundle(path, **changes)
    replace_audit(path, {"strict": {} if date is None else {"date": date}})
    if key is not None:
        sign_bundle(path, key, signed=datetime.date(2026, 11, 29))
    return load_client(path / "client")


@dataclass(frozen=True)
class Downgrade:
    """A weaker offer, and how a refusal names it."""

    words: str
    changes: dict[str, Any]


# Bundles that differ in nothing else have another norm of the decoder, thus another fingerprint.
WEAKER = {
    "noise": Downgrade("the epsilon of strict at delta", {"ratio_numerator": (1 << 29) + 4096}),
    "table": Downgrade("the SHA-256 of the table must be", {"table_seed": 2}),
    "tokenizer": Downgrade(
        "the SHA-256 of the tokenizer must be",
        {"tokenizer_json": make_tokenizer(("one more text",)), "rows": 300},
    ),
    "signature left out": Downgrade("the signing key must be", {"key": None, "norm_limit": 2.0}),
    "another signature": Downgrade("the signing key must be", {"key": OTHER, "norm_limit": 2.0}),
    "older audit": Downgrade("the audit date of strict must be 2026-05-01 or later", {"date": "2026-04-30"}),
    "no audit": Downgrade("the audit date of strict must be 2026-05-01 or later", {"date": None}),
    "transport": Downgrade("the transport must be https, got http", {"norm_limit": 2.0}),
}


class Caller(Protocol):
    """Sends a prompt; returns None if it was answered, and the words of a refusal if not."""

    def __call__(self, prompt: str) -> str | None: ...


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClientBundle]:
    path = tmp_path_factory.mktemp("offers")
    made = {kind: offer(path / kind, **weaker.changes) for kind, weaker in WEAKER.items()}
    return {**made, "honest": offer(path / "honest"), "equal": offer(path / "equal", norm_limit=2.0)}


@pytest.fixture
def server(
    offers: dict[str, ClientBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ScriptedServer]:
    """The server, and a place for what is accepted that all callers share."""
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DEL_CONFIG_DIR", str(tmp_path))
    with ScriptedServer(offers["honest"]).running() as running:
        yield running


@pytest.fixture(params=["client", "proxy", "ask"])
def start(
    request: pytest.FixtureRequest, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[], Caller]]:
    """Start a caller of one kind, with the options that it has by default."""
    opened: list[Any] = []

    def client() -> Caller:
        made = Client(server.url)
        opened.append(made)

        def call(prompt: str) -> str | None:
            try:
                made.complete(prompt, variant="strict", max_tokens=2)
            except BundleRejectedError as error:
                return str(error)
            return None

        return call

    def proxy() -> Caller:
        running = RunningProxy(server.url, ProxySettings())
        context = running.running()
        context.__enter__()
        opened.append(context)

        def call(prompt: str) -> str | None:
            answer = running.post("/v1/completions", {"model": "strict", "prompt": prompt, "max_tokens": 2})
            if answer.status_code == 200:
                return None
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (502, "bundle_rejected")
            return str(error["message"])

        return call

    def ask() -> Caller:
        def call(prompt: str) -> str | None:
            options = ["--url", server.url, "--variant", "strict", "--max-tokens", "2", "--quiet"]
            status = run(["ask", prompt, *options])
            said = capsys.readouterr().err
            return None if status == 0 else said

        return call

    yield {"client": client, "proxy": proxy, "ask": ask}[request.param]
    for one in opened:
        one.__exit__(None, None, None)


@pytest.mark.parametrize("kind", WEAKER)
def test_a_weaker_offer_is_refused(
    start: Callable[[], Caller], server: ScriptedServer, offers: dict[str, ClientBundle], tmp_path: Path, kind: str
) -> None:
    running = start()
    assert running("the quick brown fox") is None
    server.bundle = offers[kind]
    callers = [start]
    if kind == "transport":  # a client has one base URL, so this is one for a new start
        trusted = tmp_path / "trust.json"
        trusted.write_text(trusted.read_text().replace('"transport": "http"', '"transport": "https"'))
    else:
        callers.insert(0, lambda: running)
    for caller in callers:
        refusal = caller()("jumps over the lazy dog")
        assert refusal is not None
        assert WEAKER[kind].words in " ".join(refusal.split())
        assert "lazy" not in refusal
    assert not any(offers[kind].fingerprint.encode() in frame for frame in server.frames)
    if kind != "transport":
        server.bundle = offers["honest"]
        assert running("jumps over the lazy dog") is None


def test_an_equal_offer_passes(
    start: Callable[[], Caller], server: ScriptedServer, offers: dict[str, ClientBundle]
) -> None:
    """So the refusals above are for what is weaker, not for what is new."""
    call = start()
    assert call("the quick brown fox") is None
    server.bundle = offers["equal"]
    assert call("jumps over the lazy dog") is None
    assert offers["equal"].fingerprint.encode() in server.frames[-1]
