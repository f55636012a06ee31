"""What the language model reads in place of private tokens, and what training changes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from benchmarks.privacy_utility.baselines import GaussianNoise, MetricNoise
from del_core.bundle import Bundle
from del_core.lm.model import FrozenLM
from del_core.lm.noise import NoisyTable
from del_core.mechanism import BinomialMechanism, CategoricalMechanism
from del_core.training.codes import DecodeTable, NoisyCodes
from del_core.training.decoders import TrainableDecoder, TrainableInputs, new_decoder

__all__ = ["ClearReader", "CodesReader", "CountsReader", "DecodedReader", "NoisyReader", "Reader"]


class Reader(Protocol):
    """A release of tokens and its decoder."""

    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return what training changes, by name."""

    def release(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one noisy release of tokens (...): (..., columns)."""

    def read(self, released: torch.Tensor) -> torch.Tensor:
        """Return embeddings (..., b) of a release."""


class ClearReader:
    """The tokens' own embeddings."""

    def __init__(self, lm: FrozenLM) -> None:
        self._embeddings = lm.embeddings

    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return nothing."""
        return ()

    def release(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the tokens."""
        return tokens

    def read(self, released: torch.Tensor) -> torch.Tensor:
        """Return rows of the model's table."""
        return self._embeddings[released]


class DecodedReader:
    """Counts of a table behind a decoder, which may be trained."""

    def __init__(self, noisy: NoisyTable, decoder: TrainableDecoder) -> None:
        self._noisy, self.decoder = noisy, decoder

    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return what the decoder trains."""
        return self.decoder.trained()

    def release(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return dequantized coordinates."""
        return self._noisy.sample(tokens, generator)

    def read(self, released: torch.Tensor) -> torch.Tensor:
        """Return decoded rows."""
        rows: torch.Tensor = self.decoder(released)
        return rows


class CountsReader(DecodedReader):
    """Counts of the shipped table behind the linear decoder of a shipped variant.

    As published, stage 2 keeps the linear decoder; otherwise it is trained along.
    """

    def __init__(
        self, lm: FrozenLM, bundle: Bundle, mechanism: BinomialMechanism, start: str, *, published: bool
    ) -> None:
        table = torch.from_numpy(bundle.client.table_of(start).copy())
        noisy, tensors = NoisyTable(table, mechanism), bundle.decoder(start)
        inputs = TrainableInputs(
            torch.from_numpy(tensors["weight"]),
            torch.from_numpy(tensors["bias"]),
            noisy,
            bundle.norm_limit(start),
            lm.embeddings,
            torch.from_numpy(bundle.log_prior).exp(),
        )
        decoder = new_decoder("linear", inputs)
        if not published:
            decoder.train_jointly()
        super().__init__(noisy, decoder)


class CodesReader:
    """Codes (V, 1) behind a decode table, first the posterior mean of ``centers`` (1, K, b)."""

    def __init__(
        self, codes: torch.Tensor, centers: torch.Tensor, prior: torch.Tensor, mechanism: CategoricalMechanism
    ) -> None:
        self._noisy = NoisyCodes(codes, mechanism)
        self.table = DecodeTable.posterior_mean(codes, centers, prior, mechanism)

    @classmethod
    def shipped(cls, bundle: Bundle, name: str) -> CodesReader:
        """Return the reader of a bundle's variant of codes, with its trained decode table."""
        codes = torch.from_numpy(bundle.client.table_of(name).astype(np.int64))
        mechanism, decode = bundle.mechanism(name), torch.from_numpy(bundle.decoder(name)["codes"].copy())
        assert isinstance(mechanism, CategoricalMechanism)
        found = cls(codes, decode, torch.from_numpy(bundle.log_prior).exp(), mechanism)
        found.table = DecodeTable(decode)
        return found

    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return the decode table."""
        return [("codes", self.table.codes)]

    def release(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return released codes."""
        return self._noisy.sample(tokens, generator)

    def read(self, released: torch.Tensor) -> torch.Tensor:
        """Return rows of the decode table."""
        rows: torch.Tensor = self.table(released)
        return rows


class NoisyReader:
    """Noise on the model's own embeddings behind a finish; nothing is trained."""

    def __init__(self, noise: GaussianNoise | MetricNoise) -> None:
        self._noise = noise

    def parameters(self) -> Sequence[tuple[str, nn.Parameter]]:
        """Return nothing."""
        return ()

    def release(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return noisy embeddings after the finish."""
        return self._noise.embed(tokens, generator)

    def read(self, released: torch.Tensor) -> torch.Tensor:
        """Return them as they are."""
        return released
