"""How fast and how small the client is: python -m benchmarks.client [--json]

Measures, on one core, what a client does to a private prompt once it is tokenised: look up, quantise, pack. The
table is synthetic (V = 32,000, d = 128, int8 levels), because only its size matters here. Each figure is the median of
several rounds; ``ratio_to_random_bytes`` compares with merely drawing the random bytes that the sampler needs, in the
same round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import click
import numpy as np

from del_core.demo import bundle_path
from del_core.mechanism import Mechanism
from del_core.wire import pack_codes

VOCABULARY, DIM, TOKENS = 32_000, 128, 256
ROUNDS = 7

_CHILD = """
import json, resource, sys, time
start = time.perf_counter()
import client_lib
seconds = time.perf_counter() - start
from client_lib.encoder import Encoder
from del_core.bundle import load_client
load_client(sys.argv[1])
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"import_seconds": seconds, "rss_mb": rss}))
"""


def speed(bits: int, table: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Tokens per second of lookup, noise and packing, and its time over that of the needed random bytes alone."""
    mechanism = Mechanism(bits, DIM, Mechanism.nearest_ratio(0.4), max_level=127)
    token_ids = rng.integers(0, VOCABULARY, TOKENS)
    # One byte for each trial; ties, one in 256, need three more.
    needed = TOKENS * DIM * mechanism.trials * (256 + 3) // 256
    seconds, ratios = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        pack_codes(mechanism.sample(table[token_ids]), bits)
        middle = time.perf_counter()
        os.urandom(needed)
        end = time.perf_counter()
        seconds.append(middle - start)
        ratios.append((middle - start) / (end - middle))
    return {
        "tokens_per_second_per_core": round(TOKENS / statistics.median(seconds)),
        "ratio_to_random_bytes": round(statistics.median(ratios), 2),
        "bytes_per_token": mechanism.row_bytes,
    }


def footprint() -> dict[str, float]:
    """Import time, and resident memory with the demo's client part loaded, each in fresh processes."""
    rounds = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", _CHILD, str(bundle_path() / "client")]
        rounds.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {key: round(statistics.median(row[key] for row in rounds), 3) for key in rounds[0]}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Measure the client's speed and size."""
    rng = np.random.default_rng(0)
    table = rng.integers(-127, 128, size=(VOCABULARY, DIM), dtype=np.int8)
    client_files = [path for path in (bundle_path() / "client").iterdir() if path.is_file()]
    report = {
        "speed": {f"n={bits}": speed(bits, table, rng) for bits in (1, 2, 4, 8)},
        **footprint(),
        "bundle_mb": round(sum(path.stat().st_size for path in client_files) / 1e6, 3),
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"{'':6}{'tokens/s/core':>16}{'over random bytes':>20}{'bytes/token':>14}")
    for name, row in report["speed"].items():
        click.echo(
            f"{name:6}{row['tokens_per_second_per_core']:16,}{row['ratio_to_random_bytes']:20.2f}{row['bytes_per_token']:14}"
        )
    click.echo(f"import {report['import_seconds']:.2f} s, resident {report['rss_mb']:.0f} MB, ", nl=False)
    click.echo(f"client part of the demo bundle {report['bundle_mb']:.2f} MB")


if __name__ == "__main__":
    main()
