"""``delctl evaluate``: quality of the generated text behind every variant, on a user's own text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.commands._evaluation import check_variants, state_quality, warn
from delctl.options import TEXT_FILE, json_option, threads_option
from delctl.places import PLACE, bundle_place, model_of, model_place
from delctl.terminal import console, observed, plain_table, print_json, printable

if TYPE_CHECKING:
    from rich.console import Console

    from del_core.bundle import Bundle


@click.command()
@click.argument("bundle", type=bundle_place, metavar="BUNDLE")
@click.option(
    "--model",
    type=model_place,
    metavar=PLACE,
    help="The bundle's base model; for the demo bundle the demo model.",
)
@click.option("--text", type=TEXT_FILE, help="UTF-8 text that neither model nor bundle has seen.")
@click.option(
    "--control",
    "controls",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Output of `delctl train control`; give the clear one and the one that says nothing.",
)
@click.option(
    "--chat",
    type=TEXT_FILE,
    help="Evaluate on conversations instead: the last lines of the file that the variants have learned from.",
)
@click.option("--variant", "variants", multiple=True, help="Of these variants only; repeat for several.")
@click.option(
    "--passages",
    default=256,
    show_default=True,
    type=click.IntRange(2),
    help="Passages or conversations that are read.",
)
@click.option(
    "--written", default=64, show_default=True, type=click.IntRange(2), help="Of these, how many are continued."
)
@click.option("--prompt-tokens", default=96, show_default=True, type=click.IntRange(1), help="Private tokens of each.")
@click.option("--continuation-tokens", default=32, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Seed of the noise.")
@json_option
@click.option("--update", is_flag=True, help="State perplexities in the bundle's manifest. Its fingerprint changes.")
@click.option("--quiet", is_flag=True, help="Print nothing but the result.")
@threads_option
def evaluate(
    bundle: Path,
    model: Path | None,
    text: Path | None,
    controls: tuple[Path, ...],
    chat: Path | None,
    variants: tuple[str, ...],
    as_json: bool,
    update: bool,
    quiet: bool,
    **sizes: int,
) -> None:
    """Measure the text behind every variant of BUNDLE: perplexity, coherence, and attack success.

    BUNDLE is a bundle's directory, or the word demo. The clear prompt and no prompt are measured,
    too; the variants lie between them. Variants for chat are evaluated on conversations (--chat).
    Nothing leaves this machine.
    """
    if (text is None) == (chat is None):
        raise click.UsageError("give exactly one of --text and --chat")
    from del_core.bundle import load_bundle
    from del_core.lm.check import check_sizes

    model = model_of(bundle, model)
    if chat is None and sizes["written"] > sizes["passages"]:
        raise click.BadParameter(
            f"{sizes['written']} is more than the {sizes['passages']} of --passages", param_hint="--written"
        )
    loaded = load_bundle(bundle)
    longest = max((one.soft_prompt_length for one in loaded.variants.values()), default=0)
    try:
        check_sizes(
            model,
            prompt_tokens=sizes["prompt_tokens"] if chat is None else 0,
            continuation_tokens=sizes["continuation_tokens"] if chat is None else 0,
            rows=longest,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    check_variants(loaded, variants)

    from del_core.audit import records
    from del_core.audit.quality import read_quality
    from del_core.evaluation.bundle import EvaluationSettings, evaluate_bundle
    from del_core.lm.model import load_base_lm
    from del_core.lm.text import read_texts
    from del_core.training.control import load_control

    notes = console(stderr=True, quiet=quiet)
    if text is None:
        assert chat is not None
        _chat(loaded, model, chat, sizes["passages"], variants, controls, as_json, notes)
        return
    content = read_texts([text])[0]
    lm = load_base_lm(model)
    with observed(notes, whole=True) as observer:
        rows = evaluate_bundle(
            loaded,
            lm,
            content,
            EvaluationSettings(**sizes),
            variants=variants,
            controls=[load_control(directory, lm) for directory in controls],
            observer=observer,
        )
    found = read_quality([records.to_json(row) for row in rows])
    quality = {name: one for name, one in found.items() if name in loaded.variants}  # without the controls
    if update:
        fingerprint = state_quality(bundle, quality).fingerprint
        notes.print(f"bundle updated; its fingerprint is now {fingerprint}", soft_wrap=True)
    else:
        warn(quality)
    if as_json:
        print_json([records.to_json(row) for row in rows])
        return
    numbers = ("MAP", "bits", "PPL", "of clear", "soft prompt", "gap closed", "COH", "over others", "ROUGE-L")
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
            "" if row.gap_closed is None else f"{row.gap_closed.value:.0%}",
            "not installed" if coh is None else f"{coh.value:.3f}",
            "" if lift is None else f"{lift.value:+.3f}",
            f"{row.rouge_l.value:.3f}",
        )
    console().print(table)


def _chat(
    bundle: Bundle,
    model: Path,
    chat: Path,
    most: int,
    variants: tuple[str, ...],
    controls: tuple[Path, ...],
    as_json: bool,
    notes: Console,
) -> None:
    """Evaluate variants for chat on the test part of a file of conversations; show the result."""
    from tokenizers import Tokenizer

    from del_core.audit import records
    from del_core.evaluation.chat import evaluate_chat
    from del_core.lm.model import load_base_lm
    from del_core.training.control import load_control
    from del_core.training.examples import Conversations

    lm = load_base_lm(model)
    known = [load_control(directory, lm) for directory in controls]
    conversations = Conversations.read(chat, Tokenizer.from_str(lm.tokenizer_json.decode())).test[:most]
    with observed(notes, whole=True) as observer:
        result = evaluate_chat(bundle, lm, conversations, variants=variants, controls=known, observer=observer)
    if as_json:
        print_json(records.to_json(result))
        return
    numbers = ("PPL of the answer", "of clear", "soft prompt", "gap closed", "similarity", "over others", "ROUGE-L")
    table = plain_table("method", *numbers, right=numbers)
    for row in result.rows:
        soft, similarity, lift, overlap = row.soft_prompt_ratio, row.similarity, row.similarity_lift, row.rouge_l
        table.add_row(
            printable(row.method),
            f"{row.ppl.value:.2f}",
            f"{row.ppl_ratio.value:.3f}",
            "" if soft is None else f"{soft.value:.3f}",
            "" if row.gap_closed is None else f"{row.gap_closed.value:.0%}",
            "" if similarity is None else f"{similarity.value:.3f}",
            "" if lift is None else f"{lift.value:+.3f}",
            "" if overlap is None else f"{overlap.value:.3f}",
        )
    console().print(table)
