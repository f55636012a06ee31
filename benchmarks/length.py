"""How well a server finds the length that padding hides: python -m benchmarks.length [--json]

The demo's prompts (8 to 96 tokens of the first half of examples/demo_model/held_out.txt) are padded
to a multiple of 32 tokens, encoded by the client's encoder, and attacked from the counts. Fills:

    line feed   the default of Padding, repeated
    sample N    tokens drawn from a text of N characters, the end of the second half
    prior       tokens drawn from the bundle's own prior: what a perfect sample would give

An attack knows the mechanism, the table, the prior of real text, and the fill with its text. It
scores every possible end s of the padding by a log likelihood ratio, and says the best one.

    tokens      change point of independent tokens:
                sum_{t<s} log sum_v f(v) P(z_t | v) + sum_{t>=s} log sum_v p(v) P(z_t | v)
    bigrams     the second sum is a hidden Markov model over bigrams of the demo's text
    model       the second sum with the demo's LM, which reads the likeliest tokens, in place of p

``exact`` is the share of prompts whose length was found (Wilson, 95 %), ``error`` the distance.
Guessing finds one in 32. The ratio of perplexities is that of :mod:`benchmarks.padding`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import click
import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.special import logsumexp
from tokenizers import Tokenizer

from benchmarks.padding import TEXT, losses, passages
from client_lib import Padding, private
from client_lib.prompts.encoder import Encoder
from del_core.audit.intervals import Rate
from del_core.bundle import Bundle, load_bundle
from del_core.demo import bundle_path, model_path
from del_core.evaluation.bootstrap import ratio_interval
from del_core.lm.model import BaseLM, load_base_lm
from del_core.wire import PrivateSegment

__all__ = ["ATTACKS", "measure"]

BUCKET = 32
SAMPLES = (2_000, 100_000)
ATTACKS = ("tokens", "bigrams", "model")

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Drawn(Padding):
    """Padding whose tokens come from given frequencies, instead of those of a text."""

    def __init__(self, bucket: int, weights: Floats) -> None:
        super().__init__(bucket)
        object.__setattr__(self, "_weights", weights)

    def apply(self, ids: tuple[int, ...], padding_ids: tuple[int, ...], size: int) -> tuple[int, ...]:
        """See ``Padding.apply``."""
        weights = object.__getattribute__(self, "_weights")
        missing = -len(ids) % self.bucket
        drawn = np.random.default_rng().choice(len(weights), missing, p=weights)
        return tuple(int(one) for one in drawn) + ids


class Attacker:
    """The three attacks for one bundle."""

    def __init__(self, bundle: Bundle, lm: BaseLM, text_ids: list[int]) -> None:
        self._bundle, self._lm = bundle, lm
        prior = np.exp(bundle.log_prior.astype(np.float64))
        self.prior: Floats = prior / prior.sum()
        size = len(self.prior)
        ones = np.ones(len(text_ids) - 1)
        counts = csr_matrix((ones, (text_ids[:-1], text_ids[1:])), shape=(size, size))
        self._totals = np.asarray(counts.sum(axis=1)).ravel()
        self._bigrams = counts.tocsr()

    def scores(self, variant: str, codes: Any, fill: Floats) -> dict[str, Floats]:
        """Return, for each attack, the score of every end of the padding, 0 to BUCKET - 1."""
        bundle = self._bundle
        table = np.asarray(bundle.client.table_of(variant))
        likelihood = bundle.client.mechanism(variant).likelihood(table, np.float64)(codes)
        with np.errstate(divide="ignore"):
            padding = logsumexp(likelihood + np.log(fill), axis=1)
        real = logsumexp(likelihood + np.log(self.prior), axis=1)
        ends = np.arange(BUCKET)
        before = np.concatenate([[0.0], np.cumsum(padding)])[ends]
        after = np.concatenate([[0.0], np.cumsum(real[::-1])])[::-1][ends]
        return {
            "tokens": before + after,
            "bigrams": before + self._chains(likelihood)[ends],
            "model": before + after + self._gains(likelihood, real)[ends],
        }

    def _chains(self, likelihood: Floats) -> Floats:
        """Return the log likelihood of the counts from each token on, under mixed bigrams."""
        share = self._totals / (self._totals + 20.0)  # rare tokens say little about their successors
        scale = np.divide(share, self._totals, out=np.zeros_like(share), where=self._totals > 0)
        later, total, found = np.ones(len(self.prior)), 0.0, np.zeros(len(likelihood))
        for place in range(len(likelihood) - 1, -1, -1):
            highest = likelihood[place].max()
            weights = np.exp(likelihood[place] - highest) * later
            begun = float(self.prior @ weights)
            found[place] = total + highest + math.log(begun)
            total += highest + math.log(begun)
            later = ((self._bigrams @ weights) * scale + (1 - share) * begun) / begun
        return found

    @torch.no_grad()
    def _gains(self, likelihood: Floats, real: Floats) -> Floats:
        """Return what predictions of the LM, in place of the prior, add to each score."""
        likeliest = torch.tensor((likelihood + np.log(self.prior)).argmax(axis=1))
        logs = torch.log_softmax(self._lm.model(likeliest[None]).logits[0].float(), dim=-1)
        gains = logsumexp(likelihood[1:] + logs[:-1].double().numpy(), axis=1) - real[1:]
        return np.concatenate([np.cumsum(gains[::-1])[::-1], [0.0]])


def _frequencies(ids: list[int], size: int) -> Floats:
    counts = np.bincount(ids, minlength=size).astype(np.float64)
    return counts / counts.sum()


def measure(count: int = 160, samples: tuple[int, ...] = SAMPLES) -> dict[str, Any]:
    """Return the figures of every fill and variant of the demo."""
    torch.set_num_threads(1)
    bundle = load_bundle(bundle_path())
    encoder, lm = Encoder(bundle.client), load_base_lm(model_path())
    tokenizer = Tokenizer.from_file(str(bundle.client.tokenizer_path))
    whole = TEXT.read_text("utf-8")
    middle = len(whole) // 2
    texts = passages(tokenizer, count, text=whole[:middle])

    def ids_of(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    attacker = Attacker(bundle, lm, ids_of(whole[middle:]))
    size = bundle.client.table.shape[0]
    fills: dict[str, tuple[Padding, Floats]] = {"line feed": (Padding(BUCKET), _frequencies(ids_of("\n"), size))}
    for sample in samples:
        text = whole[-sample:]
        frequencies = _frequencies(ids_of(text), size)
        fills[f"sample {sample}"] = (Padding(BUCKET, text=text, fill="draw"), frequencies)
    fills["prior"] = (Drawn(BUCKET, attacker.prior), attacker.prior)
    return {
        variant: {name: _found(bundle, encoder, attacker, variant, fill, texts) for name, fill in fills.items()}
        | {"ratio": _ratios(bundle, encoder, lm, variant, fills, texts)}
        for variant in bundle.variants
    }


def _found(
    bundle: Bundle, encoder: Encoder, attacker: Attacker, variant: str, fill: tuple[Padding, Floats], texts: Any
) -> dict[str, Any]:
    padding, frequencies = fill
    errors: dict[str, list[int]] = {name: [] for name in ATTACKS}
    for text, _ in texts:
        plain = len(encoder.tokenize([private(text)], variant)[0].ids)
        encoded = encoder.draw(encoder.tokenize([private(text)], variant, padding), variant)
        (segment,) = (one for one in encoded.segments if isinstance(one, PrivateSegment))
        for name, scores in attacker.scores(variant, segment.codes, frequencies).items():
            errors[name].append(abs(int(np.argmax(scores)) - (len(segment.codes) - plain)))
    report = {}
    for name, distances in errors.items():
        interval = Rate(sum(distance == 0 for distance in distances), len(distances))
        report[name] = {
            "exact": round(interval.success, 4),
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
            "error": round(float(np.mean(distances)), 2),
        }
    return report


def _ratios(bundle: Bundle, encoder: Encoder, lm: BaseLM, variant: str, fills: Any, texts: Any) -> dict[str, Any]:
    decoder = bundle.build_decoder(variant)
    plain, _ = losses(bundle, encoder, lm, decoder, variant, None, texts)
    report = {}
    for name, (padding, _) in fills.items():
        padded, _ = losses(bundle, encoder, lm, decoder, variant, padding, texts)
        ratio = ratio_interval(padded, plain)
        report[name] = [round(one, 4) for one in (ratio.value, ratio.low, ratio.high)]
    return report


@click.command()
@click.option("--passages", "count", type=click.IntRange(2), default=160, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def main(count: int, as_json: bool) -> None:
    """How well a server finds the length that padding hides, on the demo."""
    report = measure(count)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for variant, fills in report.items():
        for name, attacks in fills.items():
            if name == "ratio":
                continue
            said = "  ".join(
                f"{attack} {row['exact']:6.1%} (error {row['error']:.1f})" for attack, row in attacks.items()
            )
            click.echo(f"{variant:10} {name:14} {said}  perplexity x {fills['ratio'][name][0]:.3f}")


if __name__ == "__main__":
    main()
