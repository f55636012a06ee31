"""BUNDLE and MODEL arguments as click parameter types: a directory, or the word demo."""

from __future__ import annotations

from pathlib import Path

import click

from del_core import demo

PLACE = "demo|DIRECTORY"
MODEL_PLACE = "demo|smollm2|DIRECTORY"


def bundle_place(value: str) -> Path:
    """Return the directory of a bundle. Raises BadParameter if there is none."""
    return _place(value, "bundle", demo.bundle_path())


def model_place(value: str) -> Path:
    """Return the directory of a language model, by path or name. Raises BadParameter."""
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
    """Return ``model``, or the demo's model for the demo bundle. Raises UsageError otherwise."""
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
        found = "a file" if path.exists() else "nothing there"
        raise click.BadParameter(f"{value} must be a {kind}'s directory or the word demo, got {found}")
    return path
