"""Plots of the results of benchmarks.privacy_utility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.privacy_utility.plan import BEST, CLEAR, GAUSSIAN, METRIC, NONE, PUBLISHED, REPLACEMENT, REWRITING

__all__ = ["draw"]

_DRAWN = (BEST, PUBLISHED, REPLACEMENT, REWRITING, METRIC, GAUSSIAN)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#7f7f7f")


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw privacy_utility.png, training.png and sweep.png, each if there are data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    corpora = list(found["about"]["passages"])
    figure, axes = plt.subplots(
        2, len(corpora), figsize=(4.4 * len(corpora) + 2.6, 8.2), squeeze=False, sharey="col", layout="constrained"
    )
    for column, corpus in enumerate(corpora):
        rows = [row for row in found["rows"] if row["corpus"] == corpus]
        _privacy_utility(axes[0][column], rows, "attack_success", corpus)
        axes[0][column].set_xlabel("tokens recovered by the MAP attack")
        axes[0][column].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _privacy_utility(axes[1][column], rows, "attack_bits", corpus)
        axes[1][column].set_xlabel("bits that it gains on a token")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside center right", fontsize=8)
    _save(figure, out / "privacy_utility.png")
    titles = {"encoder": "stage 1, noise in the loop", "best": "stage 2, this project", "published": "stage 2, linear"}
    if any(name.startswith("encoder-") for name in found["curves"]):
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
        for axis, (kind, title) in zip(axes, titles.items(), strict=True):
            _training(axis, {name: curve for name, curve in found["curves"].items() if name.startswith(f"{kind}-")})
            axis.set(title=title, xlabel="step", ylabel="held-out loss, nats a token")
        lines = axes[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside center right", title="level; a line a seed", fontsize=8, title_fontsize=8)
        _save(figure, out / "training.png")
    points = [one for one in found["sweep"] if one["ppl"] is not None]
    if points:
        figure, axis = plt.subplots(figsize=(5.5, 4), layout="constrained")
        for bits in sorted({one["bits"] for one in points}):
            line = sorted((one["dim"], one["ppl"]) for one in points if one["bits"] == bits)
            axis.plot(*zip(*line, strict=True), marker="o", label=f"n = {bits}")
        axis.set(xscale="log", xlabel="d", ylabel="perplexity", title=f"MAP success {points[0]['level']:.0%}")
        axis.set_xticks(
            sorted({one["dim"] for one in points}), [str(d) for d in sorted({one["dim"] for one in points})]
        )
        axis.legend()
        _save(figure, out / "sweep.png")


def _privacy_utility(axis: Any, rows: list[dict[str, Any]], given_away: str, title: str) -> None:
    """Draw perplexities as multiples of the clear prompt's on the same passages.

    ``given_away``: field of a row for the x axis.
    """
    rows = [row for row in rows if row["ppl_to_clear"] is not None]
    for row in rows:
        if row["method"] in (CLEAR, NONE):
            height = row["ppl_to_clear"][0]
            axis.axhline(height, color="gray", linestyle="--" if row["method"] == NONE else "-", linewidth=0.8)
            axis.annotate(row["method"], (0.99, height), xycoords=("axes fraction", "data"), fontsize=7,
                          ha="right", va="bottom")  # fmt: skip
    for method, colour in zip(_DRAWN, _COLOURS, strict=True):
        line = sorted(
            (row[given_away], *row["ppl_to_clear"])
            for row in rows
            if row["method"] == method and row["level"] is not None
        )
        if line:
            x, y, low, high = (list(column) for column in zip(*line, strict=True))
            axis.plot(x, y, marker="o", markersize=3, linewidth=1.4, label=method, color=colour)
            axis.fill_between(x, low, high, alpha=0.12, color=colour, linewidth=0)
    axis.set(title=title, ylabel="perplexity / that of the clear prompt")


def _training(axis: Any, curves: dict[str, list[dict[str, float]]]) -> None:
    """Draw ``curves``, named kind-level-seed, in one color per level."""
    levels = sorted({float(name.split("-")[1]) for name in curves})
    labelled = set()
    for name, curve in sorted(curves.items()):
        level = float(name.split("-")[1])
        axis.plot(
            [one["step"] for one in curve],
            [one["held_out_loss"] for one in curve],
            label=None if level in labelled else f"{level:.0%}",
            color=_COLOURS[levels.index(level) % len(_COLOURS)],
            linewidth=1,
            marker=".",
        )
        labelled.add(level)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110)
    plt.close(figure)
