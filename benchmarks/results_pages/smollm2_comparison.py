"""Tables of the comparison on SmolLM2: codes, counts and DEL as published, by strongest attack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.results_pages.tables import Origin, Table, epsilon, interval, load, missing, number, percent, table
from del_core.demo import smollm2_bundle_path

__all__ = ["SMOLLM2_COMPARISON"]

_FILE = "privacy_utility_smollm2/results.json"
_ATTACKERS = "privacy_utility_smollm2/attackers/results.json"
_PUBLISHED = "DEL as published"
_FIRST = "in-domain"
_NAMES = {"codes": "codes", "counts": "counts", "gaussian": "Gaussian noise", "metric": "metric-DP noise"}


def _attacks() -> str:
    """Lay out what both attacks recover at each strength that was tried, and blind guessing."""
    found = load(_FILE)

    def rows() -> Iterator[tuple[str, ...]]:
        for family, points in found["attacks"].items():
            for point in sorted(points, key=lambda one: float(one["strength"])):
                yield _named(_NAMES[family], point), epsilon(point), *_rates(point)
        if found["blind"] is not None:
            yield "a release that says nothing", "0 (pure)", *_rates(found["blind"])

    return table(("noise", "epsilon", "`map`", "`sequence`"), rows())


def _attackers() -> str:
    """Lay out what attackers recover who train a model, and the level in the comparison."""
    names = ("map", "sequence", "bidirectional", "combined")
    return table(
        ("noise", "level", "epsilon", *(f"`{name}`" for name in names)),
        (
            (
                _named(_NAMES[one["family"]], one["noise"]),
                "" if one["level"] is None else percent(one["level"]),
                epsilon(one["noise"]),
                *(
                    f"{interval([one['attacks'][name][key] for key in ('success', 'low', 'high')], '.1f', 100)} %"
                    for name in names
                ),
            )
            for one in load(_ATTACKERS)["noises"]
        ),
    )


def _named(name: str, one: dict[str, Any]) -> str:
    """Add which codes they are."""
    return f"{name} ({one['codes']})" if one.get("codes") else name


def _rates(point: dict[str, Any]) -> tuple[str, str]:
    first, second = (
        interval([point[name][key] for key in ("success", "low", "high")], ".1f", 100) for name in ("map", "sequence")
    )
    return f"{first} %", f"{second} %"


def _rows() -> str:
    """Lay out every method on the first text, with its noise and the share of the gap."""
    return table(
        (
            "method",
            "level",
            "further steps",
            "epsilon",
            "strongest attack",
            "perplexity",
            "of each seed",
            "gap closed, %",
        ),
        (
            (
                _named(row["method"], row),
                "" if row["level"] is None else percent(row["level"]),
                str(row["steps"]),
                epsilon(row),
                "" if row["strongest"] is None else f"{percent(row['strongest'][0], 1)} ({row['attack']})",
                interval(row["ppl"], ".1f"),
                ", ".join(number(one, 1) for one in row["ppl_by_seed"]),
                _share(row["gap between the controls closed"]),
            )
            for row in load(_FILE)["rows"]
            if row["corpus"] == _FIRST
        ),
    )


def _share(values: list[float] | None) -> str:
    return "" if values is None else interval(values, ".0f", 100)


def _comparisons() -> str:
    return table(
        ("level", "text", "method", "further steps", f"perplexity, ratio to {_PUBLISHED}", "gap closed, %"),
        (
            (
                percent(one["level"]),
                one["corpus"],
                one["method"],
                str(one["steps"]),
                interval(one[f"ppl ratio to {_PUBLISHED}"]),
                _share(one.get("share of the gap closed")),
            )
            for one in load(_FILE)["comparisons"]
        ),
    )


def _kinds() -> str:
    return table(
        ("level", "text", "further steps", "epsilon: codes, counts", "perplexity of codes / of counts"),
        (
            (
                percent(one["level"]),
                one["corpus"],
                str(one["steps"]),
                f"{number(one['epsilon of codes'], 1)}, {number(one['epsilon of counts'], 0)}",
                interval(one["ppl ratio of codes to counts"]),
            )
            for one in load(_FILE)["codes_and_counts"]
        ),
    )


def _costs() -> str:
    """Lay out what a phone stores and sends, by the manifest and the mechanisms of the bundle."""
    manifest = json.loads((smollm2_bundle_path() / "client" / "manifest.json").read_text(encoding="utf-8"))
    sizes = {name: one["size"] for name, one in manifest["files"].items()}
    counts = next(one["bits"] for one in manifest["variants"] if "ratio_numerator" in one) * manifest["dim"]
    codes = next(size for name, size in sizes.items() if name.startswith("codes-"))
    rows = [("counts", counts, sizes["table.safetensors"])]
    rows += [(f"codes, K = {1 << bits}", bits, codes) for bits in (4, 5, 6, 8)]
    return table(
        ("release", "bits a token on the wire", "table of the client, kB", "tokenizer, kB"),
        (
            (name, str(bits), number(size / 1000, 0), number(sizes["tokenizer.json"] / 1000, 0))
            for name, bits, size in rows
        ),
    )


def _sweep() -> str:
    """Lay out what one release says, for codes that are formed in different ways."""
    return table(
        ("release", "epsilon", "MAP", "bits", "variance explained"),
        (
            (
                _release(row),
                number(row["epsilon"], 1),
                f"{percent(row['map'], 1)}",
                number(row["bits"], 2),
                f"{percent(row['explained'])}",
            )
            for row in load("code_sweep.json")["rows"]
            if row["codes"] == 0 or row["epsilon"] in (5.0, 8.0)
        ),
    )


def _release(row: dict[str, Any]) -> str:
    if not row["codes"]:
        return f"{row['kind']} (delta 1e-6)"
    if row["kind"] == "subset selection":
        return f"{row['size']} of {row['codes']} codes (subset selection)"
    columns = "" if row["size"] == 1 else f", {row['size']} columns"
    power = "" if row["power"] == 1.0 else f", power {row['power']:g}"
    return f"K = {row['codes']}{columns}{power}"


SMOLLM2_COMPARISON: dict[str, dict[str, Table]] = {
    "privacy-utility-smollm2.md": {
        "run": Origin(_FILE),
        "missing": lambda: missing(_FILE),
        "methods": _rows,
        "comparisons": _comparisons,
        "kinds": _kinds,
        "costs": _costs,
        "sweep": _sweep,
        "attacks": _attacks,
        "attackers": _attackers,
    },
}
