"""Plots of the comparison on a pretrained model: epsilon and the strongest attack against PPL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.privacy_utility.plan import GAUSSIAN, METRIC, PUBLISHED
from benchmarks.privacy_utility.pretrained.plan import CLEAR, CODES_ADAPTED, COUNTS_ADAPTED, NOTHING

__all__ = ["draw"]

_COLOURS = {
    CODES_ADAPTED: "#0072b2",
    COUNTS_ADAPTED: "#009e73",
    PUBLISHED: "#d55e00",
    GAUSSIAN: "#cc79a7",
    METRIC: "#999999",
}
_UNTRAINED = (GAUSSIAN, METRIC)  # nobody trains with these kinds of noise


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw epsilon.png and strongest.png, a panel for each text, if a method was measured.

    Shown is what took the most further steps, and baselines that nobody trains.
    """
    if not any(row["method"] in _COLOURS for row in found["rows"]):
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    corpora, most = list(found["about"]["passages"]), max(row["steps"] for row in found["rows"])
    shown = [row for row in found["rows"] if row["steps"] == most or row["method"] in _UNTRAINED]
    axes_of = {
        "epsilon": ("epsilon of a token (codes, metric: pure; else at delta 1e-6)", "log"),
        "strongest": ("tokens that the strongest attack recovers", "linear"),
    }
    for name, (label, scale) in axes_of.items():
        figure, axes = plt.subplots(
            1, len(corpora), figsize=(4.4 * len(corpora), 4.4), squeeze=False, layout="constrained"
        )
        for axis, corpus in zip(axes[0], corpora, strict=True):
            _panel(axis, [row for row in shown if row["corpus"] == corpus], name)
            axis.set(title=corpus, xlabel=label, ylabel="perplexity", xscale=scale)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        figure.savefig(out / f"{name}.png", dpi=110)
        plt.close(figure)


def _panel(axis: Any, rows: list[dict[str, Any]], x: str) -> None:
    for method, colour in _COLOURS.items():
        points = sorted(
            (row["epsilon"] if x == "epsilon" else row["strongest"][0], *row["ppl"])
            for row in rows
            if row["method"] == method
        )
        if points:
            at, value, low, high = (list(column) for column in zip(*points, strict=True))
            errors = [
                [v - lo for v, lo in zip(value, low, strict=True)],
                [hi - v for v, hi in zip(value, high, strict=True)],
            ]
            # Codes of one epsilon say more or less, so no line joins what is drawn against epsilon.
            line = "none" if x == "epsilon" else "-"
            style = {"marker": "o", "markersize": 4, "capsize": 2, "linestyle": line, "linewidth": 1}
            axis.errorbar(at, value, errors, label=method, color=colour, **style)
    for row in rows:
        if row["method"] in (CLEAR, NOTHING):
            height, line = row["ppl"][0], "--" if row["method"] == NOTHING else "-"
            axis.axhline(height, color="gray", linestyle=line, linewidth=0.8)
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            axis.annotate(row["method"], (0.99, height), fontsize=7, **place)
