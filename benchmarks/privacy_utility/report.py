"""Rows, paired comparisons and curves with intervals, from the scores of a run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.privacy_utility.plan import (
    ALL,
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
from benchmarks.privacy_utility.understanding import auc_interval, correct
from del_core.audit.intervals import wilson
from del_core.evaluation.bootstrap import (
    Interval,
    interval_of,
    mean_interval,
    paired_interval,
    perplexity_interval,
    ppl_ratio,
    ratio_interval,
    resampled_means,
)

__all__ = ["BASELINES", "COHERENCE", "across_texts", "results"]

_CARRIED = ("bits_per_token", "client_seconds", "client_mb")
_CARRIED_BY_CORPUS = ("epsilon", "epsilon_vocabulary", "nearest_success")
COHERENCE = {
    "coh": "coh",
    "coh_lift": "lift",
    "coh_sampled": "coh sampled",
    "coh_sampled_lift": "lift sampled",
}
"""Names of the scores by the fields of a row."""
_ORDER = (
    CLEAR, BEST, BEST + WITHOUT, BEST + ALONE, PUBLISHED, PUBLISHED + WITHOUT, REWRITING, REPLACEMENT, METRIC,
    GAUSSIAN, RANDOM, NONE,
)  # fmt: skip

BASELINES = (PUBLISHED, PUBLISHED + WITHOUT, GAUSSIAN, METRIC, REPLACEMENT, REWRITING)
"""Methods with which this project is compared in pairs."""


class _Scores:
    """Scores of a method at a level: an array (seeds, passages) for each measure and corpus."""

    def __init__(self, method: str, level: float | None) -> None:
        self.method, self.level = method, level
        self.about: list[dict[str, Any]] = []
        self.arrays: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, path: Path) -> None:
        with np.load(path) as arrays:
            for name in arrays.files:
                self.arrays[name].append(arrays[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return np.stack(self.arrays[name])

    def first_seeds(self, count: int) -> _Scores:
        """Return the scores of the first ``count`` seeds."""
        scores = _Scores(self.method, self.level)
        scores.about = self.about[:count]
        for name, arrays in self.arrays.items():
            scores.arrays[name] = arrays[:count]
        return scores

    @property
    def corpora(self) -> list[str]:
        return [name.removeprefix("nll ") for name in self.arrays if name.startswith("nll ")]


def _load(work: Path) -> dict[tuple[str, float | None], _Scores]:
    found: dict[tuple[str, float | None], _Scores] = {}
    for path in sorted((work / "scores").glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        key = (about["method"], about["level"])
        scores = found.setdefault(key, _Scores(*key))
        scores.about.append(about)
        scores.add(path.with_suffix(".npz"))
        coherence = work / "coherence" / f"{path.stem}.npz"
        if coherence.exists():
            scores.add(coherence)
    return found


def _figures(name: str, interval: Interval, digits: int) -> dict[str, float]:
    return {
        name: round(interval.value, digits),
        f"{name}_low": round(interval.low, digits),
        f"{name}_high": round(interval.high, digits),
    }


def _row(scores: _Scores, corpus: str, clear: _Scores | None) -> dict[str, Any]:
    here = [about["corpora"][corpus] for about in scores.about]
    hits = [one["attack"] for one in here]
    right, tokens = sum(one["hits"] for one in hits), sum(one["tokens"] for one in hits)
    low, high = wilson(right, tokens)
    seeds = [float(np.exp(one.mean())) for one in scores[f"nll {corpus}"]]
    carried = {}
    for names, abouts in ((_CARRIED, scores.about), (_CARRIED_BY_CORPUS, here)):
        for name in names:
            values = [about[name] for about in abouts if about.get(name) is not None]
            carried[name] = round(float(np.mean(values)), 6) if values else None
    return {
        "method": scores.method,
        "level": scores.level,
        "corpus": corpus,
        "seeds": len(seeds),
        "attack_success": round(right / tokens, 5),
        "attack_low": round(low, 5),
        "attack_high": round(high, 5),
        "attack_bits": round(sum(one["bits"] * one["tokens"] for one in hits) / tokens, 3),
        **_figures("ppl", perplexity_interval(scores[f"nll {corpus}"]), 3),
        "ppl_by_seed": [round(value, 3) for value in seeds],
        "ppl_to_clear": clear and ratio_interval(scores[f"nll {corpus}"], clear[f"nll {corpus}"]).to_json(),
        **_text_figures(scores, corpus),
        **carried,
    }


def _text_figures(scores: _Scores, corpus: str) -> dict[str, float | None]:
    """Return figures of the written text; None where only the likelihood was measured."""
    figures: dict[str, float | None] = {}
    columns = {**COHERENCE, "rouge_l": "rouge"}
    for name, column in columns.items():
        if f"{column} {corpus}" in scores.arrays:
            figures |= _figures(name, mean_interval(scores[f"{column} {corpus}"]), 4)
        else:
            figures |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return figures


def _closed_share(own: np.ndarray, baseline: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Return the share of the gap between baseline and clear prompt that a method closes.

    Arguments are means of negative log-likelihoods. 1 is the clear prompt; below 0 is worse than
    the baseline.
    """
    share: np.ndarray = (np.exp(baseline) - np.exp(own)) / (np.exp(baseline) - np.exp(clear))
    return share


def _difference(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return own - other


def across_texts(
    statistic: Callable[..., np.ndarray], *texts: Sequence[np.ndarray], resamples: int = 4000, seed: int = 0
) -> Interval:
    """Return the interval of the mean of ``statistic`` over several texts with equal weights.

    The columns of each text are those of ``paired_interval``. Passages are resampled within each
    text, so the interval is that of other passages of the same texts.
    """
    figures = [statistic(*resampled_means(columns, resamples, seed + index)) for index, columns in enumerate(texts)]
    return interval_of(np.mean(figures, axis=0))


def _comparisons(found: dict[tuple[str, float | None], _Scores]) -> list[dict[str, Any]]:
    """Return paired comparisons for every level, on each corpus and in the mean over several."""
    levels = sorted({level for method, level in found if method == BEST and level is not None})
    rows = []
    for level in levels:
        corpora = found[BEST, level].corpora
        for name, these in [*((one, [one]) for one in corpora), *([(ALL, corpora)] if len(corpora) > 1 else [])]:
            rows.append({"level": level, "corpus": name, **_compared(found, level, these)})
    return rows


def _compared(
    found: dict[tuple[str, float | None], _Scores], level: float, corpora: Sequence[str]
) -> dict[str, list[float]]:
    """Compare this project with each baseline, averaged over ``corpora``; also soft prompts."""

    def interval(statistic: Callable[..., np.ndarray], measure: str, *scores: _Scores) -> list[float]:
        names = [f"{measure} {corpus}" for corpus in corpora]
        return across_texts(statistic, *([one[name] for one in scores] for name in names)).to_json()

    here: dict[str, list[float]] = {}
    best, clear = found[BEST, level], found.get((CLEAR, None))
    for method in BASELINES:
        other = found.get((method, level))
        if other is not None:
            here[f"ppl ratio to {method}"] = interval(ppl_ratio, "nll", best, other)
            for name in COHERENCE.values():
                if all(f"{name} {corpus}" in one.arrays for one in (best, other) for corpus in corpora):
                    here[f"{name} minus {method}"] = interval(_difference, name, best, other)
    published = found.get((PUBLISHED, level))
    if published is not None and clear is not None:
        here["share of the gap closed"] = interval(_closed_share, "nll", best, published, clear)
    for method in (BEST, PUBLISHED):
        pair = found.get((method, level)), found.get((method + WITHOUT, level))
        if pair[0] is not None and pair[1] is not None:
            here[f"soft prompt of {method}, ppl ratio"] = interval(ppl_ratio, "nll", *pair)
    alone = found.get((BEST + ALONE, level))
    if alone is not None:
        same = best.first_seeds(len(alone.about))  # it has one seed and is compared with the same seed
        here[f"soft prompt of {BEST}, ppl ratio to training without"] = interval(ppl_ratio, "nll", same, alone)
    return here


def _tasks(work: Path) -> list[dict[str, Any]]:
    """Return accuracy and AUC of every task and method, and the paired difference to clear."""
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
            "accuracy": mean_interval(right).to_json(),
            "auc": auc_interval(scores, labels).to_json(),
        }
        clear = found.get((task, CLEAR))
        if clear is not None and method != CLEAR:
            difference = paired_interval(_difference, right, correct(*clear[:2]))
            row["accuracy minus clear"] = difference.to_json()
        rows.append(row)
    return sorted(rows, key=lambda row: (row["task"], _ORDER.index(row["method"])))


def _curves(work: Path) -> dict[str, list[dict[str, float]]]:
    return {
        path.parent.parent.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(work.glob("*/checkpoints/*.jsonl"))
    }


def results(work: Path) -> dict[str, Any]:
    """Return all results, from which page and plots are drawn."""
    found = _load(work)

    def place(key: tuple[str, float | None]) -> tuple[float, int, str]:
        method, level = key
        return (level or 0.0, _ORDER.index(method) if method in _ORDER else len(_ORDER), method)

    clear = found.get((CLEAR, None))
    rows = [_row(found[key], corpus, clear) for key in sorted(found, key=place) for corpus in found[key].corpora]
    sweep = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "sweep").glob("*.json"))]
    return {
        "machines": sorted({about["machine"] for scores in found.values() for about in scores.about}),
        "rows": rows,
        "comparisons": _comparisons(found),
        "tasks": _tasks(work),
        "sweep": sweep,
        "curves": _curves(work),
    }
