"""Charts of the report: inline SVG that loads nothing; the page's style sheet sets the colors."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from del_core.audit.intervals import Rate
from del_core.audit.results import TradeOff

_LEFT, _WIDTH, _STEP = 96, 440, 32
_DECADES = 6  # false alarms down to 10^-6


def percent(value: float) -> str:
    """Return a share in percent; only 0 itself is shown as 0."""
    if 0.0 < value < 0.0005:
        return "< 0.1 %"
    return f"{100 * value:.1f} %"


def recovery_chart(attacks: Mapping[str, Rate], blind: float, ceiling: float | None) -> str:
    """Return success by attack with intervals, beside blind guessing and a per-token ceiling."""
    bottom = 26 + _STEP * len(attacks)
    parts = [
        f'<path d="M{_x(share):.1f} 22V{bottom}" class="grid"/>'
        f'<text x="{_x(share):.1f}" y="{bottom + 16}" text-anchor="middle" class="dim">{round(100 * share)} %</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for index, (name, rate) in enumerate(attacks.items()):
        y = 28 + index * _STEP
        low, middle, high = (_x(share) for share in (rate.low, rate.success, rate.high))
        parts.append(
            f'<text x="{_LEFT - 10}" y="{y + 15}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{max(1.0, middle - _LEFT):.1f}" height="20" rx="2" class="bar"/>'
            f'<path d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 5}v10M{high:.1f} {y + 5}v10" class="whisker"/>'
            f'<text x="{high + 8:.1f}" y="{y + 15}" class="strongly">{percent(rate.success)}</text>'
        )
    for share, style, label in ((blind, "blind", "guessing"), (ceiling, "ceiling", "ceiling per token")):
        if share is None or (style == "ceiling" and share >= 0.995):
            continue
        # Guessing is the lower of the two: a label left of its line does not meet the other label.
        anchor = "end" if style == "blind" or share > 0.75 else "start"
        parts.append(
            f'<path d="M{_x(share):.1f} 18V{bottom}" class="{style}"/>'
            f'<text x="{_x(share):.1f}" y="13" text-anchor="{anchor}" class="{style}-text">{label}</text>'
        )
    return (
        f'<svg viewBox="0 0 640 {bottom + 24}" role="img" aria-label="Share of tokens recovered, by attack">'
        f"{''.join(parts)}</svg>"
    )


def _x(share: float) -> float:
    return _LEFT + _WIDTH * share


def small_bars(rows: Sequence[tuple[str, float, str]], largest: float, label: str) -> str:
    """Return labeled bars: name, value from 0 to ``largest``, and the text at the bar's end."""
    left, width, step = 150, 300, 26
    parts = []
    for index, (name, value, words) in enumerate(rows):
        y = 4 + index * step
        length = width * min(1.0, max(0.0, value / largest)) if largest > 0 else 0.0
        parts.append(
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="{left}" y="{y}" width="{max(1.0, length):.1f}" height="18" rx="2" class="bar"/>'
            f'<text x="{left + max(1.0, length) + 8:.1f}" y="{y + 14}">{html.escape(words)}</text>'
        )
    height = 8 + step * len(rows)
    return f'<svg viewBox="0 0 640 {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def trade_off_chart(curve: TradeOff) -> str:
    """Return misses over false alarms of the best test for the worst pair, on logarithmic scales.

    On linear scales the curves of mechanisms with little noise lie in a corner. Only false alarms
    up to 1/2 are shown, since the curve is its own mirror image.
    """
    shown = [index for index, alpha in enumerate(curve.type_one) if 10.0**-_DECADES <= alpha <= 0.5]
    alphas = [curve.type_one[index] for index in shown]
    exact, gaussian = (
        [max(line[index], 1e-300) for index in shown] if line else [] for line in (curve.exact, curve.gaussian)
    )
    lowest = min([0.1, *exact, *gaussian])
    decades = max(1, math.ceil(-math.log10(lowest)))
    left, top, width, height = 70, 12, 330, 220

    def place(alpha: float, beta: float) -> tuple[float, float]:
        x = left + width * (1 + math.log10(alpha) / _DECADES)
        return x, top + height * min(1.0, -math.log10(beta) / decades)

    def line(values: Sequence[float], style: str) -> str:
        spots = (place(alpha, beta) for alpha, beta in zip(alphas, values, strict=True))
        return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in spots)}" class="{style}"/>'

    step = max(1, math.ceil(decades / 5))
    ticks = [
        f'<path d="M{left} {top + height * power / decades:.1f}h{width}" class="grid"/>'
        f'<text x="{left - 8}" y="{top + height * power / decades + 4:.1f}" text-anchor="end">{_power(power)}</text>'
        for power in range(0, decades + 1, step)
    ]
    ticks += [
        f'<text x="{left + width * (1 - power / _DECADES):.1f}" y="{top + height + 18}" '
        f'text-anchor="middle">{_power(power)}</text>'
        for power in range(0, _DECADES + 1, 2)
    ]
    blind = [max(1.0 - alpha, 1e-12) for alpha in alphas]
    legend = [("exact", "exact"), ("gaussian", "Gaussian (paper)"), ("chance", "perfect privacy")]
    if not gaussian:
        legend = [("exact", "proven bound"), ("chance", "perfect privacy")]
    keys = "".join(
        f'<path d="M0 {22 * index}h26" class="{style}"/><text x="34" y="{22 * index + 4}">{words}</text>'
        for index, (style, words) in enumerate(legend)
    )
    return (
        f'<svg viewBox="0 0 600 {top + height + 46}" role="img" aria-label="Trade-off curve of the worst pair">'
        f"{''.join(ticks)}{line(blind, 'chance')}{line(gaussian, 'gaussian') if gaussian else ''}{line(exact, 'exact')}"
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" class="frame"/>'
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">false alarms (type I error)</text>'
        f'<text transform="translate(14 {top + height / 2}) rotate(-90)" text-anchor="middle">misses (type II)</text>'
        f'<g transform="translate({left + width + 20} {top + 16})">{keys}</g></svg>'
    )


def _power(power: int) -> str:
    return "1" if power == 0 else f'10<tspan dy="-5" font-size="9">\u2212{power}</tspan>'
