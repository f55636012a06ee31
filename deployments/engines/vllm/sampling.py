"""vLLM's sampling parameters, and seeded sampling that depends on seed and position only.

vLLM's seeded sampling advances one generator per request, token by token, so a completion that
resumes on another replica would draw other numbers. Here the draw for the t-th token of a
completion is a function of (seed, t), also after a resumption.

The method is Gumbel-max (Gumbel 1954; Maddison et al., "A* Sampling", NeurIPS 2014, section 2).
With logits l (V,), temperature T and independent standard Gumbel g (V,),

    argmax_v (l_v / T + g_v)  ~  softmax(l / T),        g = -log(e),  e ~ Exponential(1)

vLLM decodes greedily after the logits processor has added the noise; ``min_p``, ``top_k`` and
``top_p`` remove tokens before, in vLLM's order. A resumed prompt is computed in one pass, an
undisturbed completion token by token, so their logits differ by rounding: about 1e-6 in float32,
which practically never decides. In bfloat16 it can, as in greedy decoding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from deployments.engines.base import EngineSampling
from deployments.engines.vllm.adjustment import adjustment_args
from deployments.engines.vllm.rows import RowsProcessor

_KEY = "del_seeded"
_GREEDY_BELOW = 1e-5  # vLLM decodes greedily below this temperature


def sampling_params(sampling: EngineSampling) -> SamplingParams:
    draw: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
    }
    arguments = adjustment_args(sampling.adjustment)
    if sampling.seed is not None and sampling.temperature >= _GREEDY_BELOW:
        arguments |= extra_args(sampling.seed, sampling.position, Cut(**draw))
        draw = {"temperature": 0.0}
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        **draw,
        extra_args=arguments or None,
        logprobs=sampling.logprobs,
        stop_token_ids=list(sampling.stop_token_ids),
        # The end-of-text ids are among the stop ids where they apply.
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        # The parameters belong to this request alone.
        skip_clone=True,
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """The distribution to sample from: temperature, and which tokens are left out."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class _Row:
    """Sampling of one request of the batch, with the engine's growing list of its output."""

    seed: int
    position: int
    cut: Cut
    output: Sequence[int] = field(repr=False)


def extra_args(seed: int, position: int, cut: Cut) -> dict[str, Any]:
    """Return ``extra_args`` of a completion that continues at ``position`` (from 0)."""
    return {_KEY: [seed, position, *astuple(cut)]}


def gumbel_logits(logits: torch.Tensor, seed: int, position: int, cut: Cut) -> torch.Tensor:
    """Return perturbed logits (V,), float32, whose argmax is the sample for seed and position."""
    logits = logits / cut.temperature
    if cut.min_p > 0.0:
        # p >= min_p max(p) in logarithms
        logits = logits.masked_fill(logits < logits.max() + math.log(cut.min_p), -torch.inf)
    if 0 < cut.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(cut.top_k).values[-1], -torch.inf)
    if cut.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays if the ones before it have less than top_p together.
        removed = probabilities.cumsum(-1) - probabilities >= cut.top_p
        logits = logits.index_fill(-1, order[removed], -torch.inf)
    digest = hashlib.blake2b(b"%d %d" % (seed, position), digest_size=8).digest()
    generator = torch.Generator(device=logits.device).manual_seed(int.from_bytes(digest, "little") >> 1)
    return logits - torch.empty_like(logits).exponential_(generator=generator).log_()


class SeededSampling(RowsProcessor[_Row]):
    """Logits processor that perturbs the rows of requests with :func:`extra_args` only."""

    @staticmethod
    def row_of(parameters: SamplingParams, output: list[int]) -> _Row | None:
        given = (parameters.extra_args or {}).get(_KEY)
        if given is None:
            return None
        seed, position, *cut = given
        return _Row(seed, position, Cut(*cut), output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Perturb ``logits`` (batch, V) in place."""
        for index, row in self.rows.items():
            position = row.position + len(row.output)
            logits[index] = gumbel_logits(logits[index], row.seed, position, row.cut)
        return logits
