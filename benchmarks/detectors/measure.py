"""Measure the detectors of ``--private pii``: python -m benchmarks.detectors [--json]

With ``--detector`` the detectors of other packages search, too (extras ``secrets`` and ``names``).

``labelled.txt`` holds sentences with their personal data in marks. For each kind of data:

    missed      the share of the entities of which at least one letter or digit would go out in the
                clear; a finding of another kind hides an entity, too
    recall      the share that is hidden whole, with its 95 % interval (Wilson)
    in the clear   the share of the letters and digits of all entities that would go out

For each kind of finding:

    precision   the share of the findings of which at least half is labelled as personal data

The set has many spellings of each kind, common ones and odd ones, each about as often as another.
So the figures describe the detectors on such a set, and not how often people write what.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from client_lib.prompts.detect import Finding, find
from client_lib.prompts.detectors import DETECTORS, load_detectors

__all__ = ["UNSTRUCTURED", "Labelled", "labelled", "main", "measure"]

_FILE = Path(__file__).parent / "labelled.txt"
_RESULT = Path(__file__).parents[1] / "results" / "detectors.json"
_MARK = re.compile(r"⟦([a-z ]+)\|([^⟧]+)⟧")
UNSTRUCTURED = ("name", "address", "health")
"""Kinds without a form, which no detector is made for."""


@dataclass(frozen=True)
class Labelled:
    """A sentence and the personal data in it."""

    text: str
    entities: tuple[Finding, ...]


def labelled() -> list[Labelled]:
    """Read the labelled sentences."""
    found = []
    for line in _FILE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            continue
        text, entities, end = "", [], 0
        for mark in _MARK.finditer(line):
            text += line[end : mark.start()]
            entities.append(Finding(len(text), len(text) + len(mark[2]), mark[1]))
            text += mark[2]
            end = mark.end()
        found.append(Labelled(text + line[end:], tuple(entities)))
    return found


def _places(text: str, findings: Iterable[Finding]) -> set[int]:
    """Return the places of letters and digits within findings."""
    return {at for one in findings for at in range(one.start, one.end) if text[at].isalnum()}


def _interval(right: int, count: int) -> list[float]:
    """Return a share with Wilson's 95 % interval."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return [share, max(0.0, middle - half), min(1.0, middle + half)]


def measure(detect: Callable[[str], list[Finding]] = find) -> dict[str, Any]:
    """Return the figures of a detector over the labelled sentences."""
    hidden: dict[str, list[bool]] = defaultdict(list)
    clear: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    right: dict[str, list[bool]] = defaultdict(list)
    clean = touched = 0
    for one in labelled():
        findings = detect(one.text)
        private, personal = _places(one.text, findings), _places(one.text, one.entities)
        for entity in one.entities:
            own = _places(one.text, [entity])
            hidden[entity.kind].append(own <= private)
            clear[entity.kind][0] += len(own - private)
            clear[entity.kind][1] += len(own)
        for finding in findings:
            own = _places(one.text, [finding])
            right[finding.kind].append(2 * len(own & personal) >= len(own))
        if not one.entities:
            clean += 1
            touched += bool(findings)
    structured = [one for kind, found in hidden.items() if kind not in UNSTRUCTURED for one in found]
    every = [one for found in right.values() for one in found] or [False]
    return {
        "sentences": len(labelled()),
        "missed": {"structured": _interval(structured.count(False), len(structured)), "count": len(structured)},
        "recall": {
            kind: {
                "count": len(found),
                "hidden": _interval(sum(found), len(found)),
                "in_the_clear": clear[kind][0] / clear[kind][1],
            }
            for kind, found in hidden.items()
        },
        "precision": {
            **{
                kind: {"count": len(found), "right": _interval(sum(found), len(found))} for kind, found in right.items()
            },
            "all": {"count": len(every), "right": _interval(sum(every), len(every))},
        },
        "sentences_without": {"count": clean, "with_a_finding": touched},
    }


@click.command(help=__doc__)
@click.option("--json", "write", is_flag=True, help="Write benchmarks/results/detectors*.json, too.")
@click.option("--detector", "detectors", type=click.Choice(list(DETECTORS)), multiple=True, help="Search with it, too.")
@click.option("--misses", is_flag=True, help="Print what is missed, and what is found for nothing.")
def main(write: bool, detectors: tuple[str, ...], misses: bool) -> None:
    """Print the figures, and write them on request."""
    detect = partial(find, detectors=load_detectors(detectors))
    found = measure(detect)
    if misses:
        _print_misses(detect)
    share, low, high = found["missed"]["structured"]
    click.echo(f"missed: {share:.1%} ({low:.1%} to {high:.1%}) of {found['missed']['count']} with a form")
    for kind, row in found["recall"].items():
        share, low, high = row["hidden"]
        words = f"{kind:14} {row['count']:4} recall {share:6.1%} ({low:.1%} to {high:.1%})"
        click.echo(f"{words}  in the clear {row['in_the_clear']:.1%}")
    for kind, row in found["precision"].items():
        click.echo(f"{kind:14} {row['count']:4} precision {row['right'][0]:6.1%}")
    without = found["sentences_without"]
    click.echo(f"{without['with_a_finding']} of {without['count']} sentences without personal data have a finding")
    if write:
        named = "".join(f" --detector {name}" for name in detectors)
        about = {
            "command": f"python -m benchmarks.detectors{named} --json",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        about["machine"] = "the figures do not depend on it"
        result = _RESULT.with_stem("_".join((_RESULT.stem, *detectors)))
        result.write_text(json.dumps({"about": about, **found}, indent=1) + "\n", "utf-8")


def _print_misses(detect: Callable[[str], list[Finding]]) -> None:
    for one in labelled():
        private = _places(one.text, detect(one.text))
        personal = _places(one.text, one.entities)
        for entity in one.entities:
            if not _places(one.text, [entity]) <= private:
                click.echo(f"missed {entity.kind}: {one.text}")
        for finding in detect(one.text):
            own = _places(one.text, [finding])
            if 2 * len(own & personal) < len(own):
                click.echo(f"for nothing {finding.kind} {one.text[finding.start : finding.end]!r}: {one.text}")
