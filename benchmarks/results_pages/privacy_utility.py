"""Tables of text quality at equal attack success, and of the training experiments on the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from benchmarks.results_pages.tables import Origin, Table, interval, load, number, percent, table

__all__ = ["PRIVACY_UTILITY"]

_OWN, _PUBLISHED, _ALL = "this project", "DEL as published", "mean of the texts"
_DATES = {"small": "2026-11-28", "large": "2026-11-27"}
_BASELINES = {
    "Gaussian noise": "Gaussian noise",
    "metric-DP noise": "metric-DP noise",
    "token replacement": "token replacement",
    "... local model rewrites": "token replacement, local model rewrites",
}


def _results(size: str) -> dict[str, Any]:
    found: dict[str, Any] = load(f"privacy_utility_{size}/results.json")
    return found


def _ordered(found: dict[str, Any]) -> list[dict[str, Any]]:
    order = [*found["about"]["passages"], _ALL]
    return sorted(found["comparisons"], key=lambda one: (order.index(one["corpus"]), one["level"]))


def _ends(size: str) -> str:
    """Lay out the perplexity that every method lies between."""
    found = _results(size)
    texts = list(found["about"]["passages"])
    rows = {(row["method"], row["corpus"]): row for row in found["rows"] if row["level"] is None}
    methods = ("clear prompt", "no prompt", "random tokens", "local model alone")
    return table(
        ("prompt", *texts),
        ((method, *(number(rows[method, text]["ppl"], 1) for text in texts)) for method in methods),
    )


def _published(size: str) -> str:
    found = _results(size)
    rows = {(row["method"], row["corpus"], row["level"]): row for row in found["rows"]}

    def line(one: dict[str, Any]) -> Iterable[str]:
        pair = [rows.get((method, one["corpus"], one["level"])) for method in (_PUBLISHED, _OWN)]
        there = [row for row in pair if row is not None]
        values = [number(row["ppl"], 1) for row in there] or ["", ""]
        bits = ", ".join(number(row["attack_bits"], 1) for row in there)
        epsilons = ", ".join(number(row["epsilon_vocabulary"], 0) for row in there)
        share = interval(one["share of the gap closed"], ".0f", 100)
        ratio = interval(one[f"ppl ratio to {_PUBLISHED}"])
        return one["corpus"], percent(one["level"]), *values, ratio, share, bits, epsilons

    heads = ("text", "MAP success", _PUBLISHED, _OWN, "ratio (95 %)", "gap closed, % (95 %)")
    last = ("bits gained: DEL, this project", "epsilon of the table: DEL, this project")
    return table((*heads, *last), map(line, _ordered(found)))


def _pairs(size: str, columns: Mapping[str, str], form: str) -> str:
    return table(
        ("text", "MAP success", *columns),
        (
            (one["corpus"], percent(one["level"]), *(interval(one[name], form) for name in columns.values()))
            for one in _ordered(_results(size))
        ),
    )


def _without_prompt(size: str) -> str:
    found = _results(size)
    rows = {(row["method"], row["corpus"], row["level"]): row for row in found["rows"]}
    columns = {
        "clear prompt": ("clear prompt", None),
        "random tokens": ("random tokens", None),
        "no prompt": ("no prompt", None),
        "token replacement, 5 %": ("token replacement", 0.05),
        "this project, 5 %": (_OWN, 0.05),
    }

    def cell(method: str, text: str, level: float | None) -> str:
        row = rows[method, text, level]
        return f"{row['coh_sampled']:.3f}, {row['coh_sampled_lift']:+.3f}"

    return table(
        ("text", *columns),
        (
            (text, *(cell(method, text, level) for method, level in columns.values()))
            for text in found["about"]["passages"]
        ),
    )


def _tasks(size: str) -> str:
    return table(
        ("task", "method", "most frequent label", "accuracy", "AUC"),
        (
            (one["task"], one["method"], percent(one["majority"], 1), interval(one["accuracy"]), interval(one["auc"]))
            for one in _results(size)["tasks"]
        ),
    )


def _sweep(size: str) -> str:
    found = {(one["dim"], one["bits"]): one for one in _results(size)["sweep"]}

    def cell(one: dict[str, Any]) -> str:
        if one["ppl"] is None:
            return "out of reach"
        return f"{one['ppl']:.1f}; {one['bits_per_token']:.0f}; {one['epsilon']:.0f}"

    bits = sorted({bits for _, bits in found})
    return table(
        ("d", *(f"n = {one}" for one in bits)),
        ((str(dim), *(cell(found[dim, one]) for one in bits)) for dim in sorted({dim for dim, _ in found})),
    )


def _run(size: str) -> str:
    file, machines = f"privacy_utility_{size}/results.json", _results(size)["machines"]
    return Origin(file, date=_DATES[size], machine=" and ".join(machines))()


def _comparison(size: str) -> dict[str, Table]:
    soft_prompt = {
        "left out": f"soft prompt of {_OWN}, ppl ratio",
        "trained without (one seed)": f"soft prompt of {_OWN}, ppl ratio to training without",
        "DEL as published, left out": f"soft prompt of {_PUBLISHED}, ppl ratio",
    }
    ratios = {name: f"ppl ratio to {method}" for name, method in _BASELINES.items()}
    coherence = {name: f"coh sampled minus {method}" for name, method in _BASELINES.items()}
    return {
        "run": partial(_run, size),
        "ends": partial(_ends, size),
        "published": partial(_published, size),
        "baselines": partial(_pairs, size, ratios, ".2f"),
        "coherence": partial(_pairs, size, coherence, "+.3f"),
        "coherence without the prompt": partial(_without_prompt, size),
        "soft prompt": partial(_pairs, size, soft_prompt, ".3f"),
        "tasks": partial(_tasks, size),
        "sweep": partial(_sweep, size),
    }


_KEPT_LEVELS: dict[str, Callable[[dict[str, Any]], str]] = {
    "projection": lambda row: f"as published, {row['target']}",
    "encoder, network": lambda row: f"encoder with network, {row['target']}",
    "ships": lambda row: f"the demo that ships, *{row['target']}*",
}


def _demo_bundles() -> str:
    def row(one: dict[str, Any]) -> tuple[str, ...]:
        strongest = max(one[attack]["success"] for attack in ("map", "sequence", "inverter"))
        return (
            _KEPT_LEVELS[one["bundle"]](one),
            percent(one["map"]["success"], 1),
            percent(strongest, 1),
            number(one["leakage_bits"], 2),
            number(one["epsilon"], 1),
            number(one["epsilon_vocabulary"], 1),
            number(one["ppl_soft_prompt"], 1),
        )

    heads = ("bundle", "MAP", "strongest attack", "leakage, bits", "epsilon", "epsilon of the table", "perplexity")
    return table(heads, map(row, load("encoder_demo.json")["rows"]))


def _constraints() -> str:
    """Lay out encoders by the attacker of their training, at equal strongest attack."""
    return table(
        ("level", "encoder held against", "MAP", "strongest attack", "epsilon", "perplexity", "ratio to MAP's best"),
        (
            (
                percent(row["level"]),
                row["encoder"],
                percent(row["map"]["success"], 1),
                f"{percent(row['strongest']['success'], 1)} ({row['attack']})",
                number(row["epsilon"], 1),
                interval(row["ppl"], ".1f"),
                interval(row["ppl ratio to the best for MAP"]),
            )
            for row in sorted(load("encoder_constraint.json")["rows"], key=lambda one: float(one["level"]))
        ),
    )


def _demo_encoders() -> str:
    def row(one: dict[str, Any]) -> tuple[str, ...]:
        options = " ".join(one["command"].split()[8:])
        figures = percent(one["map_asr"], 1), number(one["ppl_start"], 1), number(one["ppl_trained"], 1)
        return (one["lm"], f"`{options}`", *figures)

    heads = ("LM", "`delctl train encoder` with", "MAP", "perplexity before", "after")
    return table(heads, map(row, load("encoder_demo.json")["encoders"]))


def _demo_levels() -> str:
    return table(
        ("encoder trained for", "used at MAP", "perplexity without soft prompt", "with soft prompt"),
        (
            (
                one["encoder"],
                percent(one["map"], 1),
                number(one["ppl_noisy"], 1),
                number(one["ppl_soft_prompt"], 1),
            )
            for one in load("encoder_demo.json")["levels"]
        ),
    )


PRIVACY_UTILITY: dict[str, dict[str, Table]] = {
    "privacy-utility.md": _comparison("small"),
    "privacy-utility-large.md": _comparison("large"),
    "training.md": {
        "bundles run": Origin("encoder_demo.json", command="examples/demo_model/recipe.sh"),
        "bundles": _demo_bundles,
        "constraint run": Origin("encoder_constraint.json"),
        "constraint": _constraints,
        "encoders": _demo_encoders,
        "levels": _demo_levels,
    },
}
