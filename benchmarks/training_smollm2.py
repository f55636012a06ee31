"""Collect the figures of a run of examples/smollm2/recipe.sh.

    python -m benchmarks.training_smollm2 WORK

Writes benchmarks/results/training_smollm2.json, from which the tables of docs/results/smollm2.md
and of the README are made.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import click

OUT = Path(__file__).parent / "results" / "training_smollm2.json"
LEVELS = ("strict", "balanced", "open")
PUBLISHED = tuple(f"published-{level}" for level in LEVELS)
CONTROLS = ("nothing", "clear", "published-nothing", "published-clear")
_LOSSES = {"projection": "projection", "begin": "begin", **{name: name for name in (*LEVELS, *PUBLISHED)}} | {
    f"control-{name}": name.removeprefix("published-") for name in CONTROLS
}
# Figures that only another run can repeat; they are kept from the file that is there.
_KEPT = ("machine", "speed", "encoder", "examples")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def collect(work: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the recipe has measured in ``work``."""
    from del_core.bundle import load_bundle

    bundle = load_bundle(work / "bundle")
    losses = {
        stage: [json.loads(line) for line in (work / stage / "checkpoints" / f"{name}.jsonl").open(encoding="utf-8")]
        for stage, name in _LOSSES.items()
    }
    return {
        "about": {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": "examples/smollm2/recipe.sh",
            "model": bundle.manifest.base_model.name,
            "fingerprint": bundle.fingerprint,
            **{name: kept["about"][name] for name in _KEPT if name in kept.get("about", {})},
        },
        **{name: kept[name] for name in _KEPT if name in kept},
        "projection": _read(work / "projection" / "projection.json"),
        "variants": {name: _read(work / name / "variant.json") for name in ("begin", *LEVELS, *PUBLISHED)},
        "controls": {name: _read(work / f"control-{name}" / "control.json") for name in CONTROLS},
        "audits": {name: dict(variant.audit) for name, variant in bundle.variants.items()},
        "guarantees": {
            name: {"epsilon": one.guarantees.epsilon, "delta": one.guarantees.delta,
                   "epsilon_vocabulary": one.guarantees.epsilon_vocabulary}
            for name, one in bundle.variants.items()
        },
        "evaluation": _read(work / "evaluation.json"),
        "evaluation_published": _read(work / "evaluation_published.json"),
        "chat": _read(work / "evaluation_chat.json"),
        "losses": losses,
    }  # fmt: skip


@click.command()
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(work: Path) -> None:
    """Write the committed results of the recipe's run in WORK."""
    kept = _read(OUT) if OUT.exists() else {}
    OUT.write_text(json.dumps(collect(work, kept), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    click.echo(str(OUT))


if __name__ == "__main__":
    main()
