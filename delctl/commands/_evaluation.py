"""The text quality of variants, as one command measures it and others state it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.terminal import console, printable

if TYPE_CHECKING:
    from del_core.audit.quality import TextQuality
    from del_core.bundle import Bundle, Manifest


def check_variants(bundle: Bundle, names: Sequence[str]) -> None:
    """Raise BadParameter for the name of a variant that the bundle does not have."""
    for name in names:
        if name not in bundle.variants:
            raise click.BadParameter(
                f"{name} is not in the bundle, which has {', '.join(bundle.variants)}", param_hint="--variant"
            )


def read_evaluation(path: Path) -> dict[str, TextQuality]:
    """Read a file of ``delctl evaluate --json``. Raises BadParameter for anything else."""
    from del_core.audit.quality import read_quality

    try:
        return read_quality(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--evaluation") from None


def state_quality(bundle: Path, quality: Mapping[str, TextQuality]) -> Manifest:
    """Write the quality of the variants into the manifest of ``bundle``, and show warnings.

    The rest of an audit stays. The fingerprint changes.
    """
    from del_core.bundle import load_bundle, replace_audit

    stated = load_bundle(bundle).variants
    audits = {
        name: {**variant.audit, "evaluation": quality[name].to_json()}
        for name, variant in stated.items()
        if name in quality
    }
    manifest = replace_audit(bundle, audits)
    warn(quality)
    return manifest


def warn(quality: Mapping[str, TextQuality]) -> None:
    """Print a warning for every variant behind which text is no better than without a prompt."""
    from del_core.audit.quality import warning

    for name, one in quality.items():
        if said := warning(name, one):
            console(stderr=True).print(printable(f"Warning: {said}."), style="bold red", soft_wrap=True)
