"""Bundles of a server that wants to learn more: each is valid, and weaker than it looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from del_core.bundle import ClientBundle, Guarantees, VariantContent, load_client, replace_audit, write_bundle
from del_core.mechanism import CategoricalMechanism, MechanismSpec
from tests.support.bundle import BOS, DIM, bundle_content, make_bundle, make_tokenizer, make_variant

__all__ = ["coarse", "corners", "dated", "renumbered", "with_variants"]

_HIDDEN = 4
_ROWS = 300
_LEVELS = np.random.default_rng(1).integers(-32767, 32768, size=(_ROWS, DIM)).astype(np.int16)


def _write(
    path: Path, variants: list[VariantContent], table: np.ndarray = _LEVELS, max_level: int = 32767
) -> ClientBundle:
    changes = {"tokenizer_json": make_tokenizer(), "bos_token_id": BOS, "max_level": max_level}
    write_bundle(path, **bundle_content(table, variants, **changes))
    return load_client(path / "client")


def _variant(name: str, bits: int, ratio_numerator: int, delta: float = 1e-6) -> VariantContent:
    return make_variant(
        name,
        bits=bits,
        ratio_numerator=ratio_numerator,
        weight=np.zeros((_HIDDEN, DIM), np.float32),
        guarantees=Guarantees(delta=delta, epsilon=2.5, epsilon_vocabulary=None, mu=1.0),
    )


def with_variants(path: Path, variants: dict[str, tuple[int, int]]) -> ClientBundle:
    """Write a bundle with the table of ``make_bundle``; values are bits and ratio's numerator."""
    return _write(path, [_variant(name, *noise) for name, noise in variants.items()])


def corners(path: Path, *, delta: float = 1e-6) -> ClientBundle:
    """Write a bundle with 8 bits, hardly any noise, and every token at a corner of its own."""
    bits = (np.arange(_ROWS)[:, None] >> np.arange(DIM)) & 1
    table = np.where(bits, 32767, -32767).astype(np.int16)
    return _write(path, [_variant(name, 8, 2**31 - 1, delta) for name in ("strict", "open")], table)


def coarse(path: Path) -> ClientBundle:
    """Write a bundle whose table is the same with a lower clip: twice the signal, same epsilon."""
    return _write(path, [_variant("strict", 2, 1 << 29), _variant("open", 4, 1 << 29)], _LEVELS // 2, 16384)


def renumbered(path: Path, epsilon: float = 6.0) -> ClientBundle:
    """Write a bundle whose variant releases codes of the tokens."""
    mechanism = CategoricalMechanism.from_epsilon(epsilon, bits=2, dim=DIM)
    spec = MechanismSpec(mechanism.kind, mechanism.parameters())
    variant = make_variant(
        "strict",
        bits=2,
        ratio_numerator=None,
        other=spec,
        weight=np.zeros((_HIDDEN, DIM), np.float32),
        guarantees=Guarantees(delta=0.0, epsilon=epsilon, epsilon_vocabulary=None, mu=None),
    )
    return _write(path, [variant], np.abs(_LEVELS) % 4, 3)


def dated(path: Path, date: str | None) -> ClientBundle:
    """Write a bundle like that of ``make_bundle`` whose variant ``open`` was audited on a date."""
    make_bundle(path)
    replace_audit(path, {"open": {} if date is None else {"date": date}})
    return load_client(path / "client")
