"""The comparison on SmolLM2: prepares model, bundle and texts, runs the pieces, writes results."""

from __future__ import annotations

import json
import platform
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import torch

from benchmarks.privacy_utility.pretrained.bench import PretrainedBench
from benchmarks.privacy_utility.pretrained.plan import Plan, pieces_of
from benchmarks.privacy_utility.pretrained.report import results
from benchmarks.support.progress import timed_lines
from del_core.bundle import load_bundle
from del_core.demo import smollm2_bundle_path
from del_core.lm.known import cached_model
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts

__all__ = ["PIECES", "Run", "bench", "chosen", "compare", "plain_articles", "report", "summary", "training_texts"]

PIECES = "pieces"
"""Folder of the finished pieces, in that of the results."""
_SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "smollm2" / "prepare_text.py"
_TRAINED = (
    "state_union", "inaugural", "grimm", "wizard_of_oz", "moby_dick", "pride_and_prejudice", "alice", "shakespeare",
    "wikipedia",
)  # fmt: skip


class _Piece(Protocol):
    @property
    def file(self) -> str:
        """Name of the file of its figures."""


_P = TypeVar("_P", bound=_Piece)


@dataclass(frozen=True)
class Run:
    """What the command line asks for: directories, levels and pieces; none is the plan's own.

    The bundle is the one that ships, unless another is given.
    """

    data: Path | None
    work: Path | None
    out: Path | None
    levels: tuple[float, ...] = ()
    pieces: tuple[str, ...] = ()
    bundle: Path | None = None

    @property
    def plan(self) -> Plan:
        """The plan, with the levels that were asked for."""
        return replace(Plan(), levels=self.levels) if self.levels else Plan()


def bench(
    data: Path, work: Path, out: Path, plan: Plan, say: Callable[[str], None], bundle: Path | None = None
) -> PretrainedBench:
    """Return the bench for SmolLM2, a bundle of it and the texts in ``data``.

    The training text is that of the shipped bundle: ``examples/smollm2/prepare_text.py`` makes it,
    into ``work/text``, with the books' ends, which are the in-domain text. WikiText-2's test part
    loses its markup in the same way; Penn Treebank stays as it is.
    """
    model = cached_model("smollm2")
    if model is None:
        raise click.UsageError("SmolLM2 is not on this machine yet; get it with: delctl model get smollm2")
    if not (work / "text" / "wikipedia.txt").exists():  # its last file
        subprocess.run([sys.executable, _SCRIPT, data, work / "text"], check=True)
    texts = training_texts(work)
    test, ptb = read_texts([data / "eval" / "wikitext2.test.txt", data / "eval" / "ptb.valid.txt"])
    corpora = {
        "in-domain": read_texts([work / "text" / "held_out.txt"])[0],
        "wikitext-2": plain_articles(test),
        "ptb": ptb,
    }
    return PretrainedBench(
        load_frozen_lm(model, texts),
        load_bundle(bundle or smollm2_bundle_path()),
        corpora,
        plan,
        out=out / PIECES,
        work=work,
        machine=f"{platform.machine()}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}",
        say=say,
    )


def training_texts(work: Path) -> list[str]:
    """Return the texts that the bundle is trained on."""
    return read_texts([work / "text" / f"{name}.txt" for name in _TRAINED])


def plain_articles(text: str) -> str:
    """Return WikiText without its markup, as the training text of the shipped bundle is made."""
    found: str = runpy.run_path(str(_SCRIPT))["wikipedia"](text)
    return found


def chosen(pieces: Sequence[_P], names: Sequence[str]) -> list[_P]:
    """Return the named pieces, all if none is named. Raises UsageError for an unknown name."""
    known = {piece.file: piece for piece in pieces}
    for name in names:
        if name not in known:
            raise click.UsageError(f"--piece must be one of {', '.join(known)}, got {name}")
    return [known[name] for name in names] or list(pieces)


def compare(wanted: Run) -> dict[str, Any]:
    """Compute the missing pieces in order, write the results after each, and return them."""
    assert wanted.data is not None
    assert wanted.work is not None
    assert wanted.out is not None
    plan = wanted.plan
    todo = chosen(pieces_of(plan), wanted.pieces)
    run = bench(wanted.data, wanted.work, wanted.out, plan, timed_lines(), wanted.bundle)
    for piece in todo:
        run.run(piece)
        report(wanted.out, plan)
    run.blind()
    return report(wanted.out, plan)


def report(out: Path, plan: Plan) -> dict[str, Any]:
    """Write results.json and the plots from the finished pieces, and return the results."""
    from benchmarks.privacy_utility.pretrained.plots import draw

    found = results(out / PIECES, plan)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, out)
    return found


def summary(found: dict[str, Any]) -> str:
    """Return the perplexities and what is missing as text."""
    lines = []
    for row in found["rows"]:
        read = "" if row["strongest"] is None else f", strongest attack {row['strongest'][0]:.1%}"
        lines.append(f"{row['piece']}, {row['corpus']}: perplexity {row['ppl'][0]:.1f}{read}")
    missing = ", ".join(found["about"]["pieces_missing"]) or "nothing"
    return "\n".join([*lines, f"not measured yet: {missing}"])
