"""``delctl bundle``: puts trained variants together into what clients and servers load."""

from __future__ import annotations

from pathlib import Path

import click

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--model", required=True, type=_DIRECTORY, help="Hugging Face causal-LM directory.")
@click.option("--projection", required=True, type=_DIRECTORY, help="Output of `delctl train projection`.")
@click.option(
    "--variant",
    "variants",
    required=True,
    multiple=True,
    type=_DIRECTORY,
    help="Output of `delctl train soft-prompt`; repeat for several.",
)
@click.option("--name", help="Name of the model in the manifest.  [default: its directory's name]")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle's directory.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def bundle(
    model: Path,
    projection: Path,
    variants: tuple[Path, ...],
    name: str | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Put trained variants together into a bundle."""
    from del_core.lm.model import load_base_lm
    from del_core.training.assemble import assemble_bundle

    manifest = assemble_bundle(
        load_base_lm(model),
        projection,
        variants,
        out,
        name=name or model.resolve().name,
        overwrite=overwrite,
    )
    names = ", ".join(variant.name for variant in manifest.variants)
    click.echo(f"{out}: {names}; fingerprint {manifest.fingerprint}")
