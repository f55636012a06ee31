"""From the scores of benchmarks.privacy_utility to rows with intervals, a Markdown page and plots."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._privacy_utility_pieces import (
    ALONE,
    BEST,
    CLEAR,
    GAUSSIAN,
    METRIC,
    NONE,
    PUBLISHED,
    RANDOM,
    REPLACEMENT,
    REWRITING,
    TASK_LEVEL,
    WITHOUT,
)
from del_core.audit.intervals import wilson
from del_core.evaluation.bootstrap import (
    Interval,
    closed_share_interval,
    mean_interval,
    paired_interval,
    perplexity_interval,
    ratio_interval,
)
from del_core.evaluation.understanding import auc_interval, correct

__all__ = ["draw", "markdown", "results"]

_CARRIED = (
    "bits_per_token",
    "epsilon",
    "epsilon_vocabulary",
    "leakage_bits",
    "nearest_success",
    "client_seconds",
    "client_mb",
)
_COHERENCE = {
    "coh": "coh",
    "coh_lift": "lift",
    "coh_sampled": "coh sampled",
    "coh_sampled_lift": "lift sampled",
}
"""Fields of a row by the names of the scores."""
_ORDER = (
    CLEAR, BEST, BEST + WITHOUT, BEST + ALONE, PUBLISHED, PUBLISHED + WITHOUT, REWRITING, REPLACEMENT, METRIC,
    GAUSSIAN, RANDOM, NONE,
)  # fmt: skip

_DRAWN = (BEST, PUBLISHED, REPLACEMENT, REWRITING, METRIC, GAUSSIAN)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#7f7f7f")


class _Scores:
    """All scores of one method at one level: one array (seeds, passages) for each measure and corpus."""

    def __init__(self, method: str, level: float | None) -> None:
        self.method, self.level = method, level
        self.about: list[dict[str, Any]] = []
        self.arrays: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, about: dict[str, Any], arrays: Any) -> None:
        self.about.append(about)
        for name in arrays.files:
            self.arrays[name].append(arrays[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return np.stack(self.arrays[name])

    @property
    def corpora(self) -> list[str]:
        return [name.removeprefix("nll ") for name in self.arrays if name.startswith("nll ")]


def _load(work: Path) -> dict[tuple[str, float | None], _Scores]:
    found: dict[tuple[str, float | None], _Scores] = {}
    for path in sorted((work / "scores").glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        key = (about["method"], about["level"])
        with np.load(path.with_suffix(".npz")) as arrays:
            found.setdefault(key, _Scores(*key)).add(about, arrays)
    return found


def _figures(name: str, interval: Interval, digits: int) -> dict[str, float]:
    return {
        name: round(interval.value, digits),
        f"{name}_low": round(interval.low, digits),
        f"{name}_high": round(interval.high, digits),
    }


def _row(scores: _Scores, corpus: str, clear: _Scores | None) -> dict[str, Any]:
    hits = [about["attacks"][corpus] for about in scores.about]
    right, tokens = sum(one["hits"] for one in hits), sum(one["tokens"] for one in hits)
    low, high = wilson(right, tokens)
    seeds = [float(np.exp(one.mean())) for one in scores[f"nll {corpus}"]]
    carried = {}
    for name in _CARRIED:
        values = [about[name] for about in scores.about if about.get(name) is not None]
        carried[name] = round(float(np.mean(values)), 6) if values else None
    return {
        "method": scores.method,
        "level": scores.level,
        "corpus": corpus,
        "seeds": len(seeds),
        "attack_success": round(right / tokens, 5),
        "attack_low": round(low, 5),
        "attack_high": round(high, 5),
        **_figures("ppl", perplexity_interval(scores[f"nll {corpus}"]), 3),
        "ppl_by_seed": [round(value, 3) for value in seeds],
        "ppl_to_clear": clear and ratio_interval(scores[f"nll {corpus}"], clear[f"nll {corpus}"]).rounded(),
        **_text_figures(scores, corpus),
        **carried,
    }


def _text_figures(scores: _Scores, corpus: str) -> dict[str, float | None]:
    """Of the written text; None for what was measured by likelihood alone."""
    figures: dict[str, float | None] = {}
    columns = {**_COHERENCE, "rouge_l": "rouge"}
    for name, column in columns.items():
        if f"{column} {corpus}" in scores.arrays:
            figures |= _figures(name, mean_interval(scores[f"{column} {corpus}"]), 4)
        else:
            figures |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return figures


def _comparisons(found: dict[tuple[str, float | None], _Scores]) -> list[dict[str, Any]]:
    """Paired, for every level and corpus: this project against each rival, its share of the gap, the soft prompts."""
    rows = []
    clear = found.get((CLEAR, None))
    levels = sorted({level for method, level in found if method == BEST and level is not None})
    for level in levels:
        best = found[BEST, level]
        for corpus in best.corpora:
            nll = f"nll {corpus}"
            here: dict[str, Any] = {"level": level, "corpus": corpus}
            for method in (PUBLISHED, PUBLISHED + WITHOUT, REWRITING, REPLACEMENT, METRIC, GAUSSIAN):
                other = found.get((method, level))
                if other is not None:
                    here[f"ppl ratio to {method}"] = ratio_interval(best[nll], other[nll]).rounded()
                    for name in _COHERENCE.values():
                        column = f"{name} {corpus}"
                        if column in other.arrays:
                            difference = paired_interval(lambda a, b: a - b, best[column], other[column])
                            here[f"{name} minus {method}"] = difference.rounded()
            published = found.get((PUBLISHED, level))
            if published is not None and clear is not None:
                share = closed_share_interval(best[nll], published[nll], clear[nll])
                here["share of the gap closed"] = share.rounded()
            for method in (BEST, PUBLISHED):
                pair = found.get((method, level)), found.get((method + WITHOUT, level))
                if pair[0] is not None and pair[1] is not None:
                    ratio = ratio_interval(pair[0][nll], pair[1][nll])
                    here[f"soft prompt of {method}, ppl ratio"] = ratio.rounded()
            alone = found.get((BEST + ALONE, level))
            if alone is not None:  # of one seed: compared with the same seed
                same = best[nll][: len(alone[nll])]
                ratio = ratio_interval(same, alone[nll])
                here[f"soft prompt of {BEST}, ppl ratio to training without"] = ratio.rounded()
            rows.append(here)
    return rows


def _tasks(work: Path) -> list[dict[str, Any]]:
    """Accuracy and AUC of every task and method, and the paired difference of accuracy to the clear prompt."""
    abouts = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "tasks").glob("*.json"))}
    found = {}
    for path, about in abouts.items():
        with np.load(path.with_suffix(".npz")) as arrays:
            found[about["task"], about["method"]] = arrays["scores"], arrays["labels"], about["majority"]
    rows = []
    for (task, method), (scores, labels, majority) in found.items():
        right = correct(scores, labels)
        row = {
            "task": task,
            "method": method,
            "level": None if method == CLEAR else TASK_LEVEL,
            "examples": len(labels),
            "majority": round(majority, 4),
            "accuracy": mean_interval(right).rounded(),
            "auc": auc_interval(scores, labels).rounded(),
        }
        clear = found.get((task, CLEAR))
        if clear is not None and method != CLEAR:
            difference = paired_interval(lambda a, b: a - b, right, correct(*clear[:2]))
            row["accuracy minus clear"] = difference.rounded()
        rows.append(row)
    return sorted(rows, key=lambda row: (row["task"], _ORDER.index(row["method"])))


def _curves(work: Path) -> dict[str, list[dict[str, float]]]:
    return {
        path.parent.parent.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(work.glob("*/checkpoints/*.jsonl"))
    }


def results(work: Path) -> dict[str, Any]:
    """Everything that the report is drawn from."""
    found = _load(work)

    def place(key: tuple[str, float | None]) -> tuple[float, int, str]:
        method, level = key
        return (level or 0.0, _ORDER.index(method) if method in _ORDER else len(_ORDER), method)

    clear = found.get((CLEAR, None))
    rows = [_row(found[key], corpus, clear) for key in sorted(found, key=place) for corpus in found[key].corpora]
    sweep = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "sweep").glob("*.json"))]
    return {
        "rows": rows,
        "comparisons": _comparisons(found),
        "tasks": _tasks(work),
        "sweep": sweep,
        "curves": _curves(work),
    }


# ---------------------------------------------------------------------------------------------------------- the page


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(header)
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _interval(values: list[float], digits: int = 3) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in values)
    return f"{value} ({low} to {high})"


def _cell(row: dict[str, Any], name: str) -> str:
    return "" if row[name] is None else _interval([row[name], row[f"{name}_low"], row[f"{name}_high"]])


def _sweep_row(one: dict[str, Any]) -> tuple[str, ...]:
    place = (str(one["dim"]), str(one["bits"]))
    if one["ppl"] is None:
        return (*place, "out of reach", "", "")
    return (*place, f"{one['ppl']:.2f}", f"{one['bits_per_token']:.0f}", f"{one['epsilon']:.1f}")


def markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    about = found["about"]
    passages = ", ".join(f"{count} of {name}" for name, count in about["passages"].items())
    lines = [
        "# Privacy against utility",
        "",
        f"`{about['command']}` on {about['machine']}. LM: {about['parameters'] / 1e6:.1f} million parameters, "
        f"V = {about['vocabulary']}, b = {about['hidden_size']}, {about['training_tokens'] / 1e6:.1f} million training "
        f"tokens. Passages: {passages}; text is written for {about['written_passages']} of each.",
        "",
        "MAP: share of tokens that the optimal guesser of single tokens recovers, with a unigram prior. PPL: of the "
        "true 32 tokens after 96 private ones. COH: cosine of sentence embeddings of written and true continuation, "
        f"written greedily, or sampled (temperature 1; {about['samples']} texts a passage). Over others: COH less the "
        "mean cosine with the true continuations of the other passages, which is what style alone earns. "
        "ROUGE-L: against what the LM writes from the clear prompt. Intervals: 95 %, paired bootstrap over passages, "
        "seeds averaged.",
        "",
    ]
    for corpus in about["passages"]:
        lines += [f"## {corpus}", ""]
        lines += _table(
            (
                "level",
                "method",
                "MAP",
                "PPL",
                "COH, greedy",
                "over others",
                "COH, sampled",
                "over others",
                "ROUGE-L",
                "bits a token",
                "epsilon of the table",
                "leakage, bits",
                "seeds",
            ),
            (
                (
                    "" if row["level"] is None else f"{row['level']:.0%}",
                    row["method"],
                    f"{row['attack_success']:.1%}",
                    _interval([row["ppl"], row["ppl_low"], row["ppl_high"]], 1),
                    *(_cell(row, name) for name in _COHERENCE),
                    "" if row["rouge_l"] is None else f"{row['rouge_l']:.3f}",
                    f"{row['bits_per_token']:.0f}",
                    "" if row["epsilon_vocabulary"] is None else f"{row['epsilon_vocabulary']:.1f}",
                    "" if row["leakage_bits"] is None else f"{row['leakage_bits']:.2f}",
                    str(row["seeds"]),
                )
                for row in found["rows"]
                if row["corpus"] == corpus
            ),
        )
    lines += ["## Paired comparisons", "", "Ratios of perplexities below 1: this project is better.", ""]
    for one in found["comparisons"]:
        lines += [f"- {one['corpus']}, level {one['level']:.0%}"]
        lines += [f"  - {name}: {_interval(values)}" for name, values in one.items() if isinstance(values, list)]
    lines += [""]
    first = next(iter(about["passages"]))
    costs = [row for row in found["rows"] if row["client_mb"] is not None and row["corpus"] == first]
    if costs:
        lines += ["## What the client needs", ""]
        lines += _table(
            ("level", "method", "model or table, MB", "seconds a request"),
            (
                (
                    "" if row["level"] is None else f"{row['level']:.0%}",
                    row["method"],
                    f"{row['client_mb']:.2f}",
                    "" if row["client_seconds"] is None else f"{row['client_seconds']:.4f}",
                )
                for row in costs
            ),
        )
    if found["tasks"]:
        lines += ["## Understanding", ""]
        lines += [
            f"At MAP success {TASK_LEVEL:.0%}; the label is read from the LM's verbalisers behind a soft prompt that "
            "was trained for the task through the method. Accuracy of always giving the more frequent label: "
            + ", ".join(
                f"{task} {share:.1%}" for task, share in {r["task"]: r["majority"] for r in found["tasks"]}.items()
            )
            + ".",
            "",
        ]
        lines += _table(
            ("task", "method", "accuracy", "AUC", "accuracy minus the clear prompt's"),
            (
                (
                    row["task"],
                    row["method"],
                    _interval(row["accuracy"]),
                    _interval(row["auc"]),
                    _interval(row["accuracy minus clear"]) if "accuracy minus clear" in row else "",
                )
                for row in found["tasks"]
            ),
        )
    if found["sweep"]:
        lines += ["## d and n at equal attack success", "", "Untrained: principal components, posterior blended.", ""]
        lines += _table(
            ("d", "n", "PPL", "bits a token", "epsilon"),
            (_sweep_row(one) for one in sorted(found["sweep"], key=lambda one: (one["dim"], one["bits"]))),
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- plots


def draw(found: dict[str, Any], out: Path) -> None:
    """privacy_utility.png, training.png and sweep.png, each where there is something to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    corpora = list(found["about"]["passages"])
    figure, axes = plt.subplots(
        1, len(corpora), figsize=(4.4 * len(corpora) + 2.6, 4.4), squeeze=False, layout="constrained"
    )
    for axis, corpus in zip(axes[0], corpora, strict=True):
        _privacy_utility(axis, [row for row in found["rows"] if row["corpus"] == corpus], corpus)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside center right", fontsize=8)
    _save(figure, out / "privacy_utility.png")
    titles = {"encoder": "stage 1, noise in the loop", "best": "stage 2, this project", "published": "stage 2, linear"}
    if any(name.startswith("encoder-") for name in found["curves"]):
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
        for axis, (kind, title) in zip(axes, titles.items(), strict=True):
            for name, curve in found["curves"].items():
                if name.startswith(f"{kind}-"):
                    steps = [one["step"] for one in curve]
                    losses = [one["held_out_loss"] for one in curve]
                    axis.plot(steps, losses, label=name.removeprefix(f"{kind}-"), linewidth=1, marker=".")
            axis.set(title=title, xlabel="step", ylabel="held-out loss, nats a token")
            axis.legend(fontsize=6, title="level-seed", title_fontsize=6)
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


def _privacy_utility(axis: Any, rows: list[dict[str, Any]], title: str) -> None:
    """Perplexities as multiples of the clear prompt's on the same passages: what is hard about a passage cancels."""
    rows = [row for row in rows if row["ppl_to_clear"] is not None]
    for row in rows:
        if row["method"] in (CLEAR, NONE):
            height = row["ppl_to_clear"][0]
            axis.axhline(height, color="gray", linestyle="--" if row["method"] == NONE else "-", linewidth=0.8)
            axis.annotate(row["method"], (0.99, height), xycoords=("axes fraction", "data"), fontsize=7,
                          ha="right", va="bottom")  # fmt: skip
    for method, colour in zip(_DRAWN, _COLOURS, strict=True):
        line = sorted(
            (row["attack_success"], *row["ppl_to_clear"])
            for row in rows
            if row["method"] == method and row["level"] is not None
        )
        if line:
            x, y, low, high = (list(column) for column in zip(*line, strict=True))
            axis.plot(x, y, marker="o", markersize=3, linewidth=1.4, label=method, color=colour)
            axis.fill_between(x, low, high, alpha=0.12, color=colour, linewidth=0)
    axis.set(title=title, xlabel="tokens recovered by the MAP attack", ylabel="perplexity / that of the clear prompt")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110)
    plt.close(figure)
