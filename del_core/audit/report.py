"""An audit as one self-contained HTML page, and as files that are whole or not there."""

from __future__ import annotations

import hashlib
import html
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PartialResults", "render_page", "verdict", "write_report"]

JSON_FILE, PAGE_FILE = "audit.json", "index.html"

_NAMES = {
    "nearest": "Nearest embedding after decoding (the paper's figure)",
    "map": "Most probable token, word frequencies known (optimal per token)",
    "sequence": "Language model over the whole prompt (beam search)",
    "inverter": "Trained inverter (transformer)",
}


def write_report(directory: Path, audit: Mapping[str, Any]) -> None:
    """Writes audit.json and index.html into ``directory``, each complete before it takes its name."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {PAGE_FILE: render_page(audit), JSON_FILE: json.dumps(audit, indent=2, allow_nan=False) + "\n"}
    partial = {name: directory / f".{name}.partial" for name in contents}
    try:
        for name, content in contents.items():
            partial[name].write_text(content, encoding="utf-8")
        for name, path in partial.items():
            os.replace(path, directory / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


class PartialResults:
    """Results of variants that an interrupted audit has finished, in a directory beside the report's."""

    def __init__(self, out: Path) -> None:
        self._directory = out.parent / f".{out.name}.partial"

    def load(self, name: str, key: str) -> dict[str, Any] | None:
        """The stored result, or None if there is none for this key or it cannot be read."""
        try:
            found = json.loads(self._path(name, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def store(self, name: str, key: str, result: Mapping[str, Any]) -> None:
        """Keeps a variant's result."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(name, key)
        fresh = path.with_suffix(".writing")
        fresh.write_text(json.dumps(result), encoding="utf-8")
        os.replace(fresh, path)

    def clear(self) -> None:
        """Removes everything that was kept."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, name: str, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(f'{name}-{key}'.encode()).hexdigest()[:32]}.json"


def verdict(variant: Mapping[str, Any]) -> tuple[str, str]:
    """A word and a paragraph for a reader who decides: what the strongest attack recovered, and what that means."""
    name, best = max(variant["attacks"].items(), key=lambda item: item[1]["success"])
    blind = variant["guessing"]["success"]
    excess = best["high"] - blind
    if excess < 0.03:
        word, meaning = "strong", "That is next to nothing beyond guessing the most common token every time."
    elif best["high"] < 0.15:
        word, meaning = "good", "Single words leak, common ones first. Sentences cannot be read."
    elif best["high"] < 0.5:
        word, meaning = (
            "weak",
            "A good part of the words leaks, and the subject of a prompt will often be recognisable.",
        )
    else:
        word, meaning = "none", "A prompt can be read. Treat it as sent in the clear to this server."
    important = best["by_kind"].get("names and numbers")
    named = f" Of names and numbers it recovered {_percent(important['success'])}." if important else ""
    text = (
        f"The strongest attack ({name}) recovered {_percent(best['success'])} of the tokens "
        f"(95 % interval {_percent(best['low'])} to {_percent(best['high'])}); guessing without looking at the counts "
        f"recovers {_percent(blind)}.{named} {meaning} On average the counts of one token reveal "
        f"{variant['leakage_bits']:.2f} of its {variant['entropy_bits']:.2f} bits."
    )
    return word, text


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Cells are escaped here; the first column is words, the others are numbers."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="n"' if numbers else ""
    return f"<table{kind}><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _bars(variant: Mapping[str, Any]) -> str:
    """Success by attack with its interval, 0 to 100 %."""
    left, width, step = 90, 480, 30
    parts = []
    for index, (name, rate) in enumerate(variant["attacks"].items()):
        y = 8 + index * step
        low, middle, high = (left + width * rate[key] for key in ("low", "success", "high"))
        parts.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="{left}" y="{y}" width="{max(1.0, middle - left):.1f}" height="18" class="bar"/>'
            f'<path d="M{low:.1f} {y + 9}H{high:.1f}M{low:.1f} {y + 4}v10M{high:.1f} {y + 4}v10" class="whisker"/>'
            f'<text x="{high + 6:.1f}" y="{y + 14}">{_percent(rate["success"])}</text>'
        )
    blind = left + width * variant["guessing"]["success"]
    height = 8 + step * len(variant["attacks"])
    parts.append(f'<path d="M{blind:.1f} 2V{height}" class="blind"/>')
    return (
        f'<svg viewBox="0 0 660 {height + 4}" role="img" aria-label="Share of tokens recovered by attack">'
        f"{''.join(parts)}</svg>"
    )


def _curve(points: Mapping[str, Sequence[float]]) -> str:
    """Trade-off curve: type II error over type I error, exact and by the paper's Gaussian approximation."""
    left, top, size = 48, 10, 230

    def line(values: Sequence[float], style: str) -> str:
        places = " ".join(
            f"{left + size * x:.1f},{top + size * (1 - y):.1f}" for x, y in zip(points["type_one"], values, strict=True)
        )
        return f'<polyline points="{places}" class="{style}"/>'

    ticks = "".join(
        f'<text x="{left + size * v}" y="{top + size + 16}" text-anchor="middle">{v:g}</text>'
        f'<text x="{left - 6}" y="{top + size * (1 - v) + 4}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    return (
        f'<svg viewBox="0 0 480 {size + 50}" class="curve" role="img" aria-label="Trade-off curve">'
        f'<rect x="{left}" y="{top}" width="{size}" height="{size}" class="frame"/>'
        f'<path d="M{left} {top}L{left + size} {top + size}" class="chance"/>{line(points["gaussian"], "gaussian")}'
        f"{line(points['exact'], 'exact')}{ticks}"
        f'<text x="{left + size / 2}" y="{top + size + 34}" text-anchor="middle">false alarms (type I)</text>'
        f'<g transform="translate({left + size + 20} {top + 20})"><path d="M0 0h24" class="exact"/>'
        '<text x="30" y="4">exact</text><path d="M0 22h24" class="gaussian"/>'
        '<text x="30" y="26">Gaussian (paper)</text>'
        '<path d="M0 44h24" class="chance"/><text x="30" y="48">perfect privacy</text></g></svg>'
    )


_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6b7c;--line:#d5dbe3;--back:#fff;
 --panel:#f6f8fa;--blue:#2463a8}
@media(prefers-color-scheme:dark){:root{--ink:#e5eaf0;--soft:#9aa7b6;--line:#38424e;--back:#14181d;
 --panel:#1c2229;--blue:#6aa9ea}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;
 padding:2rem 1.25rem 4rem;
 font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--back)}
h1{line-height:1.2;margin:0}
h2{margin:3rem 0 .5rem;border-top:2px solid var(--line);padding-top:1.5rem}
h3{margin:1.75rem 0 .4rem;font-size:1rem}
p{max-width:46rem}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.verdict{border-left:6px solid var(--blue);background:var(--panel);padding:.8rem 1.1rem;margin:1rem 0}
.verdict p{margin:.2rem 0}
.strong{border-color:#23824a}
.good{border-color:#5c8f2a}
.weak{border-color:#c07a12}
.none{border-color:#b3322e}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.n th:not(:first-child),.n td:not(:first-child){text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{width:100%;max-width:42rem;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
.curve{max-width:30rem}
.bar{fill:var(--blue);opacity:.75}
.whisker{stroke:var(--ink);fill:none;stroke-width:1.5}
.blind{stroke:#b3322e;stroke-dasharray:4 3}
.frame{fill:none;stroke:var(--line)}
.chance{stroke:var(--soft);stroke-dasharray:3 4;fill:none}
.exact{stroke:var(--blue);fill:none;stroke-width:2}
.gaussian{stroke:#c07a12;fill:none;stroke-width:2;stroke-dasharray:6 3}
code{font-size:.85em;overflow-wrap:anywhere}
"""


def render_page(audit: Mapping[str, Any]) -> str:
    """The page: one HTML document that loads nothing."""
    escape, text, bundle = html.escape, audit["text"], audit["bundle"]
    variants = audit["variants"]
    verdicts = {name: verdict(variant) for name, variant in variants.items()}
    summary = _table(
        ("Variant", "Protection", "Best attack", "Leakage, bits", "Epsilon, exact", "Epsilon, vocabulary"),
        [
            (
                name,
                verdicts[name][0],
                _percent(max(rate["success"] for rate in variant["attacks"].values())),
                f"{variant['leakage_bits']:.2f} of {variant['entropy_bits']:.2f}",
                f"{variant['epsilon']:.2f}",
                _optional(variant["epsilon_vocabulary"]),
            )
            for name, variant in variants.items()
        ],
    )
    versions = ", ".join(f"{name} {version}" for name, version in audit["versions"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Privacy audit of {escape(bundle['base_model'])}</title><style>{_STYLE}</style></head><body>"
        "<h1>What the noise protects</h1>"
        f"<p class=soft>Privacy audit of the bundle for {escape(bundle['base_model'])}, {escape(audit['date'])}. "
        "Against a server that knows the model, the table and the language, and sees only the counts. "
        "Generated text, the length of a prompt and its timing are not protected.</p>"
        f'<div class="wide">{summary}</div>'
        + "".join(_variant(name, variant, verdicts[name]) for name, variant in variants.items())
        + "<h2>How it was measured</h2>"
        f"<p>{text['prompts']} prompts of {text['tokens_per_prompt']} tokens from text that training did not see "
        f"({text['tokens']} tokens, of which the attacker trained on {text['attacker_tokens']}). Intervals are Wilson "
        "score intervals at 95 %; all attacks on a variant saw the same counts.</p>"
        + _table(
            ("", ""),
            [
                ("bundle fingerprint", bundle["fingerprint"]),
                ("text SHA-256", text["sha256"]),
                ("seed", str(audit["settings"]["seed"])),
                ("versions", versions),
                ("duration", f"{audit['seconds']:.0f} s"),
            ],
            numbers=False,
        )
        + "</body></html>\n"
    )


def _optional(value: float | None) -> str:
    return "not computed" if value is None else f"{value:.2f}"


def _variant(name: str, variant: Mapping[str, Any], judged: tuple[str, str]) -> str:
    attacks = variant["attacks"]
    kinds = list(dict.fromkeys(kind for rate in attacks.values() for kind in rate["by_kind"]))
    context = variant["context_adds"]
    return (
        f'<section><h2>{html.escape(name)}</h2><div class="verdict {judged[0]}"><p><strong>Protection: {judged[0]}'
        f"</strong></p><p>{html.escape(judged[1])}</p></div>"
        f"<h3>Tokens recovered, by attack</h3>{_bars(variant)}"
        '<p class="soft">Whiskers: 95 % interval. Dashed: guessing the most common token without looking.</p>'
        '<div class="wide">'
        + _table(
            ("Attack", "Success", "95 % interval", "ROUGE-L", "Parameters", "Seconds"),
            [
                (
                    _NAMES.get(attack, attack),
                    _percent(rate["success"]),
                    f"{_percent(rate['low'])} to {_percent(rate['high'])}",
                    f"{rate['rouge_l']:.2f}",
                    f"{rate['cost']['parameters']:,}",
                    f"{rate['cost']['seconds']:.1f}",
                )
                for attack, rate in attacks.items()
            ],
        )
        + f'</div><p class="soft">Knowing the language adds {100 * context["gain"]:+.1f} points over the best guess '
        f"token by token (95 % interval {100 * context['low']:+.1f} to {100 * context['high']:+.1f}).</p>"
        '<h3>What was recovered</h3><div class="wide">'
        + _table(
            ("Tokens of", *attacks),
            [(kind, *(_cell(rate["by_kind"].get(kind)) for rate in attacks.values())) for kind in kinds],
        )
        + '</div><h3>If the same prompt is sent again with fresh noise</h3><div class="wide">'
        + _table(
            ("Submissions", "Success", "95 % interval"),
            [
                (number, _percent(rate["success"]), f"{_percent(rate['low'])} to {_percent(rate['high'])}")
                for number, rate in variant["averaging"].items()
            ],
        )
        + "</div><p class=soft>Why a client that retries sends the same bytes, and why the same secret should not be "
        "sent often.</p><h3>What is proven</h3>"
        '<div class="wide">'
        + _table(
            ("Guarantee", "Value"),
            [
                ("epsilon, exact, one token, any input", f"{variant['epsilon']:.2f}"),
                (f"epsilon, exact, {variant['prompt_tokens']} tokens", f"{variant['epsilon_prompt']:.2f}"),
                ("epsilon, one token, worst pair of the vocabulary", _optional(variant["epsilon_vocabulary"])),
                ("delta", f"{variant['delta']:g}"),
                ("the paper's mu, and epsilon by its bound", f"{variant['mu']:.2f}, {variant['gdp_epsilon']:.2f}"),
                ("ceiling of any per-token attack by the guarantee alone", _percent(variant["ceiling"])),
                ("leakage, bits (95 % interval)", "{} to {}".format(*variant["leakage_interval"])),
            ],
        )
        + f"</div><figure>{_curve(variant['trade_off'])}<figcaption>The least share of misses (vertical) that any test "
        "for the worst pair of tokens can have at a share of false alarms.</figcaption></figure>"
        "<h3>Best reconstructions</h3>"
        '<p class="soft">The prompts that the strongest attack did best on, not typical ones.</p><div class="wide">'
        + _table(
            ("Original", "Reconstruction", "Tokens right"),
            [(item["original"], item["reconstruction"], _percent(item["recovered"])) for item in variant["examples"]],
            numbers=False,
        )
        + "</div></section>"
    )


def _cell(rate: Mapping[str, Any] | None) -> str:
    return "" if rate is None else f"{_percent(rate['success'])} of {rate['tokens']}"
