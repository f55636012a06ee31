"""``delctl export``: write a model that servers of others serve to private prompts."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from delctl.options import json_option
from delctl.places import MODEL_PLACE, bundle_place, model_of, model_place
from delctl.terminal import console, observed, print_json


@click.command()
@click.argument("bundle", type=bundle_place, metavar="BUNDLE")
@click.option("--model", type=model_place, metavar=MODEL_PLACE, help="The bundle's base model.  [default: the demo's]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="A new directory.")
@click.option("--merge", metavar="VARIANT", help="Add the adapter of VARIANT to the weights; only it is served then.")
@json_option
def export(bundle: Path, model: Path | None, out: Path, merge: str | None, as_json: bool) -> None:
    """Write a model directory that an unmodified vLLM server serves to private prompts.

    Variants that send one code for a token need no decoder: codes and soft prompts become tokens of
    the model's vocabulary. Clients talk to such a server with --upstream openai and the bundle's
    client part.

    A variant's adapter costs time in every step. --merge adds it to the weights instead, at no
    cost, for a server of this variant alone.

    Example: delctl export smollm2 --out exported
    """
    from del_core.bundle import load_bundle
    from del_core.lm.export import export_model

    with observed(console(stderr=True), whole=True) as observer:
        exported = export_model(load_bundle(bundle), model_of(bundle, model), out, merge=merge, observer=observer)
    command = shlex.join(["vllm", "serve", *exported.arguments])
    if as_json:
        print_json({"path": str(out), **exported.to_json(), "command": command})
        return
    served = merge or ", ".join(exported.variants)
    click.echo(f"Exported {served} to {out}. Serve it with:\n")
    click.echo(f"    {command}\n")
    click.echo("and ask it with:\n")
    click.echo(f"    delctl ask --url http://127.0.0.1:8000 --upstream openai --bundle {bundle} ...")
