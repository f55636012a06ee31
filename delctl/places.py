"""BUNDLE and MODEL arguments: a directory, or the word demo for what ships with the package.

The functions are click parameter types; use them with ``metavar=PLACE`` or the argument's own name.
"""

from __future__ import annotations

from pathlib import Path

import click

from del_core import demo

__all__ = ["MODEL_PLACE", "PLACE", "bundle_place", "model_of", "model_place"]

PLACE = "demo|DIRECTORY"
MODEL_PLACE = "demo|smollm2|DIRECTORY"


def bundle_place(value: str) -> Path:
    """The directory of a bundle. Raises BadParameter if there is none."""
    return _place(value, "bundle", demo.bundle_path())


def model_place(value: str) -> Path:
    """The directory of a language model: a path, or a name. Raises BadParameter if there is none."""
    from del_core.lm.known import MODELS, cached_model

    if value in ("tiny", "demo"):
        return _place("demo", "model", demo.model_path())
    if value in MODELS and not Path(value).is_dir():
        found = cached_model(value)
        if found is None:
            raise click.BadParameter(f"{value} is not on this machine yet; get it with: delctl model get {value}")
        return found
    return _place(value, "model", demo.model_path())


def model_of(bundle: Path, model: Path | None) -> Path:
    """The base model of a bundle: ``model``, or the demo's for the demo bundle. Raises UsageError for neither."""
    if model is not None:
        return model
    if bundle.resolve() != demo.bundle_path().resolve():
        raise click.UsageError("--model is needed for a bundle that is not the demo's")
    return model_place("demo")


def _place(value: str, kind: str, shipped: Path) -> Path:
    if value == "demo":
        if not shipped.is_dir():
            raise click.BadParameter(f"the demo {kind} is not part of this installation")
        return shipped
    path = Path(value)
    if not path.is_dir():
        found = "is not a directory" if path.exists() else "does not exist"
        raise click.BadParameter(f"{value} {found}; allowed: a {kind}'s directory, or the word demo")
    return path
