"""``delctl inspect``: verify a bundle and show contents, guarantees and audits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.options import json_option
from delctl.places import bundle_place, verified_manifest
from delctl.terminal import bytes_words, console, plain_table, print_json, printable

if TYPE_CHECKING:
    from rich.console import Console

    from del_core.bundle import Manifest, Variant

PROMPT_TOKENS = 32  # the example prompt whose composed epsilon is shown
_STATED_TOLERANCE = 1e-6  # a lower stated epsilon would be a false promise


@click.command()
@click.argument("bundle", type=bundle_place, metavar="BUNDLE")
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Verify a bundle's checksums and show its variants, guarantees and audits.

    BUNDLE is a bundle's directory, only its client part, or the word demo. Every epsilon is
    computed here, from the integers that the noise is drawn with.
    """
    report = describe(verified_manifest(bundle))
    if as_json:
        print_json({"path": str(bundle), **report})
        return
    out = console()
    _show_facts(out, bundle, report)
    _show_variants(out, report["variants"])
    _show_guarantees(out, report["variants"])
    _show_audits(out, report["variants"])


def describe(manifest: Manifest) -> dict[str, Any]:
    """Return everything that the command shows as JSON, with recomputed guarantees."""
    files = {f"client/{name}": entry.size for name, entry in manifest.files.items()}
    if manifest.server is not None:
        files |= {f"server/{name}": entry.size for name, entry in manifest.server.files.items()}
    return {
        "fingerprint": manifest.fingerprint,
        "format_version": manifest.format_version,
        "base_model": asdict(manifest.base_model),
        "dim": manifest.dim,
        "table_dtype": manifest.table_dtype,
        "max_level": manifest.max_level,
        "clip": manifest.clip,
        "bos_token_id": manifest.bos_token_id,
        "code_tables": {name: asdict(shape) for name, shape in manifest.code_tables.items()},
        "files": files,
        "variants": [_describe_variant(variant, manifest) for variant in manifest.variants],
    }


def _describe_variant(variant: Variant, manifest: Manifest) -> dict[str, Any]:
    from del_core import accounting
    from del_core.mechanism import BinomialMechanism

    mechanism = manifest.mechanism(variant)
    delta = variant.guarantees.delta
    binomial = mechanism if isinstance(mechanism, BinomialMechanism) else None
    mu = None if binomial is None else accounting.mu(binomial)
    return {
        "name": variant.name,
        "task": variant.task,
        "mechanism": variant.spec.to_json(),
        "bits": mechanism.bits,
        "ratio": binomial and binomial.ratio,
        "output_scale": binomial and 1.0 / binomial.ratio,
        "bytes_per_token": mechanism.row_bytes,
        "decoder": variant.decoder,
        "soft_prompt_length": variant.soft_prompt_length,
        "adapter": variant.adapter is not None,
        "delta": delta,
        "epsilon": accounting.epsilon(mechanism, delta),
        f"epsilon_{PROMPT_TOKENS}_tokens": accounting.epsilon(mechanism, delta, PROMPT_TOKENS),
        "epsilon_vocabulary": variant.guarantees.epsilon_vocabulary,
        "epsilon_stated": variant.guarantees.epsilon,
        "mu": mu,
        "gdp_epsilon": None if mu is None else accounting.gdp_epsilon(mu, delta),
        "strongest_attack": variant.strongest_attack,
        "evaluation": _evaluation(variant),
        "audit": dict(variant.audit),
    }


def _evaluation(variant: Variant) -> dict[str, Any] | None:
    """Return the perplexities that the manifest states, and whether text is worth its prompt."""
    from del_core.audit.quality import stated_quality

    quality = stated_quality(variant.audit)
    if quality is None:
        return None
    return {**quality.to_json(), "worse_than_no_prompt": quality.useless, "gain_kept": quality.kept}


def _show_facts(out: Console, path: Path, report: dict[str, Any]) -> None:
    model, files, bos = report["base_model"], report["files"], report["bos_token_id"]
    start = "no special token" if bos is None else f"the public token {bos}"
    client = sum(size for name, size in files.items() if name.startswith("client/"))
    server = sum(size for name, size in files.items() if name.startswith("server/"))
    facts = {
        "bundle": str(path),
        "fingerprint": report["fingerprint"],
        "verified": f"{len(files)} files by size and SHA-256; bundle format {report['format_version']}",
        "base model": f"{model['name']}, sha256 {model['sha256'][:16]}...",
        "vocabulary V": f"{model['vocabulary_size']} tokens; a prompt begins with {start}",
        "hidden size b": f"{model['hidden_size']}, projected to d = {report['dim']}",
        "table": f"{report['table_dtype']}, level {report['max_level']} is the clip c = {report['clip']:.6g}",
        "a device loads": f"{bytes_words(client)} (table and tokenizer)",
    }
    if server:
        facts["a server loads"] = f"the base model and {bytes_words(server)} (decoders, soft prompts, adapters, prior)"
    for name, value in facts.items():
        out.print(f"{name:15} {printable(value)}", soft_wrap=True)


def _show_variants(out: Console, variants: list[dict[str, Any]]) -> None:
    out.print("\nVariants", style="bold")
    numbers = ("bits n", "ratio r", "A/c", "bytes/token", "soft prompt")
    table = plain_table("variant", "task", *numbers, right=numbers)
    for item in variants:
        table.add_row(
            item["name"],
            item["task"],
            str(item["bits"]),
            _number(item["ratio"], ".6f"),
            _number(item["output_scale"], ".4g"),
            str(item["bytes_per_token"]),
            f"{item['soft_prompt_length']} rows",
        )
    out.print(table)


def _show_guarantees(out: Console, variants: list[dict[str, Any]]) -> None:
    out.print("\nGuarantees: epsilon, exact, for the worst pair of inputs", style="bold")
    composed = f"{PROMPT_TOKENS} tokens"
    numbers = ("delta", "1 token", composed, "vocabulary", "mu", "GDP bound")
    table = plain_table("variant", *numbers, right=numbers)
    for item in variants:
        vocabulary = item["epsilon_vocabulary"]
        table.add_row(
            item["name"],
            f"{item['delta']:g}",
            f"{item['epsilon']:.2f}",
            f"{item[f'epsilon_{PROMPT_TOKENS}_tokens']:.2f}",
            "not computed" if vocabulary is None else f"{vocabulary:.2f}",
            _number(item["mu"], ".2f"),
            _number(item["gdp_epsilon"], ".2f"),
        )
    out.print(table)
    out.print("vocabulary: the worst pair of real tokens, 1 token, as the bundle states it", style="dim")
    out.print("mu, GDP bound: the paper's noise level and its central-limit bound, 1 token", style="dim")
    for item in variants:
        if item["epsilon_stated"] < item["epsilon"] * (1 - _STATED_TOLERANCE):
            out.print(
                f"Warning: the manifest promises epsilon {item['epsilon_stated']:.4f} for {item['name']}; "
                f"its noise gives {item['epsilon']:.4f}.",
                style="bold red",
                soft_wrap=True,
            )


def _number(value: float | None, form: str) -> str:
    """Return a figure of the binomial mechanism, or a dash for another kind."""
    return "-" if value is None else format(value, form)


def _show_audits(out: Console, variants: list[dict[str, Any]]) -> None:
    """Show rates with their intervals in a table, and other entries below it."""
    from del_core.audit.quality import stated_warnings

    out.print("\nAudit: what attacks recovered from one submission", style="bold")
    table = plain_table("variant", "attack", "tokens recovered", "95 % interval", "measured on")
    notes: list[str] = []
    for item in variants:
        audit = item["audit"]
        common = ", ".join(str(audit[key]) for key in ("data", "date") if isinstance(audit.get(key), str))
        for name, value in audit.items():
            if name in ("strongest_attack", "evaluation"):
                continue  # marked in the table, and shown as a warning
            if isinstance(value, dict) and isinstance(value.get("success"), int | float):
                found = (f"{value['success']:.1%}", _interval(value), _measured_on(value, common))
                most = item["strongest_attack"] is not None and item["strongest_attack"]["attack"] == name
                table.add_row(item["name"], *map(printable, (f"{name} (strongest)" if most else name, *found)))
            elif name not in ("data", "date"):
                notes.append(f"{item['name']}: {name} = {json.dumps(value, ensure_ascii=False)}")
        if not audit:
            table.add_row(item["name"], "not measured", "", "", "")
    out.print(table)
    for note in notes:
        out.print(printable(note), soft_wrap=True)
    for sentence in stated_warnings({item["name"]: item["audit"] for item in variants}):
        out.print(printable(f"Warning: {sentence}."), style="bold red", soft_wrap=True)


def _interval(value: dict[str, Any]) -> str:
    low, high = value.get("low"), value.get("high")
    return f"{low:.1%} to {high:.1%}" if isinstance(low, int | float) and isinstance(high, int | float) else ""


def _measured_on(value: dict[str, Any], common: str) -> str:
    parts = [f"{value['tokens']} tokens"] if isinstance(value.get("tokens"), int) else []
    parts += [str(value[key]) for key in ("data", "date") if isinstance(value.get(key), str)]
    return ", ".join([*parts, common] if common else parts)
