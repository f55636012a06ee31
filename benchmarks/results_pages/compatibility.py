"""Tables of what the proxy was run with, what its detectors find, and what placeholders give."""

from __future__ import annotations

from typing import Any

from benchmarks.applications.environments import CASES, libraries
from benchmarks.detectors.measure import UNSTRUCTURED
from benchmarks.results_pages.tables import Origin, Table, interval, load, table

__all__ = ["COMPATIBILITY"]


def _libraries() -> str:
    found = load("applications.json")["libraries"]

    def cell(name: str, case: str) -> str:
        scripted, real = (found[name].get(server, {}).get(case, "not run") for server in ("scripted", "smollm2"))
        if real == "yes" and scripted == "yes":
            return "yes, demanded" if case == "tools" and libraries()[name].first_call else "yes"
        if real == "yes":
            return "SmolLM2 only"
        return "scripted" if scripted == "yes" else "no"

    def versions(name: str) -> str:
        return ", ".join(dict.fromkeys(libraries()[name].versions().values())) or "of the system"

    rows = (
        (one.title, versions(name), *(cell(name, case) for case in CASES), f"*{found[name].get('level', '')}*")
        for name, one in libraries().items()
    )
    heads = ("first example", "stream", "tool call", "structured output", "error", "level")
    return table(("library", "version", *heads), rows)


def _specification() -> str:
    rows = []
    for operation, kinds in load("specification.json")["operations"].items():
        for kind, seen in kinds.items():
            sent = ("allowed" if kind == "valid" else "not allowed", *map(str, seen.values()))
            rows.append((f"`{operation}`", *sent))
    return table(("operation", "requests", "answered", "refused", "wrong"), rows)


def _reasons() -> str:
    found = load("specification.json")["reasons"]
    return table(("refused on purpose", "times"), ((reason, str(count)) for reason, count in found.items()))


_MODEL_KINDS = ("name", "place", "organization", "group")


def _share(values: list[float]) -> str:
    return interval(values, ".0f", 100)


def _missed() -> str:
    now, before = load("detectors.json"), load("detectors_before.json")

    def row(name: str, *kinds: str) -> tuple[str, ...]:
        (kind,) = kinds
        (one, other) = (found["recall"][kind] for found in (now, before))
        missed = [1 - one["hidden"][place] for place in (0, 2, 1)]
        before_missed = 100 * (1 - other["hidden"][0])
        return (name, str(one["count"]), _share(missed), f"{before_missed:.0f}", f"{100 * one['in_the_clear']:.0f}")

    share, earlier = now["missed"], before["missed"]["structured"][0]
    first = ("**all with a form**", str(share["count"]), _share(share["structured"]), f"{100 * earlier:.0f}", "")
    heads = ("personal data", "number", "missed, %", "before, %", "letters and digits in the clear, %")
    rows = [row(kind if kind not in UNSTRUCTURED else f"{kind} (no detector)", kind) for kind in now["recall"]]
    return table(heads, [first, *rows])


def _precision() -> str:
    now = load("detectors.json")
    rows = [(kind, str(one["count"]), _share(one["right"])) for kind, one in now["precision"].items()]
    return table(("finding", "number", "precision, %"), rows)


def _more() -> str:
    runs = {"none": "detectors.json", "secrets": "detectors_secrets.json", "names": "detectors_names.json"}
    rows = []
    for name, file in runs.items():
        found = load(file)
        missed = [_share([1 - found["recall"][kind]["hidden"][at] for at in (0, 2, 1)]) for kind in ("name", "address")]
        form, without = _share(found["missed"]["structured"]), found["sentences_without"]["with_a_finding"]
        rows.append((name, form, *missed, _share(found["precision"]["all"]["right"]), str(without)))
    heads = ("further detector", "with a form, missed, %", "names missed, %", "addresses missed, %")
    return table((*heads, "precision, %", "of 100 sentences without, with a finding"), rows)


def _more_precision() -> str:
    found = load("detectors_names.json")["precision"]
    rows = [(kind, str(found[kind]["count"]), _share(found[kind]["right"])) for kind in _MODEL_KINDS if kind in found]
    return table(("finding of `names`", "number", "precision, %"), rows)


_WAYS = {"clear": "values in the clear", "counts": "codes", "surrogates": "placeholders and codes"}
_WAYS |= {"alone": "placeholders alone"}


def _right() -> str:
    def row(level: str, way: str, found: dict[str, Any]) -> tuple[str, ...]:
        one, two = found["1"], found["2"]
        other = f"{100 * two['wrong'] / two['prompts']:.0f}"
        name = "no noise" if way == "clear" else f"*{level}*"
        return (name, _WAYS[way], _share(one["right"]), _share(two["right"]), other)

    results = load("surrogates.json")["results"]
    rows = [row(level, way, found) for level, ways in results.items() for way, found in ways.items()]
    return table(("level", "the server gets", "one person, right, %", "two, right, %", "two, with the other, %"), rows)


def _right_of_each() -> str:
    found = load("surrogates.json")
    ways = {
        f"{_WAYS[way]}, *{level}*" if way != "clear" else _WAYS[way]: row["right_of_each_template"]
        for level, ways in found["results"].items()
        for way, row in ways.items()
        if way in ("clear", "surrogates")
    }
    rows = ((text, *(str(right[index]) for right in ways.values())) for index, text in enumerate(found["templates"]))
    return table((f"right of {found['each']}", *ways), rows)


COMPATIBILITY: dict[str, dict[str, Table]] = {
    "compatibility.md": {
        "libraries run": Origin("applications.json"),
        "libraries": _libraries,
        "specification run": Origin("specification.json"),
        "specification": _specification,
        "reasons": _reasons,
    },
    "detectors.md": {
        "detectors run": Origin("detectors.json"),
        "missed": _missed,
        "precision": _precision,
        "more": _more,
        "more precision": _more_precision,
    },
    "surrogates.md": {
        "surrogates run": Origin("surrogates.json"),
        "right": _right,
        "right of each": _right_of_each,
    },
}
