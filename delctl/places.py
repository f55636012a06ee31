"""BUNDLE and MODEL arguments as click parameter types: a directory, or the word of a demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from del_core import demo

if TYPE_CHECKING:
    from del_core.bundle import Manifest

PLACE = MODEL_PLACE = "demo|smollm2|DIRECTORY"
_TINY = ("demo", "tiny")


def bundle_place(value: str) -> Path:
    """Return the directory of a bundle. Raises BadParameter if there is none."""
    shipped = {**dict.fromkeys(_TINY, demo.bundle_path()), "smollm2": demo.smollm2_bundle_path()}
    return _place(value, "bundle", shipped)


def model_place(value: str) -> Path:
    """Return the directory of a language model, by path or name. Raises BadParameter."""
    from del_core.lm.known import MODELS, cached_model

    if value in MODELS and not Path(value).is_dir():
        found = cached_model(value)
        if found is None:
            raise click.BadParameter(f"{value} is not on this machine yet; get it with: delctl model get {value}")
        return found
    return _place(value, "model", dict.fromkeys(_TINY, demo.model_path()))


def model_of(bundle: Path, model: Path | None) -> Path:
    """Return ``model``, or the model of a demo bundle. Raises UsageError otherwise."""
    if model is not None:
        return model
    for shipped, name in ((demo.bundle_path(), "demo"), (demo.smollm2_bundle_path(), "smollm2")):
        if bundle.resolve() == shipped.resolve():
            return model_place(name)
    raise click.UsageError("--model is needed for a bundle that is not the demo's")


def verified_manifest(bundle: Path) -> Manifest:
    """Return the manifest of a bundle, or of its client part alone. Raises BundleError.

    Every file is compared with its checksum.
    """
    from del_core.bundle import load_bundle, load_client

    whole = (bundle / "client").is_dir() or (bundle / "server").is_dir()
    return load_bundle(bundle).manifest if whole else load_client(bundle).manifest


def _place(value: str, kind: str, shipped: Mapping[str, Path]) -> Path:
    if value in shipped:
        if not shipped[value].is_dir():
            raise click.BadParameter(f"the {value} {kind} is not part of this installation")
        return shipped[value]
    path = Path(value)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        raise click.BadParameter(f"{value} must be a {kind}'s directory or one of {', '.join(shipped)}, got {found}")
    return path
