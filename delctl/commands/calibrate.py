"""``delctl calibrate``: how much noise a chosen attack success or a chosen epsilon takes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from delctl.commands.train import MODEL, PROJECTION, TEXT

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command()
@MODEL
@PROJECTION
@TEXT
@click.option("--attack", type=click.Choice(["map", "nearest"]), help="Attack whose success is chosen.  [default: map]")
@click.option("--asr", type=_SHARE, help="Share of tokens that the attack may recover.")
@click.option("--epsilon", type=click.FloatRange(0, min_open=True), help="Epsilon per token, solved exactly.")
@click.option("--delta", default=1e-6, show_default=True, type=_SHARE, help="Delta of epsilon.")
@click.option("--bits", default=4, show_default=True, type=click.IntRange(1, 8), help="Bits n of a count.")
@click.option("--device", default="cpu", show_default=True, help="torch device, such as cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    model: Path,
    projection_directory: Path,
    texts: tuple[Path, ...],
    attack: str | None,
    asr: float | None,
    epsilon: float | None,
    delta: float,
    bits: int,
    device: str,
    as_json: bool,
) -> None:
    """Find the noise for an attack success (--asr) or a guarantee (--epsilon).

    The attack is run on the validation part of the text, which no result is reported on, and --asr is found by
    bisection; --epsilon is solved exactly. Either way both figures of the found noise are printed.
    """
    if (asr is None) == (epsilon is None):
        raise click.UsageError("give exactly one of --asr and --epsilon")
    if attack is not None and asr is None:
        raise click.UsageError("--attack goes with --asr; --epsilon needs no attack")
    from del_core.accounting import epsilon as exact_epsilon
    from del_core.audit.calibration import MAP, token_attacks
    from del_core.audit.intervals import Rate
    from del_core.lm.model import load_frozen_lm
    from del_core.lm.text import read_texts
    from del_core.training.attack import attack_surface, calibration_tokens
    from del_core.training.projection import load_projection
    from del_core.training.variant import Noise
    from del_core.vocabulary_accounting import vocabulary_epsilon

    lm = load_frozen_lm(model, read_texts(texts), device)
    surface, tokens = attack_surface(lm, load_projection(projection_directory, lm)), calibration_tokens(lm)
    target = {"epsilon": epsilon} if asr is None else {f"{attack or MAP}_asr": asr}
    try:
        mechanism, _ = Noise(bits=bits, delta=delta, **target).mechanism(surface, tokens)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--asr" if asr is not None else "--epsilon") from None
    # Fresh noise: the rate that the bisection ended with is fitted to the noise that it saw.
    rates = {name: Rate(surface.hits(name, mechanism, tokens, seed=1), len(tokens)) for name in token_attacks()}
    found = {
        "bits": bits,
        "dim": mechanism.dim,
        "ratio": mechanism.ratio,
        "ratio_numerator": mechanism.ratio_numerator,
        "delta": delta,
        "epsilon": exact_epsilon(mechanism, delta),
        "epsilon_vocabulary": vocabulary_epsilon(mechanism, surface.table, delta).epsilon,
        "tokens": len(tokens),
        **{
            name: {"success": rate.success, "low": rate.low, "high": rate.high} for name, rate in rates.items()
        },
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"ratio c/A          {mechanism.ratio:.9f}  ({mechanism.ratio_numerator} / 2^31), n = {bits}")
    click.echo(f"epsilon            {found['epsilon']:.2f} at delta {delta:g}, one token, any input")
    click.echo(f"  of the table     {found['epsilon_vocabulary']:.2f}, one token of the vocabulary for another")
    for name, rate in rates.items():
        click.echo(
            f"{name + ' ASR':18} {rate.success:.2%}  (95 %: {rate.low:.2%} to {rate.high:.2%}, {len(tokens)} tokens)"
        )
