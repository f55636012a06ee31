"""What one release of a token says: sweep over the number of codes, columns and subsets.

    python -m benchmarks.code_sweep --out benchmarks/results/code_sweep.json

No language model runs: the figures follow from SmolLM2's embeddings, the token frequencies of its
bundle and the mechanism. Three of them describe a release Z of a token V with prior p:

    map        sum_z max_v p(v) P(z | v), the success of the best guess of the token
    bits       I(V; Z), what an attacker who knows the language could use
    explained  Var E[e(V) | Z] / Var e(V), the share of the variance of the embedding that the best
               decoder of single tokens restores: what the server's model could use

Compared are K-ary randomized response (the mechanism ``categorical``) for K codes and M columns,
subset selection (Ye and Barg, arXiv 1702.00610), which releases the subset of k codes that holds
the own one with probability e^eps times that of another, and the counts of the bundle. Codes are
k-means clusters; ``power`` is the exponent of the frequencies by which tokens weigh in k-means.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch

from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.attacks.base import reproducible_bytes
from del_core.bundle import load_bundle
from del_core.demo import smollm2_bundle_path
from del_core.lm.known import cached_model
from del_core.lm.model import load_base_lm
from del_core.mechanism import BinomialMechanism
from del_core.training.codes import quantize
from del_core.training.config import CodesConfig

__all__ = ["Release", "Vocabulary", "counts", "randomized_response", "subset_selection"]

Array = npt.NDArray[np.float64]
EPSILONS = (3.0, 4.0, 5.0, 6.0, 8.0)
_SAMPLES = 20_000
_TOKENS = 1500  # releases of counts that are drawn
_BLOCK = 250


@dataclass(frozen=True)
class Vocabulary:
    """Embeddings (V, b) and probabilities (V,) of the tokens."""

    embeddings: Array
    prior: Array

    @property
    def mean(self) -> Array:
        """Mean embedding (b,)."""
        found: Array = self.prior @ self.embeddings
        return found

    @property
    def variance(self) -> float:
        """Mean squared distance to the mean embedding."""
        return float(self.prior @ np.square(self.embeddings).sum(axis=1) - np.square(self.mean).sum())


@dataclass(frozen=True)
class Release:
    """One mechanism and what its releases say; ``size`` is M columns or k codes of a subset."""

    kind: str
    codes: int
    size: int
    power: float
    epsilon: float
    map: float
    bits: float
    explained: float


def randomized_response(words: Vocabulary, codes: npt.NDArray[np.int64], bits: int, epsilon: float) -> Array:
    """Return (map, bits, explained) of codes (V, M) with ``epsilon / M`` each, by enumeration."""
    own = epsilon / codes.shape[1]
    keep, other = math.exp(own), 1.0
    norm = keep + (1 << bits) - 1
    outputs = np.indices((1 << bits,) * codes.shape[1]).reshape(codes.shape[1], -1).T  # (outputs, M)
    combined, where = np.unique(codes, axis=0, return_inverse=True)  # tokens of equal codes are alike
    where = where.reshape(-1)
    mass = np.bincount(where, words.prior, len(combined))
    top = np.zeros(len(combined))
    np.maximum.at(top, where, words.prior)
    sums = np.zeros((len(combined), words.embeddings.shape[1]))
    np.add.at(sums, where, words.prior[:, None] * words.embeddings)
    success = information = square = 0.0
    for start in range(0, len(outputs), _BLOCK):
        same = (outputs[start : start + _BLOCK, None] == combined[None]).sum(axis=2)  # (block, combined)
        channel = keep**same * other ** (codes.shape[1] - same) / norm ** codes.shape[1]
        seen = channel @ mass
        success += float((channel * top).max(axis=1).sum())
        information += float((channel * mass * np.log2(channel / seen[:, None])).sum())
        square += float((np.square(channel @ sums).sum(axis=1) / seen).sum())
    return np.array([success, information, (square - np.square(words.mean).sum()) / words.variance])


def subset_selection(
    words: Vocabulary, codes: npt.NDArray[np.int64], count: int, size: int, epsilon: float, seed: int = 0
) -> Array:
    """Return (map, bits, explained) of subsets of ``size`` of ``count`` codes, from samples."""
    random = np.random.default_rng(seed)
    code = codes[:, 0]
    mass = np.bincount(code, words.prior, count)
    top = np.zeros(count)
    np.maximum.at(top, code, words.prior)
    sums = np.zeros((count, words.embeddings.shape[1]))
    np.add.at(sums, code, words.prior[:, None] * words.embeddings)
    weight = math.exp(epsilon)
    inside = size * weight / (size * weight + count - size)  # probability that the own code is in
    tokens = random.choice(len(code), _SAMPLES, p=words.prior)
    own = code[tokens]
    order = random.random((_SAMPLES, count))
    order[np.arange(_SAMPLES), own] = np.where(random.random(_SAMPLES) < inside, -1.0, 2.0)
    subset = np.argpartition(order, size - 1, axis=1)[:, :size]
    held = (subset == own[:, None]).any(axis=1)
    seen = weight * mass[subset].sum(axis=1) + 1.0 - mass[subset].sum(axis=1)
    # The best guess is the likeliest token of the subset, or the likeliest of all that is outside.
    best = np.maximum(weight * top[subset].max(axis=1), top.max())
    success = float((best / seen).mean())
    information = float(np.log2(np.where(held, weight, 1.0) / seen).mean())
    mean = ((weight - 1.0) * sums[subset].sum(axis=1) + words.mean) / seen[:, None]
    explained = (float(np.square(mean).sum(axis=1).mean()) - np.square(words.mean).sum()) / words.variance
    return np.array([success, information, explained])


def counts(words: Vocabulary, mechanism: BinomialMechanism, table: npt.NDArray[np.integer], seed: int = 0) -> Array:
    """Return (map, bits, explained) of counts behind a table (V, d), from samples."""
    random = np.random.default_rng(seed)
    tokens = random.choice(len(words.prior), _TOKENS, p=words.prior)
    released = mechanism.sample(table[tokens], reproducible_bytes(seed))
    likelihood, prior = mechanism.likelihood(table), np.log(words.prior).astype(np.float32)
    rows = words.embeddings.astype(np.float32)
    success = information = square = 0.0
    for start in range(0, _TOKENS, _BLOCK):
        true = tokens[start : start + _BLOCK]
        scores = likelihood(released[start : start + _BLOCK]) + prior
        scores -= scores.max(axis=1, keepdims=True)
        posterior = np.exp(scores)
        posterior /= posterior.sum(axis=1, keepdims=True)
        success += float(posterior.max(axis=1).sum())
        information += float((np.log2(posterior[np.arange(len(true)), true]) - np.log2(words.prior[true])).sum())
        square += float(np.square(posterior @ rows, dtype=np.float64).sum())
    explained = (square / _TOKENS - np.square(words.mean).sum()) / words.variance
    return np.array([success / _TOKENS, information / _TOKENS, explained])


def _releases(words: Vocabulary) -> Iterator[Release]:
    embeddings, prior = torch.from_numpy(words.embeddings).float(), torch.from_numpy(words.prior)
    for bits, columns, power in (
        (8, 1, 1.0),
        (8, 1, 0.5),
        (8, 1, 0.0),
        (6, 1, 1.0),
        (4, 1, 1.0),
        (6, 2, 1.0),
        (4, 2, 1.0),
    ):
        config = CodesConfig(epsilon=1.0, bits=bits, columns=columns, iterations=10)
        codes = quantize(embeddings, prior**power, config)[0].numpy()
        for epsilon in EPSILONS:
            found = randomized_response(words, codes, bits, epsilon)
            yield Release("randomized response", 1 << bits, columns, power, epsilon, *map(float, found))
            best = max(1, round((1 << bits) / (math.exp(epsilon) + 1)))
            if columns == 1 and power == 1.0 and best > 1:
                found = subset_selection(words, codes, 1 << bits, best, epsilon)
                yield Release("subset selection", 1 << bits, best, power, epsilon, *map(float, found))


@click.command()
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
def main(out: Path) -> None:
    """Write the sweep for SmolLM2."""
    bundle, model = load_bundle(smollm2_bundle_path()), cached_model("smollm2")
    if model is None:
        raise click.UsageError("SmolLM2 is not on this machine yet; get it with: delctl model get smollm2")
    prior = np.exp(bundle.log_prior.astype(np.float64))
    words = Vocabulary(load_base_lm(model).embeddings.detach().double().numpy(), prior / prior.sum())
    rows = []
    for release in _releases(words):
        rows.append(asdict(release))
        click.echo(json.dumps(rows[-1]), err=True)
    for name in bundle.variants:
        mechanism = bundle.mechanism(name)
        if isinstance(mechanism, BinomialMechanism):
            table, delta = np.asarray(bundle.client.table_of(name)), bundle.variants[name].guarantees.delta
            found = counts(words, mechanism, table)
            epsilon = exact_epsilon(mechanism, delta)
            rows.append(asdict(Release(f"counts, {name}", 0, mechanism.dim, 1.0, epsilon, *map(float, found))))
            click.echo(json.dumps(rows[-1]), err=True)
    rounded = [
        {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    report = {"date": date, "command": "python -m benchmarks.code_sweep", "model": "SmolLM2", "rows": rounded}
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
