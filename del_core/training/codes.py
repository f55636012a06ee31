"""A variant of codes: the codes of every token, a decode table and a soft prompt.

The codes come from k-means of the LM's input embeddings, weighted by a power of the frequency of
the tokens; further codes of a token quantize what the codes before leave (residual quantization).
:mod:`del_core.training.assignment` moves tokens between codes where an attacker is to be held. The
decode table starts as the posterior mean of the cluster centers, and is trained through the frozen
LM with the noise in the loop, like a soft prompt.
"""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from torch import nn
from tqdm import tqdm

from del_core.audit.attacks.base import AttackSurface, recovery
from del_core.audit.intervals import Rate
from del_core.audit.records import FLAT, OMITTED, fields_from_json, fields_to_json
from del_core.lm.device import products
from del_core.lm.model import BaseLM, FrozenLM, ModelError
from del_core.lm.noise import step_generator
from del_core.mechanism.base import PROBABILITY_ONE, MechanismSpec
from del_core.mechanism.categorical import CategoricalMechanism
from del_core.training.adapter import load_adapter, save_adapter, training_adapter
from del_core.training.assignment import hide, sample_prefixes
from del_core.training.config import CodesConfig
from del_core.training.examples import Conversations, Examples, Read
from del_core.training.parallel import current_shard
from del_core.training.projection import attacked_count, attacked_tokens
from del_core.training.results import VARIANT_FILE, check_model, read_json, write_result
from del_core.training.soft_prompt import (
    DECODER_FILE,
    SOFT_PROMPT_FILE,
    RowsRun,
    Trained,
    read_clear,
    read_examples,
    started_from,
    train_rows,
)
from del_core.training.sources import source_of

CODES_FILE = "codes.safetensors"
_BLOCK = 4096  # tokens whose distances to all centers are computed at once


@dataclass(frozen=True)
class CodesResult:
    """A finished variant of codes; test perplexities.

    Attributes:
        epsilon: pure epsilon of one token, rounded up.
        entropy: bits of the codes of the training text, before noise.
        lm_prior: success of the attacker to whom ``config.attack_success`` is a limit.
        ppl_start: of the decode table before training, without a soft prompt.
        ppl_decoder: of the trained decode table without the soft prompt.
    """

    name: str
    task: str
    config: CodesConfig = field(metadata=FLAT)
    noise_numerators: tuple[int, ...]
    epsilon: float
    entropy: float
    held_out_loss: float
    model_sha256: str
    text_sha256: str
    ppl_clean: float
    ppl_start: float
    ppl_decoder: float
    ppl_soft_prompt: float
    recovery: Mapping[str, Rate]
    date: str
    chat_sha256: str | None = field(default=None, metadata=OMITTED)
    lm_prior: float | None = field(default=None, metadata=OMITTED)

    @property
    def mechanism(self) -> CategoricalMechanism:
        """The mechanism that the variant was trained for."""
        config = self.config
        return CategoricalMechanism(
            config.bits, config.columns, max_level=(1 << config.bits) - 1, noise_numerators=self.noise_numerators
        )

    @property
    def spec(self) -> MechanismSpec:
        """Kind and parameters of the mechanism, for a manifest."""
        return MechanismSpec(self.mechanism.kind, self.mechanism.parameters())

    @property
    def audit(self) -> dict[str, Any]:
        """The variant's audit, as the manifest holds it."""
        rates = {name: rate.to_json() for name, rate in self.recovery.items()}
        return {**rates, "text_sha256": self.text_sha256, "date": self.date}

    def to_json(self) -> dict[str, Any]:
        return {"mechanism": self.mechanism.kind, **fields_to_json(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str = "") -> CodesResult:
        return fields_from_json(cls, data, name)


def quantize(embeddings: torch.Tensor, weights: torch.Tensor, config: CodesConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (V, M), int64, and their centers (M, K, b) by weighted residual k-means.

    ``embeddings`` (V, b) are clustered by Lloyd's iteration from a k-means++ start (Arthur and
    Vassilvitskii, 2007), in which a token counts with its weight in ``weights`` (V,). A center that
    loses all its tokens moves to the token of the largest weighted error, so that no code is empty
    while there are tokens enough.
    """
    generator = step_generator(config.seed, 0)
    rest, codes, centers = embeddings.detach().float(), [], []
    for _ in range(config.columns):
        found = _lloyd(rest, weights.float().to(rest.device), 1 << config.bits, config.iterations, generator)
        assigned = _nearest(rest, found)[0]
        codes.append(assigned)
        centers.append(found)
        rest = rest - found[assigned]
    return torch.stack(codes, dim=1), torch.stack(centers)


def _lloyd(
    points: torch.Tensor, weights: torch.Tensor, count: int, iterations: int, generator: torch.Generator
) -> torch.Tensor:
    centers = _spread(points, weights, count, generator)
    for _ in range(iterations):
        assigned, errors = _nearest(points, centers)
        mass = torch.zeros(count, device=points.device).index_add_(0, assigned, weights)
        sums = torch.zeros_like(centers).index_add_(0, assigned, points * weights[:, None])
        empty = (mass == 0).nonzero()[:, 0]
        centers = torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-30)[:, None], centers)
        if len(empty):
            worst = (errors * weights).topk(min(len(empty), len(points))).indices
            centers[empty[: len(worst)]] = points[worst]
    return centers


def _spread(points: torch.Tensor, weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return first centers: each is drawn with the weighted squared distance to those before."""
    chosen = [int(torch.multinomial(weights.cpu(), 1, generator=generator))]
    errors = (points - points[chosen[0]]).square().sum(dim=1)
    for _ in range(1, min(count, len(points))):
        chances = (errors * weights).cpu()
        if float(chances.sum()) <= 0.0:  # fewer different points than centers
            break
        chosen.append(int(torch.multinomial(chances, 1, generator=generator)))
        errors = torch.minimum(errors, (points - points[chosen[-1]]).square().sum(dim=1))
    return torch.cat([points[chosen], points[chosen[:1]].expand(count - len(chosen), -1)])


def _nearest(points: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest center (V,) of every point and the squared distance to it."""
    half = 0.5 * centers.square().sum(dim=1)
    found = [(part @ centers.T - half).max(dim=1) for part in points.split(_BLOCK)]
    indices = torch.cat([one.indices for one in found])
    errors = points.square().sum(dim=1) - 2.0 * torch.cat([one.values for one in found])
    return indices, errors.clamp_min(0.0)


def _silent(line: str) -> None:
    """Say nothing."""


def _aside(line: str) -> None:
    """Print a line above progress bars, not among the results."""
    tqdm.write(line, file=sys.stderr)


@dataclass(frozen=True)
class FormedCodes:
    """Codes (V, M) and their centers (M, K, b); ``lm_prior`` as in :class:`CodesResult`."""

    codes: torch.Tensor
    centers: torch.Tensor
    lm_prior: float | None = None


def form_codes(
    lm: FrozenLM, config: CodesConfig, mechanism: CategoricalMechanism, say: Callable[[str], Any] = _silent
) -> FormedCodes:
    """Return the codes of every token of the LM, as ``config`` says.

    ``say`` is called with lines about the progress. AttackSuccessError is raised if no codes hold
    the attacker at ``config.attack_success``.
    """
    unigram = lm.unigram()
    weights = unigram**config.frequency_power
    codes, centers = quantize(lm.embeddings, weights, config)
    if config.columns > 1:
        return FormedCodes(codes, centers)
    success = None
    if config.attack_success is not None:
        prefixes = sample_prefixes(lm)
        codes, success = hide(codes, lm.embeddings, weights, prefixes, mechanism, config.attack_success, say)
    return FormedCodes(codes, _means(codes[:, 0], lm.embeddings, unigram, centers[0])[None], success)


def _means(
    codes: torch.Tensor, embeddings: torch.Tensor, weights: torch.Tensor, otherwise: torch.Tensor
) -> torch.Tensor:
    """Return the mean embedding of each code (K, b); a code without weight keeps its center."""
    mass = torch.zeros(len(otherwise), dtype=torch.float64, device=codes.device).index_add_(0, codes, weights.double())
    sums = torch.zeros(otherwise.shape, dtype=torch.float64, device=codes.device)
    sums.index_add_(0, codes, embeddings.detach().double() * weights.double()[:, None])
    return torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-300)[:, None], otherwise.double()).float()


class NoisyCodes:
    """Torch twin of the categorical mechanism on a code table, for training and evaluation."""

    def __init__(self, codes: torch.Tensor, mechanism: CategoricalMechanism) -> None:
        self.codes, self.mechanism = codes, mechanism
        # float32 probabilities are accurate enough for training; no released bit comes from here.
        self.replaced = torch.tensor([value / PROBABILITY_ONE for value in mechanism.noise_numerators])
        self.replaced = self.replaced.to(codes.device)

    def sample(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw released codes (..., M), int64, for token ids (...)."""
        own = self.codes[tokens]
        uniform = torch.randint(self.mechanism.codes, own.shape, generator=generator, device=own.device)
        draws = torch.rand(own.shape, generator=generator, device=own.device)
        return torch.where(draws < self.replaced, uniform, own)


class DecodeTable(nn.Module):
    """Torch twin of the decoder kind ``lookup``: one embedding for each released code."""

    def __init__(self, codes: torch.Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes)

    @classmethod
    def posterior_mean(
        cls, codes: torch.Tensor, centers: torch.Tensor, weights: torch.Tensor, mechanism: CategoricalMechanism
    ) -> DecodeTable:
        """Return the table of E[center of the token's code | released code] for each column."""
        rows = []
        for column, numerator in enumerate(mechanism.noise_numerators):
            replaced = numerator / PROBABILITY_ONE
            mass = torch.zeros(mechanism.codes, device=centers.device)
            mass.index_add_(0, codes[:, column], weights.float().to(centers.device))
            joint = (1.0 - replaced) * torch.diag(mass) + replaced / mechanism.codes * mass
            rows.append((joint / joint.sum(dim=1, keepdim=True)) @ centers[column])
        return cls(torch.stack(rows))

    def forward(self, released: torch.Tensor) -> torch.Tensor:
        """Return embeddings (..., b) of released codes (..., M)."""
        rows: torch.Tensor = self.codes[0][released[..., 0]]
        for column in range(1, len(self.codes)):
            rows = rows + self.codes[column][released[..., column]]
        return rows


def read_codes(
    lm: BaseLM,
    examples: Examples | Iterable[Examples],
    noisy: NoisyCodes,
    table: DecodeTable,
    rows: torch.Tensor,
    *,
    seed: int,
) -> float:
    """Return the perplexity of ``examples`` behind the noise; a seed always draws the same one."""

    def reading(part: Examples, index: int) -> Read:
        released = noisy.sample(part.prompts, step_generator(seed, index, part.tokens.device))
        return lambda pick: table(pick(released))

    return read_examples(lm, examples, reading, rows)


def train_codes(
    lm: FrozenLM,
    name: str,
    config: CodesConfig,
    output: Path,
    *,
    task: str = "general",
    chat: Conversations | None = None,
    start: Path | None = None,
    progress: bool = True,
) -> CodesResult:
    """Train a variant of codes into ``output``, from which ``assemble_bundle`` takes it.

    With ``chat``, its answers are learned and judged instead of the continuations of the LM's text,
    or, with ``config.chat_share``, beside them. Soft prompt and adapter of the variant in ``start``
    are the first ones, and so are its codes and decode table if ``config`` forms codes alike.
    """
    torch.manual_seed(config.seed)
    device, unigram = lm.embeddings.device, lm.unigram()
    mechanism = CategoricalMechanism.from_epsilon(config.epsilon, bits=config.bits, dim=config.columns)
    source = source_of(lm, config, chat)
    known, arrays = (None, {}) if start is None else load_codes(start, lm, rows=config.rows)
    if known is not None and known.config.forms_like(config):
        codes, lm_prior = torch.from_numpy(arrays["levels"]).long().to(device), known.lm_prior
        table = DecodeTable(torch.from_numpy(arrays["codes"]).float())
    else:
        formed = form_codes(lm, config, mechanism, _aside if progress else _silent)
        codes, table = formed.codes, DecodeTable.posterior_mean(formed.codes, formed.centers, unigram, mechanism)
        lm_prior = formed.lm_prior
    first = lm.frequent_rows(config.rows) if known is None else torch.from_numpy(arrays["soft_prompt"]).to(device)
    noisy, table = NoisyCodes(codes, mechanism), table.to(device)
    rows, none = nn.Parameter(first, requires_grad=config.rows > 0), lm.embeddings[:0]

    def perplexity(examples: Examples | Iterable[Examples], soft_prompt: torch.Tensor, seed: int) -> float:
        return read_codes(lm, examples, noisy, table, soft_prompt.detach(), seed=seed)

    def loss(examples: Examples, generator: torch.Generator) -> torch.Tensor:
        shard = current_shard()
        released = shard.of(noisy.sample(examples.prompts, generator))
        with products(device, config.bf16):
            return examples.of(shard).loss(lm.model, lambda pick: table(pick(released)), rows)

    clean, begun_at = read_clear(lm, source.test, none), perplexity(source.test, none, config.seed + 2)
    surface = AttackSurface(
        table=codes.cpu().numpy(),
        weight=None,
        bias=None,
        embeddings=lm.embeddings.detach().cpu().numpy(),
        log_prior=unigram.log().float().cpu().numpy(),
    )
    begun = None if start is None or known is None else load_adapter(start, lm, known.config)
    with training_adapter(lm, config, begun) as adapter:
        best = train_rows(
            lm,
            source,
            RowsRun(name, output, config, {"codes": mechanism.codes, **started_from(start)}, progress),
            Trained(rows, [("codes", table.codes)], adapter),
            loss,
            lambda parts: math.log(perplexity(parts, rows, config.seed + 1)),
        )
        result = CodesResult(
            name=name,
            task=task,
            config=config,
            noise_numerators=mechanism.noise_numerators,
            epsilon=mechanism.epsilon,
            entropy=_entropy(codes, lm.train),
            held_out_loss=best,
            model_sha256=lm.checksum,
            text_sha256=lm.text_sha256,
            ppl_clean=clean,
            ppl_start=begun_at,
            ppl_decoder=perplexity(source.test, none, config.seed + 2),
            ppl_soft_prompt=perplexity(source.test, rows, config.seed + 2),
            recovery=recovery(mechanism, surface, attacked_tokens(lm.test, attacked_count(lm))),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            chat_sha256=None if chat is None else chat.sha256,
            lm_prior=lm_prior,
        )
        current_shard().once(lambda: save_adapter(output, adapter))

    def write() -> None:
        save_arrays({"levels": codes.cpu().numpy().astype(np.uint8)}, output / CODES_FILE)
        save_arrays({"soft_prompt": rows.detach().cpu().numpy()}, output / SOFT_PROMPT_FILE)
        save_arrays({"codes": table.codes.detach().cpu().half().numpy()}, output / DECODER_FILE)
        write_result(output, result)

    current_shard().once(write)
    return result


def _entropy(codes: torch.Tensor, tokens: torch.Tensor) -> float:
    """Return the entropy in bits of the codes of ``tokens``, all columns together."""
    _, counts = torch.unique(codes[tokens.to(codes.device)], dim=0, return_counts=True)
    shares = counts.double() / counts.sum()
    return float(-(shares * shares.log2()).sum())


def is_codes(directory: Path) -> bool:
    """Return whether ``directory`` holds a finished variant of codes."""
    return (directory / VARIANT_FILE).is_file() and "mechanism" in read_json(directory / VARIANT_FILE, "codes")


def load_codes(directory: Path, lm: BaseLM, *, rows: int | None = None) -> tuple[CodesResult, dict[str, np.ndarray]]:
    """Load a variant of codes: its result and the arrays ``levels``, ``codes`` and ``soft_prompt``.

    ModelError is raised if it is for another LM, or if its soft prompt has not ``rows`` rows.
    """
    result = CodesResult.from_json(read_json(directory / VARIANT_FILE, "codes"))
    check_model(directory, result.model_sha256, lm)
    if rows is not None and result.config.rows != rows:
        raise ModelError(f"rows of {directory} must be those of the run, {rows}, got {result.config.rows}")
    arrays: dict[str, np.ndarray] = {}
    for file in (CODES_FILE, DECODER_FILE, SOFT_PROMPT_FILE):
        arrays |= load_arrays(directory / file)
    return result, arrays
