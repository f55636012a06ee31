"""Checks of models and bundles: those that are named, else those on this machine."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from delctl.doctor.base import Finding, Subject, failed, ok
from delctl.places import model_of, verified_manifest

_MOST_HASHED = 8 << 30
"""Bytes of weights that are read for a checksum; a server reads larger ones at its start."""


@dataclass(frozen=True)
class _Pair:
    """A bundle and the model that it should have been made for; either may be missing."""

    bundle: Path | None
    model: Path | None


def _pairs(subject: Subject) -> Iterator[_Pair]:
    if subject.bundle is not None or subject.model is not None:
        yield _Pair(subject.bundle, _model_of(subject.bundle, subject.model))
        return
    from del_core import demo

    for bundle in (demo.bundle_path(), demo.smollm2_bundle_path()):
        # The bundle without its model is of no use here: the model is fetched first.
        if bundle.is_dir() and (model := _model_of(bundle, None)) is not None:
            yield _Pair(bundle, model)


def _model_of(bundle: Path | None, model: Path | None) -> Path | None:
    """Return the named model, else the one of a demo's bundle if it is on this machine."""
    if model is not None or bundle is None:
        return model
    try:
        return model_of(bundle, None)
    except click.UsageError:
        return None


def check_models(subject: Subject) -> Finding:
    """Check the directories of models, as ``delctl model check`` does."""
    from del_core.lm.check import check_model

    models = [pair.model for pair in _pairs(subject) if pair.model is not None]
    if not models:
        return ok("No model was named.", "Name its directory with --model.")
    for model in models:
        problems = check_model(model)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            return failed(f"{model}: {problems[0]}{more}", f"See all problems with: delctl model check {model}")
    return ok(f"No problems in {' and '.join(map(str, models))}.")


def check_bundles(subject: Subject) -> Finding:
    """Verify the files of bundles, and that each was made for its model."""
    from del_core.bundle import BundleError, checksum_model

    said = []
    for pair in _pairs(subject):
        if pair.bundle is None:
            continue
        try:
            manifest = verified_manifest(pair.bundle)
        except BundleError as error:
            return failed(f"{pair.bundle}: {error}.", "Copy or download the bundle again.")
        found = f"{pair.bundle} is undamaged ({len(manifest.variants)} variants)"
        made_for = manifest.base_model
        if pair.model is None:
            said.append(f"{found}; it was made for {made_for.name}, which was not compared")
            continue
        size = sum(path.stat().st_size for path in pair.model.glob("*.safetensors"))
        if size > _MOST_HASHED:
            said.append(f"{found}; its model is too large to be compared here")
            continue
        try:
            checksum = checksum_model(pair.model)
        except BundleError as error:
            return failed(f"{error}.", "Give the directory of a complete model.")
        if checksum != made_for.sha256:
            return failed(
                f"{pair.bundle} was made for another model ({made_for.name}, sha256 {made_for.sha256[:16]}...) "
                f"than {pair.model} (sha256 {checksum[:16]}...).",
                "Serve the bundle with the model it was trained for, or train one for this model.",
            )
        said.append(f"{found} and was made for {pair.model}")
    return ok(f"{'; '.join(said)}.") if said else ok("No bundle was named.", "Name its directory with --bundle.")


def newest_audit(subject: Subject) -> datetime.date | None:
    """Return the newest date of an audit that the bundles state, or None."""
    from del_core.bundle import BundleError

    dates = []
    for pair in _pairs(subject):
        try:
            manifest = verified_manifest(pair.bundle) if pair.bundle is not None else None
        except BundleError:
            continue  # the bundle's own check says so
        for variant in manifest.variants if manifest is not None else ():
            try:
                dates.append(datetime.date.fromisoformat(str(variant.audit.get("date"))))
            except ValueError:
                continue
    return max(dates, default=None)
