"""Speed and size of the client: python -m benchmarks.client [--json]

Where only size matters, the bundle is synthetic (a table with V = 32,000 rows, d = 128, int16
levels). Where content matters, it is real: the demo's tokenizer, and this project's documentation
as text. Every figure is the median of several rounds on one core.

tokens_per_second_per_core   of a tokenized prompt: lookup, noise and packing, for n = 1, 2, 4, 8
ratio_to_random_bytes        that time over the time of drawing the same number of random bytes
bytes_per_token              sent bytes
tokenize_share               share of the tokenizer in the time of encoding a text at n = 4
import_seconds               `import client_lib` in a fresh process
rss_mb                       peak memory (10^6 bytes) of a process that has imported the client,
                             opened a Client on the cached bundle and encoded 256 tokens
bundle_mb                    the client part on disk
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import httpx
import numpy as np

from client_lib import Client, private
from client_lib.prompts.encoder import Encoder
from del_core.bundle import (
    BaseModel,
    ClientBundle,
    Guarantees,
    Variant,
    VariantContent,
    load_client,
    pack_client,
    write_bundle,
)
from del_core.demo import bundle_path
from del_core.mechanism import Mechanism
from del_core.mechanism.randomness import random_bytes
from del_core.wire import Sampling, pack_codes

BITS = (1, 2, 4, 8)
VOCABULARY, DIM, TOKENS = 32_000, 128, 256
ROUNDS = 15
URL = "http://127.0.0.1:1"

_CHILD = """
import json, sys, time
start = time.perf_counter()
import client_lib
seconds = time.perf_counter() - start
with client_lib.Client(sys.argv[2], cache_dir=sys.argv[1], fingerprint=sys.argv[3]) as client:
    client.encode("one two three four " * 64, variant="n4")
    # The high-water mark of this process alone; that of getrusage includes the parent's.
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
print(json.dumps({"import_seconds": seconds, "rss_mb": peak * 1024 / 1e6}))
"""


def make_bundle(directory: Path) -> ClientBundle:
    """Write a bundle of the measured size; the variant n4 has n = 4."""
    table = np.random.default_rng(0).integers(-32767, 32768, size=(VOCABULARY, DIM)).astype(np.int16)
    contents = [
        VariantContent(
            variant=Variant(
                name=f"n{bits}",
                task="general",
                bits=bits,
                ratio_numerator=Mechanism.from_mu(10.0, bits=bits, dim=DIM).ratio_numerator,
                soft_prompt_length=0,
                guarantees=Guarantees(delta=1e-6, epsilon=1.0, epsilon_vocabulary=None, mu=10.0),
            ),
            weight=np.zeros((8, DIM), np.float32),
            bias=np.zeros(8, np.float32),
            norm_limit=1.0,
        )
        for bits in BITS
    ]
    write_bundle(
        directory,
        base_model=BaseModel(name="benchmark", sha256="0" * 64, hidden_size=8, vocabulary_size=VOCABULARY),
        table=table,
        max_level=32767,
        clip=1.0,
        tokenizer_json=(bundle_path() / "client" / "tokenizer.json").read_bytes(),
        variants=contents,
        log_prior=np.full(VOCABULARY, -np.log(VOCABULARY), np.float32),
        bos_token_id=None,
    )
    return load_client(directory / "client")


def median_seconds(work: Callable[[], object]) -> float:
    """Return the median over the rounds after a warm-up round."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def speed(bundle: ClientBundle, bits: int) -> dict[str, float]:
    """Return tokens per second, and the time over that of drawing the random bytes alone."""
    mechanism = bundle.mechanism(f"n{bits}")
    ids = np.random.default_rng(1).integers(0, VOCABULARY, TOKENS)
    drawn: list[int] = []

    def recording(count: int) -> bytes:
        drawn.append(count)
        return random_bytes(count)

    mechanism.sample(bundle.table[ids], recording)
    seconds = median_seconds(lambda: pack_codes(mechanism.sample(bundle.table[ids]), bits))
    bytes_alone = median_seconds(lambda: [random_bytes(count) for count in drawn])
    return {
        "tokens_per_second_per_core": round(TOKENS / seconds),
        "ratio_to_random_bytes": round(seconds / bytes_alone, 2),
        "bytes_per_token": mechanism.row_bytes,
    }


def tokenize_share(bundle: ClientBundle) -> float:
    """Return the share of the tokenizer in encoding and framing a private text at n = 4."""
    from tokenizers import Tokenizer

    encoder, tokenizer = Encoder(bundle), Tokenizer.from_file(str(bundle.tokenizer_path))
    text = (Path(__file__).parents[2] / "docs" / "privacy" / "guarantee.md").read_text("utf-8")[:4000]
    shares = []
    for _ in range(ROUNDS + 1):  # side by side, so that both meet the same machine; the first round warms up
        start = time.perf_counter()
        tokenizer.encode(text, add_special_tokens=False)
        middle = time.perf_counter()
        encoder.frame(encoder.encode([private(text)], "n4"), Sampling())
        shares.append((middle - start) / (time.perf_counter() - middle))
    return round(statistics.median(shares[1:]), 3)


def footprint(cache: Path, fingerprint: str) -> dict[str, float]:
    """Return import time, and memory with the table mapped, in fresh processes."""
    rounds = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", _CHILD, str(cache), URL, fingerprint]
        rounds.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {key: round(statistics.median(row[key] for row in rounds), 3) for key in rounds[0]}


def measure() -> dict[str, object]:
    """Return the report that ``--json`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle")
        rows = {f"n={bits}": speed(bundle, bits) for bits in BITS}
        archive = httpx.Response(200, content=pack_client(bundle.path), headers={"content-type": "application/x-tar"})
        transport = httpx.MockTransport(lambda request: archive)
        with Client(URL, cache_dir=Path(folder) / "cache", transport=transport) as client:
            cached = client.bundle()
        return {
            **{key: {name: row[key] for name, row in rows.items()} for key in rows["n=1"]},
            **footprint(Path(folder) / "cache", cached.fingerprint),
            "bundle_mb": round(sum(path.stat().st_size for path in cached.path.iterdir()) / 1e6, 3),
            "tokenize_share": tokenize_share(bundle),
        }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Measure speed and size of the client."""
    report = measure()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"{'':6}{'tokens/s/core':>16}{'over random bytes':>20}{'bytes/token':>14}")
    columns = ("tokens_per_second_per_core", "ratio_to_random_bytes", "bytes_per_token")
    for name in (f"n={bits}" for bits in BITS):
        speed_of, ratio, size = (report[column][name] for column in columns)  # type: ignore[index]
        click.echo(f"{name:6}{speed_of:16,}{ratio:20.2f}{size:14}")
    click.echo(
        f"import {report['import_seconds']:.2f} s, resident {report['rss_mb']:.0f} MB with the table mapped, ", nl=False
    )
    click.echo(f"client part {report['bundle_mb']:.2f} MB, {report['tokenize_share']:.0%} of encoding is the tokenizer")


if __name__ == "__main__":
    main()
