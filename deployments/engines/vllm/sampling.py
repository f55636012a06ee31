"""Sampling with a seed whose draw at a position depends on nothing but seed and position; runs inside vLLM.

vLLM's own seeded sampling advances one generator per request, token by token, so a completion that is resumed on
another replica would draw other numbers than the undisturbed one. Here the draw for the t-th token of a completion is a
function of (seed, t), and a completion that is resumed after k tokens goes on at t = k with what it would have drawn.

The method is Gumbel-max (Gumbel 1954; Maddison et al., "A* Sampling", NeurIPS 2014, section 2): with logits l (V,),
temperature T and independent standard Gumbel g (V,),

    argmax_v (l_v / T + g_v)  ~  softmax(l / T),        g = -log(e),  e ~ Exponential(1)

so the engine is told to decode greedily, and this processor adds the noise to the logits before. ``top_p`` removes
tokens before the noise is added: those after the most probable ones that together reach ``top_p``.

The same tokens come out as long as the logits do up to rounding: a resumed prompt is computed in one pass where the
undisturbed one was computed token by token. In float32 the rounding is about 1e-6 of a logit and practically never
decides; in bfloat16 it can, as it can for greedy decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

__all__ = ["SeededSampling", "extra_args", "gumbel_logits"]

_KEY = "del_seeded"


@dataclass(frozen=True, slots=True)
class _Row:
    """One request of the batch: how it samples, and the engine's own list of its output, which grows."""

    seed: int
    position: int
    temperature: float
    top_p: float
    output: Sequence[int] = field(repr=False)


def extra_args(seed: int, position: int, temperature: float, top_p: float) -> dict[str, Any]:
    """``SamplingParams.extra_args`` for a completion whose first token is the ``position``-th (from 0)."""
    return {_KEY: [seed, position, temperature, top_p]}


def gumbel_logits(logits: torch.Tensor, seed: int, position: int, temperature: float, top_p: float) -> torch.Tensor:
    """Perturbed logits (V,), whose argmax is the sample for this seed and position.

    ``logits`` (V,) float32; ``temperature`` > 0; ``top_p`` in (0, 1].
    """
    logits = logits / temperature
    if top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays if those before it have less than top_p together; so the first one always does.
        removed = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.index_fill(-1, order[removed], -torch.inf)
    digest = hashlib.blake2b(b"%d %d" % (seed, position), digest_size=8).digest()
    generator = torch.Generator(device=logits.device).manual_seed(int.from_bytes(digest, "little") >> 1)
    return logits - torch.empty_like(logits).exponential_(generator=generator).log_()


class SeededSampling(LogitsProcessor):
    """vLLM's hook: perturbs the rows of requests that carry :func:`extra_args`, and costs the others nothing."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """It exists to change the argmax."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """See ``LogitsProcessor``."""
        process_dict_updates(self._rows, batch_update, _row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Perturb ``logits`` (batch, V) in place."""
        for index, row in self._rows.items():
            position = row.position + len(row.output)
            logits[index] = gumbel_logits(logits[index], row.seed, position, row.temperature, row.top_p)
        return logits


def _row(parameters: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Row | None:
    given = (parameters.extra_args or {}).get(_KEY)
    if given is None:
        return None
    seed, position, temperature, top_p = given
    return _Row(seed, position, temperature, top_p, output)
