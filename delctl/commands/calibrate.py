"""``delctl calibrate``: the noise for a chosen attack success or a chosen epsilon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.commands._training_options import BITS, DELTA, DEVICE, MODEL, PROJECTION, TEXT
from delctl.options import BUDGET, POSITIVE, SHARE, RegisteredChoice, json_option, threads_option
from delctl.terminal import console, observed, print_json

if TYPE_CHECKING:
    from del_core.audit.attacks.base import AttackSurface
    from del_core.audit.strongest import StrongestCalibration
    from del_core.lm.model import FrozenLM

_STRONGEST = "strongest"  # del_core.audit.strongest.STRONGEST, whose module loads torch
_ATTACKS = RegisteredChoice("del_core.audit.attacks.base:token_attacks", _STRONGEST)
_FEW_TOKENS = 4_000  # on which MAP is bisected between runs of attacks that take minutes


@click.command()
@MODEL
@PROJECTION
@TEXT
@click.option(
    "--attack",
    type=_ATTACKS,
    help="Attack whose success is chosen; strongest runs all attacks at a few levels, for minutes.  [default: map]",
)
@click.option("--asr", "--target", "asr", type=SHARE, help="Share of tokens that the attack may recover.")
@click.option(
    "--attacker-budget",
    type=BUDGET,
    help="With --attack strongest: as for `delctl audit`.  [default: standard]",
)
@click.option(
    "--points",
    type=click.IntRange(2, 8),
    help="With --attack strongest: levels of noise at which all attacks run, at most.  [default: 4]",
)
@click.option("--epsilon", type=POSITIVE, help="Epsilon per token, solved exactly.")
@DELTA
@BITS
@DEVICE
@json_option
@threads_option
def calibrate(
    model: Path,
    projection_directory: Path,
    texts: tuple[Path, ...],
    attack: str | None,
    asr: float | None,
    epsilon: float | None,
    attacker_budget: str | None,
    points: int | None,
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
    if attack != _STRONGEST and (attacker_budget is not None or points is not None):
        raise click.UsageError("--attacker-budget and --points go with --attack strongest")
    from del_core.accounting import epsilon as exact_epsilon
    from del_core.audit import records
    from del_core.audit.attacks.base import recovery
    from del_core.audit.attacks.map import MAP
    from del_core.audit.calibration import calibrate as calibrate_attack
    from del_core.audit.calibration import noise_for_epsilon
    from del_core.lm.model import load_frozen_lm
    from del_core.lm.text import read_texts
    from del_core.mechanism import MAX_LEVEL, Mechanism
    from del_core.training.projection import attack_surface, calibration_tokens, load_projection
    from del_core.training.results import read_projection_result
    from del_core.vocabulary_accounting import vocabulary_epsilon

    solved: Mechanism | None = None
    if epsilon is not None:
        try:
            dim = read_projection_result(projection_directory).dim
            solved = noise_for_epsilon(epsilon, delta, bits=bits, dim=dim)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--epsilon") from None
    lm = load_frozen_lm(model, read_texts(texts), device)
    surface, tokens = attack_surface(lm, load_projection(projection_directory, lm)), calibration_tokens(lm)
    found_strongest: StrongestCalibration | None = None
    try:
        if asr is not None and attack == _STRONGEST:
            found_strongest = _strongest(lm, surface, asr, bits, attacker_budget, points)
            mechanism = found_strongest.mechanism
        elif asr is not None:
            mechanism = calibrate_attack(attack or MAP, asr, bits, surface, tokens, max_level=MAX_LEVEL).mechanism
        else:
            assert solved is not None
            mechanism = solved
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--asr") from None
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
        if found_strongest is not None:
            found["strongest_attack"] = {"attack": found_strongest.attack, **found_strongest.rate.to_json()}
            found["points"] = records.to_json(found_strongest.points)
        print_json(found)
        return
    click.echo(f"ratio c/A          {mechanism.ratio:.9f}  ({mechanism.ratio_numerator} / 2^31), n = {bits}")
    click.echo(f"epsilon            {exact:.2f} at delta {delta:g}, one token, any input")
    click.echo(f"  of the table     {tight:.2f}, one token of the vocabulary for another")
    for name, rate in rates.items():
        click.echo(
            f"{name + ' ASR':18} {rate.success:.2%}  (95 %: {rate.low:.2%} to {rate.high:.2%}, {len(tokens)} tokens)"
        )
    if found_strongest is not None:
        strongest = found_strongest.rate
        click.echo(
            f"{'strongest attack':18} {strongest.success:.2%}  (95 %: {strongest.low:.2%} to {strongest.high:.2%}, "
            f"{strongest.trials} tokens), by {found_strongest.attack}"
        )


def _strongest(
    lm: FrozenLM, surface: AttackSurface, target: float, bits: int, budget: str | None, points: int | None
) -> StrongestCalibration:
    """Run all attacks at a few levels of noise, and show on stderr how far they are."""
    from del_core.audit.settings import FULL, affordable_prompts, parse_budget
    from del_core.audit.strongest import CalibrationText, StrongestSearch
    from del_core.mechanism import MAX_LEVEL
    from del_core.training.projection import attacked_tokens

    config = FULL if budget is None else replace(FULL, attacker=parse_budget(budget))
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    config = replace(config, prompts=affordable_prompts(config, parameters))
    notes = console(stderr=True)
    with observed(notes) as observer:
        search = StrongestSearch(
            surface=surface,
            lm=lm,
            text=CalibrationText.divide(lm.train.cpu().numpy(), lm.validation.cpu().numpy(), config),
            config=config,
            bits=bits,
            max_level=MAX_LEVEL,
            tokens=attacked_tokens(lm.validation, _FEW_TOKENS),
            observer=observer,
        )
        return search.run(target, points or 4)
