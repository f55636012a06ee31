"""Results of the comparison on a pretrained model, from the pieces that are finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.privacy_utility.plan import PUBLISHED
from benchmarks.privacy_utility.pretrained.plan import (
    CLEAR,
    CODES_ADAPTED,
    COUNTS_ADAPTED,
    NOTHING,
    Plan,
    pieces_of,
)
from del_core.evaluation.bootstrap import Interval, gap_closed, paired_interval, perplexity_interval, ppl_ratio

__all__ = ["STRONGEST", "results"]

STRONGEST = "strongest"
"""Attack by which the levels of this comparison are meant."""


def results(pieces: Path, plan: Plan) -> dict[str, Any]:
    """Return rows, comparisons and what is missing, from the files of ``pieces``."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(pieces.glob("*.json"))}
    planned = {piece.file: piece for piece in pieces_of(plan)}
    measured: dict[str, Any] = {}
    for file, piece in planned.items():
        if file in found:
            here = measured.setdefault(piece.name, {**found[file], "nll": {}})
            here["nll"][piece.seed] = {name: np.asarray(losses) for name, losses in found[file]["nll"].items()}
    attacks = {name: one for name, one in found.items() if name.startswith("attack-")}
    missing = [file for file in planned if file not in found]
    dates, machines = (sorted({one[key] for one in found.values()}) for key in ("date", "machine"))
    return {
        "about": {
            "date": dates[-1] if dates else None,
            "command": "python -m benchmarks.privacy_utility --model smollm2 --data DIR --work DIR --out DIR",
            "model": "SmolLM2-135M-Instruct",
            "machine": "; ".join(machines),
            "passages": dict(plan.passages),
            "seeds": len(plan.seeds),
            "pieces_done": len(planned) - len(missing),
            "pieces_missing": missing,
        },
        "blind": attacks.get("attack-blind"),
        "attacks": {name.removeprefix("attack-"): one["points"] for name, one in attacks.items() if "points" in one},
        "rows": [row for name in measured for row in _rows(name, measured)],
        "comparisons": _comparisons(measured),
        "codes_and_counts": _kinds(measured),
    }


def _losses(corpus: str, *methods: Mapping[str, Any]) -> list[np.ndarray]:
    """Return each method's losses of the passages, averaged over the seeds that all have."""
    shared = sorted(_share(*methods))
    return [np.mean([one["nll"][seed][corpus] for seed in shared], axis=0) for one in methods]


def _share(*methods: Mapping[str, Any]) -> set[int]:
    """Return the seeds that all methods were measured with; a run that has begun may have none."""
    return set[int].intersection(*(set(one["nll"]) for one in methods))


def _corpora(one: Mapping[str, Any]) -> list[str]:
    return list(next(iter(one["nll"].values())))


def _control(measured: Mapping[str, Any], method: str, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the control that took as many steps, or else more: never one that was trained less.

    It shares a seed with ``own``, to which it is compared.
    """
    steps = own["training"]["steps"]
    alike = [
        one
        for one in measured.values()
        if one["method"] == method and one["training"]["steps"] >= steps and one["nll"].keys() & own["nll"].keys()
    ]
    return min(alike, key=lambda one: int(one["training"]["steps"]), default=None)


def _groups(measured: Mapping[str, Any]) -> list[tuple[float, int, dict[str, Any]]]:
    """Return the methods that are compared: those of the same level and the same steps."""
    found: dict[tuple[float, int], dict[str, Any]] = {}
    for one in measured.values():
        if one["level"] is not None:
            found.setdefault((one["level"], one["training"]["steps"]), {})[one["method"]] = one
    return [(level, steps, found[level, steps]) for level, steps in sorted(found)]


def _rows(name: str, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each text: noise, attacks, perplexity and share of the controls' gap."""
    one = measured[name]
    noise = one["noise"] or {}
    steps = one["training"]["steps"]
    nothing, clear = (_control(measured, method, one) for method in (NOTHING, CLEAR))
    rows = []
    for corpus in _corpora(one):
        gap = None
        if (
            nothing is not None
            and clear is not None
            and one["start"] == "adapter"
            and noise
            and _share(nothing, clear, one)
        ):
            gap = paired_interval(gap_closed, *_losses(corpus, one, nothing, clear)).to_json()
        rows.append(
            {
                "piece": name,
                "method": one["method"],
                "level": one["level"],
                "corpus": corpus,
                "epsilon": noise.get("epsilon"),
                "delta": noise.get("delta"),
                "strength": noise.get("strength"),
                "codes": noise.get("codes"),
                "attack": noise.get("attack"),
                "strongest": _rate(noise.get("strongest")),
                "map": _rate(noise.get("map")),
                "ppl": perplexity_interval(_losses(corpus, one)[0]).to_json(),
                "ppl_by_seed": [round(float(np.exp(losses[corpus].mean())), 3) for losses in one["nll"].values()],
                "gap between the controls closed": gap,
                "steps of the controls": None if gap is None or clear is None else clear["training"]["steps"],
                "steps": steps,
            }
        )
    return rows


def _rate(found: Mapping[str, float] | None) -> list[float] | None:
    return None if found is None else [found[key] for key in ("success", "low", "high")]


def _compared(
    own: Mapping[str, Any], other: Mapping[str, Any], clear: Mapping[str, Any] | None, corpus: str
) -> dict[str, Any]:
    """Compare with DEL as published; the gap is what it leaves open to the trained clear prompt."""
    here: dict[str, Any] = {f"ppl ratio to {PUBLISHED}": _ratio(own, other, corpus).to_json()}
    if clear is not None:
        here["share of the gap closed"] = paired_interval(gap_closed, *_losses(corpus, own, other, clear)).to_json()
    return here


def _ratio(own: Mapping[str, Any], other: Mapping[str, Any], corpus: str) -> Interval:
    return paired_interval(ppl_ratio, *_losses(corpus, own, other))


def _comparisons(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare both of this project's kinds with DEL as published at each level, on each text."""
    found = []
    for level, steps, here in _groups(measured):
        for method in (CODES_ADAPTED, COUNTS_ADAPTED):
            if method not in here or PUBLISHED not in here or not _share(here[method], here[PUBLISHED]):
                continue
            own, published = here[method], here[PUBLISHED]
            clear = _control(measured, CLEAR, own)
            if clear is not None and not _share(own, published, clear):
                clear = None
            found += [
                {
                    "level": level,
                    "corpus": corpus,
                    "attack": STRONGEST,
                    "method": method,
                    "steps": steps,
                    "strongest": _rate(own["noise"]["strongest"]),
                    f"strongest of {PUBLISHED}": _rate(published["noise"]["strongest"]),
                    **_compared(own, published, clear, corpus),
                }
                for corpus in _corpora(own)
            ]
    return found


def _kinds(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare codes with counts, both with an adapter, at each level: below 1, codes are better."""
    found = []
    for level, steps, here in _groups(measured):
        if CODES_ADAPTED not in here or COUNTS_ADAPTED not in here:
            continue
        codes, counts = here[CODES_ADAPTED], here[COUNTS_ADAPTED]
        if not _share(codes, counts):
            continue
        found += [
            {
                "level": level,
                "corpus": corpus,
                "steps": steps,
                "epsilon of codes": codes["noise"]["epsilon"],
                "epsilon of counts": counts["noise"]["epsilon"],
                "ppl ratio of codes to counts": _ratio(codes, counts, corpus).to_json(),
            }
            for corpus in _corpora(codes)
        ]
    return found
