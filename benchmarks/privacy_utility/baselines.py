"""Baselines: noise on embeddings and replaced tokens.

Each is implemented as its users would run it and has its own optimal per-token guesser:

- ``GaussianNoise``: e + sigma z with z standard normal, on the model's own embeddings.
- ``MetricNoise``: metric differential privacy (d-chi privacy) as in Split-and-Denoise (arXiv
  2310.09130): e + z with density proportional to exp(-eta |z|), that is, a uniform direction times
  a Gamma(b, 1/eta) length. That work denoises, on the client, embeddings that the server returns. A
  server that writes text returns none, so there is no denoising here.
- ``TokenReplacement``: the exponential mechanism over the vocabulary, P(v | w) proportional to
  exp(-eps d(w, v) / 2), where d is the distance of embeddings in units of its mean. InferDPT's
  RANTEXT (arXiv 2310.12214) and CusText (arXiv 2207.04394) draw from a list of near tokens, random
  or fixed. With lists, a token outside the list is excluded with certainty, which distinguishes
  two prompts for sure. Here the list is the whole vocabulary.

Noisy embeddings are much longer than clean ones and make the model's output useless.
Post-processing by sender or server before the model reads them (``Finish``) costs no privacy and is
chosen on text that no result is reported on: scaling down to norm at most R, or replacement by the
nearest token, as text sanitizers do (arXiv 1910.08902).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from benchmarks.privacy_utility.views import DELTA, ClientCost, MethodView, ServerReads, timed
from del_core.accounting import gdp_epsilon
from del_core.evaluation.view import FloatArray, Recovery, TokenIds
from del_core.lm.noise import limit_norm

__all__ = [
    "METRICS",
    "Finish",
    "GaussianNoise",
    "MetricNoise",
    "TokenReplacement",
    "best_of",
    "calibrate_view",
    "finishes",
    "token_distances",
]

METRICS = ("euclidean", "cosine")

_BLOCK = 1024  # tokens whose scores over the vocabulary are held at once
_FEW_TOKENS = 2000  # for the first, rough part of a calibration
_View = TypeVar("_View", bound=MethodView)


@dataclass(frozen=True)
class Finish:
    """Post-processing of noisy embeddings: the nearest token's, or norm at most ``limit``."""

    limit: float = math.inf
    nearest: bool = False


def finishes(embeddings: torch.Tensor) -> list[Finish]:
    """Return the candidates: the nearest token, and limits around the median embedding norm."""
    typical = float(embeddings.norm(dim=1).median())
    return [Finish(nearest=True), *(Finish(factor * typical) for factor in (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0))]


class _NoisyEmbeddings(ServerReads):
    """Noise around the model's own embeddings. Larger ``strength`` is less noise."""

    def __init__(self, embeddings: torch.Tensor, strength: float, finish: Finish) -> None:
        self.embeddings, self.strength, self.finish = embeddings.detach().float(), strength, finish
        self.bits_per_token = 16.0 * embeddings.shape[1]  # sent as fp16

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError

    def _log_likelihood(self, squares: torch.Tensor) -> torch.Tensor:
        """Return it up to a constant, from squared distances to embeddings; may work in place."""
        raise NotImplementedError

    def release(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return noisy embeddings (..., b) of tokens (...)."""
        clean = self.embeddings[tokens]
        return clean + self._noise(clean.shape, generator)

    def scores(self, sent: torch.Tensor) -> torch.Tensor:
        """Return log-likelihoods (count, V), up to a constant, of noisy embeddings (count, b)."""
        squares = self._squares(sent).add_(sent.square().sum(1, keepdim=True)).clamp_min_(0.0)
        return self._log_likelihood(squares)

    def _squares(self, sent: torch.Tensor) -> torch.Tensor:
        """Return squared distances (count, V) of ``sent`` from every token, minus |sent|^2."""
        return torch.addmm(self.embeddings.square().sum(1), sent, self.embeddings.T, alpha=-2.0)

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one noisy release after the finish."""
        sent = self.release(tokens, generator)
        if not self.finish.nearest:
            return limit_norm(sent, self.finish.limit) if math.isfinite(self.finish.limit) else sent
        nearest = [self._squares(block).argmin(1) for block in sent.flatten(0, 1).split(_BLOCK)]
        return self.embeddings[torch.cat(nearest).view_as(tokens)]

    @torch.no_grad()
    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery from prior and noise density; the attacker ignores the finish."""
        device = self.embeddings.device
        generator = torch.Generator(device).manual_seed(seed)
        prior = torch.as_tensor(log_prior).float().to(device)

        def scores() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for block in torch.from_numpy(tokens).to(device).split(_BLOCK):
                sent = self.release(block, generator)
                yield block, self.scores(sent).add_(prior)

        return Recovery.from_scores(scores(), prior)

    def _diameter(self) -> float:
        """Return the largest distance between two tokens' embeddings."""
        return max(float(torch.cdist(block, self.embeddings).max()) for block in self.embeddings.split(_BLOCK))

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Measure the noise on a CPU; count the embedding table as fp16."""
        client = type(self)(self.embeddings.cpu(), self.strength, self.finish)
        generator, ids = torch.Generator(), torch.from_numpy(tokens)
        seconds = timed(lambda: client.release(ids, generator))
        return ClientCost(seconds, 2 * self.embeddings.numel() / 1e6)


class GaussianNoise(_NoisyEmbeddings):
    """e + sigma z with sigma = 1 / ``strength``."""

    name = "Gaussian noise"

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=generator.device) / self.strength

    def _log_likelihood(self, squares: torch.Tensor) -> torch.Tensor:
        return squares.mul_(-0.5 * self.strength**2)

    def epsilon(self) -> float | None:
        """Return epsilon of the two farthest tokens, exactly: they are diameter / sigma GDP."""
        return gdp_epsilon(self._diameter() * self.strength, DELTA)


class MetricNoise(_NoisyEmbeddings):
    """e + z with density proportional to exp(-eta |z|), eta = ``strength``."""

    name = "metric-DP noise"

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        direction = torch.randn(shape, generator=generator, device=generator.device)
        # Half the square of 2 b standard normals' norm is Gamma(b, 1), and torch's gamma takes no
        # generator.
        normal = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator, device=generator.device)
        length = normal.square().sum(-1, keepdim=True) / 2
        return direction / direction.norm(dim=-1, keepdim=True) * length / self.strength

    def _log_likelihood(self, squares: torch.Tensor) -> torch.Tensor:
        return squares.sqrt_().mul_(-self.strength)

    def epsilon(self) -> float | None:
        """Return eta times the distance of the two farthest tokens; pure, so at any delta."""
        return self.strength * self._diameter()


def token_distances(embeddings: torch.Tensor, metric: str) -> torch.Tensor:
    """Return distances (V, V) between tokens in units of their mean; 1 - cosine for ``cosine``.

    Raises:
        ValueError: ``metric`` is not one of ``METRICS``.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    table = embeddings.detach().float()
    if metric == "cosine":
        unit = table / table.norm(dim=1, keepdim=True).clamp_min(1e-12)
        distance = (1.0 - unit @ unit.T).clamp_min(0.0).fill_diagonal_(0.0)
    else:
        distance = torch.cdist(table, table).fill_diagonal_(0.0)
    return distance / distance.mean()


class TokenReplacement(ServerReads):
    """Replacement of every token by the exponential mechanism with eps = ``strength``.

    Two (V, V) arrays of 12 bytes per pair limit it to vocabularies of some thousand tokens.

    Args:
        distances: result of ``token_distances``.
    """

    name = "token replacement"

    def __init__(self, embeddings: torch.Tensor, distances: torch.Tensor, strength: float) -> None:
        self.embeddings, self.strength = embeddings.detach().float(), strength
        self.bits_per_token = float((len(embeddings) - 1).bit_length())
        self.log_channel = torch.log_softmax(-0.5 * strength * distances, dim=1)  # (w, v)
        # Distribution functions of all rows in sequence: w + P(at most v | w) rises along the
        # array.
        steps = self.log_channel.double().exp().cumsum(1)
        steps += torch.arange(len(steps), dtype=torch.float64, device=steps.device)[:, None]
        self._steps = steps.flatten()

    def replace(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return replaced token ids, of the shape of ``tokens``."""
        count = len(self.embeddings)
        drawn = torch.rand(tokens.shape, generator=generator, dtype=torch.float64, device=generator.device) + tokens
        # By rounding the last step of a row may lie slightly below its end.
        return (torch.searchsorted(self._steps, drawn, right=True) - tokens * count).clamp_max(count - 1)

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the embeddings of the replaced tokens."""
        return self.embeddings[self.replace(tokens, generator)]

    @torch.no_grad()
    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery from the channel: the observed column times the prior."""
        device = self.embeddings.device
        prior = torch.as_tensor(log_prior).float().to(device)
        original = torch.from_numpy(tokens).to(device)
        observed = self.replace(original, torch.Generator(device).manual_seed(seed))
        posterior = (self.log_channel + prior[:, None]).T.contiguous()  # rows by observed token
        blocks = zip(original.split(_BLOCK), observed.split(_BLOCK), strict=True)
        return Recovery.from_scores(((block, posterior[at]) for block, at in blocks), prior)

    def epsilon(self) -> float | None:
        """Return the largest log ratio of two tokens' probabilities of one replacement; pure."""
        return float((self.log_channel.amax(0) - self.log_channel.amin(0)).max())

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Measure distances and draw on a CPU; count the embedding table as fp16."""
        generator, ids, table = torch.Generator(), torch.from_numpy(tokens), self.embeddings.cpu()

        def work() -> torch.Tensor:
            distance = torch.cdist(table[ids], table)
            return torch.multinomial(torch.softmax(-0.5 * self.strength * distance, dim=1), 1, generator=generator)

        return ClientCost(timed(work), 2 * self.embeddings.numel() / 1e6)


def calibrate_view(
    family: Callable[[float], _View],
    target: float,
    tokens: TokenIds,
    log_prior: FloatArray,
    *,
    low: float = 1e-3,
    high: float = 1e4,
    seed: int = 0,
) -> _View:
    """Return the view whose MAP attack recovers the share ``target`` of ``tokens``, to 0.1 points.

    Bisects the logarithm of the strength with the same noise in every step: first on part of the
    tokens, then on all, since every step costs an attack.

    Args:
        family: function from strength, larger for less noise, to the view.
        tokens: text that no result is reported on.
        low, high: bounds of the strength.

    Raises:
        ValueError: the target is out of reach.
    """
    sample = tokens[:: max(1, len(tokens) // _FEW_TOKENS)]

    def excess(log_strength: float, of: TokenIds) -> float:
        return family(math.exp(log_strength)).attack(of, log_prior, seed).rate.success - target

    ends = math.log(low), math.log(high)
    lowest, highest = (excess(end, sample) for end in ends)
    if (lowest > 0 and (lowest := excess(ends[0], tokens)) > 0) or highest < 0:
        raise ValueError(f"target must be from {lowest + target:.4f} to {highest + target:.4f}, got {target}")
    near, step = _bisect(lambda x: excess(x, sample), *ends, gap=0.02), 0.1
    below = above = near
    while excess(below, tokens) > 0 and below > ends[0]:
        below, step = max(ends[0], below - step), 2 * step
    while excess(above, tokens) < 0 and above < ends[1]:
        above, step = min(ends[1], above + step), 2 * step
    return family(math.exp(_bisect(lambda x: excess(x, tokens), below, above, gap=1e-3, close=1e-3)))


def _bisect(f: Callable[[float], float], low: float, high: float, gap: float, close: float = 0.0) -> float:
    """Return a zero of ``f``, negative at ``low``: within ``gap``, or where |f| <= ``close``."""
    middle = low
    while high - low > gap:
        middle = 0.5 * (low + high)
        value = f(middle)
        if abs(value) <= close:
            return middle
        low, high = (middle, high) if value < 0 else (low, middle)
    return 0.5 * (low + high)


def best_of(candidates: Sequence[_View], loss: Callable[[_View], float]) -> _View:
    """Return the candidate of least ``loss``; the first of several that are equal."""
    return min(candidates, key=loss)
