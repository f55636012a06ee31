"""An application that uses the whole interface, for mypy and pyright; it is never run."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, assert_type

import client_lib
from client_lib import (
    AsyncClient,
    AuthenticationError,
    BudgetExceeded,
    BudgetExceededError,
    ChatTemplate,
    Chunk,
    Client,
    Completion,
    DELClientError,
    EncodedPrompt,
    Message,
    Model,
    Overloaded,
    Padding,
    PrivacyPolicy,
    RateLimitError,
    RetryPolicy,
    Span,
    Timeout,
    TimeoutExceeded,
    Usage,
    mark,
    private,
    public,
)
from client_lib.ledger import (
    Account,
    Budget,
    Ledger,
    LedgerStore,
    MemoryStore,
    RedisStore,
    Spending,
    SQLiteStore,
    open_store,
)
from client_lib.proxy import ProxySettings, create_app
from client_lib.telemetry import Attributes, CallObserver, OpenTelemetry, TelemetryHook


def make(url: str) -> Client:
    policy = PrivacyPolicy(
        max_epsilon_per_token=120.0,
        min_audit_date=datetime.date(2026, 1, 1),
        variants=["strict", "balanced"],
    )
    ledger = Ledger(SQLiteStore("ledger.db"), budget=Budget(2_000.0, window=datetime.timedelta(days=30)))
    return Client(
        url,
        api_key=None,
        timeout=Timeout(first_token=10.0),
        policy=policy,
        ledger=ledger,
        variant="balanced",
        padding=Padding(32),
        telemetry=OpenTelemetry(propagate=True),
        http2=True,
        retry=RetryPolicy(max_retries=4, first_pause=0.1),
    )


def spans(text: str) -> list[Span]:
    return [public("Dear sister,"), private(text), *mark(text, lambda found: [(0, len(found))])]


def use(client: Client, text: str) -> str:
    with client.with_options(subject="user-4711", timeout=30, max_retries=2) as mine:
        completion = mine.complete(spans(text), max_tokens=48, stop=["\n"], seed=None, idempotency_key="order-1")
        assert_type(completion, Completion)
        assert_type(completion.usage, Usage)
        assert_type(completion.token_ids, tuple[int, ...])
        assert_type(completion.request_id, str | None)
        encoded = mine.encode(text, variant="strict")
        assert_type(encoded, EncodedPrompt)
        with mine.stream(encoded, variant="strict", temperature=0.0) as stream:
            for chunk in stream:
                assert_type(chunk, Chunk)
                assert_type(chunk.finish_reason, str | None)
        assert_type(stream.completion, Completion | None)
        assert_type(mine.models(), tuple[Model, ...])
        assert_type(mine.epsilon("strict", delta=1e-6, tokens=3), float)
        for name, variant in mine.variants().items():
            assert_type(name, str)
            assert_type(variant.bits, int)
    return completion.text


def talk(client: Client, key: bytes) -> bytes:
    template = ChatTemplate.simple({"user": "User: ", "assistant": "You: "}, answer="You: ")
    conversation = client.conversation(variant="balanced", template=template)
    history = [Message("user", "my test was positive")]
    answer = conversation.complete(history, max_tokens=48, fresh=True)
    history += [Message("assistant", public(answer.text)), Message("user", "what now?")]
    for chunk in conversation.stream(history):
        assert_type(chunk.text, str)
    assert_type(conversation.save(key), bytes)
    return client.conversation(memory=conversation.save(key), key=key).save(key)


async def use_async(url: str, text: str) -> str:
    async with AsyncClient(url, variant="balanced", telemetry=Watching()) as client:
        completion = await client.complete(text, top_p=0.9)
        assert_type(completion, Completion)
        async with client.stream(await client.encode(text)) as stream:
            async for chunk in stream:
                assert_type(chunk, Chunk)
        assert_type(stream.completion, Completion | None)
        assert_type(await client.models(), tuple[Model, ...])
        conversation = client.conversation()
        async for chunk in conversation.stream(text, max_tokens=3):
            assert_type(chunk.token_ids, tuple[int, ...])
        app = create_app(client, ProxySettings(public_system=True))
        assert app is not None
        return (await conversation.complete(text)).text


def handle(client: Client, text: str) -> str:
    try:
        return client.complete(text).text
    except BudgetExceededError as refused:
        assert_type(refused.epsilon_spent, float)
        assert_type(refused.retry_at, datetime.datetime | None)
    except RateLimitError as busy:
        assert_type(busy.retry_after, float | None)
    except TimeoutExceeded as late:
        assert_type(late.phase, str)
    except DELClientError as failure:
        assert_type(failure.code, str | None)
        assert_type(failure.request_id, str | None)
    return ""


def account_for(place: str, subject: str) -> float:
    store: LedgerStore = open_store(place)
    ledger = Ledger(store, budget=Budget(500.0))
    assert_type(ledger.spent(subject), Spending)
    assert_type(ledger.export(subject), dict[str, Any])
    assert_type(ledger.erase(subject), bool)
    stores: list[LedgerStore] = [MemoryStore(), RedisStore("redis://127.0.0.1", durable=False), OwnStore()]
    return ledger.spent(subject).remaining + len(stores)


class OwnStore:
    """A store of the application's own."""

    @contextmanager
    def account(self, subject: str) -> Generator[Account]:
        with MemoryStore().account(subject) as account:
            yield account

    def subjects(self) -> list[str]:
        return []

    def erase(self, subject: str) -> bool:
        return False

    def close(self) -> None:
        return None


class Watching:
    """A telemetry hook of the application's own."""

    def begin(self, operation: str, attributes: Attributes) -> CallObserver | None:
        return _Call()


class _Call:
    def headers(self) -> Mapping[str, str]:
        return {}

    def event(self, name: str, attributes: Attributes) -> None:
        print(name, len(attributes))

    def end(self, attributes: Attributes, error: DELClientError | None) -> None:
        print(error)


hook: TelemetryHook = Watching()
kinds: list[type[client_lib.DELClientError]] = [BudgetExceeded, Overloaded, AuthenticationError]
