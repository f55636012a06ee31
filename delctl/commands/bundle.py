"""``delctl bundle``: the bundle of trained variants, which clients and servers load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.commands._evaluation import read_evaluation, state_quality
from delctl.commands._training_options import EXISTING_DIRECTORY, MODEL, PROJECTION
from delctl.commands.sign import KEY_FILE, sign_directory, signed_words
from delctl.options import TEXT_FILE, json_option
from delctl.terminal import console, observed, print_json

if TYPE_CHECKING:
    from del_core.bundle import ChatFormat


@click.command()
@MODEL
@PROJECTION
@click.option(
    "--variant",
    "variants",
    required=True,
    multiple=True,
    type=EXISTING_DIRECTORY,
    help="Output of `delctl train soft-prompt`; repeat for several.",
)
@click.option(
    "--evaluation",
    type=TEXT_FILE,
    help="Output of `delctl evaluate --json` of an earlier bundle of these variants; the manifest then states what "
    "text each variant buys.",
)
@click.option("--name", help="Name of the model in the manifest.  [default: its directory's name]")
@click.option(
    "--table",
    type=click.Choice(["int16", "int8"]),
    default="int16",
    show_default=True,
    help="Type of the client's table; int8 is half the download, with coordinates rounded to 1/127 of the clip.",
)
@click.option(
    "--chat-template/--no-chat-template",
    default=True,
    help="Ship the model's chat template, if it has one, which clients then use for chats.  [default: ship it]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle's directory.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option("--sign", "key", type=KEY_FILE, metavar="KEY", help="Sign the bundle with this private key.")
@json_option
def bundle(
    model: Path,
    projection_directory: Path,
    variants: tuple[Path, ...],
    evaluation: Path | None,
    name: str | None,
    table: str,
    chat_template: bool,
    out: Path,
    overwrite: bool,
    key: Path | None,
    as_json: bool,
) -> None:
    """Write the bundle of trained variants."""
    quality = {} if evaluation is None else read_evaluation(evaluation)
    chat = _chat_of(model) if chat_template else None
    from del_core.lm.model import load_base_lm
    from del_core.mechanism.base import INT8_MAX_LEVEL, MAX_LEVEL
    from del_core.training.assemble import assemble_bundle

    with observed(console(stderr=True), whole=True) as observer:
        observer.report("reading the model")
        manifest = assemble_bundle(
            load_base_lm(model),
            projection_directory,
            variants,
            out,
            name=name or model.resolve().name,
            max_level=MAX_LEVEL if table == "int16" else INT8_MAX_LEVEL,
            chat=chat,
            overwrite=overwrite,
            observer=observer,
        )
    if quality:
        manifest = state_quality(out, quality)
    names = [variant.name for variant in manifest.variants]
    signed = None if key is None else sign_directory(out, key)
    if as_json:
        report: dict[str, object] = {"bundle": str(out), "variants": names, "fingerprint": manifest.fingerprint}
        report["signature"] = None if signed is None else {"signed": signed.signed, "key": signed.key}
        print_json(report)
        return
    click.echo(f"{out}: {', '.join(names)}; fingerprint {manifest.fingerprint}")
    if signed is not None:
        click.echo(signed_words(out, signed))


def _chat_of(model: Path) -> ChatFormat | None:
    """Return the model's chat template. Raises ClickException if clients could not use it."""
    from client_lib import ChatTemplate, InvalidRequestError
    from del_core.bundle.chat import read_chat

    chat = read_chat(model)
    if chat is not None:
        try:
            ChatTemplate.of(chat).check()
        except InvalidRequestError as error:
            raise click.ClickException(f"{model}: {error}; --no-chat-template leaves it out") from None
    return chat
