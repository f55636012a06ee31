"""Privacy against utility of this project and its baselines.

    python -m benchmarks.privacy_utility --quick
    python -m benchmarks.privacy_utility --data DIR --work DIR
    python -m benchmarks.privacy_utility --model smollm2 --data DIR --work DIR --out DIR

The full run needs text that is not shipped (``--data``: the folders lm, eval and nlu, as described
in docs/guides/evaluation.md), trains a model on it and takes hours on 2 cores; an interrupted run
resumes from ``--work``. ``--quick`` uses the shipped demo model and takes minutes. Both print the
same rows (``--json``) and write results.json, results.md and plots into ``--out``.

``--model smollm2`` compares on a pretrained model that ships with a bundle, by the strongest attack
(:mod:`benchmarks.privacy_utility.pretrained`). Its pieces are JSON files in ``--out``; results say
which of them are missing.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer

from benchmarks.privacy_utility.page import markdown
from benchmarks.privacy_utility.pieces import Bench, Corpus
from benchmarks.privacy_utility.plan import HAS_BF16, Plan
from benchmarks.privacy_utility.plots import draw
from benchmarks.privacy_utility.pretrained import command as pretrained
from benchmarks.privacy_utility.report import results
from benchmarks.privacy_utility.tasks import read_mrpc, read_sentence_polarity
from benchmarks.support.progress import timed_lines
from del_core.demo import model_path
from del_core.lm.device import DeviceError, check_device
from del_core.lm.model import FrozenLM, load_frozen_lm
from del_core.lm.text import TokenWindows, read_texts, tokenize
from del_core.training.base import BaseConfig, train_base

__all__ = ["QUICK", "about", "main", "run"]

_ROOT = Path(__file__).resolve().parents[2]
_WINDOW = 128
BASE = BaseConfig(layers=4, batch=8, steps=2400, compile=True)
"""The LM of the full run: 4.3 million parameters, of which 1 million embed."""
LARGE_BASE = BaseConfig(hidden=512, layers=6, heads=8, feed_forward=1408, batch=32, steps=4000, learning_rate=1e-3)
"""That of ``--size large``, for a GPU: 21 million parameters."""
LARGE = Plan(
    projection_steps=200, soft_prompt_steps=300, encoder_batch=32, encoder_steps=800, decoder_steps=200, passages=512,
    written=256,
)  # fmt: skip
SWEEP_LEVEL = 0.2
QUICK = Plan(
    levels=(0.2,),
    seeds=(0,),
    projection_steps=30,
    encoder_steps=90,
    decoder_steps=40,
    soft_prompt_steps=60,
    validation_windows=32,
    passages=80,
    written=32,
    samples=2,
    calibration_tokens=4000,
    decoder="trained",
    rewriting=False,
    alone=False,
    sweep=(),
)


def _corpus(lm: FrozenLM, path: Path, count: int) -> Corpus:
    tokens = tokenize(Tokenizer.from_str(lm.tokenizer_json.decode()), read_texts([path]))
    return corpus_of(tokens.to(lm.embeddings.device), count)


def corpus_of(tokens: torch.Tensor, count: int, length: int = _WINDOW) -> Corpus:
    """Return a corpus of ``count`` evenly spaced windows, and of the tokens between them."""
    windows, picks = TokenWindows(tokens, length, seed=0).evenly(count)
    left = torch.ones(len(windows), dtype=torch.bool)
    left[picks] = False
    return Corpus(windows[picks], windows[left].flatten())


def _held_out(lm: FrozenLM, count: int) -> Corpus:
    """Of the LM's own text: the test part is reported on."""
    return Corpus(lm.windows(lm.test, _WINDOW, count), lm.validation)


def _full(data: Path, work: Path, levels: tuple[float, ...], seeds: int, device: str, large: bool, say: Any) -> Bench:
    bf16 = HAS_BF16 or check_device(device).type == "cuda"
    plan = LARGE if large else Plan()
    plan = dataclasses.replace(
        plan,
        levels=levels or plan.levels,
        seeds=tuple(range(seeds)),
        bf16=bf16,
        task=dataclasses.replace(plan.task, bf16=bf16),
        local=dataclasses.replace(plan.local, bf16=bf16),
    )
    paths = [*sorted((data / "lm").glob("*.txt")), data / "eval" / "wikitext2.valid.txt"]
    texts = read_texts(paths)
    if not (work / "base" / "config.json").exists():
        say("base: training the LM")
        base = dataclasses.replace(LARGE_BASE if large else BASE, bf16=bf16)
        train_base(texts, work / "base", base, device=device, progress=False)
    lm = load_frozen_lm(work / "base", texts, device)
    if device == "cpu":
        # For passages this short on a CPU a fifth faster than the fused attention, whose backward
        # pass is slow there.
        lm.model.set_attn_implementation("eager")
    corpora = {
        "in-domain": _held_out(lm, plan.passages),
        "wikitext-2": _corpus(lm, data / "eval" / "wikitext2.test.txt", plan.passages // 2),
        "ptb": _corpus(lm, data / "eval" / "ptb.valid.txt", plan.passages // 2),
    }
    nlu = data / "nlu"
    tasks = (
        read_mrpc(nlu / "mrpc.train.tsv", nlu / "mrpc.test.tsv"),
        read_sentence_polarity(nlu / "sentence_polarity.train.tsv", nlu / "sentence_polarity.test.tsv"),
    )
    return Bench(lm, corpora, work, plan, texts=texts, say=say, tasks=tasks)


def _quick(work: Path, plan: Plan, say: Any) -> Bench:
    texts = read_texts([_ROOT / "examples" / "demo_model" / "held_out.txt"])
    lm = load_frozen_lm(model_path(), texts, held_out=0.4)
    # The demo model has read this book: good enough to train what goes around it, not to report on.
    more = tokenize(
        Tokenizer.from_str(lm.tokenizer_json.decode()), read_texts([_ROOT / "tests" / "data" / "alice.txt"])
    )
    lm = dataclasses.replace(lm, train=torch.cat([lm.train, more]))
    return Bench(lm, {"held-out": _held_out(lm, plan.passages)}, work, plan, texts=texts, say=say)


def run(bench: Bench) -> None:
    """Compute every piece. Processes with the same work directory divide the pieces."""
    plan = bench.plan
    first, *others = plan.seeds
    pieces: dict[str, Callable[[], None]] = {}

    def pair(level: float, seed: int) -> None:
        pieces[f"ours-{level}-{seed}"] = partial(bench.ours, level, seed)
        pieces[f"published-{level}-{seed}"] = partial(bench.published, level, seed)

    pieces["ends"] = bench.ends
    for level in plan.levels:
        pair(level, first)
        pieces[f"baselines-{level}"] = partial(bench.baselines, level)
    if plan.rewriting:
        for level in plan.levels:
            pieces[f"rewriting-{level}"] = partial(bench.rewriting, level)
        pieces["local"] = bench.local_alone
    for task in bench.tasks:
        pieces[task.name] = partial(bench.understanding, task)
    for level in plan.levels if plan.alone else ():
        pieces[f"alone-{level}"] = partial(bench.alone, level, first)
    for level in plan.levels:
        for seed in others:
            pair(level, seed)
    for dim, bits in plan.sweep:
        pieces[f"sweep-{dim}-{bits}"] = partial(bench.sweep, dim, bits, SWEEP_LEVEL)
    bench.run(pieces)
    bench.coherence()


def about(bench: Bench, command: str) -> dict[str, Any]:
    """Return the settings of the run."""
    return {
        "command": command,
        "parameters": sum(p.numel() for p in bench.lm.model.parameters()),
        "vocabulary": len(bench.lm.embeddings),
        "hidden_size": bench.lm.embeddings.shape[1],
        "training_tokens": len(bench.lm.train),
        "passages": {name: len(one.windows) for name, one in bench.corpora.items()},
        "written_passages": bench.plan.written,
        "samples": bench.plan.samples,
    }


def _pretrained(wanted: pretrained.Run, *, quick: bool, report_only: bool) -> dict[str, Any]:
    if quick:
        raise click.UsageError("--quick trains on the demo model; leave it out with --model")
    if wanted.out is None:
        raise click.UsageError("--model needs --out DIR: the directory of results.json and of the finished pieces")
    if report_only:
        return pretrained.report(wanted.out, wanted.plan)
    if wanted.data is None or wanted.work is None:
        raise click.UsageError("--model needs --data DIR and --work DIR, unless it is given --report-only")
    return pretrained.compare(wanted)


@click.command()
@click.option("--quick", is_flag=True, help="A small run with the demo model, in minutes.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Text of the full run: lm/*.txt, eval/*.txt, nlu/*.tsv.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of trained and measured pieces; an interrupted run resumes there.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="results.json, results.md, plots.")
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Full run: MAP success to compare at; repeat for several. [default: 0.05, 0.1, 0.2, 0.4]",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Full run: number of seeds.")
@click.option(
    "--size",
    type=click.Choice(["small", "large"]),
    default="small",
    show_default=True,
    help="Full run: small, a model for 2 CPU cores; large, a model for a GPU, and more passages.",
)
@click.option("--model", type=click.Choice(["smollm2"]), help="Compare on this model and the bundle that ships for it.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --model: start from this bundle of the model, not from the one that ships.",
)
@click.option("--piece", "pieces", multiple=True, help="With --model: compute this piece only; repeat for several.")
@click.option("--device", default="cpu", show_default=True, help="Full run: torch device, such as cuda.")
@click.option("--report-only", is_flag=True, help="Full run: report on the finished pieces without computing others.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(
    quick: bool,
    data: Path | None,
    work: Path | None,
    out: Path | None,
    levels: tuple[float, ...],
    seeds: int,
    device: str,
    size: str,
    model: str | None,
    bundle: Path | None,
    pieces: tuple[str, ...],
    report_only: bool,
    as_json: bool,
) -> None:
    """Measure privacy against utility."""
    if model is not None:
        wanted = pretrained.Run(data, work, out, levels, pieces, bundle)
        found = _pretrained(wanted, quick=quick, report_only=report_only)
        print(json.dumps(found["rows"], indent=1) if as_json else pretrained.summary(found))
        return
    for option, given in (("--piece", pieces), ("--bundle", bundle)):
        if given:
            raise click.UsageError(f"{option} goes with --model, got no --model")
    if quick == (data is not None):
        raise click.UsageError("give either --quick or --data DIR")
    if not quick and work is None:
        raise click.UsageError("--data needs --work DIR: a full run takes hours and resumes there")
    began, say = time.monotonic(), timed_lines()
    with tempfile.TemporaryDirectory() as temporary:
        work = work or Path(temporary)
        if quick:
            bench = _quick(work, QUICK, say)
        else:
            assert data is not None
            try:
                bench = _full(data, work, levels, seeds, device, size == "large", say)
            except DeviceError as error:
                raise click.UsageError(str(error)) from None
        if not report_only:
            run(bench)
        found = results(work)
        command = "python -m benchmarks.privacy_utility " + (
            "--quick"
            if quick
            else f"--data DIR --work DIR --size {size}" + "".join(f" --level {one}" for one in levels)
        )
        found["about"] = about(bench, command) | {"seconds_of_this_call": round(time.monotonic() - began)}
    text = markdown(found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "results.md").write_text(text, encoding="utf-8")
        draw(found, out)
    print(json.dumps(found["rows"], indent=1) if as_json else text)


if __name__ == "__main__":
    main()
