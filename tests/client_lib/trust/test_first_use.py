"""Trust on first use against a server that swaps its bundle: clients of both kinds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_lib import BundleRejectedError, InvalidRequestError, PolicyViolationError, PrivacyPolicy
from client_lib.trust import FileTrustStore, MemoryTrustStore
from client_lib.trust.store import Update
from del_core.bundle import ClientBundle
from tests.client_lib.conftest import Calls
from tests.support.bundle import make_bundle, make_tokenizer
from tests.support.malicious import coarse, corners, dated, renumbered, with_variants
from tests.support.scripted_server import ScriptedServer, cut

Connect = Callable[..., Calls]
SECRET = "my test was positive"


def rejected(calls: Calls, server: ScriptedServer, words: str, *, variant: str = "strict") -> BundleRejectedError:
    """Every call is refused, whatever its kind, and nothing is sent for the offered bundle."""
    raised = None
    before = sum(server.bundle.fingerprint.encode() in frame for frame in server.frames)
    for method in (calls.complete, calls.stream):
        with pytest.raises(BundleRejectedError, match=re.escape(words)) as caught:
            method(SECRET, variant=variant)
        raised = caught.value
    assert raised is not None
    assert raised.fingerprint == server.bundle.fingerprint
    assert raised.server == server.url
    assert sum(server.bundle.fingerprint.encode() in frame for frame in server.frames) == before
    assert SECRET not in str(raised)
    return raised


def offers(path: Path) -> dict[str, tuple[Callable[[], ClientBundle], str]]:
    """Return offers that are different from or weaker than the fixture's bundle, by name."""
    return {
        "another table": (lambda: make_bundle(path, table_seed=2), "the SHA-256 of the table must be"),
        "another tokenizer": (
            lambda: make_bundle(path, tokenizer_json=make_tokenizer(("one more text",)), rows=300),
            "the SHA-256 of the tokenizer must be",
        ),
        "less noise": (lambda: make_bundle(path, ratio_numerator=(1 << 29) + 4096), "the epsilon of strict at delta"),
        "names exchanged": (lambda: make_bundle(path, names=("open", "strict")), "the epsilon of strict at delta"),
        "one token a corner": (lambda: corners(path), "the epsilon of strict at delta"),
        "the table stretched": (lambda: coarse(path), "max_level must be at least 32767, got 16384"),
        "another mechanism": (lambda: renumbered(path), "the mechanism of strict must be"),
    }


@pytest.mark.parametrize("name", offers(Path()))
@pytest.mark.parametrize("restart", [False, True], ids=["same client", "next start"])
def test_a_swapped_bundle_is_refused_until_it_is_accepted(
    connect: Connect, server: ScriptedServer, tmp_path: Path, name: str, restart: bool
) -> None:
    make, words = offers(tmp_path / "offer")[name]
    calls = connect()
    calls.complete(SECRET, variant="strict")
    server.bundle = make()
    if restart:
        calls = connect()
    error = rejected(calls, server, words)
    assert error.changes
    limits = PrivacyPolicy(max_epsilon_per_token=1e6)
    accepting = connect(accept=server.bundle.fingerprint, policy=limits)
    accepting.complete(SECRET, variant="strict")
    connect(policy=limits).complete(SECRET, variant="strict")  # it is remembered


def test_the_policy_accepts_on_purpose(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="strict")
    server.bundle = make_bundle(tmp_path / "offer", table_seed=2)
    rejected(connect(policy=PrivacyPolicy()), server, "table")
    connect(policy=PrivacyPolicy(fingerprints=[server.bundle.fingerprint])).complete(SECRET, variant="strict")


def test_equal_and_stronger_offers_pass_and_are_remembered(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    calls = connect()
    calls.complete(SECRET, variant="strict")
    first = server.bundle
    server.bundle = make_bundle(tmp_path / "equal", norm_limit=2.0)
    connect().complete(SECRET, variant="strict")
    server.bundle = make_bundle(tmp_path / "stronger", ratio_numerator=1 << 28)
    connect().complete(SECRET, variant="strict")
    server.bundle = first
    rejected(connect(), server, "the epsilon of strict at delta 1e-06 must be at most")


@pytest.mark.parametrize("later", ["2025-12-31", None, "soon"])
def test_an_older_audit_is_refused_and_a_newer_one_remembered(
    connect: Connect, server: ScriptedServer, tmp_path: Path, later: str | None
) -> None:
    connect().complete(SECRET, variant="open")
    server.bundle = dated(tmp_path / "first", "2026-05-01")
    connect().complete(SECRET, variant="open")
    server.bundle = dated(tmp_path / "later", later)
    rejected(connect(), server, "the audit date of open must be 2026-05-01 or later", variant="open")


def test_a_variant_cannot_go_and_come_back_weaker(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="open")
    server.bundle = with_variants(tmp_path / "without", {"open": (4, 1 << 29)})
    connect().complete(SECRET, variant="open")
    server.bundle = with_variants(tmp_path / "again", {"open": (4, 1 << 29), "strict": (2, 3 << 29)})
    rejected(connect(), server, "the epsilon of strict", variant="open")


def test_a_variant_that_was_chosen_by_name_must_stay(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="open")
    server.bundle = with_variants(tmp_path / "without", {"open": (4, 1 << 29)})
    rejected(connect(variant="strict"), server, "variant strict must be offered", variant="open")
    policy = PrivacyPolicy(variants=["strict", "open"])
    rejected(connect(policy=policy), server, "variant strict must be offered", variant="open")
    connect().complete(SECRET, variant="open")


def test_a_resumed_stream_does_not_move_to_a_refused_bundle(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "offer", table_seed=2)

    async def cut_and_swap(running: ScriptedServer, received: Any, writer: Any) -> None:
        await cut(500)(running, received, writer)
        running.bundle = other

    server.script.append(cut_and_swap)
    with pytest.raises(BundleRejectedError):
        connect().stream(SECRET, variant="open", max_tokens=40)
    assert all(other.fingerprint.encode() not in frame for frame in server.frames)


def test_a_refused_bundle_is_not_kept(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="open")
    server.bundle = make_bundle(tmp_path / "offer", table_seed=2)
    rejected(connect(), server, "table")
    assert server.bundle.fingerprint not in {entry.name for entry in (tmp_path / "cache" / "bundles").iterdir()}


# --- the limit that nobody has to set -------------------------------------------------------------


def test_noise_that_is_none_is_refused_at_the_first_use(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    server.bundle = corners(tmp_path / "corners")
    for policy in (None, PrivacyPolicy(), _Indifferent()):
        calls = connect(policy=policy, trust=MemoryTrustStore())
        for method in (calls.complete, calls.stream):
            with pytest.raises(PolicyViolationError, match="must be at most 350, got"):
                method(SECRET, variant="strict")
    assert not server.frames
    connect(policy=PrivacyPolicy(max_epsilon_per_token=1e6)).complete(SECRET, variant="strict")


def test_the_limit_is_at_a_delta_of_the_clients_own(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    server.bundle = corners(tmp_path / "corners", delta=1.0)  # at which every epsilon is 0
    with pytest.raises(PolicyViolationError, match="at delta 1e-06"):
        connect().complete(SECRET, variant="strict")


class _Indifferent:
    """A hook of an application that looks at something else."""

    def check_variant(self, *_: object) -> None:
        pass

    def check_prompt(self, *_: object) -> None:
        pass


# --- transport ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["del.example.com", "127.example.org", "192.0.2.7:8000", "[2001:db8::1]"])
def test_plain_http_to_another_machine_needs_a_word(connect: Connect, host: str) -> None:
    with pytest.raises(InvalidRequestError, match="allow_http") as caught:
        connect(base_url=f"http://{host}")
    assert caught.value.field == "base_url"
    connect(base_url=f"http://{host}", allow_http=True)
    connect(base_url=f"https://{host}")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.2", "[::1]:80"])
def test_plain_http_to_this_machine_needs_none(connect: Connect, host: str) -> None:
    connect(base_url=f"http://{host}")


def test_from_https_to_http_is_a_downgrade(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect().complete(SECRET, variant="open")
    path = tmp_path / "cache" / "trust.json"
    path.write_text(path.read_text().replace('"transport": "http"', '"transport": "https"'))
    sent = len(server.frames)
    with pytest.raises(BundleRejectedError, match="the transport must be https, got http"):
        connect().complete(SECRET, variant="open")
    assert len(server.frames) == sent
    connect(accept=server.bundle.fingerprint).complete(SECRET, variant="open")


# --- where it is kept -----------------------------------------------------------------------------


def test_every_server_is_trusted_on_its_own(
    connect: Connect, server: ScriptedServer, bundle: ClientBundle, tmp_path: Path
) -> None:
    connect().complete(SECRET, variant="open")
    with ScriptedServer(make_bundle(tmp_path / "other", table_seed=2)).running() as other:
        connect(base_url=other.url).complete(SECRET, variant="open")
    records = FileTrustStore(tmp_path / "cache" / "trust.json").records()
    assert {server.url.partition("://")[2], other.url.partition("://")[2]} == set(records)


def test_an_applications_own_store(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    store = MemoryTrustStore()
    connect(trust=store).complete(SECRET, variant="open")
    assert not (tmp_path / "cache" / "trust.json").exists()
    server.bundle = make_bundle(tmp_path / "other", table_seed=2)
    rejected(connect(trust=store), server, "table")


def test_a_local_bundle_is_nobodys_offer(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    connect(bundle=server.bundle.path.parent).complete(SECRET, variant="open")
    assert not (tmp_path / "cache" / "trust.json").exists()


def test_the_records_of_categorical_variants(tmp_path: Path) -> None:
    """A code mechanism is compared by its epsilons, too."""
    from client_lib.trust import TrustRecord

    def record(epsilon: float) -> TrustRecord:
        bundle = renumbered(tmp_path / f"{epsilon}", epsilon)
        return TrustRecord.of(bundle.manifest, base_url="https://a", signing_key=None)

    weak, strong = record(6.0), record(5.0)
    assert not weak.changes(strong)
    assert "the epsilon of strict" in str(strong.changes(weak)[0])


def test_a_store_is_written_only_for_a_change(connect: Connect, server: ScriptedServer) -> None:
    """So a record that an operator provides may be read-only."""

    class Provided(MemoryTrustStore):
        def update(self, server: str, change: Update) -> None:
            raise PermissionError("read-only")

    known = MemoryTrustStore()
    connect(trust=known).complete(SECRET, variant="open")
    provided = Provided()
    for name, record in known.records().items():
        MemoryTrustStore.update(provided, name, lambda _, record=record: record)
    connect(trust=provided).complete(SECRET, variant="open")
    assert len(server.frames) == 2
