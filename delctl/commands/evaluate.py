"""``delctl evaluate``: quality of the generated text behind every variant, on a user's own text."""

from __future__ import annotations

import json
from pathlib import Path

import click

from delctl.commands._evaluation import state_quality, warn
from delctl.options import TEXT_FILE, threads_option
from delctl.places import PLACE, bundle_place, model_of, model_place
from delctl.terminal import console, plain_table, printable


@click.command()
@click.argument("bundle", type=bundle_place, metavar="BUNDLE")
@click.option(
    "--model",
    type=model_place,
    metavar=PLACE,
    help="The bundle's base model; for the demo bundle the demo model.",
)
@click.option("--text", required=True, type=TEXT_FILE, help="UTF-8 text that neither model nor bundle has seen.")
@click.option("--variant", "variants", multiple=True, help="Of these variants only; repeat for several.")
@click.option("--passages", default=256, show_default=True, type=click.IntRange(2), help="Passages that are read.")
@click.option(
    "--written", default=64, show_default=True, type=click.IntRange(2), help="Of these, how many are continued."
)
@click.option("--prompt-tokens", default=96, show_default=True, type=click.IntRange(1), help="Private tokens of each.")
@click.option("--continuation-tokens", default=32, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Seed of the noise.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object a row, figures as [value, low, high].")
@click.option("--update", is_flag=True, help="State perplexities in the bundle's manifest. Its fingerprint changes.")
@click.option("--quiet", is_flag=True, help="Print nothing but the result.")
@threads_option
def evaluate(
    bundle: Path,
    model: Path | None,
    text: Path,
    variants: tuple[str, ...],
    as_json: bool,
    update: bool,
    quiet: bool,
    **sizes: int,
) -> None:
    """Measure the text behind every variant of BUNDLE: perplexity, coherence, and attack success.

    BUNDLE is a bundle's directory, or the word demo. The clear prompt and no prompt are measured,
    too; the variants lie between them. Nothing leaves this machine.
    """
    from del_core.bundle import load_bundle

    model = model_of(bundle, model)
    if sizes["written"] > sizes["passages"]:
        raise click.BadParameter(
            f"{sizes['written']} is more than the {sizes['passages']} of --passages", param_hint="--written"
        )
    loaded = load_bundle(bundle)
    for name in variants:
        if name not in loaded.variants:
            raise click.BadParameter(
                f"{name} is not in the bundle, which has {', '.join(loaded.variants)}", param_hint="--variant"
            )

    from del_core.audit import records
    from del_core.audit.quality import read_quality
    from del_core.evaluation.bundle import EvaluationSettings, evaluate_bundle
    from del_core.lm.model import load_base_lm
    from del_core.lm.text import read_texts

    notes = console(stderr=True, quiet=quiet)
    rows = evaluate_bundle(
        loaded,
        load_base_lm(model),
        read_texts([text])[0],
        EvaluationSettings(**sizes),
        variants=variants,
        report=lambda line: notes.print(printable(line), soft_wrap=True),
    )
    quality = read_quality([records.to_json(row) for row in rows])
    if update:
        fingerprint = state_quality(bundle, quality).fingerprint
        notes.print(f"bundle updated; its fingerprint is now {fingerprint}", soft_wrap=True)
    else:
        warn(quality)
    if as_json:
        click.echo(json.dumps([records.to_json(row) for row in rows], indent=2))
        return
    numbers = ("MAP", "bits", "PPL", "of clear", "soft prompt", "COH", "over others", "ROUGE-L")
    table = plain_table("method", *numbers, right=numbers)
    for row in rows:
        if row.without_soft_prompt:
            continue  # the variant's own row shows the ratio
        soft, coh, lift = row.soft_prompt_ratio, row.coh, row.coh_lift
        table.add_row(
            printable(row.method),
            f"{row.attack_success.value:.1%}",
            f"{row.attack_bits:.2f}",
            f"{row.ppl.value:.1f}",
            f"{row.ppl_ratio.value:.3f}",
            "" if soft is None else f"{soft.value:.3f}",
            "not installed" if coh is None else f"{coh.value:.3f}",
            "" if lift is None else f"{lift.value:+.3f}",
            f"{row.rouge_l.value:.3f}",
        )
    console().print(table)
