"""Tables of the tasks, and of the paper's tables, on SmolLM2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.results_pages.tables import Origin, Table, epsilon, interval, load, missing, number, percent, table

__all__ = ["SMOLLM2_PAPER"]

_TASKS, _PAPER = "privacy_utility_smollm2/tasks/results.json", "privacy_utility_smollm2/paper/results.json"
_READ = {"nothing": "no prompt", "clear": "clear prompt"}


def _tasks() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for row in load(_TASKS)["rows"]:
            yield (
                row["task"],
                row["reading"] if row["codes"] is None else f"{row['reading']} ({row['codes']})",
                str(row["steps"]),
                epsilon(row),
                _rate(row["strongest"]),
                f"{interval(row['accuracy'], '.1f', 100)} %",
                interval(row["auc"], ".2f"),
                percent(row["majority"], 1),
            )

    heads = ("task", "read", "steps", "epsilon", "strongest attack", "accuracy", "AUC", "most frequent label")
    return table(heads, rows())


def _rate(values: Sequence[float] | None) -> str:
    return "" if values is None else percent(values[0], 1)


def _optional(row: dict[str, Any], name: str, form: str = ".3f") -> str:
    return interval(row[name], form) if name in row else ""


def _levels(text: str) -> str:
    """Lay out one text by level, between its controls."""
    found = load(_PAPER)

    def rows() -> Iterator[tuple[str, ...]]:
        controls = {row["read"]: row for row in found["controls"] if row["text"] == text}
        if "nothing" in controls:
            yield _READ["nothing"], "", "", "", *_with(controls["nothing"])
        for row in found["levels"]:
            if row["text"] == text:
                rates = _rate(row["strongest"]), _rate(row["nearest"])
                yield percent(row["level"]), *rates, number(row["epsilon"], 0), *_with(row)
        if "clear" in controls:
            yield _READ["clear"], "", "", "", *_with(controls["clear"])

    heads = ("level", "strongest attack", "nearest neighbor", "epsilon")
    return table((*heads, "perplexity without soft prompt", "with", "ratio", "ratio to no prompt, with"), rows())


def _measured(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a table, or say that none of its pieces is measured."""
    found = list(rows)
    return table(header, found) if found else "Not measured yet."


def _with(row: dict[str, Any]) -> tuple[str, ...]:
    figures = (_optional(row, name, ".1f") for name in ("ppl without", "ppl with"))
    return *figures, _optional(row, "ratio"), _optional(row, "ratio to no prompt")


def _transfer() -> str:
    return _measured(
        ("level", "trained on", "measured on", "ratio to no soft prompt", "ratio to the text's own soft prompt"),
        (
            (
                percent(row["level"]),
                row["trained on"],
                row["measured on"],
                _optional(row, "ratio"),
                _optional(row, "ratio to own"),
            )
            for row in load(_PAPER)["transfer"]
        ),
    )


def _other_levels() -> str:
    """Lay out perplexities, a column for each level at which the soft prompt was trained."""
    rows = load(_PAPER)["other_levels"]
    trained = sorted({row["trained at"] for row in rows})
    found = {(row["text"], row["measured at"], row["trained at"]): row for row in rows}
    places = dict.fromkeys((text, measured) for text, measured, _ in found)

    def cell(text: str, measured: float, level: float) -> str:
        row = found.get((text, measured, level))
        return "" if row is None else number(row["ppl"][0], 1)

    return _measured(
        ("text", "noise of level", *(f"soft prompt of {percent(level)}" for level in trained)),
        ((text, percent(measured), *(cell(text, measured, one) for one in trained)) for text, measured in places),
    )


def _dims() -> str:
    rows = load(_PAPER)["dims"]
    texts = list(rows[0]["ppl"]) if rows else []
    return _measured(
        ("d", "bits a token", "epsilon", "strongest attack", "nearest neighbor", "without noise, own text", *texts),
        (
            (
                str(row["dim"]),
                str(row["bits"]),
                number(row["epsilon"], 0),
                _rate(row["strongest"]),
                _rate(row["nearest"]),
                number(row["ppl projected"], 1),
                *(interval(row["ppl"][text], ".1f") for text in texts),
            )
            for row in rows
        ),
    )


SMOLLM2_PAPER: dict[str, dict[str, Table]] = {
    "tasks-smollm2.md": {
        "run": Origin(_TASKS),
        "missing": lambda: missing(_TASKS),
        "tasks": _tasks,
    },
    "paper-smollm2.md": {
        "run": Origin(_PAPER),
        "missing": lambda: missing(_PAPER),
        "wikitext-2": lambda: _levels("wikitext-2"),
        "ptb": lambda: _levels("ptb"),
        "transfer": _transfer,
        "other levels": _other_levels,
        "dimensions": _dims,
    },
}
