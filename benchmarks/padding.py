"""Cost of length padding in answer quality: python -m benchmarks.padding [--json]

The demo's bundle and model read text that was used for neither training nor calibration
(examples/demo_model/held_out.txt). Prompts of 8 to 96 tokens, all private, are encoded by the
client's encoder, padding included, decoded by the server's decoder, and placed behind the variant's
soft prompt. Then the true next 32 tokens are scored. Every bucket reads the same passages, so
differences between passages cancel in the ratio (paired bootstrap, 95 %).

    perplexity   of the 32 tokens, without padding and with each bucket
    ratio        with padding over without: above 1 is worse
    added        mean of padding tokens over prompt tokens: additional transfer, compute and charge
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from client_lib import Padding, private
from client_lib.prompts.encoder import Encoder
from del_core.bundle import Bundle, load_bundle
from del_core.decoders import Decoder
from del_core.demo import bundle_path, model_path
from del_core.evaluation.bootstrap import ratio_interval
from del_core.lm.model import BaseLM, load_base_lm
from del_core.lm.perplexity import continuation_nll
from del_core.wire import PrivateSegment

__all__ = ["measure"]

BUCKETS = (16, 32, 64)
LONGEST, SHORTEST, CONTINUATION = 96, 8, 32
TEXT = Path(__file__).parents[1] / "examples" / "demo_model" / "held_out.txt"


def passages(
    tokenizer: Tokenizer, count: int, seed: int = 0, *, text: str | None = None
) -> list[tuple[str, list[int]]]:
    """Return prompts as text, and the token ids that follow them; from ``text`` or the demo's."""
    ids = tokenizer.encode(text or TEXT.read_text("utf-8"), add_special_tokens=False).ids
    chooser = np.random.default_rng(seed)
    found = []
    for start in np.linspace(0, len(ids) - LONGEST - CONTINUATION, count).astype(int):
        length = int(chooser.integers(SHORTEST, LONGEST + 1))
        middle = int(start) + length
        found.append((tokenizer.decode(ids[start:middle]), ids[middle : middle + CONTINUATION]))
    return found


@torch.no_grad()
def losses(
    bundle: Bundle, encoder: Encoder, lm: BaseLM, decoder: Decoder, variant: str, padding: Padding | None, texts: Any
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Return nats per token of each continuation, and padding tokens per prompt token."""
    soft_prompt = torch.from_numpy(np.array(bundle.soft_prompt(variant)))
    values, sent, needed = [], 0, 0
    for text, after in texts:
        encoded = encoder.draw(encoder.tokenise([private(text)], variant, padding), variant)
        (segment,) = (one for one in encoded.segments if isinstance(one, PrivateSegment))
        sent += encoded.tokens
        needed += sum(len(part.ids) for part in encoder.tokenise([private(text)], variant))
        embedded = torch.from_numpy(np.asarray(decoder.decode(segment.codes), np.float32))[None]
        values.append(float(continuation_nll(lm.model, lm.begin(embedded), torch.tensor([after]), soft_prompt)))
    return np.array(values), sent / needed - 1


def measure(count: int = 160, buckets: tuple[int, ...] = BUCKETS) -> dict[str, Any]:
    """Return the figures of every variant of the demo."""
    torch.set_num_threads(1)
    bundle = load_bundle(bundle_path())
    encoder = Encoder(bundle.client)
    lm = load_base_lm(model_path())
    texts = passages(Tokenizer.from_file(str(bundle.client.tokenizer_path)), count)
    report: dict[str, Any] = {}
    for variant in bundle.variants:
        decoder = bundle.build_decoder(variant)
        plain, _ = losses(bundle, encoder, lm, decoder, variant, None, texts)
        report[variant] = {"without": {"perplexity": round(math.exp(plain.mean()), 2)}}
        for bucket in buckets:
            padded, added = losses(bundle, encoder, lm, decoder, variant, Padding(bucket), texts)
            ratio = ratio_interval(padded, plain)
            report[variant][f"bucket {bucket}"] = {
                "perplexity": round(math.exp(padded.mean()), 2),
                "ratio": round(ratio.value, 4),
                "ratio_low": round(ratio.low, 4),
                "ratio_high": round(ratio.high, 4),
                "added": round(added, 3),
            }
    return report


@click.command()
@click.option("--passages", "count", type=click.IntRange(2), default=160, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def main(count: int, as_json: bool) -> None:
    """Cost of length padding in perplexity, on the demo."""
    report = measure(count)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for variant, rows in report.items():
        for name, row in rows.items():
            words = f"{row['perplexity']:8.2f}"
            if "ratio" in row:
                words += f"  {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]  +{row['added']:.0%}"
            click.echo(f"{variant:10} {name:10} {words}")


if __name__ == "__main__":
    main()
