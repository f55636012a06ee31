"""Markdown page of the results of benchmarks.privacy_utility."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.privacy_utility.plan import ALL, BEST, PUBLISHED, TASK_LEVEL
from benchmarks.privacy_utility.report import BASELINES, COHERENCE

__all__ = ["markdown"]


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(header)
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _interval(values: list[float], form: str = ".3f") -> str:
    value, low, high = (format(number, form) for number in values)
    return f"{value} ({low} to {high})"


def _cell(row: dict[str, Any], name: str) -> str:
    return "" if row[name] is None else _interval([row[name], row[f"{name}_low"], row[f"{name}_high"]])


def _sweep_row(one: dict[str, Any]) -> tuple[str, ...]:
    place = (str(one["dim"]), str(one["bits"]))
    if one["ppl"] is None:
        return (*place, "out of reach", "", "")
    return (*place, f"{one['ppl']:.2f}", f"{one['bits_per_token']:.0f}", f"{one['epsilon']:.1f}")


def _pairs(found: dict[str, Any], columns: Mapping[str, str], form: str) -> list[str]:
    """Return a table, a row for each corpus and level; ``columns`` maps heads to comparisons."""
    there = {
        head: name for head, name in columns.items() if any(one.get(name) is not None for one in found["comparisons"])
    }
    if not there:
        return []
    order = [*found["about"]["passages"], ALL]
    ordered = sorted(found["comparisons"], key=lambda one: (order.index(one["corpus"]), one["level"]))
    return _table(
        ("text", "MAP success", *there),
        (
            (
                one["corpus"],
                f"{one['level']:.0%}",
                *("" if one.get(name) is None else _interval(one[name], form) for name in there.values()),
            )
            for one in ordered
        ),
    )


def _comparisons(found: dict[str, Any]) -> list[str]:
    """Return the paired comparisons of this project with each baseline."""
    lines = [
        "## Paired comparisons",
        "",
        "Share of the gap between DEL as published and the clear prompt that is closed:",
        "",
    ]
    lines += _pairs(found, {"share (95 %)": "share of the gap closed"}, ".0%")
    lines += ["Ratio of perplexities (below 1: this project is better) to", ""]
    lines += _pairs(found, {baseline: f"ppl ratio to {baseline}" for baseline in BASELINES}, ".3f")
    titles = {
        "coh": "COH of greedy text",
        "lift": "COH over other passages, greedy text",
        "coh sampled": "COH of sampled text",
        "lift sampled": "COH over other passages, sampled text",
    }
    for name, title in titles.items():
        lines += [f"{title}: difference (above 0: this project is better) to", ""]
        lines += _pairs(found, {baseline: f"{name} minus {baseline}" for baseline in BASELINES}, "+.3f")
    lines += [
        "Effect of the soft prompt as a ratio of perplexities (below 1: it helps): to the same variant with it left "
        "out, to a decoder trained without one for as many steps, and for DEL as published with it left out:",
        "",
    ]
    columns = {
        "left out": f"soft prompt of {BEST}, ppl ratio",
        "trained without": f"soft prompt of {BEST}, ppl ratio to training without",
        f"{PUBLISHED}, left out": f"soft prompt of {PUBLISHED}, ppl ratio",
    }
    return [*lines, *_pairs(found, columns, ".3f")]


def markdown(found: dict[str, Any]) -> str:
    """Return the page."""
    about = found["about"]
    passages = ", ".join(f"{count} of {name}" for name, count in about["passages"].items())
    lines = [
        "# Privacy against utility",
        "",
        f"`{about['command']}` on {' and '.join(found['machines'])}. "
        f"LM: {about['parameters'] / 1e6:.1f} million parameters, V = {about['vocabulary']}, "
        f"b = {about['hidden_size']}, {about['training_tokens'] / 1e6:.1f} million training tokens. "
        f"Passages: {passages}; text is written for {about['written_passages']} of each.",
        "",
        "Level: share of tokens that the optimal guesser of single tokens recovers with a unigram prior (MAP). The "
        "noise of each method is calibrated to the level on each text, on tokens that no result is reported on; the "
        "table shows the success on the passages. Bits gained: mean gain of that guesser on the true token, which MAP "
        "does not show and a language model can use. PPL: perplexity of the true 32 tokens after 96 private ones. "
        "COH: cosine of sentence embeddings of written and true continuation, written greedily or sampled "
        f"(temperature 1; {about['samples']} texts per passage). Over others: COH minus the mean cosine with the true "
        "continuations of the other passages, which is due to style alone. ROUGE-L: overlap with the text that the "
        "model writes from the clear prompt. Intervals: 95 %, paired bootstrap over passages, seeds averaged; "
        f"{ALL}: texts have equal weights, and passages are resampled within each.",
        "",
    ]
    for corpus in about["passages"]:
        lines += [f"## {corpus}", ""]
        lines += _table(
            (
                "level",
                "method",
                "MAP",
                "bits gained",
                "PPL",
                "COH, greedy",
                "over others",
                "COH, sampled",
                "over others",
                "ROUGE-L",
                "bits a token",
                "epsilon of the table",
                "seeds",
            ),
            (
                (
                    "" if row["level"] is None else f"{row['level']:.0%}",
                    row["method"],
                    f"{row['attack_success']:.1%}",
                    f"{row['attack_bits']:.2f}",
                    _interval([row["ppl"], row["ppl_low"], row["ppl_high"]], ".1f"),
                    *(_cell(row, name) for name in COHERENCE),
                    "" if row["rouge_l"] is None else f"{row['rouge_l']:.3f}",
                    f"{row['bits_per_token']:.0f}",
                    "" if row["epsilon_vocabulary"] is None else f"{row['epsilon_vocabulary']:.1f}",
                    str(row["seeds"]),
                )
                for row in found["rows"]
                if row["corpus"] == corpus
            ),
        )
    lines += _comparisons(found)
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
            f"At MAP success {TASK_LEVEL:.0%}; the label is read from the LM's verbalizers behind a soft prompt that "
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
