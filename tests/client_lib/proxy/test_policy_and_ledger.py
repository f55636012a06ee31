"""The proxy with a policy and a ledger: OpenAI's package understands what they refuse."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from client_lib import BudgetExceededError, Draw, LedgerUnavailableError, PolicyViolationError
from client_lib.ledger import Budget, Ledger, MemoryStore, SQLiteStore
from del_core import accounting
from del_core.bundle import ClientBundle
from del_core.mechanism import Mechanism
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, error

MESSAGES: list[Any] = [{"role": "user", "content": "my doctor told me that the test was positive"}]
MORE: list[Any] = [*MESSAGES, {"role": "assistant", "content": "I am sorry."}, {"role": "user", "content": "thanks"}]


@dataclass
class TokenLedger:
    """A ledger that counts tokens; ``budget`` of them for everybody, a draw once."""

    budget: int
    spent: dict[str, dict[bytes, int]] = field(default_factory=dict)
    failure: Exception | None = None

    def spend(self, subject: str, _: Mechanism, draws: Sequence[Draw]) -> None:
        if self.failure is not None:
            raise self.failure
        after = {**self.spent.get(subject, {}), **{draw.id: draw.tokens for draw in draws}}
        if sum(after.values()) > self.budget:
            raise BudgetExceededError(
                f"subject: {subject!r} has no budget left",
                subject=subject,
                retry_at=datetime.now(UTC) + timedelta(seconds=90),
            )
        self.spent[subject] = after

    def total(self, subject: str) -> int:
        return sum(self.spent.get(subject, {}).values())


@dataclass(frozen=True)
class ShortPrompts:
    """A policy: no variant but ``open``, at most so many private tokens."""

    most: int

    def check_variant(self, _: ClientBundle, variant: str) -> None:
        if variant != "open":
            raise PolicyViolationError(f"variant must be 'open', got {variant!r}")

    def check_prompt(self, _: ClientBundle, __: str, private_tokens: int) -> None:
        if private_tokens > self.most:
            raise PolicyViolationError(f"private tokens must be at most {self.most}, got {private_tokens}")


def client_of(proxy: RunningProxy, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", **{"max_retries": 0, **options})


def test_who_is_charged(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    ledger = TokenLedger(10_000)
    with client_of(make_proxy(client={"ledger": ledger}, subject="house")) as api:
        ask = api.chat.completions.create
        ask(model="open", messages=MESSAGES)
        ask(model="open", messages=MESSAGES, user="alice")
        ask(model="open", messages=MESSAGES, safety_identifier="bob")
        ask(model="open", messages=MESSAGES, user="alice", extra_headers={"X-Del-Subject": "carol"})
        api.completions.create(model="open", prompt="hello", user="dave")
    assert set(ledger.spent) == {"house", "alice", "bob", "carol", "dave"}
    for subject, frame in zip(("house", "alice", "bob", "carol", "dave"), server.frames, strict=True):
        assert ledger.total(subject) == server.decode(frame).private_tokens
    assert not any(b"carol" in frame or b"alice" in frame for frame in server.frames)


def test_a_ledger_needs_a_subject(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    with client_of(make_proxy(client={"ledger": TokenLedger(10_000)})) as api:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="subject must be given") as caught:
                api.chat.completions.create(model="open", messages=MESSAGES, stream=stream)
            assert caught.value.param == "user"
    assert server.frames == []


@pytest.mark.parametrize("stream", [False, True])
def test_an_exceeded_budget(make_proxy: MakeProxy, server: ScriptedServer, stream: bool) -> None:
    ledger = TokenLedger(5)
    # The package would ask again by itself, were it not told that this does not help.
    with client_of(make_proxy(client={"ledger": ledger}), max_retries=3) as api:
        with pytest.raises(openai.RateLimitError) as caught:
            api.chat.completions.create(model="open", messages=MESSAGES, user="alice", stream=stream)
        assert caught.value.status_code == 429
        assert caught.value.code == "budget_exceeded"
        assert caught.value.type == "insufficient_quota"
        assert caught.value.param == "user"
        assert 80 <= int(caught.value.response.headers["retry-after"]) <= 90
        assert api.completions.create(model="open", prompt="a", user="bob").choices
    assert len(server.frames) == 1
    assert ledger.total("alice") == 0


def test_history_and_repetitions_are_charged_once(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    ledger = TokenLedger(10_000)
    with client_of(make_proxy(client={"ledger": ledger, "max_retries": 0}), max_retries=2) as api:
        server.script.append(error(503, "overloaded"))  # the package asks again
        api.chat.completions.create(model="open", messages=MESSAGES, user="alice")
        assert len(server.frames) == 2
        first = server.decode(server.frames[0]).private_tokens
        assert ledger.total("alice") == first
        api.chat.completions.create(model="open", messages=MORE, user="alice")
        whole = server.decode(server.frames[2]).private_tokens
        assert whole > first
        assert ledger.total("alice") == whole  # the new messages alone were added
        api.chat.completions.create(model="open", messages=MORE, user="alice", stream=True).close()
        api.chat.completions.create(
            model="open", messages=MESSAGES, user="alice", extra_headers={"X-Del-Noise": "fresh"}
        )
        assert ledger.total("alice") == whole + first


def test_a_ledger_that_cannot_write(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    ledger = TokenLedger(10_000, failure=LedgerUnavailableError("ledger: the disk is full; nothing has been sent"))
    with client_of(make_proxy(client={"ledger": ledger})) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            api.chat.completions.create(model="open", messages=MESSAGES, user="alice")
        assert (caught.value.status_code, caught.value.code) == (503, "ledger_unavailable")
        ledger.failure = None
        assert api.chat.completions.create(model="open", messages=MESSAGES, user="alice").choices
    assert len(server.frames) == 1


def test_a_ledger_whose_file_is_deleted(make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path) -> None:
    """No request passes that the ledger cannot count."""
    store = SQLiteStore(tmp_path / "ledger.db")
    ledger = Ledger(store, budget=Budget(1e6))
    with contextlib.closing(ledger), client_of(make_proxy(client={"ledger": ledger})) as api:
        assert api.completions.create(model="open", prompt="one", user="alice").choices
        store.path.unlink()
        for prompt in ("two", "three"):
            with pytest.raises(openai.InternalServerError) as caught:
                api.completions.create(model="open", prompt=prompt, user="alice")
            assert (caught.value.status_code, caught.value.code) == (503, "ledger_unavailable")
    assert len(server.frames) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_policy(make_proxy: MakeProxy, server: ScriptedServer, stream: bool) -> None:
    with client_of(make_proxy(client={"policy": ShortPrompts(40)})) as api:
        for arguments in ({"model": "strict", "messages": MESSAGES}, {"model": "open", "messages": MORE * 4}):
            with pytest.raises(openai.PermissionDeniedError, match="must be") as caught:
                api.chat.completions.create(**arguments, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (403, "policy_violation")
            assert caught.value.type == "permission_error"
        assert server.frames == []
        assert api.chat.completions.create(model="open", messages=MESSAGES).choices


def test_the_policy_sees_the_whole_prompt_not_only_what_is_new(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    with client_of(make_proxy()) as api:
        api.chat.completions.create(model="open", messages=MORE)
    least = server.decode(server.frames[0]).private_tokens
    with client_of(make_proxy(client={"policy": ShortPrompts(least - 1)})) as api:
        api.chat.completions.create(model="open", messages=MESSAGES)  # below the bound, and remembered
        with pytest.raises(openai.PermissionDeniedError):
            api.chat.completions.create(model="open", messages=MORE)
    assert len(server.frames) == 2


def test_a_spent_budget_tells_nothing_about_earlier_prompts(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    """A prompt that was sent before and one that was not get the same answer."""
    limit = accounting.epsilon(server.bundle.mechanism("open"), 5e-7, 60)
    ledger = Ledger(MemoryStore(), budget=Budget(limit, window=None), hide_repeats=True)
    proxy = make_proxy({"ledger": ledger}, subject="ann")

    def answer(text: str) -> tuple[int, dict[str, Any], str | None]:
        response = proxy.post("/v1/completions", {"model": "open", "prompt": text, "max_tokens": 2})
        return response.status_code, response.json().get("error", {}), response.headers.get("retry-after")

    sent = "the quick brown"
    assert answer(sent)[0] == 200
    assert answer(sent)[0] == 200  # while the budget lasts, a retry is free
    first = server.decode(server.frames[0]).private_tokens
    assert answer(sent)[0] == 200
    for letter in "abcdefghijklmnopqrstuvwxyz":  # a token each, until no prompt of a few tokens fits
        if answer(letter * 2)[0] == 429:
            break
    assert first > 2
    frames = len(server.frames)
    answers = [answer(text) for text in (sent, "lazy brown dogs", "test was positive")]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == 429
    assert len(server.frames) == frames
    assert "is spent" not in str(answers)
