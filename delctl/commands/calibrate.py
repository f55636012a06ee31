"""``delctl calibrate``: the noise for a chosen attack success or a chosen epsilon."""

from __future__ import annotations

import json
from pathlib import Path

import click

from delctl.commands._training_options import BITS, DELTA, DEVICE, MODEL, PROJECTION, TEXT, RegisteredChoice
from delctl.options import POSITIVE, SHARE

_ATTACKS = RegisteredChoice("del_core.audit.attacks.base:token_attacks")


@click.command()
@MODEL
@PROJECTION
@TEXT
@click.option("--attack", type=_ATTACKS, help="Attack whose success is chosen.  [default: map]")
@click.option("--asr", type=SHARE, help="Share of tokens that the attack may recover.")
@click.option("--epsilon", type=POSITIVE, help="Epsilon per token, solved exactly.")
@DELTA
@BITS
@DEVICE
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

    The attack runs on the validation part of the text, on which no result is reported. --asr is
    found by bisection, --epsilon is solved exactly. Both figures of the noise are printed in either
    case.
    """
    if (asr is None) == (epsilon is None):
        raise click.UsageError("give exactly one of --asr and --epsilon")
    if attack is not None and asr is None:
        raise click.UsageError("--attack goes with --asr; --epsilon needs no attack")
    from del_core.accounting import epsilon as exact_epsilon
    from del_core.audit.attacks.base import recovery
    from del_core.audit.attacks.map import MAP
    from del_core.audit.calibration import calibrate as calibrate_attack
    from del_core.lm.model import load_frozen_lm
    from del_core.lm.text import read_texts
    from del_core.mechanism import MAX_LEVEL, Mechanism
    from del_core.training.projection import attack_surface, calibration_tokens, load_projection
    from del_core.vocabulary_accounting import vocabulary_epsilon

    lm = load_frozen_lm(model, read_texts(texts), device)
    surface, tokens = attack_surface(lm, load_projection(projection_directory, lm)), calibration_tokens(lm)
    try:
        if asr is not None:
            mechanism = calibrate_attack(attack or MAP, asr, bits, surface, tokens, max_level=MAX_LEVEL).mechanism
        else:
            assert epsilon is not None
            dim = surface.table.shape[1]
            mechanism = Mechanism.from_epsilon(epsilon, delta, bits=bits, dim=dim, max_level=MAX_LEVEL)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--asr" if asr is not None else "--epsilon") from None
    # The bisection's rate is fitted to the noise that it saw; these rates are of fresh noise.
    rates = recovery(mechanism, surface, tokens, seed=1)
    exact, tight = exact_epsilon(mechanism, delta), vocabulary_epsilon(mechanism, surface.table, delta).epsilon
    if as_json:
        found = {
            "bits": bits,
            "dim": mechanism.dim,
            "ratio": mechanism.ratio,
            "ratio_numerator": mechanism.ratio_numerator,
            "delta": delta,
            "epsilon": exact,
            "epsilon_vocabulary": tight,
            "tokens": len(tokens),
            **{name: {"success": rate.success, "low": rate.low, "high": rate.high} for name, rate in rates.items()},
        }
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"ratio c/A          {mechanism.ratio:.9f}  ({mechanism.ratio_numerator} / 2^31), n = {bits}")
    click.echo(f"epsilon            {exact:.2f} at delta {delta:g}, one token, any input")
    click.echo(f"  of the table     {tight:.2f}, one token of the vocabulary for another")
    for name, rate in rates.items():
        click.echo(
            f"{name + ' ASR':18} {rate.success:.2%}  (95 %: {rate.low:.2%} to {rate.high:.2%}, {len(tokens)} tokens)"
        )
