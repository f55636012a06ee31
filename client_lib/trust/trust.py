"""The decision about a server's offer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from client_lib.errors import BundleRejectedError
from client_lib.trust.record import TrustRecord, server_name
from client_lib.trust.store import TrustStore
from del_core.bundle import Manifest


@dataclass(frozen=True, slots=True)
class Offer:
    """A bundle that a server offers, before anything but its manifest was read.

    ``signing_key`` is the key of a signature that was verified; among ``trusted_keys`` it may take
    the place of another key. ``named`` are the variants that the
    caller chose by name. ``on_purpose`` means that the caller named this fingerprint.
    """

    base_url: str
    manifest: Manifest = field(repr=False)
    signing_key: str | None = None
    trusted_keys: Collection[str] = ()
    named: Collection[str] = ()
    on_purpose: bool = False


@dataclass(frozen=True, slots=True)
class Trust:
    """Compares offers with a store. Both methods raise ``BundleRejectedError``."""

    store: TrustStore

    def check(self, offer: Offer) -> None:
        """Check an offer without remembering it."""
        self._judge(self.store.records().get(server_name(offer.base_url)), offer)

    def admit(self, offer: Offer) -> None:
        """Check an offer and remember it."""
        server = server_name(offer.base_url)
        record = self.store.records().get(server)
        # Nothing is written for an offer that changes nothing, so a store may be read-only.
        if record is None or self._judge(record, offer) != record:
            self.store.update(server, lambda record: self._judge(record, offer))

    def _judge(self, record: TrustRecord | None, offer: Offer) -> TrustRecord:
        """Return the record after the offer, or raise."""
        offered = TrustRecord.of(offer.manifest, base_url=offer.base_url, signing_key=offer.signing_key)
        if record is None:
            return offered
        if offer.signing_key in offer.trusted_keys:
            record = replace(record, signing_key=offer.signing_key)
        changes = () if offer.on_purpose else record.changes(offered, offer.named)
        if not changes:
            return record.renewed(offered)
        said = "; ".join(str(change) for change in changes)
        raise BundleRejectedError(
            f"{offer.base_url} offers the bundle {offered.fingerprint}, which differs from what was accepted on "
            f"{record.accepted_at}: {said}. If this is intended, accept it: delctl trust accept {offer.base_url}, or "
            "the client's option accept",
            server=offer.base_url,
            fingerprint=offered.fingerprint,
            changes=changes,
        )
