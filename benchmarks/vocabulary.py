"""Vocabulary accounting on a large table, time and memory: python -m benchmarks.vocabulary

The table is synthetic: a cloud of 48 dimensions with tails, as int8 levels, similar to trained
tables. Few of its pairs are near the worst one, which makes the first figure fast; a table whose
tokens are all equally far apart takes longer.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from del_core.mechanism import Mechanism
from del_core.vocabulary_accounting import token_epsilons, vocabulary_curve, vocabulary_epsilon

__all__ = ["synthetic_table", "timings"]

DELTA = 1e-6
MAX_LEVEL = 127
RANK = 48


def synthetic_table(vocabulary: int, dim: int, seed: int = 0) -> npt.NDArray[np.int8]:
    """Return levels (vocabulary, dim)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((vocabulary, RANK)) @ rng.standard_normal((RANK, dim))
    x += 0.5 * rng.standard_normal((vocabulary, dim))
    x *= rng.lognormal(0, 0.25, (vocabulary, 1))
    return np.rint(np.clip(x / np.abs(x).max(0) * 1.6, -1, 1) * MAX_LEVEL).astype(np.int8)


def timings(vocabulary: int, dim: int, *, quiet: bool = False) -> dict[str, float]:
    """Return seconds of each computation, and the peak memory of this process in MiB."""
    table = synthetic_table(vocabulary, dim)
    mechanism = Mechanism.from_mu(20.0, bits=4, dim=dim, max_level=MAX_LEVEL)
    result: dict[str, float] = {}

    def timed(name: str, compute: Callable[[Callable[[float], None]], object]) -> None:
        began = time.monotonic()
        with tqdm(total=1.0, desc=name, disable=quiet, bar_format="{desc} {percentage:3.0f}% {elapsed}") as bar:
            compute(lambda share: bar.update(share - bar.n) and None)
        result[f"{name}_seconds"] = round(time.monotonic() - began, 1)

    timed("vocabulary_epsilon", lambda step: vocabulary_epsilon(mechanism, table, DELTA, progress=step))
    timed("token_epsilons", lambda step: token_epsilons(mechanism, table, DELTA, progress=step))
    timed("vocabulary_curve", lambda step: vocabulary_curve(mechanism, table))
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


@click.command()
@click.option("--vocabulary", type=click.IntRange(2), default=128_000, show_default=True)
@click.option("--dim", type=click.IntRange(1), default=128, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def main(vocabulary: int, dim: int, as_json: bool) -> None:
    """Vocabulary epsilon, every token's epsilons and the Renyi curve of a synthetic table."""
    result = timings(vocabulary, dim)
    click.echo(json.dumps(result) if as_json else "\n".join(f"{name:28} {value:10}" for name, value in result.items()))


if __name__ == "__main__":
    main()
