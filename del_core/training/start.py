"""The start of stage 2: the output of stage 1 and a decoder before its training."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from del_core.decoders import DECODERS
from del_core.lm.model import BaseLM, FrozenLM
from del_core.lm.noise import NoisyTable, step_generator
from del_core.lm.perplexity import evaluate_perplexity
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import SoftPromptConfig, StageConfig
from del_core.training.decoders import TrainableDecoder, TrainableInputs, new_decoder
from del_core.training.projection import Projection, load_projection
from del_core.training.results import EncoderResult, read_projection_result

START_FILE = "decoder_start.safetensors"
_NORM_FACTORS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class DecoderStart:
    """A decoder and a soft prompt (rows, b) that were trained together with an encoder."""

    kind: str
    tensors: Mapping[str, torch.Tensor]
    norm_limit: float
    soft_prompt: torch.Tensor


@dataclass(frozen=True, eq=False)
class Stage1:
    """The output of stage 1; ``start`` is None for a projection that was trained without noise."""

    projection: Projection
    start: DecoderStart | None = None

    def start_for(self, kind: str) -> DecoderStart | None:
        """Return the start if a decoder of ``kind`` can continue from it."""
        return self.start if self.start is not None and self.start.kind in DECODERS[kind].continues else None

    def noisy(self, lm: FrozenLM, mechanism: Mechanism) -> NoisyTable:
        """Return the table of the vocabulary with the noise of ``mechanism``."""
        return NoisyTable(self.projection.table(lm.embeddings, MAX_LEVEL).to(lm.embeddings.device), mechanism)

    def inputs(self, lm: FrozenLM, noisy: NoisyTable, norm_limit: float) -> TrainableInputs:
        """Return the parts from which a decoder behind the projection starts."""
        decoder = self.projection.decoder
        return TrainableInputs(decoder.weight, decoder.bias, noisy, norm_limit, lm.embeddings, lm.unigram())


def load_stage1(directory: Path, lm: BaseLM) -> Stage1:
    """Load the output of ``train_projection`` or ``train_encoder``; see :func:`load_projection`."""
    projection, result = load_projection(directory, lm), read_projection_result(directory)
    if not isinstance(result, EncoderResult):
        return Stage1(projection)
    tensors = load_file(directory / START_FILE)
    soft_prompt = tensors.pop("soft_prompt")
    return Stage1(projection, DecoderStart(result.config.decoder, tensors, result.norm_limit, soft_prompt))


def first_rows(lm: FrozenLM, start: DecoderStart | None, rows: int) -> torch.Tensor:
    """Return the soft prompt of ``start`` if it has ``rows`` rows, else frequent tokens."""
    if start is None or len(start.soft_prompt) != rows:
        return lm.frequent_rows(rows)
    return start.soft_prompt.to(lm.embeddings.device, copy=True)


@dataclass(frozen=True, eq=False)
class NoisyPrompt:
    """The embeddings that the LM reads in place of private tokens, and the soft prompt before."""

    noisy: NoisyTable
    decoder: TrainableDecoder
    soft_prompt: torch.Tensor | None = None

    def perplexity(self, lm: FrozenLM, windows: torch.Tensor, prompt_tokens: int, *, seed: int) -> float:
        """Measure the perplexity of continuations; a seed always draws the same noise."""
        batches = 0

        def embed(tokens: torch.Tensor) -> torch.Tensor:
            nonlocal batches
            batches += 1
            y: torch.Tensor = self.decoder(self.noisy.sample(tokens, step_generator(seed, batches, tokens.device)))
            return lm.begin(y)

        return evaluate_perplexity(lm.model, windows, prompt_tokens, embed, self.soft_prompt)


def calibrate_norm_limit(
    lm: FrozenLM, stage1: Stage1, noisy: NoisyTable, windows: torch.Tensor, config: StageConfig
) -> float:
    """Return the norm limit R of least perplexity from a grid of multiples of the table's norm."""
    # Without a limit, noisy counts dequantize to rows that dominate everything else the LM reads.
    longest = float((noisy.levels.float() / noisy.mechanism.max_level).norm(dim=1).max())

    @functools.cache
    def perplexity(factor: float) -> float:
        prompt = NoisyPrompt(noisy, new_decoder("linear", stage1.inputs(lm, noisy, factor * longest)))
        return prompt.perplexity(lm, windows, config.prompt_tokens, seed=config.seed + 1)

    place = _NORM_FACTORS.index(1.0)
    for step in (-1, 1):  # downhill: the perplexity has one minimum over the grid
        while 0 <= place + step < len(_NORM_FACTORS) and (
            perplexity(_NORM_FACTORS[place + step]) < perplexity(_NORM_FACTORS[place])
        ):
            place += step
    return longest * _NORM_FACTORS[place]


def start_decoder(
    lm: FrozenLM, stage1: Stage1, noisy: NoisyTable, windows: torch.Tensor, config: SoftPromptConfig
) -> TrainableDecoder:
    """Return the decoder that stage 1 has trained, or one of the best norm limit and blend."""
    start = stage1.start_for(config.decoder)
    if DECODERS[config.decoder].refits_norm_limit:
        start = None  # the projection holds D and a'
    norm_limit = start.norm_limit if start else calibrate_norm_limit(lm, stage1, noisy, windows, config)
    decoder = new_decoder(config.decoder, stage1.inputs(lm, noisy, norm_limit), config.decoder_options)
    if start:
        decoder.start_from(start.tensors)
        return decoder

    def perplexity(blend: float) -> float:
        decoder.set_blend(blend)
        return NoisyPrompt(noisy, decoder).perplexity(lm, windows, config.prompt_tokens, seed=config.seed + 1)

    if decoder.blends:
        decoder.set_blend(min(decoder.blends, key=perplexity))
    return decoder
