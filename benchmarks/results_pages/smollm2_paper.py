"""Tables of the understanding tasks on SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.results_pages.tables import Origin, Table, interval, load, number, percent, table

__all__ = ["SMOLLM2_PAPER"]

_TASKS = "privacy_utility_smollm2/tasks/results.json"


def _missing(file: str) -> str:
    about = load(file)["about"]
    done, names = about["pieces_done"], about["pieces_missing"]
    if not names:
        return f"All {done} pieces of the plan are measured."
    lines = "\n".join(f"- `{name}`" for name in names)
    return f"Measured: {done} of {done + len(names)} pieces of the plan. Not measured:\n\n{lines}"


def _tasks() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for row in load(_TASKS)["rows"]:
            yield (
                row["task"],
                row["reading"] if row["codes"] is None else f"{row['reading']} ({row['codes']})",
                str(row["steps"]),
                _epsilon(row),
                _rate(row["strongest"]),
                f"{interval(row['accuracy'], '.1f', 100)} %",
                interval(row["auc"], ".2f"),
                percent(row["majority"], 1),
            )

    heads = ("task", "read", "steps", "epsilon", "strongest attack", "accuracy", "AUC", "most frequent label")
    return table(heads, rows())


def _epsilon(row: dict[str, Any]) -> str:
    if row["epsilon"] is None:
        return ""
    return f"{number(row['epsilon'], 1)}{' (pure)' if row.get('delta') == 0 else ''}"


def _rate(values: Sequence[float] | None) -> str:
    return "" if values is None else percent(values[0], 1)


SMOLLM2_PAPER: dict[str, dict[str, Table]] = {
    "tasks-smollm2.md": {
        "run": Origin(_TASKS),
        "missing": lambda: _missing(_TASKS),
        "tasks": _tasks,
    },
}
