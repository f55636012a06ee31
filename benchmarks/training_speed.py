"""Tokens a second of training SmolLM2's bundle: python -m benchmarks.training_speed [--json]

Steps of stage 2 as ``delctl train`` takes them, from the state that ships, on the text of
examples/smollm2/held_out.txt, in float32 and with matrix products in bfloat16:

    soft prompt    counts, linear decoder and soft prompt learn the text, as in DEL as published
    text           codes, soft prompt and an adapter of rank 4 learn the text
    distillation   the same learn what the model expects of the clear prompt

A step's time is the median over steps. Its tokens are those of prompts and continuations; rows of
the soft prompt and the pass over the clear prompt add none. Methods and types alternate, so that
other work on the machine meets all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.privacy_utility.pretrained.readers import CodesReader, CountsReader, Reader
from del_core.bundle import Bundle, load_bundle
from del_core.demo import smollm2_bundle_path
from del_core.lm.adapter import AttachedAdapter, attached, load_tensors
from del_core.lm.device import products
from del_core.lm.model import FrozenLM, load_frozen_lm
from del_core.lm.text import read_texts
from del_core.mechanism import BinomialMechanism
from del_core.training.config import VariantConfig
from del_core.training.examples import Examples
from del_core.training.soft_prompt import RowsRun, Trained, train_rows
from del_core.training.sources import source_of
from delctl.places import model_place

__all__ = ["METHODS", "measure"]

TEXT = Path(__file__).parents[1] / "examples" / "smollm2" / "held_out.txt"


@dataclass(frozen=True)
class Method:
    """What is trained, from which level of the bundle, and whether by distillation."""

    name: str
    level: str
    distillation: bool


METHODS = (
    Method("soft prompt", "published-open", False),
    Method("text", "open", False),
    Method("distillation", "open", True),
)
_CONFIG = VariantConfig(
    prompt_tokens=64, min_prompt_tokens=64, continuation_tokens=32, batch=4, evaluation_windows=1, test_windows=1
)


@contextlib.contextmanager
def _started(lm: FrozenLM, bundle: Bundle, level: str) -> Iterator[tuple[Reader, AttachedAdapter | None]]:
    """Yield what reads a level, and its adapter inside the model, if it has one."""
    mechanism, adapter = bundle.mechanism(level), bundle.adapter(level)
    if isinstance(mechanism, BinomialMechanism):
        yield CountsReader(lm, bundle, mechanism, level, published=True), None
        return
    assert adapter is not None
    with attached(lm.model, adapter.shape) as layers:
        load_tensors(layers, adapter.tensors)
        yield CodesReader.shipped(bundle, level), layers


def measure(lm: FrozenLM, bundle: Bundle, method: Method, *, bf16: bool, steps: int) -> list[float]:
    """Return the seconds of ``steps`` steps. One more is taken before, and not counted."""
    begun: list[float] = []
    rows = torch.nn.Parameter(torch.from_numpy(bundle.soft_prompt(method.level)))
    with _started(lm, bundle, method.level) as (reader, layers), tempfile.TemporaryDirectory() as work:
        rank = 0 if layers is None else layers.shape.rank
        # The last loss marks the end of the step before it.
        config = replace(_CONFIG, steps=steps + 2, bf16=bf16, distillation=method.distillation, adapter_rank=rank)

        def loss(examples: Examples, generator: torch.Generator) -> torch.Tensor:
            begun.append(time.perf_counter())
            released = reader.release(examples.prompts, generator)
            with products(rows.device, config.bf16):
                return examples.loss(lm.model, lambda pick: reader.read(pick(released)), rows)

        run = RowsRun("speed", Path(work), config, {}, progress=False)
        trained = Trained(rows, reader.parameters(), layers)
        train_rows(lm, source_of(lm, config, None), run, trained, loss, lambda parts: 0.0)
    return [end - start for start, end in itertools.pairwise(begun[1:])]


@click.command()
@click.option("--steps", default=8, show_default=True, type=click.IntRange(2, 1000), help="Steps of a round.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(steps: int, rounds: int, as_json: bool) -> None:
    """Measure tokens a second of training, in float32 and with products in bfloat16."""
    lm = load_frozen_lm(model_place("smollm2"), read_texts([TEXT]))
    bundle = load_bundle(smollm2_bundle_path())
    kinds = [(method, bf16) for method in METHODS for bf16 in (False, True)]
    taken: dict[tuple[str, bool], list[float]] = {(method.name, bf16): [] for method, bf16 in kinds}
    for _ in range(rounds):
        for method, bf16 in kinds:
            taken[method.name, bf16] += measure(lm, bundle, method, bf16=bf16, steps=steps)
    tokens = _CONFIG.batch * _CONFIG.length
    found = [
        {
            "method": name,
            "products": "bfloat16" if bf16 else "float32",
            "tokens_per_s": round(tokens / statistics.median(seconds), 1),
            "seconds": round(statistics.median(seconds), 3),
            "quartiles": [round(one, 3) for one in statistics.quantiles(seconds, n=4)[::2]],
        }
        for (name, bf16), seconds in taken.items()
    ]
    report: dict[str, Any] = {"batch": _CONFIG.batch, "tokens": tokens, "threads": torch.get_num_threads()}
    if as_json:
        click.echo(json.dumps({**report, "results": found}, indent=1))
        return
    for row in found:
        click.echo(f"{row['method']:14}{row['products']:10}{row['tokens_per_s']:8.1f} tokens/s")


if __name__ == "__main__":
    main()
