"""The policy holds whatever the server states: clients of both kinds send nothing forbidden."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_lib import (
    BundleInvalidError,
    InvalidRequestError,
    PolicyViolationError,
    PrivacyPolicy,
    RedirectRefusedError,
    private,
    public,
)
from del_core import accounting
from del_core.bundle import CLIENT_FILES, ClientBundle, load_client, replace_audit
from del_core.bundle import archive as _tar
from tests.client_lib.conftest import Calls
from tests.support.bundle import make_bundle, make_tokenizer
from tests.support.scripted_server import ScriptedServer, cut, error, status

Connect = Callable[..., Calls]
SECRET = "my test was positive"
DELTA = 1e-6
QUIET = 1 << 30  # twice the ratio of the fixture's bundle: less noise, with the same claims


def _epsilon(bundle: ClientBundle, variant: str, tokens: int = 1) -> float:
    return accounting.epsilon(bundle.mechanism(variant), DELTA, tokens)


def _refused(calls: Calls, server: ScriptedServer, prompt: Any = SECRET, **options: Any) -> PolicyViolationError:
    before = len(server.frames)
    errors = []
    for method in (calls.complete, calls.stream):
        with pytest.raises(PolicyViolationError) as caught:
            method(prompt, **{"variant": "open", **options})
        errors.append(caught.value)
    assert len(server.frames) == before
    assert SECRET not in str(errors)
    return errors[0]


def test_the_limit_per_token_is_exact(connect: Connect, server: ScriptedServer) -> None:
    limit = _epsilon(server.bundle, "open")
    connect(policy=PrivacyPolicy(max_epsilon_per_token=limit)).complete(SECRET, variant="open")
    assert len(server.frames) == 1
    error = _refused(connect(policy=PrivacyPolicy(max_epsilon_per_token=np.nextafter(limit, 0).item())), server)
    assert f"{limit:.6g}" in str(error)


def test_the_limit_per_prompt_counts_its_private_tokens(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    tokens = calls.call("encode", SECRET, variant="open").private_tokens
    assert tokens > 1
    calls = connect(policy=PrivacyPolicy(max_epsilon_per_prompt=_epsilon(server.bundle, "open", tokens)))
    calls.complete([public("hello, hello"), private(SECRET)], variant="open")
    sent = len(server.frames)
    assert sent == 1
    _refused(calls, server, [private(SECRET), private(SECRET)])


def test_a_ratio_raised_under_the_old_claims_is_refused(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    policy = PrivacyPolicy(max_epsilon_per_token=_epsilon(server.bundle, "open"))
    quiet = make_bundle(tmp_path / "quiet", ratio_numerator=QUIET)
    assert quiet.variants["open"].guarantees == server.bundle.variants["open"].guarantees
    server.bundle = quiet
    _refused(connect(policy=policy), server)


def test_a_weak_variant_under_a_strict_name_is_refused(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    """The server exchanges the names of the variants with 2 and with 4 bits."""
    policy = PrivacyPolicy(max_epsilon_per_token=_epsilon(server.bundle, "strict"), variants=["strict"])
    connect(policy=policy, cache_dir=tmp_path / "honest").complete(SECRET, variant="strict")
    server.bundle = make_bundle(tmp_path / "renamed", names=("open", "strict"))
    _refused(connect(policy=policy), server, variant="strict")


def _manipulated(name: str, bundle: ClientBundle, path: Path) -> bytes:
    """What a server would hand out that has changed a bundle by hand, as an archive."""
    shutil.copytree(bundle.path, path / "client")
    manifest = path / "client" / "manifest.json"
    if name == "less noise":
        text = manifest.read_text()
        assert str(1 << 29) in text
        manifest.write_text(text.replace(str(1 << 29), str(QUIET)))
    elif name == "lowered version":
        text = manifest.read_text()
        assert '"format_version":1' in text
        manifest.write_text(text.replace('"format_version":1', '"format_version":0'))
    elif name == "claims":
        manifest.write_text(manifest.read_text().replace('"epsilon":2.5', '"epsilon":0.1'))
    else:
        other = make_bundle(path / "other", table_seed=7)
        file = {"swapped table": "table.safetensors", "swapped tokenizer": "tokenizer.json"}[name]
        data = make_tokenizer(("some more text for other merges",)) if name == "swapped tokenizer" else None
        (path / "client" / file).write_bytes(data or (other.path / file).read_bytes())
    return _tar.pack([(file, (path / "client" / file).read_bytes()) for file in CLIENT_FILES])


@pytest.mark.parametrize("name", ["less noise", "lowered version", "claims", "swapped table", "swapped tokenizer"])
@pytest.mark.parametrize("in_session", [False, True])
def test_a_bundle_that_was_changed_by_hand_is_refused(
    connect: Connect, server: ScriptedServer, tmp_path: Path, name: str, in_session: bool
) -> None:
    """At the start, and when an honest server later announces another bundle."""
    calls = connect(policy=PrivacyPolicy(max_epsilon_per_token=1e6))
    if in_session:
        calls.complete(SECRET, variant="open")
        server.script.append(error(409, "bundle_outdated"))
    sent = len(server.frames)
    server.bundle_script.append(status(200, {}, _manipulated(name, server.bundle, tmp_path / "evil")))
    with pytest.raises(BundleInvalidError):
        calls.complete(SECRET, variant="open")
    # The frame that was answered by 409, encoded for the honest bundle, is all that was sent.
    assert {_fingerprint(frame) for frame in server.frames[sent:]} == (
        {server.bundle.fingerprint} if in_session else set()
    )
    assert len(server.frames) == sent + in_session
    assert not any((tmp_path / "cache" / "bundles").glob("[.]*"))  # and nothing of it is kept


@pytest.mark.parametrize("corner", [1, -1])
def test_a_swapped_table_cannot_cost_more_than_the_worst_case(corner: int, tmp_path: Path) -> None:
    """Tokens at opposite corners attain the compared figure; larger levels make no bundle."""
    bundle = make_bundle(tmp_path / "bundle")
    mechanism = bundle.mechanism("open")
    row = np.full((1, mechanism.dim), corner * mechanism.max_level, np.int16)
    above, below = mechanism.numerators(row), mechanism.numerators(-row)
    assert abs(int(above.flat[0]) - int(below.flat[0])) == 2 * mechanism.ratio_numerator
    with pytest.raises(ValueError, match="levels"):
        type(mechanism)(4, mechanism.dim, mechanism.ratio, max_level=100).sample(row)


def test_a_renewal_within_a_session_is_checked_before_anything_is_sent_for_it(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    """The old frame is all that the server gets; the next call is refused too."""
    policy = PrivacyPolicy(max_epsilon_per_token=_epsilon(server.bundle, "open"))
    quiet = make_bundle(tmp_path / "quiet", ratio_numerator=QUIET)
    calls = connect(policy=policy, accept=quiet.fingerprint)
    calls.complete(SECRET, variant="open")
    old, server.bundle = server.bundle, quiet
    with pytest.raises(Exception, match="differs"):
        calls.complete(SECRET, variant="open")
    assert {_fingerprint(frame) for frame in server.frames} == {old.fingerprint}
    _refused(calls, server)


def test_a_renewal_that_keeps_the_noise_but_not_the_policy_is_refused(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    """The counts could be sent as they are under the new bundle, but its audit is too old."""
    dated = _dated(tmp_path / "new", "2026-05-01")
    server.bundle = dated
    old = _dated(tmp_path / "old", "2025-12-31")
    calls = connect(policy=PrivacyPolicy(min_audit_date=datetime.date(2026, 1, 1)), accept=old.fingerprint)
    calls.complete(SECRET, variant="open")
    server.bundle = old
    with pytest.raises(PolicyViolationError, match="2025-12-31"):
        calls.complete(SECRET, variant="open")
    assert {_fingerprint(frame) for frame in server.frames} == {dated.fingerprint}


def test_a_resumed_stream_is_checked_against_a_renewed_bundle(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    first = _dated(tmp_path / "new", "2026-05-01")
    server.bundle = first
    old = _dated(tmp_path / "old", "2025-12-31")
    calls = connect(policy=PrivacyPolicy(min_audit_date=datetime.date(2026, 1, 1)), accept=old.fingerprint)

    async def cut_and_exchange(running: ScriptedServer, received: Any, writer: Any) -> None:
        await cut(500)(running, received, writer)
        running.bundle = old

    server.script.append(cut_and_exchange)
    with pytest.raises(PolicyViolationError):
        calls.stream(SECRET, variant="open", max_tokens=40)
    assert len(server.frames) >= 2  # the resumption was tried under the bundle that the policy allows, and only that
    assert {_fingerprint(frame) for frame in server.frames} == {first.fingerprint}


@pytest.mark.parametrize(
    ("audit", "allowed"),
    [
        ({"date": "2026-01-01"}, True),
        ({"date": "2025-12-31"}, False),
        ({"date": "soon"}, False),
        ({"date": 20270101}, False),
        ({}, False),
    ],
)
def test_the_audit_has_to_be_young_enough(audit: dict[str, Any], allowed: bool, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    replace_audit(tmp_path / "bundle", {"open": audit})
    policy = PrivacyPolicy(min_audit_date=datetime.date(2026, 1, 1))
    bundle = load_client(tmp_path / "bundle" / "client")
    if allowed:
        policy.check_variant(bundle, "open")
    else:
        with pytest.raises(PolicyViolationError, match="audit"):
            policy.check_variant(bundle, "open")


def test_a_bundle_that_is_not_listed_is_refused(connect: Connect, server: ScriptedServer) -> None:
    connect(policy=PrivacyPolicy(fingerprints=[server.bundle.fingerprint])).complete(SECRET, variant="open")
    _refused(connect(policy=PrivacyPolicy(fingerprints=["0" * 64])), server)


def test_clear_is_public_and_allowed_unless_left_out(connect: Connect, server: ScriptedServer) -> None:
    connect(policy=PrivacyPolicy(max_epsilon_per_token=1e-9)).complete("hello", variant="clear")
    assert len(server.frames) == 1
    _refused(connect(policy=PrivacyPolicy(variants=["open"])), server, "hello", variant="clear")


def test_a_redirect_to_another_host_is_not_followed(
    connect: Connect, server: ScriptedServer, bundle: ClientBundle
) -> None:
    with ScriptedServer(bundle).running() as other:
        calls = connect(policy=PrivacyPolicy(max_epsilon_per_token=1e6))
        server.script.append(status(307, {"location": f"{other.url}/v1/private/completions"}))
        with pytest.raises(RedirectRefusedError):
            calls.complete(SECRET, variant="open")
        assert not other.received


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"max_epsilon_per_token": 0}, "max_epsilon_per_token"),
        ({"max_epsilon_per_prompt": float("nan")}, "max_epsilon_per_prompt"),
        ({"delta": 1}, "delta"),
        ({"min_audit_date": "2026-01-01"}, "min_audit_date"),
        ({"min_audit_date": datetime.datetime(2026, 1, 1)}, "min_audit_date"),
        ({"variants": "open"}, "variants"),
        ({"fingerprints": ["abc"]}, "fingerprints"),
    ],
)
def test_unacceptable_limits_are_named(limits: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PrivacyPolicy(**limits)
    assert caught.value.field == field


def _fingerprint(frame: bytes) -> str:
    """The fingerprint in a frame's header, read without a bundle."""
    length = int.from_bytes(frame[5:9], "little")
    return str(json.loads(frame[9 : 9 + length])["fingerprint"])


def _dated(path: Path, date: str) -> ClientBundle:
    make_bundle(path)
    replace_audit(path, {"open": {"date": date}})
    return load_client(path / "client")
