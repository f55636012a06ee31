"""``delctl audit``: attack every variant of a bundle on held-out text and write the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.commands._evaluation import check_variants, read_evaluation, warn
from delctl.options import BUDGET, TEXT_FILE, json_option, threads_option
from delctl.places import bundle_place, model_of, model_place
from delctl.terminal import console, observed, plain_table, print_json, printable

if TYPE_CHECKING:
    from rich.console import Console

    from del_core.audit.quality import TextQuality
    from del_core.audit.results import AuditResult
    from del_core.bundle import Bundle


@click.command()
@click.argument("bundle", type=bundle_place, metavar="BUNDLE")
@click.option(
    "--model", type=model_place, metavar="MODEL", help="The bundle's base model; for the demo bundle the demo model."
)
@click.option(
    "--text",
    required=True,
    type=TEXT_FILE,
    help="UTF-8 text that training did not see, 100 kB or more.",
)
@click.option(
    "--attacker-text",
    "attacker_texts",
    multiple=True,
    type=TEXT_FILE,
    help="More text that the attacker trains on, such as the model's training text; repeat for several.  "
    "[default: only the first part of each section of --text]",
)
@click.option(
    "--attacker-budget",
    type=BUDGET,
    help="What the attacker may compute for each variant: quick, standard or thorough, and changes to it, such as "
    "standard,training=20,beams=64 (teraflops to train a model; search= those of a beam search).  [default: standard; "
    "quick with --quick]",
)
@click.option(
    "--evaluation",
    type=TEXT_FILE,
    help="Output of `delctl evaluate --json`; the report then shows what text each variant buys.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the report: index.html, audit.json, tokens.csv. An interrupted audit is resumed.",
)
@click.option("--variant", "variants", multiple=True, help="Attack these variants only; repeat for several.")
@click.option("--quick", is_flag=True, help="Smaller samples: about a minute, wider intervals.")
@click.option("--update", is_flag=True, help="Write the summary into the bundle's manifest. Its fingerprint changes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Seed of the attacks.")
@click.option("--quiet", is_flag=True, help="Print errors, and with --json the result, only.")
@json_option
@threads_option
def audit(
    bundle: Path,
    model: Path | None,
    text: Path,
    attacker_texts: tuple[Path, ...],
    attacker_budget: str | None,
    evaluation: Path | None,
    out: Path,
    variants: tuple[str, ...],
    quick: bool,
    update: bool,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Attack every variant of BUNDLE on held-out text and report what the noise protects.

    BUNDLE is a bundle's directory, or the word demo. Nothing leaves this machine.
    """
    from del_core.bundle import load_bundle, replace_audit

    model = model_of(bundle, model)
    loaded = load_bundle(bundle)
    check_variants(loaded, variants)

    quality = _stated(loaded) if evaluation is None else read_evaluation(evaluation)

    from del_core.audit import settings
    from del_core.audit.report.write import write_report
    from del_core.audit.runner import AuditTexts, PartialResults, audit_bundle
    from del_core.lm.model import load_base_lm
    from del_core.lm.text import read_texts

    content, more = read_texts([text])[0], read_texts(attacker_texts)
    config = settings.QUICK if quick else settings.FULL
    if attacker_budget is not None:
        config = replace(config, attacker=settings.parse_budget(attacker_budget))
    notes = console(stderr=True, quiet=quiet)
    kept = PartialResults(out)
    with observed(notes) as observer:
        result = audit_bundle(
            loaded,
            load_base_lm(model),
            AuditTexts(content, more, quality),
            replace(config, seed=seed),
            variants=variants,
            results=kept,
            observer=observer,
        )
    write_report(out, result)
    kept.clear()
    if update:
        audits = {name: result.manifest_summary(name, loaded.variants[name].audit) for name in result.variants}
        bounds = {name: found.proven.epsilon_vocabulary for name, found in result.variants.items()}
        tight = {name: bound for name, bound in bounds.items() if bound is not None}
        audited = replace(result.bundle, updated_fingerprint=replace_audit(bundle, audits, tight).fingerprint)
        result = replace(result, bundle=audited)
        write_report(out, result)
        notes.print(f"bundle updated; its fingerprint is now {result.bundle.updated_fingerprint}", soft_wrap=True)
    if as_json:
        warn(result.quality or {})
        print_json({"report": str(out / "index.html"), **result.to_json()})
    else:
        _show(console(quiet=quiet), result, out)


def _stated(bundle: Bundle) -> dict[str, TextQuality]:
    """Return the quality that the bundle states of its variants."""
    from del_core.audit.quality import stated_quality

    found = {name: stated_quality(variant.audit) for name, variant in bundle.variants.items()}
    return {name: one for name, one in found.items() if one is not None}


def _show(shown: Console, result: AuditResult, out: Path) -> None:
    from del_core.audit.report.page import verdict

    attacks = result.attack_names()
    numbers = (*attacks, "blind", "leakage, bits")
    table = plain_table("variant", *numbers, "protection", right=numbers)
    for name, found in result.variants.items():
        rates = [f"{found.attacks[attack].rate.success:.1%}" if attack in found.attacks else "" for attack in attacks]
        leaked = f"{found.leakage.leakage_bits:.2f} of {found.leakage.entropy_bits:.2f}"
        table.add_row(printable(name), *rates, f"{found.floor.success:.1%}", leaked, verdict(found)[0])
    shown.print(table)
    for name, found in result.variants.items():
        strongest, attack = found.strongest()
        shown.print(
            printable(f"{name}: strongest attack {strongest}, {attack.rate.success:.1%} of the tokens"), soft_wrap=True
        )
    warn(result.quality or {})
    shown.print(f"report: {printable(str(out / 'index.html'))}", soft_wrap=True)
