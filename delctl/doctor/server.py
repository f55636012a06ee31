"""Checks of a server, and of this machine's clock. Nothing is accepted from the server."""

from __future__ import annotations

import datetime
import email.utils
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from delctl.doctor.artifacts import newest_audit
from delctl.doctor.base import Finding, Subject, failed, ok, warning
from delctl.reaching import START_HINT
from delctl.terminal import printable

if TYPE_CHECKING:
    from client_lib import Client
    from client_lib.trust import MemoryTrustStore, TrustRecord

_TIMEOUT_S = 5.0
_DOWNLOAD_S = 30.0
_MOST_SECONDS = 60.0
"""Difference of two clocks that is no reason to worry."""


@dataclass(frozen=True)
class _Ready:
    """The head of an answer to ``/readyz``; ``ahead_s`` is the server's clock less this one's."""

    status: int
    ahead_s: float | None


def _ready(base_url: str) -> _Ready:
    """Ask a server whether it is ready. Raises httpx.HTTPError."""
    import httpx

    from del_core.net.addresses import is_loopback

    # As in the client: a proxy of the environment cannot reach this machine's loopback address.
    proxied = not is_loopback(httpx.URL(base_url).host)
    began = time.time()
    with (
        httpx.Client(timeout=_TIMEOUT_S, trust_env=proxied) as connection,
        connection.stream("GET", f"{base_url}/readyz") as answer,
    ):
        here = (began + time.time()) / 2
        try:
            there = email.utils.parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        except ValueError:
            return _Ready(answer.status_code, None)
        return _Ready(answer.status_code, there - here)


def _accepted() -> MemoryTrustStore:
    """Return a copy of what was accepted from servers, so that nothing new is accepted."""
    from client_lib.trust import FileTrustStore, MemoryTrustStore, default_trust_file

    def instead(record: TrustRecord, _: TrustRecord | None) -> TrustRecord:
        return record

    copy = MemoryTrustStore()
    for name, record in FileTrustStore(default_trust_file()).records().items():
        copy.update(name, functools.partial(instead, record))
    return copy


def _client(subject: Subject, trust: MemoryTrustStore | None = None) -> Client:
    """Return a client of the subject's server. Raises InvalidRequestError."""
    from client_lib import Client
    from client_lib.trust import MemoryTrustStore

    assert subject.url is not None
    return Client(
        subject.url,
        api_key=subject.api_key,
        allow_http=subject.allow_http,
        trust=trust or MemoryTrustStore(),
        max_retries=0,
        timeout=_TIMEOUT_S,
    )


def check_server(subject: Subject) -> Finding:
    """Check that the server is ready, admits this caller, and offers what was accepted from it."""
    if subject.url is None:
        return ok("No server was named.", "Name one with --url.")
    from client_lib.errors import InvalidRequestError, TrustUnavailableError

    try:
        trust = _accepted()
        known = frozenset(trust.records())
        client = _client(subject, trust)
    except InvalidRequestError as error:
        return failed(printable(f"{error}."), "Correct it; the URL of a server looks like https://del.example.com.")
    except TrustUnavailableError as error:
        return failed(printable(f"{error}."), "Name another place with DEL_CONFIG_DIR, or repair this one.")
    with client:
        return _examined(client, known)


def _examined(client: Client, known: frozenset[str]) -> Finding:
    """Return what a server answers; ``known`` are the servers from which a bundle was accepted."""
    import httpx

    from client_lib.errors import AccessDeniedError, BundleRejectedError, DELClientError
    from client_lib.trust import server_name

    url = client.base_url
    try:
        ready = _ready(url)
        if ready.status != httpx.codes.OK:
            return _not_ready(url, ready.status)
        variants = len(client.models())
        fingerprint = client.with_options(timeout=_DOWNLOAD_S).bundle().fingerprint
    except httpx.HTTPError as error:
        hint = START_HINT[0].upper() + START_HINT[1:]
        return failed(f"{url} cannot be reached ({type(error).__name__}).", f"{hint}, or name another one.")
    except AccessDeniedError as error:
        return failed(f"{url} refuses this caller (HTTP {error.status}).", "Set DEL_API_KEY to a key that it knows.")
    except BundleRejectedError as error:
        changes = "; ".join(map(str, error.changes)) or str(error)
        return failed(
            printable(f"{url} offers another bundle than was accepted from it: {changes}."),
            f"Ask its operator; if the change is intended: delctl trust accept {url}",
        )
    except DELClientError as error:
        return failed(printable(f"{url} does not answer as expected: {error}."), "Look at the log of the server.")
    state = "was accepted before" if server_name(url) in known else "would be the first one to be accepted"
    return ok(f"{url} is ready and lists {variants} variants; its bundle {fingerprint[:16]}... {state}.")


def _not_ready(url: str, status: int) -> Finding:
    if status == 503:
        return failed(
            f"{url} answers and is not ready (HTTP 503).",
            "Wait until it has started; delctl status and its log say more.",
        )
    return failed(f"{url}/readyz answers with HTTP {status}.", "See whether this is the base URL of a DEL server.")


def check_clock(subject: Subject) -> Finding:
    """Compare this machine's clock with the server's, and with the audits in the bundles."""
    now = datetime.datetime.now(datetime.UTC)
    said = f"{now:%Y-%m-%d %H:%M} UTC"
    advice = "Set the clock, best by NTP: certificates, and the windows of budgets and quotas, depend on it."
    audit = newest_audit(subject)
    if audit is not None and now.date() < audit - datetime.timedelta(days=1):
        return warning(f"The clock says {said}, before the newest audit of a bundle ({audit}).", advice)
    ahead = None if subject.url is None else _clock_of(subject)
    if ahead is None:
        return ok(f"The clock says {said}; no server's clock was compared.")
    if abs(ahead) > _MOST_SECONDS:
        order = "behind" if ahead > 0 else "ahead of"
        return warning(f"This clock is {abs(ahead):.0f} s {order} the server's, which may be wrong, too.", advice)
    return ok(f"The clock says {said} and differs from the server's by {abs(ahead):.0f} s.")


def _clock_of(subject: Subject) -> float | None:
    """Return the seconds by which the server is ahead, or None if it does not say."""
    import httpx

    from client_lib.errors import DELClientError

    try:
        with _client(subject) as client:
            return _ready(client.base_url).ahead_s
    except (DELClientError, httpx.HTTPError):
        return None
