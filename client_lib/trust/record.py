"""The record of what was accepted from a server, and its comparison with an offer."""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from client_lib.policy import exact_epsilon
from del_core.bundle import Manifest, Variant, canonical_json
from del_core.mechanism.base import DEFAULT_DELTA

DELTAS: Final = (DEFAULT_DELTA, 1e-3, 1e-1)
"""Where the epsilons of two mechanisms are compared: the guarantee's tail and the typical loss."""

# Epsilons are recomputed by every version of the accounting, which may round differently.
_TOLERANCE = 1e-9


def server_name(base_url: str) -> str:
    """Return the name of a server in a store: host, port and base path, without the scheme.

    So a change from https to http is found as a change of the same server.
    """
    return base_url.partition("://")[2]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between an offer and what was accepted, as texts for people."""

    field: str
    accepted: str
    offered: str

    def __str__(self) -> str:
        return f"{self.field} must be {self.accepted}, got {self.offered}"


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """A variant as it was accepted.

    Attributes:
        table: SHA-256 of the table that it reads, in hexadecimal.
        mechanism: canonical JSON of kind and parameters.
        epsilons: worst-case epsilon of one private token at each of :data:`DELTAS`; None if it is
            beyond the range of the accounting.
        audit_date: ISO date of the audit, as the bundle states it.
    """

    table: str
    mechanism: str
    kind: str
    epsilons: tuple[float | None, ...]
    audit_date: str | None

    @classmethod
    def of(cls, variant: Variant, manifest: Manifest) -> VariantRecord:
        """Return the record of a variant of a manifest."""
        mechanism = manifest.mechanism(variant)
        epsilons = tuple(exact_epsilon(mechanism, delta, 1) for delta in DELTAS)
        return cls(
            table=manifest.files[variant.table_file].sha256,
            mechanism=canonical_json(variant.spec.to_json()).decode(),
            kind=variant.spec.kind,
            epsilons=tuple(None if math.isinf(epsilon) else epsilon for epsilon in epsilons),
            audit_date=_iso_date(variant.audit.get("date")),
        )


@dataclass(frozen=True, slots=True)
class TrustRecord:
    """What was accepted from a server.

    Attributes:
        fingerprint: the last accepted bundle.
        table, tokenizer: SHA-256 of the client's files, in hexadecimal.
        max_level: the level that stands for the clip; a smaller one is less noise.
        variants: by name, also those that the server no longer offers.
        signing_key: the Ed25519 key of the bundle's signature, in hexadecimal, or None.
        transport: ``https`` or ``http``.
        accepted_at: ISO date of the last change of this record.
    """

    fingerprint: str
    table: str
    tokenizer: str
    max_level: int
    variants: Mapping[str, VariantRecord]
    signing_key: str | None
    transport: str
    accepted_at: str = field(compare=False)

    @classmethod
    def of(cls, manifest: Manifest, *, base_url: str, signing_key: str | None) -> TrustRecord:
        """Return the record of an offer."""
        return cls(
            fingerprint=manifest.fingerprint,
            table=manifest.files["table.safetensors"].sha256,
            tokenizer=manifest.files["tokenizer.json"].sha256,
            max_level=manifest.max_level,
            variants={variant.name: VariantRecord.of(variant, manifest) for variant in manifest.variants},
            signing_key=signing_key,
            transport=base_url.partition("://")[0],
            accepted_at=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )

    def changes(self, offer: TrustRecord, named: Collection[str] = ()) -> tuple[Change, ...]:
        """Return why an offer is different or weaker; nothing if it is equal or stronger.

        ``named`` are variants that the caller chose by name: an offer must still have them.
        """
        return tuple(self._changes(offer, named))

    def _changes(self, offer: TrustRecord, named: Collection[str]) -> Iterator[Change]:
        if self.table != offer.table:
            yield Change("the SHA-256 of the table", self.table, offer.table)
        if self.tokenizer != offer.tokenizer:
            yield Change("the SHA-256 of the tokenizer", self.tokenizer, offer.tokenizer)
        if offer.max_level < self.max_level:
            yield Change("max_level", f"at least {self.max_level}", f"{offer.max_level}, which is less noise")
        if self.signing_key is not None and offer.signing_key != self.signing_key:
            found = "no signature" if offer.signing_key is None else offer.signing_key
            yield Change("the signing key", self.signing_key, found)
        if self.transport == "https" and offer.transport != "https":
            yield Change("the transport", "https", offer.transport)
        for name, accepted in self.variants.items():
            if name in offer.variants:
                offered = offer.variants[name]
                # A variant that reads the bundle's table follows it.
                if accepted.table != offered.table and (accepted.table, offered.table) != (self.table, offer.table):
                    yield Change(f"the SHA-256 of the table of {name}", accepted.table, offered.table)
                yield from _variant_changes(name, accepted, offered)
            elif name in named:
                yield Change(f"variant {name}", "offered", "a bundle without it")

    def renewed(self, offer: TrustRecord) -> TrustRecord:
        """Return the record after an offer was accepted.

        Variants that the offer lacks are kept, so that they cannot come back weaker.
        """
        return replace(offer, variants={**self.variants, **offer.variants})

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {**asdict(self), "variants": {name: asdict(value) for name, value in self.variants.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrustRecord:
        """Return the record in JSON values. Raises KeyError, TypeError or ValueError."""
        texts = ("fingerprint", "table", "tokenizer", "transport", "accepted_at")
        if not all(isinstance(value[name], str) for name in texts) or type(value["max_level"]) is not int:
            raise TypeError
        if value["signing_key"] is not None and not isinstance(value["signing_key"], str):
            raise TypeError
        variants = {str(name): _variant_from_json(item) for name, item in value["variants"].items()}
        return cls(
            **{name: value[name] for name in texts},
            max_level=value["max_level"],
            signing_key=value["signing_key"],
            variants=variants,
        )


def _variant_from_json(value: Mapping[str, Any]) -> VariantRecord:
    date, epsilons = value["audit_date"], tuple(value["epsilons"])
    if not all(isinstance(value[name], str) for name in ("table", "mechanism", "kind")) or date != _iso_date(date):
        raise TypeError
    if len(epsilons) != len(DELTAS) or not all(one is None or type(one) in (int, float) for one in epsilons):
        raise TypeError
    return VariantRecord(value["table"], value["mechanism"], value["kind"], epsilons, date)


def _variant_changes(name: str, accepted: VariantRecord, offered: VariantRecord) -> Iterator[Change]:
    if accepted.kind != offered.kind:
        yield Change(f"the mechanism of {name}", accepted.mechanism, offered.mechanism)
        return
    if accepted.mechanism != offered.mechanism:
        for delta, known, found in zip(DELTAS, accepted.epsilons, offered.epsilons, strict=True):
            if (math.inf if found is None else found) > (math.inf if known is None else known) * (1 + _TOLERANCE):
                yield Change(f"the epsilon of {name} at delta {delta:g}", f"at most {_shown(known)}", _shown(found))
                break
    if accepted.audit_date is not None and (offered.audit_date or "") < accepted.audit_date:
        found_date = offered.audit_date or "no date"
        yield Change(f"the audit date of {name}", f"{accepted.audit_date} or later", found_date)


def _shown(epsilon: float | None) -> str:
    return "beyond the range of the accounting" if epsilon is None else f"{epsilon:.6g}"


def _iso_date(value: object) -> str | None:
    """Return a date in its ISO form, or None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        return None
