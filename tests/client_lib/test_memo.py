"""A prompt that a client sends again carries the counts of the first time, and is charged once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_lib import BundleOutdatedError, Client, Padding, PolicyViolationError, PrivacyPolicy, private, public
from client_lib.prompts.memo import MAX_REDRAWS, PromptMemo
from client_lib.prompts.spans import Span
from client_lib.prompts.types import EncodedPrompt
from del_core.wire import PrivateSegment
from tests.client_lib.conftest import Calls
from tests.client_lib.test_hooks import Ledger
from tests.support.bundle import make_bundle
from tests.support.malicious import dated
from tests.support.scripted_server import ScriptedServer, error

Connect = Callable[..., Calls]
SECRET = "my test was positive"


def payloads(server: ScriptedServer) -> list[bytes]:
    """The private counts of every frame, in order."""
    return [
        b"|".join(s.codes.tobytes() for s in server.decode(frame).segments if isinstance(s, PrivateSegment))
        for frame in server.frames
    ]


@pytest.mark.parametrize("prompt", [SECRET, [public("Answer:"), private(SECRET)]], ids=["text", "spans"])
def test_a_retry_of_the_application_gives_no_second_copy(
    connect: Connect, server: ScriptedServer, prompt: str | Sequence[Span]
) -> None:
    ledger = Ledger()
    calls = connect(variant="open", ledger=ledger, subject="ann")
    for _ in range(3):
        calls.complete(prompt)
        calls.stream(prompt, temperature=0.5)
    assert len(set(payloads(server))) == 1
    assert len(ledger.charged) == 1


def test_fresh_noise_is_drawn_on_request_and_then_kept(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger()
    calls = connect(variant="open", ledger=ledger, subject="ann")
    calls.complete(SECRET)
    calls.complete(SECRET, fresh=True)
    calls.stream(SECRET)
    first, second, third = payloads(server)
    assert first != second == third
    assert len(ledger.charged) == 2


def test_other_subjects_variants_paddings_and_clients_share_nothing(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open", subject="ann")
    others = [
        calls.with_options(subject="bob"),
        calls.with_options(subject=None),
        calls.with_options(padding=Padding(16)),
        connect(variant="open", subject="ann"),
    ]
    for one in (calls, *others):
        one.complete(SECRET)
    calls.complete([private(SECRET[:7]), private(SECRET[7:])])
    assert len(set(payloads(server))) == 6
    calls.with_options(timeout=30).complete(SECRET)
    assert payloads(server)[-1] == payloads(server)[0]


def test_encoding_draws_every_time(connect: Connect) -> None:
    calls = connect()
    drawn = [calls.call("encode", SECRET, variant="open").draws[0].id for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_the_policy_sees_remembered_prompts(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open")
    calls.complete(SECRET)
    with pytest.raises(PolicyViolationError):
        calls.with_options(policy=PrivacyPolicy(max_epsilon_per_prompt=1e-3)).complete(SECRET)
    assert len(server.frames) == 1


def test_new_audits_give_no_second_copy(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    """The server changes the date of the audit at every request, and refuses frames."""
    calls = connect(variant="open")
    calls.complete(SECRET)
    for day in range(1, 6):
        server.bundle = dated(tmp_path / f"{day}", f"2026-01-0{day}")
        server.script.append(error(409, "bundle_outdated"))
        calls.complete(SECRET)
    server.script.extend([error(409, "bundle_outdated")] * 2)
    server.bundle = dated(tmp_path / "last", "2026-02-01")
    with pytest.raises(BundleOutdatedError) as caught:
        calls.complete(SECRET)
    assert not caught.value.meaning_changed
    calls.complete(SECRET)
    seen = [frame for frame in server.frames if server.bundle.fingerprint.encode() in frame]
    assert seen
    counts = {
        segment.codes.tobytes()
        for frame in server.frames
        for segment in server.decode(frame).segments
        if isinstance(segment, PrivateSegment)
    }
    assert len(counts) == 1


def test_a_server_gets_a_bounded_number_of_copies_by_ever_stronger_offers(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    """Every offer is stronger than the last: it is accepted, and counts change their meaning."""
    calls = connect(variant="open")
    calls.complete(SECRET)
    refused = 0
    for step in range(1, 8):
        server.bundle = make_bundle(tmp_path / f"{step}", ratio_numerator=(1 << 29) - 1000 * step)
        for _ in range(2):
            try:
                calls.complete(SECRET)
            except BundleOutdatedError as outdated:
                refused += "the limit of fresh noise" in str(outdated)
    assert refused
    assert len({payload for payload in payloads(server) if payload}) == 1 + MAX_REDRAWS
    with pytest.raises(BundleOutdatedError, match="draws fresh noise"):
        calls.complete(SECRET, fresh=True)
    calls.complete(SECRET, fresh=True)
    assert len(set(payloads(server))) == 3 + MAX_REDRAWS


def test_threads_that_send_one_text_send_one_copy(server: ScriptedServer, tmp_path: Path) -> None:
    with Client(server.url, cache_dir=tmp_path) as client:
        client.bundle()
        barrier = threading.Barrier(6)

        def send() -> None:
            barrier.wait()
            client.complete(SECRET, variant="open")

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(server.frames) == 6
    assert len(set(payloads(server))) == 1


def _encoded(tokens: int, **fields: Any) -> EncodedPrompt:
    segment = PrivateSegment(np.zeros((tokens, 8), np.uint8))
    return EncodedPrompt("f", "open", (segment,), fields.get("origin", ()))


def test_the_memo_is_bounded_and_holds_no_text() -> None:
    memo = PromptMemo(10_000)
    names = [memo.name("ann", "open", None, [private(f"Zebra {index}")]) for index in range(30)]
    for name in names:
        memo.recall(names[0])
        memo.keep(name, _encoded(10))
        assert memo.used_bytes <= 10_000
    assert memo.recall(names[0]) is not None
    assert memo.recall(names[29]) is not None
    assert memo.recall(names[5]) is None
    memo.keep(names[0], _encoded(10_000), fresh=True)  # alone too large
    assert memo.recall(names[0]) is None
    assert len(set(names)) == 30
    assert all(b"Zebra" not in name for name in names)
    assert PromptMemo().name("ann", "open", None, [private("x")]) != PromptMemo().name(
        "ann", "open", None, [private("x")]
    )
    assert memo.name(None, "open", None, [private("x")]) != memo.name("", "open", None, [private("x")])
    assert memo.name(None, "open", None, [private("x")]) != memo.name(None, "open", None, [public("x")])
