"""Passes from issuer to redemption: who is counted, what is spent once, what the server sees."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from client_lib import AsyncClient, Client, InvalidRequestError, RetryPolicy
from client_lib.errors import (
    AuthenticationError,
    PassesUnavailableError,
    PassSpentError,
    ProtocolError,
    RateLimitError,
    ServiceUnavailableError,
)
from client_lib.passes import PassFile
from client_lib.policy import PrivacyPolicy
from client_lib.relay import Relay, gateway_url
from del_core.ohttp import GatewayKey
from del_core.passes import DIRECTORY, DIRECTORY_TYPE, PASS_BYTES, IssuerKey, authorization, check_pass
from del_core.wire import MEDIA_TYPE
from delctl.main import run
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.auth.keys import Keys, hash_key
from deployments.auth.pass_ledger import PassLedger
from deployments.auth.passes import Passes
from deployments.auth.passes import PassesUnavailableError as RecordUnavailableError
from deployments.sections import APIKey
from tests.support.passes import LocalRecord, issuer_key
from tests.support.running_app import running
from tests.support.scripted_engine import ScriptedEngine

NODE_PROJECT = Path(__file__).parent / "node"
ANN, BOB = "del-" + "a" * 40, "del-" + "b" * 40
SECRET = "the brown fox"
ISSUER = issuer_key().config
GATEWAY = GatewayKey.generate()


@dataclass
class Server:
    """A running server that gives out and takes passes, and the heads of what it was sent."""

    url: str
    record: LocalRecord
    heads: list[tuple[str, dict[str, str]]]


@pytest.fixture
def serve(make_service: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as opened:

        def started(**changes: Any) -> Server:
            path = tmp_path / "key.spent"
            PassLedger.create(path)
            record = LocalRecord(PassLedger(path, clock=lambda: 1e9))
            passes = Passes(**{"keys": [issuer_key()], "record": record, "tokens": 64, **changes})
            keys = Keys(
                {
                    "ann": APIKey(hashes=(hash_key(ANN),), passes_per_day=8),
                    "bob": APIKey(hashes=(hash_key(BOB),)),
                }
            )
            app = create_app(make_service(ScriptedEngine()), APIOptions(keys=keys, passes=passes, gateway_key=GATEWAY))
            heads: list[tuple[str, dict[str, str]]] = []

            async def recorded(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    heads.append((scope["path"], {a.decode(): b.decode() for a, b in scope["headers"]}))
                await app(scope, receive, send)

            port = opened.enter_context(running(recorded))
            return Server(f"http://127.0.0.1:{port}", record, heads)

        yield started


def options(path: Path, **others: Any) -> dict[str, Any]:
    return {
        "cache_dir": path,
        "retry": RetryPolicy(max_retries=0),
        "policy": PrivacyPolicy(max_epsilon_per_token=1000),  # the tiny bundle has little noise
        **others,
    }


def buy(server: Server, path: Path, count: int, key: str = ANN) -> PassFile:
    store = PassFile(path / "passes.db")
    with Client(server.url, **options(path, api_key=key)) as buyer:
        store.add(buyer.request_passes(count, issuer=ISSUER.to_bytes().hex()))
    return store


def test_passes_pay_for_completions_and_name_nobody(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(required=True)
    store = buy(server, tmp_path, 3)
    server.heads.clear()
    with Client(server.url, **options(tmp_path / "other", passes=store)) as client:
        assert [model.id for model in client.models()]
        whole = client.complete(SECRET, variant="open", max_tokens=4)
        with client.stream(SECRET, variant="open", max_tokens=5) as stream:
            streamed = list(stream)
    assert len(whole.token_ids) == 4
    assert sum(len(chunk.token_ids) for chunk in streamed) == 5
    assert len(store) == 1
    paid = [head for path, head in server.heads if path == "/v1/private/completions"]
    assert len({head["authorization"] for head in paid}) == len(paid) == 2
    assert not any("authorization" in head for path, head in server.heads if path != "/v1/private/completions")
    assert not any(ANN in str(head) for _, head in server.heads)
    assert len(set(server.record.spent)) == 2


def test_a_pass_is_spent_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    data = buy(server, tmp_path, 1).take()

    class Again:
        taken = 0

        def take(self) -> bytes:
            self.taken += 1
            return data

    again = Again()
    with Client(server.url, **options(tmp_path, passes=again)) as client:
        client.complete(SECRET, variant="open", max_tokens=2)
        with pytest.raises(PassSpentError) as spent:
            client.complete("another prompt", variant="open", max_tokens=2)
    assert spent.value.status == 401
    # The replica remembers it, and reads no body for it: this one is no frame.
    headers = {"authorization": authorization(data), "content-type": MEDIA_TYPE}
    again_refused = httpx.post(f"{server.url}/v1/private/completions", content=b"x" * 100_000, headers=headers)
    assert again_refused.json()["error"]["code"] == "pass_spent"
    assert again.taken == 1 + 3  # a server that calls all passes spent gets three of them
    # The record is a file: a server that starts again knows what was spent.
    assert not PassLedger(tmp_path / "key.spent").spend(check_pass([ISSUER], data)[1])


def test_a_spent_pass_is_replaced_by_the_next(serve: Callable[..., Server], tmp_path: Path) -> None:
    """As after a try whose connection broke when the server had spent the pass."""
    server = serve()
    store = buy(server, tmp_path, 2)
    first = store.take()
    server.record.ledger.spend(check_pass([ISSUER], first)[1])
    store.add([first])
    rest = [store.take(), store.take()]
    store.add(reversed(rest))  # the spent one comes first
    with Client(server.url, **options(tmp_path, passes=store)) as client:
        assert client.complete(SECRET, variant="open", max_tokens=2).token_ids
    assert len(store) == 0


async def test_an_asynchronous_client_spends_and_buys(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    store = PassFile(tmp_path / "passes.db")
    async with AsyncClient(server.url, **options(tmp_path, api_key=ANN)) as buyer:
        store.add(await buyer.request_passes(2, issuer=ISSUER.to_bytes()))
    async with AsyncClient(server.url, **options(tmp_path, passes=store.path)) as client:
        assert (await client.complete(SECRET, variant="open", max_tokens=2)).token_ids
    assert len(store) == 1


def test_keys_are_counted_when_they_buy(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    buy(server, tmp_path, 5)
    with pytest.raises(RateLimitError, match="8 a day"):
        buy(server, tmp_path, 4)
    assert len(buy(server, tmp_path, 3)) == 8
    with pytest.raises(RateLimitError):
        buy(server, tmp_path, 1)
    with pytest.raises(RateLimitError, match="0 a day"):
        buy(server, tmp_path, 1, BOB)
    with pytest.raises(AuthenticationError):
        buy(server, tmp_path, 1, "del-" + "c" * 40)


def test_a_pass_buys_no_more_than_its_length(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(tokens=12)
    store = buy(server, tmp_path, 1)
    with Client(server.url, **options(tmp_path, passes=store)) as client, pytest.raises(InvalidRequestError) as error:
        client.complete(SECRET, variant="open", max_tokens=12)
    assert error.value.field == "max_tokens"
    assert not server.record.spent  # nothing was computed, so nothing is spent


def test_keys_stay_valid_unless_passes_are_required(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    with Client(server.url, **options(tmp_path, api_key=ANN)) as client:
        assert client.complete(SECRET, variant="open", max_tokens=2).token_ids


def test_with_required_passes_a_key_pays_for_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(required=True)
    with Client(server.url, **options(tmp_path, api_key=ANN)) as client, pytest.raises(AuthenticationError) as error:
        client.complete(SECRET, variant="open", max_tokens=2)
    assert error.value.code == "invalid_pass"
    answer = httpx.post(f"{server.url}/v1/private/completions")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == ISSUER.header()


def test_passes_through_a_relay(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Bought and spent so that the server sees neither address nor key with a prompt."""
    server = serve(required=True)
    with running(Relay(gateway_url(server.url)).app) as port:
        through = {"relay": f"http://127.0.0.1:{port}", "gateway_key": GATEWAY.config.to_list()}
        store = PassFile(tmp_path / "passes.db")
        with Client(server.url, **options(tmp_path, api_key=ANN, **through)) as buyer:
            store.add(buyer.request_passes(1, issuer=ISSUER.to_bytes()))
        with Client(server.url, **options(tmp_path, passes=store, **through)) as client:
            assert client.complete(SECRET, variant="open", max_tokens=2).token_ids
    assert len(server.record.spent) == 1


def test_an_issuer_with_another_key_gives_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A server that signs with a key of its own for each client is found out."""
    other = next(key for key in map(issuer_key, range(1, 9)) if key.config.key_id[-1] != ISSUER.key_id[-1])
    server = serve(keys=[other])
    with pytest.raises(InvalidRequestError, match="present key"):
        buy(server, tmp_path, 1)
    lying = serve_constant(b"\x41\x03" + b"\x01\x00\x02" + other.signer.sign(bytes(255) + b"\x02"))
    with (
        running(lying) as port,
        Client(f"http://127.0.0.1:{port}", **options(tmp_path, api_key=ANN)) as client,
        pytest.raises(ProtocolError, match="signatures of the issuer"),
    ):
        client.request_passes(1, issuer=ISSUER.to_bytes())


def serve_constant(body: bytes) -> Any:
    """Return an application that answers everything with these bytes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def test_without_the_record_nothing_is_spent(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Neither given out nor taken on trust: a pass could be spent once more at each failure."""
    server = serve()
    store = buy(server, tmp_path, 1)

    async def fail(*_: object) -> bool:
        raise RecordUnavailableError("the record of passes does not answer")

    server.record.spend = server.record.give = fail  # type: ignore[method-assign]
    with Client(server.url, **options(tmp_path, passes=store)) as client, pytest.raises(ServiceUnavailableError):
        client.complete(SECRET, variant="open", max_tokens=2)
    with pytest.raises(ServiceUnavailableError):
        buy(server, tmp_path, 1)


def test_a_client_without_passes_sends_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    store = PassFile(tmp_path / "passes.db")
    with Client(server.url, **options(tmp_path, passes=store)) as client:
        with pytest.raises(PassesUnavailableError):
            client.complete(SECRET, variant="open", max_tokens=2)
        store.add([])
        with pytest.raises(PassesUnavailableError, match="none"):
            client.complete(SECRET, variant="open", max_tokens=2)
    assert not any(path == "/v1/private/completions" for path, _ in server.heads)
    with pytest.raises(InvalidRequestError, match="api_key"):
        Client(server.url, **options(tmp_path, passes=store, api_key=ANN))


def test_the_commands(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    key, store = str(tmp_path / "passes.json"), str(tmp_path / "passes.db")
    assert run(["keys", "passes", key, "--issuer", "Not a host"]) == 2
    assert run(["keys", "passes", key, "--issuer", "del.example"]) == 0
    configuration = capsys.readouterr().out.split()[-1]
    assert run(["keys", "passes", key, "--issuer", "del.example"]) == 2
    server = serve(keys=[IssuerKey.load(Path(key))], required=True)
    get = ["passes", "get", store, "--url", server.url, "--issuer", configuration, "--count", "2"]
    assert run([*get, "--api-key", ANN]) == 0
    ask = ["ask", "--url", server.url, "--passes", store, "--variant", "open", "--max-epsilon-per-token", "1000"]
    monkeypatch.setenv("DEL_API_KEY", ANN)
    assert run([*ask, "--max-tokens", "2", SECRET]) == 0
    assert not any(ANN in str(head) for path, head in server.heads if path != "/v1/passes")
    assert run([*ask, "--max-tokens", "2", SECRET, "--api-key", ANN]) == 2
    monkeypatch.delenv("DEL_API_KEY")
    capsys.readouterr()
    assert run(["passes", "left", store]) == 0
    assert capsys.readouterr().out == "1\n"
    assert run(get) != 0  # without an API key


def test_a_file_of_passes_is_its_owners_and_keeps_nothing_that_was_taken(tmp_path: Path) -> None:
    path = tmp_path / "passes.db"
    path.touch(mode=0o644)
    store = PassFile(path)
    passes = [secrets.token_bytes(PASS_BYTES) for _ in range(6)]
    store.add(passes)
    assert path.stat().st_mode & 0o777 == 0o600
    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(lambda _: PassFile(path).take(), range(4)))
    assert len(set(taken)) == 4
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert [one in content for one in passes] == [one not in taken for one in passes]
    path.write_text("something else")
    with pytest.raises(PassesUnavailableError):
        store.take()


def test_cloudflares_package_gets_and_spends_passes(serve: Callable[..., Server]) -> None:
    """`@cloudflare/privacypass-ts`, unchanged: challenge, directory, issuance, redemption."""
    node = shutil.which("node")
    if node is None or not (NODE_PROJECT / "node_modules" / "@cloudflare" / "privacypass-ts").is_dir():
        pytest.fail("Node.js 20 or newer and the packages of tests/end_to_end/node are needed; see scripts/install")
    server = serve(required=True)
    done = subprocess.run(
        [node, NODE_PROJECT / "passes.mjs", server.url, ANN], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["verified"] is True
    _, nonce = check_pass([ISSUER], base64.b64decode(seen["token"]))
    assert server.record.ledger.spend(nonce)
    # The server took the package's header: what it refuses is the body, which is no frame.
    assert seen["redeemed"] == "truncated_frame"
    assert seen["batch"] == [True, True, True]
    directory = httpx.get(f"{server.url}{DIRECTORY}")
    assert directory.headers["content-type"] == DIRECTORY_TYPE
