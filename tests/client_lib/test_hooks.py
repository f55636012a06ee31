"""Policy and ledger are asked in the right order, and what they refuse is never sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from client_lib import (
    BudgetExceededError,
    Draw,
    InvalidRequestError,
    LedgerUnavailableError,
    PolicyViolationError,
    private,
    public,
)
from client_lib.prompts.encoder import Encoder
from del_core.bundle import ClientBundle
from del_core.mechanism import Mechanism
from tests.client_lib.conftest import Calls
from tests.support.scripted_server import ScriptedServer, cut, error, reset

Connect = Callable[..., Calls]
SECRET = "my test was positive"


class Ledger:
    """Charges every draw once and keeps the order of events."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.refuse = refuse
        self.charged: dict[bytes, int] = {}
        self.calls: list[tuple[str, Mechanism, tuple[Draw, ...]]] = []

    def spend(self, subject: str, mechanism: Mechanism, draws: Sequence[Draw]) -> None:
        self.calls.append((subject, mechanism, tuple(draws)))
        if self.refuse is not None:
            raise self.refuse
        self.charged.update({draw.id: draw.tokens for draw in draws})


class Policy:
    """Refuses a variant, or prompts with more than some private tokens."""

    def __init__(self, *, forbidden: str = "", most: int = 1000) -> None:
        self.forbidden, self.most = forbidden, most

    def check_variant(self, bundle: ClientBundle, variant: str) -> None:
        if variant == self.forbidden:
            raise PolicyViolationError(f"variant: {variant!r}; allowed: others")

    def check_prompt(self, bundle: ClientBundle, variant: str, private_tokens: int) -> None:
        if private_tokens > self.most:
            raise PolicyViolationError(f"prompt: {private_tokens} private tokens; allowed: {self.most}")


@pytest.mark.parametrize("method", ["complete", "stream"])
def test_every_draw_is_charged_once_before_it_is_sent(connect: Connect, server: ScriptedServer, method: str) -> None:
    """Over retries, resumptions and sending the same encoded prompt again."""
    ledger = Ledger()
    calls = connect(ledger=ledger, subject="ann")
    encoded = calls.call("encode", [public("Hello"), private(SECRET), private(" or not")], variant="open")
    assert not ledger.calls  # drawing costs nothing: nobody has seen it
    for _ in range(2):
        server.script.extend([reset, error(503, "overloaded", {"retry-after": "0"})])
        server.script.extend([cut(400)] if method == "stream" else [])
        getattr(calls, method)(encoded, variant="open")
    assert ledger.charged == {draw.id: draw.tokens for draw in encoded.draws}
    assert [subject for subject, _, _ in ledger.calls] == ["ann", "ann"]
    assert ledger.calls[0][1] == server.bundle.mechanism("open")
    assert sum(draw.tokens for draw in encoded.draws) == encoded.private_tokens
    assert len({draw.id for draw in encoded.draws}) == 2
    assert not any(draw.id in frame for draw in encoded.draws for frame in server.frames)


@pytest.mark.parametrize("method", ["complete", "stream"])
@pytest.mark.parametrize(
    ("refuse", "expected"),
    [
        (BudgetExceededError("subject: spent", subject="ann"), BudgetExceededError),
        (LedgerUnavailableError("ledger: locked"), LedgerUnavailableError),
        (OSError(28, "No space left on device"), LedgerUnavailableError),
        (RuntimeError("whatever"), LedgerUnavailableError),
    ],
)
def test_what_the_ledger_refuses_is_not_sent(
    connect: Connect, server: ScriptedServer, method: str, refuse: Exception, expected: type[Exception]
) -> None:
    calls = connect(ledger=Ledger(refuse), subject="ann")
    with pytest.raises(expected):
        getattr(calls, method)(SECRET, variant="open")
    assert not server.frames


def test_with_a_ledger_a_subject_is_needed(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger()
    calls = connect(ledger=ledger)
    with pytest.raises(InvalidRequestError) as caught:
        calls.complete(SECRET, variant="open")
    assert caught.value.field == "subject"
    assert not server.received
    calls.with_options(subject="bob").complete(SECRET, variant="open")
    assert [subject for subject, _, _ in ledger.calls] == ["bob"]


def test_public_prompts_cost_nothing(connect: Connect) -> None:
    ledger = Ledger()
    connect(ledger=ledger, subject="ann").complete("hello", variant="clear")
    assert not ledger.calls


@pytest.mark.parametrize("policy", [Policy(forbidden="open"), Policy(most=2)])
def test_what_the_policy_forbids_draws_no_noise(
    connect: Connect, server: ScriptedServer, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    calls = connect(policy=policy, ledger=ledger, subject="ann")

    def draw(*_: Any) -> None:
        raise AssertionError("noise was drawn")

    monkeypatch.setattr(Encoder, "draw", draw)
    for method in ("complete", "stream"):
        with pytest.raises(PolicyViolationError):
            getattr(calls, method)(SECRET, variant="open")
    with pytest.raises(PolicyViolationError):
        calls.call("encode", SECRET, variant="open")
    assert not server.frames
    assert not ledger.calls


def test_the_policy_sees_prompts_that_were_encoded_before(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    encoded = calls.call("encode", SECRET, variant="open")
    with pytest.raises(PolicyViolationError):
        calls.with_options(policy=Policy(most=2)).complete(encoded, variant="open")
    assert not server.frames


def test_options_share_connections_and_bundle(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open")
    for _ in range(3):
        calls.with_options(timeout=30, max_retries=0, max_resumes=0, variant="strict").complete(SECRET)
    calls.complete(SECRET)
    assert [server.decode(frame).variant for frame in server.frames] == ["strict"] * 3 + ["open"]
    assert len(server.requests_to("/v1/bundle")) == 1
    assert server.connections == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_resumes": 101}, "max_resumes"),
        ({"subject": ""}, "subject"),
        ({"timeout": 0}, "timeout.total"),
        ({"api_key": "x"}, "api_key"),
    ],
)
def test_unacceptable_options_are_named(connect: Connect, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        connect().with_options(**options)
    assert caught.value.field == field


def test_a_variant_is_needed_somewhere(connect: Connect) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        connect().complete(SECRET)
    assert caught.value.field == "variant"
